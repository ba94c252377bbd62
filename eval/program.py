"""A jitted program that knows how many executables it has cost and how much memory they take."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Memory(NamedTuple):
    """Bytes that a program takes beside its arguments; 0 where the backend does not tell."""

    temporaries: int = 0
    results: int = 0


class Program:
    """f under jit at one matrix-product precision, the same for dense and degraded evaluation.

    Compiled ahead of time, once per structure, shapes and types of the arguments: only so does jax tell an
    executable's memory.
    """

    def __init__(self, f: Callable, precision: str):
        def traced(*args):
            with jax.default_matmul_precision(precision):
                return f(*args)

        traced.__name__ = getattr(f, "__name__", type(f).__name__)  # as profiles and logs of jax tell it
        self.jitted = jax.jit(traced)
        self._executables: dict[Any, Any] = {}
        self._last: Any = None

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        signature = structure, tuple((np.shape(leaf), jax.typeof(leaf).dtype) for leaf in leaves)
        if signature not in self._executables:
            self._executables[signature] = self.jitted.lower(*args).compile()
        self._last = self._executables[signature]
        return self._last(*args)

    def executables(self) -> int:
        """How many have been compiled so far."""
        return len(self._executables)

    def memory(self) -> Memory:
        """Of the executable that ran last."""
        analysis = self._last and self._last.memory_analysis()
        return Memory(analysis.temp_size_in_bytes, analysis.output_size_in_bytes) if analysis else Memory()
