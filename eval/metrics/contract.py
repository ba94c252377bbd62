"""The contract of every metric: what it sees of a degraded model, what it gives back, how its value is told.

A metric is a small pure function inside the jitted evaluation.  Kinds differ in what they give back:
`SequenceMetric` sums and counts of every sequence, from its batch or from what was kept of all batches, which the
host adds up in float64, per task too;
`PerToken` a value for every token, which the host averages over groups of tokens (`TokenMetric`,
`wane.eval.metrics.groups`) or compares, with each other (`SetMetric`) or with other draws (`DrawMetric`);
`Statistic` values from sums over all batches, or from the weights alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.view import View
from wane.scaling.edit import Edit, Params
from wane.scaling.model import Inner
from wane.scaling.shape import Shape
from wane.train.data import EvalSet, Task

Sums = Any  # a pytree of arrays
OfTokens = Callable[[View], tuple[Array, Array]]  # (value f32, counted bool), both [B, S]


class Place(NamedTuple):
    """Where a value was taken, as rows tell it.  axis: what `at` counts (layer, level, position, temperature, ..);
    at_2: a second index (the other layer of a pair); part: the named part (a matrix, a sublayer, a space)."""

    axis: str | None = None
    at: float | None = None
    at_2: float | None = None
    part: str | None = None


EVERYWHERE = (Place(),)


def everywhere(shape: Shape) -> tuple[Place, ...]:
    """One value for the whole model and all tokens."""
    return EVERYWHERE


def layers(shape: Shape) -> tuple[Place, ...]:
    """One value for every layer."""
    return tuple(Place(axis="layer", at=float(l)) for l in range(shape.n_layers))


def per_sequence(of_tokens: OfTokens) -> OfTokens:
    """Sums and counts [B] of what is told of every token [B, S]."""

    def measure(view: View) -> tuple[Array, Array]:
        value_BS, counted_BS = of_tokens(view)
        total_B = jnp.where(counted_BS, value_BS, 0.0).sum(axis=1)
        return total_B, counted_BS.sum(axis=1).astype(jnp.float32)

    return measure


class Weights(NamedTuple):
    """What a statistic sees of the weights: trained parameters, degraded ones, and the edit between them."""

    shape: Shape
    trained: Params
    degraded: Params
    edit: Edit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """places: where it has values; rows of several places have the same name.

    relative: compares with the undegraded model, so it means nothing for one that was trained under a mask.
    streams: reads the undegraded residual stream before every block, not only behind the last.  inside: what it
    reads of each block's intermediates (`wane.scaling.model.block`), as arrays that hold no more than it needs: all
    blocks must then run, and view.inside[inside] is that of all layers, [L, ...].  known: what it reads of the
    undegraded model on the whole evaluation set: for each of these functions f, f(view) of every batch, of which
    there are `view.full_BSV` and the tokens, added up once for all points, is view.known[f]; one may read those
    before it.  full: what it reads of the undegraded model batch by batch: for each of these functions f, which
    read nothing else but one another, view.of_full(f) is f(view), found once for all points where
    there is room for it.  With known or full it must say relative=True.  free_running: lets the model go on by
    itself, token by token, which a corruption of whole input sequences does not allow.  usual: measured where a
    study names no metrics.  bounds: its chance and ceiling on a task, either None where nobody knows it; none: it
    has no such thing.  among: how many answers it chooses between on a task, all alike to random weights; None
    where nobody knows.  floor: what it is for who knows how often each token occurs in these sequences of a task,
    and nothing else.
    Raise `version` when the numbers change.
    """

    name: str
    unit: str
    meaning: str
    better: Literal["lower", "higher", "neither"]
    places: Callable[[Shape], tuple[Place, ...]] = everywhere
    relative: bool = False
    streams: bool = False
    inside: Callable[[Inner], Any] | None = None
    known: tuple[Callable[[View], Sums], ...] = ()
    full: tuple[Callable[[View], Any], ...] = ()
    free_running: bool = False
    usual: bool = False
    bounds: Callable[[Task], tuple[float | None, float | None]] | None = None
    among: Callable[[Task, Shape], int | None] | None = None
    floor: Callable[[EvalSet, np.ndarray], float | None] | None = None  # (all sequences, which of them [N])
    version: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """What a metric has kept of every sequence, all batches one after the other: a pytree of arrays [N, ...]."""

    of: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceMetric(Metric):
    """measure(view) -> (sum, count), both f32 [B], or [B, P] with P places; the value of a set of sequences is
    finish(sum of sums / sum of counts).  keeps: for what compares sequences of different batches; keeps(view) is a
    pytree of arrays [B, ...], and measure is given a `Kept` of all N sequences in place of a view, once.  each:
    rows keep the value of every evaluation sequence, for paired comparisons (one place only).  of_task: in place of
    finish, for what depends on the task and the shape; rows then are of single tasks, those that it has a number
    for."""

    measure: Callable[[Any], tuple[Array, Array]]
    keeps: Callable[[View], Any] | None = None
    finish: Callable[[float], float] = float
    each: bool = False
    of_task: Callable[[float, Task, Shape], float | None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerToken(Metric):
    """measure(view) -> (value, counted), f32 and bool [B, S]."""

    measure: OfTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMetric(PerToken):
    """Rows hold the mean over each group of tokens that `by`, a name of `wane.eval.metrics.groups.GROUPS`, tells
    apart."""

    by: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetMetric(PerToken):
    """Rows compare tokens of the whole evaluation set with each other, whatever batches they are in:
    over(value [N, S], nan where not counted, evaluation) -> (sums, counts), float64 [N, P] with P places."""

    over: Callable[[np.ndarray, EvalSet], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawMetric(PerToken):
    """Rows of a draw compare it with the other draws of its cell, task by task: compare(mine [M], others [R, M]) ->
    a float64 per place, over the M tokens that are counted.  None where a cell has one draw."""

    compare: Callable[[np.ndarray, np.ndarray], Sequence[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistic(Metric):
    """values(sums, weights) -> f32 [P]; nan is a value that is not defined, of which there is no row, unless
    sums or degraded weights are not finite: then it has diverged.  gather(view) -> sums over a batch, added up over
    all batches, f32; several statistics of one `gather` share it.  None: from the weights alone, then sums is None.
    of_trained: `gather` reads the trained parameters and the tokens alone, so it is done once, not at every point.
    over_initial: rows hold the values over those of the parameters that training started from; it needs no
    `gather`, and where those are 0 there is no row.  count(sums): how many tokens, or pairs of them, the values
    average over, f32 []; None: all of the evaluation set, or one item where the values are of the weights alone."""

    values: Callable[[Sums, Weights], Array]
    gather: Callable[[View], Sums] | None = None
    count: Callable[[Sums], Array] | None = None
    of_trained: bool = False
    over_initial: bool = False
