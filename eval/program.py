"""A jitted program that knows how many executables it has cost and how much memory they take."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class Program:
    """f under jit at one matrix-product precision, the same for dense and degraded evaluation.

    Compiled ahead of time, once per structure, shapes and types of the arguments: only so does jax tell an
    executable's memory.
    """

    def __init__(self, f: Callable, precision: str):
        @functools.wraps(f if hasattr(f, "__name__") else f.func)
        def traced(*args):
            with jax.default_matmul_precision(precision):
                return f(*args)

        self.jitted = jax.jit(traced)
        self._executables: dict[Any, Any] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        signature = structure, tuple((np.shape(leaf), jax.typeof(leaf).dtype) for leaf in leaves)
        if signature not in self._executables:
            self._executables[signature] = self.jitted.lower(*args).compile()
        return self._executables[signature](*args)

    def executables(self) -> int:
        """How many have been compiled so far."""
        return len(self._executables)

    def memory(self) -> int:
        """Bytes of temporaries and results of the largest executable; 0 where the backend does not tell."""
        analyses = [executable.memory_analysis() for executable in self._executables.values()]
        return max((a.temp_size_in_bytes + a.output_size_in_bytes for a in analyses if a), default=0)
