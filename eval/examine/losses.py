"""The rise of the loss when something is taken away, from differences of single tokens."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from wane.eval.examine.contract import Examined, Tick
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply, nll
from wane.scaling.program import Program
from wane.scaling.shape import Shape

Removal = Any  # a pytree of arrays, traced: what is taken away
EditOf = Callable[[Params, Removal], Edit]


@functools.lru_cache(maxsize=32)
def token_losses(shape: Shape, edit_of: EditOf, precision: str) -> Program:
    """(params, removal, batches, stream, first) -> f32 [n * B, S]: the loss of every token when the blocks from
    `first` on run without what edit_of(params, removal) takes away.  One executable for all removals."""

    def program(params, removal, batches, stream, first):
        edit = edit_of(params, removal)

        def one(item):
            tokens_BT, index = item
            out = apply(params, tokens_BT[:, :-1], shape, edit, start=(first, stream[first, index]))
            return nll(params, out.x_BSD, tokens_BT, shape)

        n = len(batches.tokens)
        nll_nBS = lax.map(one, (batches.tokens, np.arange(n)))
        return nll_nBS.reshape(-1, nll_nBS.shape[-1])

    return Program(program, precision)


class Losses:
    """Losses of the tokens of one member.  edit_of: a function of a module, for all members; nothing: the removal
    that takes nothing away.

    tasks: "all", the mean over the tasks, and where there are several every one by name; tokens: how many each
    has.  sequences: the indices of those of every task, without "all".  J counts `tasks`.
    """

    def __init__(self, examined: Examined, edit_of: EditOf, nothing: Removal, tick: Tick):
        self._examined, self._tick = examined, tick
        self._program = token_losses(examined.shape, edit_of, examined.precision)
        evaluation = examined.evaluation
        task_N = evaluation.task_N
        names = [task.name for task in evaluation.tasks]
        self.sequences = [np.flatnonzero(task_N == i) for i in range(len(names))]
        self.tasks = ("all", *names) if len(names) > 1 else ("all",)
        self._trained_NS = self._losses(nothing, 0)  # by the same executable, so that nothing costs exactly 0
        tokens = [len(index) * self._trained_NS.shape[1] for index in self.sequences]
        self.tokens = (sum(tokens), *tokens)[: len(self.tasks)]

    def in_all(self, of_tasks: Sequence[float]) -> np.ndarray:
        """[J], float64: before what each task has, the mean over them, in which all weigh the same."""
        return np.array([np.mean(of_tasks), *of_tasks])[: len(self.tasks)]

    def rise(self, removal: Removal, first: int) -> np.ndarray:
        """[J] nats per token: the rise of the mean loss of each task.  first: the layer below which nothing is
        taken away.  Differences are taken token by token: one weight moves the loss by 1e-7 nats."""
        rise_N = (self._losses(removal, first) - self._trained_NS).mean(axis=1)
        return self.in_all([rise_N[index].mean() for index in self.sequences])

    def _losses(self, removal: Removal, first: int) -> np.ndarray:
        examined = self._examined
        args = examined.params, removal, examined.batches, examined.stream, np.int32(first)
        nll_NS = np.asarray(self._program(*args), np.float64)[: len(examined.evaluation.task_N)]
        self._tick(1)
        return nll_NS

    def executables(self) -> int:
        """How many all removals have cost so far, of all members of the shape."""
        return self._program.executables()
