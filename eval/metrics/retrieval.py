"""Retrieval of a record by the state that the model holds of it (task E): recall@1 and reciprocal rank.

The query is the state behind the last block of the first rendering, the pool are those of the second
renderings, its own among them; similarity is their cosine.  A state is the last token's, or the mean over the
rendering; raw, or with the mean of the pool taken off both sides, as one large common direction makes all raw
cosines alike (Ethayarajh 2019, arXiv 1909.00512).

Whole items of the evaluation set, row after row, are cut into pools of 16, 64 and 256, whatever batches they are
in; those left over are in none, and a pool that cannot be filled has no row.  Wrong ones are of the same row, too,
so that knowing the row does not find the record.  Ties count as the mean over their orders: a model that holds the
same of every record is at chance, 1 / pool and H_pool / pool, H_n the n-th harmonic number.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.contract import Kept, Place, SequenceMetric
from wane.eval.metrics.once import once
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape
from wane.train.data import Task
from wane.train.data.graded_retrieval import ITEM, RENDERING

POOLS = (16, 64, 256)
PARTS = ("last raw", "last centred", "mean raw", "mean centred")
ROUNDING = 1e-6  # of a cosine: a smaller lead is that of f32 sums


class Renderings(NamedTuple):
    """states_BM22D: of the M whole items of every row (last token, mean) x (first rendering, second); present_B:
    which rows are of task E."""

    states_BM22D: Array
    present_B: Array


def renderings(view: View) -> Renderings:
    _, S, _ = view.x_BSD.shape
    M = (S - 1) // ITEM  # items whose last token is read
    end_M2 = 1 + ITEM * np.arange(M)[:, None] + np.array([RENDERING - 1, ITEM - 1])
    within_M2R = end_M2[..., None] - np.arange(RENDERING)
    x_BSD = view.x_BSD.astype(jnp.float32)
    states_BM22D = jnp.stack([x_BSD[:, end_M2], x_BSD[:, within_M2R].mean(axis=3)], axis=2)
    return Renderings(states_BM22D, is_task(view, "E"))


def similarity(query: Array, pool: Array) -> Array:
    """Cosines [.., P, P] of P queries [.., P, D] with a pool of P; 0 where a state is 0."""
    tiny = jnp.finfo(jnp.float32).tiny
    unit_q, unit_p = (
        x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), tiny) for x in (query, pool)
    )
    return jnp.einsum("...qd,...pd->...qp", unit_q, unit_p)


def standing(cosine: Array) -> tuple[Array, Array]:
    """Of P queries with P candidates [.., P, P], the i-th right for the i-th: how many are more similar than
    the right one; how many are as similar, itself included.  Both [.., P]."""
    lead = cosine - jnp.diagonal(cosine, axis1=-2, axis2=-1)[..., None]
    return (lead > ROUNDING).sum(axis=-1), (jnp.abs(lead) <= ROUNDING).sum(axis=-1)


def recall(better: Array, equal: Array) -> Array:
    """Probability that the right one is first, its equals in any order."""
    return jnp.where(better == 0, 1 / equal, 0.0)


def reciprocal_rank(better: Array, equal: Array) -> Array:
    """Mean of 1 / rank over the orders of its equals."""
    last = max(POOLS)
    harmonic = jnp.asarray(np.concatenate([[0], np.cumsum(1 / np.arange(1, last + 1))]), jnp.float32)
    return (harmonic[better + equal] - harmonic[better]) / equal


SCORES = (recall, reciprocal_rank)


@functools.cache
def ranked(pool: int) -> Callable[[Kept], tuple[Array, Array]]:
    """Sums [N, SCORES, PARTS] over the queries of every sequence, and their number [N]."""

    @once
    def measure(kept: Kept) -> tuple[Array, Array]:
        states_NM22D, present_N = kept.of
        N, M = states_NM22D.shape[:2]
        sums = jnp.zeros((N, len(SCORES), len(PARTS)))
        if pool > N * M:
            return sums, jnp.zeros(N)
        items = states_NM22D.reshape(N * M, *states_NM22D.shape[2:])
        present = jnp.repeat(present_N, M)
        pools = present.sum() // pool
        in_order = jnp.argsort(~present, stable=True)

        def add(p: Array, sums: Array) -> Array:
            index_P = lax.dynamic_slice_in_dim(in_order, p * pool, pool)
            state_2P2D = jnp.moveaxis(items[index_P], 1, 0)
            mean_212D = state_2P2D[:, :, 1:].mean(axis=1, keepdims=True)
            state_22P2D = jnp.stack([state_2P2D, state_2P2D - mean_212D], axis=1)  # raw, centred
            cosine_22PP = similarity(state_22P2D[..., 0, :], state_22P2D[..., 1, :])
            found = jnp.stack([score(*standing(cosine_22PP)) for score in SCORES])
            found = jnp.where(jnp.isfinite(cosine_22PP).all(axis=-1), found, jnp.nan)
            found_PSP = jnp.moveaxis(found.reshape(len(SCORES), len(PARTS), pool), -1, 0)
            return sums.at[index_P // M].add(found_PSP)

        # A loop as long as there are pools: most items are of other tasks, and computing with them would cost more.
        sums = lax.fori_loop(0, pools, add, sums)
        whole = present & (jnp.cumsum(present) <= pools * pool)
        return sums, whole.reshape(N, M).sum(axis=1).astype(jnp.float32)

    return measure


def among(pool: int, score: Callable[[Array, Array], Array]) -> Callable[[Kept], tuple[Array, Array]]:
    """Sums and counts [N, 4] over the queries of each sequence, 4 as PARTS."""

    def measure(kept: Kept) -> tuple[Array, Array]:
        sums, count_N = ranked(pool)(kept)
        sum_N4 = sums[:, SCORES.index(score)]
        return sum_N4, jnp.broadcast_to(count_N[:, None], sum_N4.shape)

    return measure


def _metrics(pool: int) -> tuple[SequenceMetric, SequenceMetric]:
    """A name for each pool: chance belongs to a metric and a task, and depends on the pool."""

    def places(shape: Shape) -> tuple[Place, ...]:
        return tuple(Place(axis="pool", at=float(pool), part=part) for part in PARTS)

    def recall_bounds(task: Task) -> tuple[float | None, float | None]:
        return 1 / pool, 1.0

    def rank_bounds(task: Task) -> tuple[float | None, float | None]:
        return float(np.mean(1 / np.arange(1, pool + 1))), 1.0

    return (
        SequenceMetric(
            name=f"recall_at_1_of_{pool}",
            version=2,
            unit="fraction",
            meaning=f"share of records whose restatement is the most similar of {pool}, by final states",
            better="higher",
            places=places,
            keeps=renderings,
            measure=among(pool, recall),
            bounds=recall_bounds,
        ),
        SequenceMetric(
            name=f"reciprocal_rank_of_{pool}",
            version=2,
            unit="",
            meaning=f"mean of 1 / rank of a record's restatement among {pool} (MRR), by final states",
            better="higher",
            places=places,
            keeps=renderings,
            measure=among(pool, reciprocal_rank),
            bounds=rank_bounds,
        ),
    )


METRICS = tuple(metric for pool in POOLS for metric in _metrics(pool))
