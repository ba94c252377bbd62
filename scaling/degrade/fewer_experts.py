"""Fewer experts per token."""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Promises, Scope, Where, no_fit
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.rank import GRID, count
from wane.scaling.degrade.remove_experts import check_routed
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape


def fewer_experts(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Lets each token run through fewer experts, its best ones, with weights that still add up to 1.

    Severity s leaves out floor(s k) of the top k; at 1 the MLP adds nothing.  A share that 1e-4 steps cannot
    hold is rounded up, as in the default grid: 0.3334, not 1/3, leaves out 1 of 3.  No weight is removed, so
    there is nothing to nest or to count; the cost is that of the trained model.  Raises ValueError for a dense
    shape.
    """
    check_routed("fewer_experts", shape, scope)
    in_scope_L, k = scope.layer_L(shape), shape.top_k

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        left = k - count(k, severity)
        return Edit(active_L=jnp.where(in_scope_L & where.layer_L, left, k))

    return Degradation(
        name="fewer_experts",
        scope=scope,
        settings={},
        unit="fraction",
        severities=tuple(math.ceil(GRID * i / k) / GRID for i in range(k + 1)),
        random=False,
        promises=Promises(),
        fit=no_fit,
        apply=apply,
        hold=hold_nothing,
        cost=CostOf(shape, full_bits),
    )
