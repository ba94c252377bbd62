"""A jitted program that knows how many executables it has cost and how much memory they take."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from wane.scaling.executables import compiled, signature

# Of XLA on a CPU.  Less optimisation of machine code and the older emitters of fusions compile in half the time and
# run forward passes as fast; a training step is a tenth slower by the older emitters, so that it keeps the others.
LIGHT = {"xla_backend_optimization_level": 1}
LIGHTER = LIGHT | {"xla_cpu_use_fusion_emitters": False}


class Memory(NamedTuple):
    """Bytes that a program takes beside its arguments; 0 where the backend does not tell."""

    temporaries: int = 0
    results: int = 0


class Program:
    """f under jit at one matrix-product precision (None: jax's own), the same for dense and degraded evaluation.

    Compiled ahead of time, once per structure, shapes and types of the arguments: only so does jax tell an
    executable's memory.  computes: see `wane.scaling.executables.compiled`; trains: most of it are gradients;
    options: of `jax.jit`.
    """

    def __init__(
        self,
        f: Callable,
        precision: str | None = None,
        *,
        computes: str | None = None,
        trains: bool = False,
        **options: Any,
    ):
        def traced(*args):
            with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
                return f(*args)

        traced.__name__ = getattr(f, "__name__", type(f).__name__)  # as profiles and logs of jax tell it
        self.jitted = jax.jit(traced, **options)
        self.cpu_options = LIGHT if trains else LIGHTER
        self.computes = computes and f"{computes} at {precision}"
        self._executables: dict[Any, Compiled] = {}
        self._last: Compiled | None = None

    def __call__(self, *args: Any) -> Any:
        return self.executable(*args)(*args)

    def executable(self, *args: Any) -> Compiled:
        """The one for arguments like these, for loops whose arguments do not change their types."""
        of_args = signature(args)
        if of_args not in self._executables:
            self._executables[of_args] = compiled(self.jitted, args, self.computes, self.cpu_options)
        self._last = self._executables[of_args]
        return self._last

    def executables(self) -> int:
        """How many have been compiled so far."""
        return len(self._executables)

    def memory(self) -> Memory:
        """Of the executable that ran last."""
        return _memory(self._last) if self._last else Memory()


@functools.lru_cache(maxsize=256)
def _memory(executable: Compiled) -> Memory:
    """To be told takes milliseconds."""
    analysis = executable.memory_analysis()
    return Memory(analysis.temp_size_in_bytes, analysis.output_size_in_bytes) if analysis else Memory()
