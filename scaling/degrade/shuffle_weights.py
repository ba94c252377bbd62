"""Shuffled weights: every output keeps the distribution of its weights and loses their places."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.weights import Weights, draw, group_sizes, rank_weights
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape


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

    def fit(params: Params, calibration_NT: Array, key: Array) -> Weights:
        uniform = draw(jax.random.uniform, key, shape)
        return rank_weights({name: uniform[name] for name in in_scope}, in_scope, "row")

    def apply(params: Params, fitted: Weights, severity: Array, where: Where, key: Array) -> Edit:
        shuffled = {}
        for name, rank in fitted.items():
            w = params["blocks"][name]
            moving = jnp.broadcast_to(count(n[name], severity), rank.shape)
            source = jnp.where(rank < moving, (rank + 1) % jnp.maximum(moving, 1), rank)
            input_of_rank = jnp.argsort(rank, axis=-2)
            moved = jnp.take_along_axis(w, jnp.take_along_axis(input_of_rank, source, axis=-2), axis=-2)
            shuffled[name] = jnp.where(in_scope[name] & where.entries(name, shape), moved, w)
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
