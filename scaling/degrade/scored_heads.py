"""Attention heads and key-value groups by score: size of weights, of outputs, gradient, entropy."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.gradients import loss
from wane.scaling.degrade.similarity import scored
from wane.scaling.degrade.stream import over_batches
from wane.scaling.degrade.units import Group, HeadUnit, heads, unit_pruner
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply
from wane.scaling.shape import Shape

Score = Literal["magnitude", "activation", "taylor", "entropy"]


def scored_heads(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    score: Score = "taylor",
    unit: HeadUnit = "head",
    group: Group = "global",
    normalise: bool = False,
) -> Degradation:
    """Removes the attention heads, or key-value groups, of lowest score.

    score: `magnitude`, the norm of the rows of `o` that read the head; `activation`, the root mean square norm of
    the head's output; `taylor`, |dL/dm| of a multiplier m = 1 of the head's output, mean over calibration
    sequences (Michel et al. 2019, arXiv 1905.10650, eq. 2); `entropy`, minus the mean entropy of the attention
    map, so that the most diffuse heads go first.  unit: `head`, a query head; `kv_group`, a key-value head with
    all its query heads.  group: ranked over all layers together or in each layer.  normalise divides by the
    layer's norm of scores, as Michel et al. do (section 4).  Costs one forward pass over the calibration set,
    taylor a backward pass too, magnitude none.
    """
    measure = {"magnitude": row_norms, "activation": output_norms, "taylor": taylor, "entropy": focus}[score]
    n_units = shape.n_heads if unit == "head" else shape.kv_heads

    def score_LU(params: Params, calibration_NT: Array, key: Array) -> Array:
        s_LU = measure(params, calibration_NT, shape, n_units)
        if not normalise:
            return s_LU
        norm_L1 = jnp.linalg.norm(s_LU, axis=1, keepdims=True)
        return s_LU / jnp.maximum(norm_L1, jnp.finfo(jnp.float32).tiny)  # a layer of zeros goes first

    return unit_pruner(
        name="scored_heads",
        shape=shape,
        scope=scope,
        settings={"score": score, "unit": unit, "group": group, "normalise": normalise},
        units=heads(shape, scope, unit),
        score=score_LU,
        group=group,
        needs_calibration=score != "magnitude",
    )


def row_norms(params: Params, tokens_NT: Array, shape: Shape, n_units: int) -> Array:
    """[L, U]: Frobenius norm of the rows of `o` of each unit."""
    return jnp.linalg.norm(params["blocks"]["o"].reshape(shape.n_layers, n_units, -1), axis=-1)


def output_norms(params: Params, tokens_NT: Array, shape: Shape, n_units: int) -> Array:
    """[L, U]: root mean square norm of the unit's output over tokens."""

    def of_batch(tokens_BT: Array) -> Array:
        x_LBSI = apply(params, tokens_BT[:, :-1], shape).inner["o_in"].astype(jnp.float32)
        units = x_LBSI.reshape(*x_LBSI.shape[:3], n_units, -1)
        return jnp.square(units).sum((1, 2, 4))

    return jnp.sqrt(over_batches(of_batch, tokens_NT) / scored(tokens_NT))


def taylor(params: Params, tokens_NT: Array, shape: Shape, n_units: int) -> Array:
    """[L, U]: mean over sequences of |dL/dm|, one multiplier m for all heads of a unit."""
    heads_per_unit = shape.n_heads // n_units

    def of_sequence(m_LU: Array, tokens_T: Array) -> Array:
        edit = Edit(head_LH=jnp.repeat(m_LU, heads_per_unit, axis=1))
        return loss(params, tokens_T[None], shape, edit)

    whole_LU = jnp.ones((shape.n_layers, n_units))
    gradients = jax.vmap(jax.grad(of_sequence), in_axes=(None, 0))
    return over_batches(lambda b: jnp.abs(gradients(whole_LU, b)).sum(0), tokens_NT) / len(tokens_NT)


def focus(params: Params, tokens_NT: Array, shape: Shape, n_units: int) -> Array:
    """[L, U]: minus the entropy in nats of the attention maps, mean over tokens and the heads of a unit."""

    def of_batch(tokens_BT: Array) -> Array:
        map_LBHSC = apply(params, tokens_BT[:, :-1], shape).inner["attn_map"]
        return -jax.scipy.special.entr(map_LBHSC).sum((1, 3, 4))

    total_LH = over_batches(of_batch, tokens_NT) / scored(tokens_NT)
    return total_LH.reshape(shape.n_layers, n_units, -1).mean(-1)
