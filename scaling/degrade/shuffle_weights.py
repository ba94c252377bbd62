"""Shuffled weights: every output keeps the distribution of its weights and loses their places."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.weights import draw, group_sizes, rank_weights
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape


class Ranked(NamedTuple):
    """Ranks of the inputs of each output, the input that is next in rank, and [.., 1, O] the first; sorting is
    left to the fit."""

    rank: Array
    following: Array
    first: Array


def with_next(rank: Array) -> Ranked:
    input_of_rank = jnp.argsort(rank, axis=-2).astype(jnp.int32)
    after = jnp.minimum(rank + 1, rank.shape[-2] - 1)
    return Ranked(rank, jnp.take_along_axis(input_of_rank, after, axis=-2), input_of_rank[..., :1, :])


def shuffle_weights(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Lets a share of each output's weights change places among themselves.

    Severity is the share of the inputs in scope of each output that move.  Who moves is nested in severity; they
    move along one random cycle, so that each of them gets another one's weight (a single one stays).  A control
    for what the places of weights carry beyond their values; nothing is removed.
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    full = {name: np.broadcast_to(mask, shape.full(name)) for name, mask in in_scope.items()}
    n = group_sizes(full, "row")

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Ranked]:
        uniform = draw(jax.random.uniform, key, shape)
        ranks = rank_weights({name: uniform[name] for name in in_scope}, in_scope, "row")
        return {name: with_next(rank) for name, rank in ranks.items()}

    def apply(params: Params, fitted: dict[str, Ranked], severity: Array, where: Where, key: Array) -> Edit:
        shuffled = {}
        for name, (rank, following, first) in fitted.items():
            w = params["blocks"][name]
            moving = count(n[name], severity)
            # Who moves gets the weight of the next in rank, the last one the first's.
            moved = jnp.take_along_axis(w, jnp.where(rank + 1 < moving, following, first), axis=-2)
            acts = in_scope[name] & where.entries(name, shape) & (rank < moving)
            shuffled[name] = jnp.where(acts, moved, w)
        return Edit(params={"blocks": shuffled})

    return Degradation(
        name="shuffle_weights",
        scope=scope,
        settings={},
        unit="fraction",
        severities=FRACTIONS,
        random=True,
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=CostOf(shape, full_bits),
    )
