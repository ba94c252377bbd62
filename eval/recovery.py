"""Points of a degraded model after a short fine-tune under its degradation, step count by step count."""

import functools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import Array

from wane.eval.measure import Batches, OfTrained
from wane.eval.sweep import Point, costing, measuring
from wane.scaling.degrade.contract import Degradation, Fitted, Where
from wane.scaling.edit import Edit, Params, filled
from wane.scaling.program import Program
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.recover import Recovering, advance, begin, recovered


class Recovery:
    """The programs of recovery of one (shape, degradation): the number of updates is an argument of one
    executable, and a longer recovery goes on where the shorter one ended."""

    def __init__(
        self, shape: Shape, degradation: Degradation, metrics: tuple[str, ...], precision: str, train: Train
    ):
        def start(severity, params, fitted, where, key):
            edit = degradation.apply(params, fitted, severity, where, key)
            return edit, begin(params, edit, shape, train)

        def go_on(state: Recovering, edit: Edit, marked_nBT: Array, until: Array) -> Recovering:
            return advance(state, edit, marked_nBT, until, hold=degradation.hold, shape=shape, train=train)

        def end(edit: Edit, state: Recovering) -> Edit:
            return recovered(state, edit, degradation.hold).counted()

        self.shape = shape
        self.start, self.advance, self.end = (Program(f, precision, trains=True) for f in (start, go_on, end))
        self.cost = costing(degradation.cost, precision, 1)
        self.measure = measuring(shape, metrics, precision, 1)

    def sweep(
        self, params: Params, fitted: Fitted, severity: float, where: Where, key: Array, batches: Batches,
        stream: Array | None, trained: OfTrained, marked_nBT: Array, steps: Sequence[int],
    ) -> Iterator[Point]:  # fmt: skip
        """One Point per number of updates, ascending."""
        edit, state = self.start(jnp.float32(severity), params, fitted, where, key)
        for until in steps:
            state = self.advance(state, edit, marked_nBT, jnp.int32(until))
            tuned = filled(self.end(edit, state), params, self.shape)
            measured = self.measure(params, tuned.acting(), batches, stream, trained)
            yield Point(measured, self.cost(params, tuned, jnp.float32(severity)))


@functools.lru_cache(maxsize=64)
def recovery(
    shape: Shape, degradation: Degradation, metrics: tuple[str, ...], precision: str, train: Train
) -> Recovery:
    """The programs of a (shape, degradation), shared in the process."""
    return Recovery(shape, degradation, metrics, precision, train)
