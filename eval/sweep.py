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

from wane.eval.measure import METRICS, View
from wane.eval.program import Program
from wane.scaling.degrade.contract import Cost, Degradation, Fitted, Where
from wane.scaling.edit import Edit, Params, filled, merge
from wane.scaling.model import apply, nll_of_logits, unembed
from wane.scaling.shape import Shape
from wane.train.data import EvalSet

Severity = float | tuple[float, float]  # of a composition, one of each method


class Batches(NamedTuple):
    """An evaluation set on the device, cut into n batches: tokens [n, B, T], scored and bytes [n, B, S]."""

    tokens: Array
    scored: Array
    bytes: Array

    @staticmethod
    def of(evaluation: EvalSet, batch: int) -> "Batches":
        """N sequences as ceil(N / batch) batches, the last filled with the first sequences again."""
        index = np.arange(-(-len(evaluation.tokens_NT) // batch) * batch) % len(evaluation.tokens_NT)
        arrays = (evaluation.tokens_NT, evaluation.scored_NS, evaluation.bytes_NS)
        return Batches(*(jnp.asarray(a[index].reshape(-1, batch, a.shape[1])) for a in arrays))


class Start(NamedTuple):
    """Where a point starts.  below: which residual stream it takes, l = the one that enters block l; first: the
    first block that runs on it, n_layers where none does (an exit)."""

    below: int
    first: int


class Point(NamedTuple):
    """One curve point: sums and counts [metrics, sequences] and the cost, all f32."""

    sums: Array
    counts: Array
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
        self.fit = Program(degradation.fit, precision)
        self.degrade = Program(each(points, counted(degradation), (None, None, 0, None, None)), precision)
        self.cost = costing(degradation.cost, precision, points)
        self.measure = measuring(shape, metrics, precision, points)
        self.measure_from = measuring_from(shape, metrics, precision, points)
        self._measured = self.measure

    def sweep(
        self, params: Params, fitted: Fitted, severities: Sequence[Severity], where: Where, key: Array,
        batches: Batches, full_x: Array, starts: Sequence[Start] = (), stream: Array | None = None,
    ) -> Iterator[Point]:  # fmt: skip
        """One Point per severity.  full_x: `undegraded(...)` of the same batches.  starts: of each severity, then
        stream is `streams(...)` of the batches; none: all blocks run."""
        for first in range(0, len(severities), self.points):
            chunk = slice(first, first + self.points)
            severity = self._argument(severities[chunk], np.float32)
            edit = self.degrade(params, fitted, severity, where, key)
            if self.points == 1:
                edit = filled(edit, params, self.shape)
            cost = self.cost(params, edit, severity)
            self._measured = self.measure_from if starts else self.measure
            if starts:
                entry = self._argument(starts[chunk], np.int32).T
                sums, counts = self.measure_from(params, edit.acting(), batches, stream, *entry)
            else:
                sums, counts = self.measure(params, edit.acting(), batches, full_x)
            point = Point(sums, counts, cost)
            if self.points == 1:
                yield point
            else:
                yield from (jax.tree.map(itemgetter(i), point) for i in range(len(severities[chunk])))

    def starts(self, severities: Sequence[Severity], layer: int | None) -> list[Start]:
        """Where points may start that degrade one layer, or (None) all of the scope; empty where that is the
        first block."""
        first = self.degradation.scope.layer_range(self.shape)[0] if layer is None else layer
        if layer is None and self.degradation.exit is not None:
            exits = [int(self.degradation.exit(jnp.float32(severity))) for severity in severities]
            return [Start(exit, self.shape.n_layers) for exit in exits]
        return [Start(first, first)] * len(severities) if first and self.degradation.local else []

    def executables(self) -> int:
        """How many the degradation has cost so far."""
        return self.degrade.executables()

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
    return Program(each(points, cost, (None, 0, 0)), precision)


@functools.lru_cache(maxsize=32)
def measuring(shape: Shape, metrics: tuple[str, ...], precision: str, points: int) -> Program:
    """(params, edits, batches, full_x) -> sums and counts [metrics, sequences] of each point."""

    def program(params, edit, batches, full_x):
        def residual(batch, x_BSD):
            return apply(params, batch.tokens[:, :-1], shape, edit).x_BSD, x_BSD

        return measure(shape, metrics, params, edit, residual, batches, full_x)

    return Program(each(points, program, (None, 0, None, None)), precision)


@functools.lru_cache(maxsize=32)
def measuring_from(shape: Shape, metrics: tuple[str, ...], precision: str, points: int) -> Program:
    """(params, edits, batches, stream, below, first): `measuring` for points that start in mid-model."""

    def program(params, edit, batches, stream, below, first):
        def residual(batch, index):
            x_BSD = stream[below, index]
            x_BSD = apply(params, batch.tokens[:, :-1], shape, edit, start=(first, x_BSD)).x_BSD
            return x_BSD, stream[shape.n_layers, index]

        return measure(shape, metrics, params, edit, residual, batches, jnp.arange(stream.shape[1]))

    return Program(each(points, program, (None, 0, None, None, 0, 0)), precision)


@functools.lru_cache(maxsize=32)
def plain(shape: Shape, metrics: tuple[str, ...], precision: str) -> Program:
    """(params, batches) -> sums and counts of the undegraded model: what a point is compared with in `bench`."""

    def program(params, batches):
        def residual(batch, _):
            x_BSD = apply(params, batch.tokens[:, :-1], shape).x_BSD
            return x_BSD, x_BSD

        return measure(shape, metrics, params, None, residual, batches, jnp.arange(len(batches.tokens)))

    return Program(program, precision)


def measure(shape, metrics, params, edit: Edit | None, residual, batches, along) -> tuple[Array, Array]:
    """Sums and counts [metrics, sequences] of one degraded model.  residual(batch, its entry of `along`) -> the
    residual streams behind the last block, degraded and undegraded."""
    degraded = merge(params, edit)

    def one(item):
        batch, x_BSD, full_BSD = item[0], *residual(*item)
        logits = unembed(degraded, x_BSD, shape)
        targets = batch.tokens[:, 1:]
        view = View(
            logits_BSV=logits,
            nll_BS=nll_of_logits(logits, targets),
            full_BSV=unembed(params, full_BSD, shape),
            targets_BS=targets,
            scored_BS=batch.scored,
            bytes_BS=batch.bytes,
        )
        pairs = [METRICS[name].measure(view) for name in metrics]
        return jnp.stack([s for s, _ in pairs]), jnp.stack([c for _, c in pairs])

    sums, counts = lax.map(one, (batches, along))
    flat = lambda a: jnp.moveaxis(a, 1, 0).reshape(len(metrics), -1)  # noqa: E731
    return flat(sums), flat(counts)


@functools.lru_cache(maxsize=32)
def undegraded(shape: Shape, precision: str) -> Program:
    """(params, batches) -> residual stream after the last block, [n, B, S, D]; shared by all points."""

    def forward(params, batches):
        return lax.map(lambda b: apply(params, b.tokens[:, :-1], shape).x_BSD, batches)

    return Program(forward, precision)


@functools.lru_cache(maxsize=32)
def streams(shape: Shape, precision: str) -> Program:
    """(params, batches) -> the residual stream that enters every block and, last, that behind all of them,
    [L + 1, n, B, S, D].  Same bits as inside the full forward."""

    def forward(params, batches):
        def one(batch):
            out = apply(params, batch.tokens[:, :-1], shape)
            return jnp.concatenate([out.inner["block_in"], out.x_BSD[None]])

        return jnp.moveaxis(lax.map(one, batches), 1, 0)

    return Program(forward, precision)
