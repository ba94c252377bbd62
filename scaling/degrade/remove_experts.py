"""Removal of whole experts of a mixture."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.stream import over_batches
from wane.scaling.degrade.units import Group, Units, refuse, unit_pruner
from wane.scaling.edit import Params
from wane.scaling.model import apply
from wane.scaling.shape import Shape

Order = Literal["random", "usage", "weight"]


def remove_experts(
    shape: Shape, scope: Scope = EVERYTHING, *, order: Order = "random", group: Group = "layer"
) -> Degradation:
    """Removes experts before the router chooses: their tokens go to the best of those that are left.

    order: at random; `usage`, those that the fewest calibration tokens run through first; `weight`, those of the
    smallest sum of routing weights over calibration tokens first; ties go to the lower expert.  group: as many
    of each layer, or a share of the experts of all layers together.  Where fewer than top_k experts are left a
    token runs through those, where none is left the MLP adds nothing.  Raises ValueError for a dense shape.
    """
    return unit_pruner(
        name="remove_experts",
        shape=shape,
        scope=scope,
        settings={"order": order, "group": group},
        units=experts(shape, scope),
        score=lambda params, calibration_NT, key: score(params, calibration_NT, key, order, shape),
        group=group,
        random=order == "random",
        needs_calibration=order != "random",
    )


def experts(shape: Shape, scope: Scope) -> Units:
    """The experts of each layer; no head and no matrix can be in scope.  Raises ValueError."""
    check_routed("remove_experts", shape, scope)
    size = (shape.n_layers, shape.n_experts)
    return Units(
        in_scope_LN=np.broadcast_to(scope.layer_L(shape)[:, None], size),
        selected=lambda where: where.layer_L[:, None],
        reader="down",
        field="expert_LE",
        size=size,
    )


def check_routed(method: str, shape: Shape, scope: Scope) -> None:
    """Raises ValueError where there is nothing to route, or the scope names what routing does not know."""
    if shape.n_experts is None:
        raise ValueError(
            f"method = {method!r}: {shape.name} has a dense MLP; give the family n_experts, or leave the method out"
        )
    refuse(scope, "head", "experts belong to no head")
    refuse(scope, "matrices", "a token runs through all matrices of an expert or none")
    scope.check(shape)


def score(params: Params, calibration_NT: Array, key: Array, order: Order, shape: Shape) -> Array:
    """[L, E]; what is lowest goes first."""
    if order == "random":
        return jax.random.uniform(key, (shape.n_layers, shape.n_experts))

    def of_batch(tokens_BT: Array) -> Array:
        route_LBSE = apply(params, tokens_BT[:, :-1], shape).inner["route"]
        if order == "usage":  # in whole numbers, so that equal counts tie whatever the batches
            return jnp.sum(route_LBSE > 0, axis=(1, 2), dtype=jnp.int32)
        return jnp.sum(route_LBSE, axis=(1, 2))

    return over_batches(of_batch, calibration_NT).astype(jnp.float32)
