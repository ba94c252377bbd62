"""The sweep engine: three executables make a curve point, one per (shape, method) that degrades, and per shape one
that counts the cost and one that measures.

Severity, draw key, selector and parameters are their arguments, so severities, draws and seeds never recompile, and
methods whose edits have the same fields share what counts and measures them.  A degradation is applied once per
point, outside the loop over batches; no weights return to the host.  A point starts at the first layer that it
changes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.measure import Batches, Measured, OfTrained, forward, insides, measure, of_trained
from wane.eval.metrics import METRICS, OURS, compares, reads_streams
from wane.eval.metrics.contract import Weights
from wane.scaling.degrade.contract import Cost, Degradation, Fitted, Where
from wane.scaling.degrade.cost import CostOf
from wane.scaling.edit import Edit, Params, filled
from wane.scaling.model import apply, init_params
from wane.scaling.program import Program
from wane.scaling.shape import Shape

Severity = float | tuple[float, float]  # of a composition, one of each method

NOTHING = OfTrained()  # is read of the trained model


class Start(NamedTuple):
    """Where a point starts.  below: which residual stream it takes, l = the one that enters block l; first: the
    first block that runs on it, n_layers where none does (an exit)."""

    below: int
    first: int


class Point(NamedTuple):
    """One curve point."""

    measured: Measured
    cost: Cost


class Engine:
    """The jitted programs of one (shape, degradation, metrics).  Hold one per sweep; they are shared by
    `engine` below, so that every member of a shape reuses the executables.

    points: how many severities one call computes (1 on CPU, where `vmap` is slower than a loop).
    """

    def __init__(
        self, shape: Shape, degradation: Degradation, metrics: tuple[str, ...], precision: str, points: int
    ):
        self.shape, self.degradation, self.points = shape, degradation, points
        words = degradation.computes
        self.fit = Program(degradation.fit, precision, computes=words and f"fit {words}")
        direction = degradation.direction and of_batches(degradation.direction)
        self.direction = direction and Program(direction, precision, computes=words and f"direction {words}")
        degrade = each(points, counted(degradation), (None, None, 0, None, None))
        self.degrade = Program(degrade, precision, computes=words and f"{points} times {words}")
        self.cost = costing(degradation.cost, precision, points)
        self.measure = measuring(shape, metrics, precision, points)
        self.measure_from = measuring_from(shape, metrics, precision, points)
        self._measured = self.measure
        self.inside = bool(insides(metrics))
        self.needs_streams, self.compares = reads_streams(metrics), compares(metrics)

    def known(self, params: Params, fitted: Fitted, batches: Batches) -> Batches:
        """With what is found once for all severities: the direction in which inputs are moved."""
        if not self.direction:
            return batches
        return batches._replace(direction=self.direction(params, fitted, batches))

    def sweep(
        self, params: Params, fitted: Fitted, severities: Sequence[Severity], where: Where, key: Array,
        batches: Batches, stream: Array | None, starts: Sequence[Start] = (), trained: OfTrained = NOTHING,
    ) -> Iterator[Point]:  # fmt: skip
        """One Point per severity.  stream: `streams(...)` of the same batches; without starts only the last of it
        where `needs_streams` is False, and None where `compares` is.  starts: of each severity; none: all blocks
        run.  trained: `of_trained` of the same batches."""
        for first in range(0, len(severities), self.points):
            chunk = slice(first, first + self.points)
            edit, cost = self.degraded(params, fitted, severities[chunk], where, key)
            self._measured = self.measure_from if starts else self.measure
            if starts:
                entry = self._argument(starts[chunk], np.int32).T
                measured = self.measure_from(params, edit.acting(), batches, stream, trained, *entry)
            else:
                measured = self.measure(params, edit.acting(), batches, stream, trained)
            point = Point(measured, cost)
            if self.points == 1:
                yield point
            else:
                yield from (jax.tree.map(itemgetter(i), point) for i in range(len(severities[chunk])))

    def degraded(
        self, params: Params, fitted: Fitted, severities: Sequence[Severity], where: Where, key: Array
    ) -> tuple[Edit, Cost]:
        """What is done to the model at the severities of one call, and what that takes."""
        severity = self._argument(severities, np.float32)
        edit = self.degrade(params, fitted, severity, where, key)
        if self.points == 1:
            edit = filled(edit, params, self.shape)
        return edit, self.cost(params, edit, severity)

    def starts(self, severities: Sequence[Severity], layer: int | None) -> list[Start]:
        """Where points may start that degrade one layer, or (None) all of the scope; empty where that is the
        first block, and where a metric looks inside of all of them."""
        if self.inside:
            return []
        first = self.degradation.scope.layer_range(self.shape)[0] if layer is None else layer
        if layer is None and self.degradation.exit is not None:
            exits = [int(self.degradation.exit(jnp.float32(severity))) for severity in severities]
            return [Start(exit, self.shape.n_layers) for exit in exits]
        return [Start(first, first)] * len(severities) if first and self.degradation.local else []

    def executables(self) -> int:
        """How many the degradation has cost so far."""
        return self.degrade.executables()

    def fit_memory(self) -> int:
        """Bytes that what is done before the points took: the fit, and finding a direction."""
        before = (self.fit, self.direction) if self.direction else (self.fit,)
        return max(sum(program.memory()) for program in before)

    def memory(self) -> int:
        """Bytes that the last point took beside parameters, batches and streams: its edit stands while it is
        counted and measured."""
        degrading, then = self.degrade.memory(), (self.cost.memory(), self._measured.memory())
        return max(sum(degrading), *(degrading.results + sum(program) for program in then))

    def _argument(self, values: Sequence, dtype: type) -> np.ndarray:
        """The values of one call: one of them, or [points, ..] with the last one repeated."""
        if self.points == 1:
            return np.asarray(values[0], dtype)
        return np.asarray(list(values) + [values[-1]] * (self.points - len(values)), dtype)


@functools.lru_cache(maxsize=64)
def engine(
    shape: Shape, degradation: Degradation, metrics: tuple[str, ...], precision: str, points: int
) -> Engine:
    """The engine of a (shape, degradation), shared in the process.  Degradation objects hash by identity:
    pass the one that `wane.scaling.degrade.build` caches."""
    return Engine(shape, degradation, metrics, precision, points)


def of_batches(direction: Callable[[Params, Fitted, Array], Array]) -> Callable[..., Array]:
    """`Degradation.direction` of every batch, [n, B, S, D]."""

    def directions(params, fitted, batches):
        return lax.map(lambda batch: direction(params, fitted, batch.tokens[:, :-1]), batches)

    return directions


def each(points: int, f: Callable, axes: tuple[int | None, ...]) -> Callable:
    """f of every point; one point needs no `vmap` and its arrays have no axis for it."""
    return f if points == 1 else jax.vmap(f, in_axes=axes)


def counted(degradation: Degradation) -> Callable[..., Edit]:
    """degradation.apply without what neither the forward pass nor the cost reads."""

    def degrade(params, fitted, severity, where, key):
        return degradation.apply(params, fitted, severity, where, key).counted()

    return degrade


@functools.lru_cache(maxsize=64)
def costing(cost: Callable[[Params, Edit, Array], Cost], precision: str, points: int) -> Program:
    """(params, edits, severities) -> costs; one program for all methods whose costs are equal."""
    computes = cost.computes and f"{points} times {cost.computes}" if isinstance(cost, CostOf) else None
    return Program(each(points, cost, (None, 0, 0)), precision, computes=computes)


def measurement(what: str, shape: Shape, metrics: tuple[str, ...], points: int) -> str | None:
    """What a program computes, as `wane.scaling.executables` wants it said; None with a metric that was added from
    elsewhere, since its name does not say what it does."""
    ours = all(METRICS[name] in OURS for name in metrics)
    return f"{what} {metrics} of {shape}, {points} points" if ours else None


@functools.lru_cache(maxsize=32)
def measuring(shape: Shape, metrics: tuple[str, ...], precision: str, points: int) -> Program:
    """(params, edits, batches, stream, trained) -> what of each point its metrics measure, all but its cost."""

    def program(params, edit, batches, stream, trained):
        def run(batch, index):
            full = None if stream is None else stream[:, index]
            return forward(shape, metrics, params, edit, batch) | {"stream": full}

        return measure(shape, metrics, params, edit, run, batches, trained)

    computes = measurement("measuring", shape, metrics, points)
    return Program(each(points, program, (None, 0, None, None, None)), precision, computes=computes)


@functools.lru_cache(maxsize=32)
def measuring_from(shape: Shape, metrics: tuple[str, ...], precision: str, points: int) -> Program:
    """(params, edits, batches, stream, trained, below, first): `measuring` of points that start in mid-model."""

    def program(params, edit, batches, stream, trained, below, first):
        def run(batch, index):
            start = first, stream[below, index]
            out = apply(params, batch.tokens_BT[:, :-1], shape, edit, start=start)
            return {"x_BSD": out.x_BSD, "stream": stream[:, index]}

        return measure(shape, metrics, params, edit, run, batches, trained)

    computes = measurement("measuring_from", shape, metrics, points)
    return Program(each(points, program, (None, 0, None, None, None, 0, 0)), precision, computes=computes)


@functools.lru_cache(maxsize=32)
def plain(shape: Shape, metrics: tuple[str, ...], precision: str) -> Program:
    """(params, batches) -> what is measured of the undegraded model: what a point is compared with in `bench`."""

    def program(params, batches):
        def run(batch, _):
            seen = forward(shape, metrics, params, Edit(), batch)
            return seen | {"stream": seen["x_BSD"][None]}

        return measure(shape, metrics, params, Edit(), run, batches, NOTHING)

    return Program(program, precision)


@functools.lru_cache(maxsize=32)
def summing(shape: Shape, metrics: tuple[str, ...], precision: str) -> Program:
    """(params, batches, the undegraded stream or None) -> what all points' metrics read of the trained model."""

    def program(params, batches, stream):
        return of_trained(shape, metrics, params, batches, stream)

    return Program(program, precision, computes=measurement("summing", shape, metrics, 1))


