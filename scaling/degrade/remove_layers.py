"""Removal of whole blocks, or of their attention or MLP only."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import cost_of, structured_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import ranks
from wane.scaling.degrade.replace import multiplier
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Part = Literal["block", "attention", "mlp"]
Order = Literal["random", "first", "last"]
FIELDS = {"block": ("attn_L", "mlp_L"), "attention": ("attn_L",), "mlp": ("mlp_L",)}


def remove_layers(
    shape: Shape, scope: Scope = EVERYTHING, *, part: Part = "block", order: Order = "random"
) -> Degradation:
    """Removes layers (the residual stream passes them by), at random, from the first on, or from the last on.

    Severity s removes floor(s n) of the n layers in scope.  A share that 1e-4 steps cannot hold is rounded
    up by the user: 0.3334, not 1/3, removes 3 of 9.
    """
    refuse(scope, "head", "layers are removed with all their heads")
    refuse(scope, "matrices", f'choose with part = "{part}"')
    scope.check(shape)
    in_scope_L = scope.layer_L(shape)
    n = np.int32(in_scope_L.sum())

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array:
        depth_L = jnp.arange(shape.n_layers, dtype=jnp.float32)
        score = {"random": jax.random.uniform(key, depth_L.shape), "first": depth_L, "last": -depth_L}
        return ranks(score[order], in_scope_L)

    def apply(params: Params, fitted: Array, severity: Array, where: Where, key: Array) -> Edit:
        m_L = multiplier(fitted, n, severity, in_scope_L & where.layer_L, "zero")
        return Edit(**dict.fromkeys(FIELDS[part], m_L))

    return Degradation(
        name="remove_layers",
        scope=scope,
        settings={"part": part, "order": order},
        unit="fraction",
        severities=FRACTIONS,
        random=order == "random",
        promises=Promises(nested=True, exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=lambda params, edit, severity: cost_of(params, edit, shape, structured_bits),
    )
