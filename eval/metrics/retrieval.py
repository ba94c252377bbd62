"""Retrieval of a record by the state that the model holds of it (task E): recall@1 and reciprocal rank.

The query is the state behind the last block of the first rendering, the pool are those of the second
renderings, its own among them; similarity is their cosine.  A state is the last token's, or the mean over the
rendering; raw, or with the mean of the pool taken off both sides, as one large common direction makes all raw
cosines alike (Ethayarajh 2019, arXiv 1909.00512).

Whole items of a batch, row after row, are cut into pools of 16, 64 and 256; those left over are in none.  So
the evaluation's batch bounds the pool: a pool that it cannot fill has no row.  Wrong ones are of the same
row, too, so that knowing the row does not find the record.  Ties count as the mean over their orders: a model
that holds the same of every record is at chance, 1 / pool and H_pool / pool, H_n the n-th harmonic number.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.contract import Place, SequenceMetric
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
    """Whole items of a batch, N = B M places for them: those that are of task E stand in front, in order.

    states_2N2D: (last token, mean) x items x (first rendering, second).  row_N: of each item.  count: how
    many there are.
    """

    states_2N2D: Array
    row_N: Array
    count: Array


@once
def renderings(view: View) -> Renderings:
    B, S, D = view.x_BSD.shape
    M = (S - 1) // ITEM  # items whose last token is read
    end_M2 = 1 + ITEM * np.arange(M)[:, None] + np.array([RENDERING - 1, ITEM - 1])
    within_M2R = end_M2[..., None] - np.arange(RENDERING)
    x_BSD = view.x_BSD.astype(jnp.float32)
    states = jnp.stack([x_BSD[:, end_M2], x_BSD[:, within_M2R].mean(axis=3)])
    present_N = jnp.repeat(is_task(view, "E"), M)
    front_N = jnp.argsort(~present_N, stable=True)
    return Renderings(states.reshape(2, B * M, 2, D)[:, front_N], front_N // max(M, 1), present_N.sum())


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


def among(pool: int, score: Callable[[Array, Array], Array]) -> Callable[[View], tuple[Array, Array]]:
    """Sums and counts [B, 4] over the queries of each row, 4 as PARTS."""

    def measure(view: View) -> tuple[Array, Array]:
        states_2N2D, row_N, count = renderings(view)
        B, _, D = view.x_BSD.shape
        pools = states_2N2D.shape[1] // pool
        cut = states_2N2D[:, : pools * pool].reshape(2, pools, pool, 2, D)
        cut = jnp.stack([cut, cut - cut[:, :, :, 1:].mean(axis=2, keepdims=True)], axis=1)
        cosine = similarity(cut[..., 0, :], cut[..., 1, :])  # [last or mean, raw or centred, pools, P, P]
        found = score(*standing(cosine))
        found = jnp.where(jnp.isfinite(cosine).all(axis=-1), found, jnp.nan).reshape(len(PARTS), pools * pool)
        whole_Q = (1 + jnp.arange(pools * pool) // pool) * pool <= count
        row_Q = row_N[: pools * pool]
        sum_B4 = jnp.zeros((B, len(PARTS))).at[row_Q].add(jnp.where(whole_Q, found, 0.0).T)
        count_B = jnp.zeros(B).at[row_Q].add(whole_Q)
        return sum_B4, jnp.broadcast_to(count_B[:, None], sum_B4.shape)

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
            unit="fraction",
            meaning=f"share of records whose restatement is the most similar of {pool}, by final states",
            better="higher",
            places=places,
            measure=among(pool, recall),
            bounds=recall_bounds,
        ),
        SequenceMetric(
            name=f"reciprocal_rank_of_{pool}",
            unit="",
            meaning=f"mean of 1 / rank of a record's restatement among {pool} (MRR), by final states",
            better="higher",
            places=places,
            measure=among(pool, reciprocal_rank),
            bounds=rank_bounds,
        ),
    )


METRICS = tuple(metric for pool in POOLS for metric in _metrics(pool))
