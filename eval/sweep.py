"""The sweep engine: one executable per (shape, method) computes a curve point.

Severity, draw key, selector and parameters are its arguments, so severities, draws and seeds never recompile.
The degradation is applied once per point, outside the loop over batches, and no weights return to the host.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.measure import METRICS, View
from wane.eval.program import Program
from wane.scaling.degrade.contract import Cost, Degradation, Fitted, Where
from wane.scaling.edit import Edit, Params, merge
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


class Point(NamedTuple):
    """What one executable returns: sums and counts [metrics, sequences] and the cost, all f32."""

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
        self.degradation, self.points = degradation, points
        self.fit = Program(degradation.fit, precision)
        self.point = Program(
            functools.partial(_over_severities, points, _point, shape, degradation, metrics), precision
        )
        self.point_above = Program(
            functools.partial(_over_severities, points, _point_above, shape, degradation, metrics), precision
        )

    def sweep(
        self, params: Params, fitted: Fitted, severities: Sequence[Severity], where: Where, key: Array,
        batches: Batches, full_x: Array, below: tuple[int, Array] | None = None,
    ) -> Iterator[Point]:  # fmt: skip
        """One Point per severity.  full_x: `undegraded(...)` of the same batches.  below = (layer, block_in):
        the first layer that `where` selects and the undegraded residual stream [n, B, S, D] that enters it;
        only the blocks from there on run."""
        for first in range(0, len(severities), self.points):
            chunk = list(severities[first : first + self.points])
            padded = np.asarray(chunk + chunk[-1:] * (self.points - len(chunk)), np.float32)
            if below is None:
                out = self.point(padded, params, fitted, where, key, batches, full_x)
            else:
                out = self.point_above(padded, params, fitted, where, key, batches, full_x, *below)
            for i in range(len(chunk)):
                yield jax.tree.map(lambda a, i=i: a[i], out)

    def compilations(self) -> int:
        """How many executables the points have cost so far."""
        return self.point.executables() + self.point_above.executables()


@functools.lru_cache(maxsize=64)
def engine(
    shape: Shape, degradation: Degradation, metrics: tuple[str, ...], precision: str, points: int
) -> Engine:
    """The engine of a (shape, degradation), shared in the process.  Degradation objects hash by identity:
    pass the one that `wane.scaling.degrade.build` caches."""
    return Engine(shape, degradation, metrics, precision, points)


def _over_severities(points: int, point, shape, degradation, metrics, severity_P: Array, *arguments) -> Point:
    def at(severity):
        return point(shape, degradation, metrics, severity, *arguments)

    if points == 1:
        return jax.tree.map(lambda a: a[None], at(severity_P[0]))
    return jax.vmap(at)(severity_P)


def _point(shape, degradation, metrics, severity, params, fitted, where, key, batches, full_x) -> Point:
    edit = degradation.apply(params, fitted, severity, where, key)

    def forward(batch, _):
        return apply(params, batch.tokens[:, :-1], shape, edit).x_BSD

    return measure(shape, degradation, metrics, severity, params, edit, forward, batches, full_x, full_x)


def _point_above(
    shape, degradation, metrics, severity, params, fitted, where, key, batches, full_x, layer, block_in
) -> Point:  # fmt: skip
    edit = degradation.apply(params, fitted, severity, where, key)

    def forward(batch, x_BSD):
        return apply(params, batch.tokens[:, :-1], shape, edit, start=(layer, x_BSD)).x_BSD

    return measure(shape, degradation, metrics, severity, params, edit, forward, batches, full_x, block_in)


def measure(
    shape, degradation, metrics, severity, params, edit: Edit, forward, batches, full_x, x_in
) -> Point:
    """All metrics of one degraded model.  forward(batch, x_in of the batch) -> residual stream."""
    degraded = merge(params, edit)

    def one(item):
        batch, full_BSD, in_BSD = item
        logits = unembed(degraded, forward(batch, in_BSD), shape)
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

    sums, counts = lax.map(one, (batches, full_x, x_in))
    flat = lambda a: jnp.moveaxis(a, 1, 0).reshape(len(metrics), -1)  # noqa: E731
    return Point(flat(sums), flat(counts), degradation.cost(params, edit, severity))


@functools.lru_cache(maxsize=32)
def undegraded(shape: Shape, precision: str):
    """(params, batches) -> residual stream after the last block, [n, B, S, D]; shared by all points."""

    def forward(params, batches):
        return lax.map(lambda b: apply(params, b.tokens[:, :-1], shape).x_BSD, batches)

    return Program(forward, precision)


@functools.lru_cache(maxsize=32)
def entering(shape: Shape, precision: str):
    """(params, batches) -> the residual stream that enters every block, [L, n, B, S, D]: what a
    sensitivity sweep starts from.  Same bits as inside the full forward."""

    def forward(params, batches):
        inner = lax.map(lambda b: apply(params, b.tokens[:, :-1], shape).inner["block_in"], batches)
        return jnp.moveaxis(inner, 1, 0)

    return Program(forward, precision)
