"""How much two members of one shape and different seeds represent alike, and how much of that a degradation leaves:
linear CKA of their residual streams at the same tokens, level by level.

Two comparisons: of two members degraded at the same severity, each by its own draw, and of a degraded member with
the other one as it was trained.  At severity 0 they are the same number, the overlap of trained seeds.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.cell import about_of, lost_rows, point_columns
from wane.eval.degrade import Degrade
from wane.eval.measure import Batches, defined, finite, zeros_of
from wane.eval.metrics.cka import kernel
from wane.eval.metrics.contract import Metric
from wane.eval.metrics.moments import chosen, few, moments, products, spaced
from wane.eval.metrics.overlap import (
    entering_few,
    entering_spaced,
    hsic_of,
    levels,
    stream_cka,
    unbiased_stream_cka,
)
from wane.eval.metrics.view import Batch
from wane.eval.rows import value_row
from wane.eval.study import Evaluation
from wane.eval.subject import Member, Splits, Subject
from wane.scaling.degrade.contract import Cost, Where
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply
from wane.scaling.program import Program
from wane.scaling.shape import Shape

PARTS = ("both degraded", "one degraded")
METRICS = (
    Metric(
        name="seed_cka",
        version=2,
        unit="",
        meaning="linear CKA of the residual stream with that of another seed's member, in a 16th of all tokens",
        better="neither",
        places=levels,
    ),
    Metric(
        name="seed_cka_unbiased",
        version=2,
        unit="",
        meaning="unbiased linear CKA of the residual stream with that of another seed's member, in minibatches of"
        " 64 tokens of one batch each",
        better="neither",
        places=levels,
    ),
)


class Streams(NamedTuple):
    """Every level of a residual stream at `spaced` tokens and at `few` [L + 1, N, D], or of every batch [n, ..]."""

    spaced: Array
    few: Array


def streams_of(shape: Shape, params: Params, edit: Edit, batch: Batch) -> Streams:
    """Of one batch."""
    keep = lambda inner: (entering_spaced(inner), entering_few(inner))  # noqa: E731
    out = apply(params, batch.tokens_BT[:, :-1], shape, edit, keep=keep)
    last = (chosen(out.x_BSD, positions)[None] for positions in (spaced, few))
    return Streams(*(jnp.concatenate(pair) for pair in zip(out.inner, last, strict=True)))


@functools.lru_cache(maxsize=32)
def trained_streams(shape: Shape, precision: str) -> Program:
    """(params, batches) -> Streams of every batch, undegraded."""

    def program(params, batches):
        return lax.map(lambda batch: streams_of(shape, params, Edit(), Batch(*batch)), batches)

    return Program(program, precision, computes=f"streams to compare of {shape}")


@functools.lru_cache(maxsize=32)
def comparing(shape: Shape, precision: str) -> Program:
    """(params, edit, other params, other edit, other's trained Streams, batches) -> f32 [PARTS, METRICS, L + 1],
    as `defined` tells them."""

    def program(params, edit, other, other_edit, trained, batches):
        def of_batch(item: tuple[Batches, Streams]) -> tuple:
            batch = Batch(*item[0])
            mine, theirs = (streams_of(shape, p, e, batch) for p, e in ((params, edit), (other, other_edit)))
            return tuple(compared(mine, against, batch) for against in (theirs, item[1]))

        def add(totals: tuple, item: tuple[Batches, Streams]) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, totals, of_batch(item)), None

        items = batches, trained
        totals, _ = lax.scan(add, zeros_of(of_batch, jax.tree.map(lambda a: a[0], items)), items)
        each = [((stream_cka, moments), (unbiased_stream_cka, hsic)) for moments, hsic in totals]
        return jnp.array([[defined(of(sums, None), finite(sums)) for of, sums in both] for both in each])

    return Program(program, precision, computes=f"comparing pairs of {shape}")


def compared(x: Streams, y: Streams, batch: Batch) -> tuple:
    """Sums over a batch: moments of both streams and their products; of the minibatch the HSIC [L + 1] of each with
    itself and of both."""
    weight_BS1 = jnp.broadcast_to(batch.counted_B[:, None, None], (*batch.scored_BS.shape, 1))
    spaced_N, few_N = (chosen(weight_BS1, positions)[:, 0] for positions in (spaced, few))
    k_LNN, m_LNN = (jax.vmap(kernel, (0, None))(of.few, few_N) for of in (x, y))
    return (
        (moments(x.spaced, spaced_N), moments(y.spaced, spaced_N), products(x.spaced, y.spaced, spaced_N)),
        hsic_of(k_LNN, m_LNN, few_N.sum()),
    )


def sweep_pair(
    subject: Subject, other: Subject, degrade: Degrade, draws: range, cell_id: str, tick: Callable[[int], None]
) -> tuple[list[dict], dict]:  # fmt: skip
    """All rows of a cell, and its timings.  Rows are of the subject's member: what was taken is that of its edit.
    tick(n) is called after n more points."""
    shape, precision = subject.member.shape, subject.settings.matmul_precision
    compare = comparing(shape, precision)
    trained = trained_streams(shape, precision)(other.params, other.batches)
    rows, started = [], time.perf_counter()
    for draw in draws:
        both = zip(edits(subject, degrade, draw), edits(other, degrade, draw), strict=True)
        for level, ((edit, cost), (other_edit, _)) in zip(degrade.grid(shape), both, strict=True):
            pair = subject.params, edit.acting(), other.params, other_edit.acting()
            told = compare(*pair, trained, subject.batches)
            about = about_of(degrade, subject, level, draw)
            common = point_columns(subject, degrade, about, cost, cell_id)
            common |= {"compared_with": other.member.id}
            rows += [common | row for row in values(np.asarray(told, np.float64), subject)]
            tick(1)
    return rows, {"pair_seconds": time.perf_counter() - started}


def edits(subject: Subject, degrade: Degrade, draw: int) -> Iterator[tuple[Edit, Cost]]:
    """What one draw does to a member at every level, with its cost."""
    programs, key = subject.engine(degrade, points=1), subject.draw_key(degrade, draw)
    fitted = programs.fit(subject.params, subject.calibration(degrade), key)
    where, key = Where.everywhere(subject.member.shape), jax.random.fold_in(key, 1)
    for level in degrade.grid(subject.member.shape):
        yield programs.degraded(subject.params, fitted, [degrade.at(level)], where, key)


def values(told: np.ndarray, subject: Subject) -> Iterator[dict]:
    """told [PARTS, METRICS, L + 1]; of what is not defined there is no row."""
    count = subject.splits.evaluation.scored_NS.size
    for part, of_part in zip(PARTS, told, strict=True):
        for metric, value_L in zip(METRICS, of_part, strict=True):
            for place, value in zip(metric.places(subject.member.shape), value_L, strict=True):
                if not np.isnan(value):
                    yield value_row(metric, place._replace(part=part), "all", value, count)


def diverged_rows(
    member: Member, other: Member, degrade: Degrade, draws: range, evaluation: Evaluation, splits: Splits,
    cell_id: str,
) -> list[dict]:  # fmt: skip
    """What the table keeps where the training of either has diverged: null at every point, with the reason."""
    lost = dataclasses.replace(member, diverged=member.diverged or f"{other.id}: {other.diverged}")
    rows = lost_rows(lost, degrade, draws, evaluation, splits, cell_id, METRICS[0])
    return [row | {"compared_with": other.id} for row in rows]