@functools.lru_cache(maxsize=32)
def of_initial(shape: Shape, metrics: tuple[str, ...], precision: str) -> Program:
    """seed -> the values of these statistics of the parameters that training starts from, one after the other."""

    def program(seed):
        params = init_params(jax.random.key(seed), shape)
        weights = Weights(shape, params, params, Edit())
        return jnp.concatenate([jnp.ravel(METRICS[name].values(None, weights)) for name in metrics])

    return Program(program, precision, computes=measurement("of_initial", shape, metrics, 1))


@functools.lru_cache(maxsize=32)
def undegraded(shape: Shape, precision: str) -> Program:
    """(params, batches) -> residual stream after the last block, [n, B, S, D]; shared by all points."""

    def forward(params, batches):
        return lax.map(lambda b: apply(params, b.tokens[:, :-1], shape).x_BSD, batches)

    return Program(forward, precision, computes=f"undegraded of {shape}")


@functools.lru_cache(maxsize=32)
def streams(shape: Shape, precision: str) -> Program:
    """(params, batches) -> the residual stream that enters every block and, last, that behind all of them,
    [L + 1, n, B, S, D].  Same bits as inside the full forward."""

    def forward(params, batches):
        def one(batch):
            out = apply(params, batch.tokens[:, :-1], shape)
            return jnp.concatenate([out.inner["block_in"], out.x_BSD[None]])

        return jnp.moveaxis(lax.map(one, batches), 1, 0)

    return Program(forward, precision, computes=f"streams of {shape}")
