"""Units by measured harm: each is set to zero alone and the change of the loss is its score."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.ablation import ablation_effects
from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.units import Group, Units, heads, neurons, unit_pruner
from wane.scaling.degrade.weights import Weights, weight_pruner
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Unit = Literal["neuron", "head", "row"]
AT_ONCE = 4  # units evaluated together; each copies what its edit replaces


def zero_sensitivity(
    shape: Shape, scope: Scope = EVERYTHING, *, unit: Unit = "neuron", group: Group = "layer"
) -> Degradation:
    """Removes the units whose zeroing alone raises the loss on the calibration tokens least; exact, no estimate.

    unit: an MLP `neuron`, an attention `head`, or a `row`: all inputs of one output of a matrix (counts are of
    weights, so the last row may go in part).  group: ranked in each layer (a row: in each matrix of each layer) or
    over all.  A negative change, a unit that harms, goes first.  Costs a forward pass over the calibration set
    for every unit in scope: 4 d_ff for 4 layers.
    """
    settings = {"unit": unit, "group": group}
    about = {"name": "zero_sensitivity", "shape": shape, "scope": scope, "settings": settings, "group": group}
    if unit == "row":
        masks = {
            name: np.broadcast_to(m, shape.full(name)).any(-2) for name, m in scope.weights(shape).items()
        }

        def score(params: Params, calibration_NT: Array, key: Array) -> Weights:
            return {
                name: jnp.broadcast_to(
                    row_effects(params, calibration_NT, shape, name, mask)[..., None, :], shape.full(name)
                )
                for name, mask in masks.items()
            }

        return weight_pruner(**about, score=score, needs_calibration=True)
    units = {"neuron": neurons, "head": heads}[unit](shape, scope)
    return unit_pruner(
        **about,
        units=units,
        score=lambda params, calibration_NT, key: unit_effects(params, calibration_NT, shape, units),
        needs_calibration=True,
    )


def unit_effects(params: Params, tokens_NT: Array, shape: Shape, units: Units) -> Array:
    """[L, U] rise of the mean loss in nats when a unit's output alone is multiplied by 0; 0 out of scope."""

    def edit_of(u: Array) -> Edit:
        one_U = jnp.ones(units.in_scope_LU.size).at[u].set(0)
        return Edit(**{units.field: one_U.reshape(units.size)})

    return _scatter(params, tokens_NT, shape, edit_of, units.in_scope_LU)


def row_effects(params: Params, tokens_NT: Array, shape: Shape, matrix: str, in_scope: np.ndarray) -> Array:
    """[.., O] rise of the mean loss in nats when all weights of one output of a matrix are set to zero."""
    w = params["blocks"][matrix]

    def edit_of(u: Array) -> Edit:
        kept = jnp.ones(in_scope.size).at[u].set(0).reshape(in_scope.shape)
        return Edit(params={"blocks": {matrix: w * kept[..., None, :]}})

    return _scatter(params, tokens_NT, shape, edit_of, in_scope)


def _scatter(params, tokens_NT, shape, edit_of, in_scope: np.ndarray) -> Array:
    index = np.flatnonzero(in_scope)
    effects = ablation_effects(params, tokens_NT, shape, edit_of, jnp.asarray(index), "loss", AT_ONCE)
    return jnp.zeros(in_scope.size).at[index].set(effects).reshape(in_scope.shape)
