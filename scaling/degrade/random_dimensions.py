"""Random removal of dimensions of the residual stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, structured_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import ranks
from wane.scaling.degrade.replace import multiplier
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape


def random_dimensions(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Removes dimensions of the residual stream at random, the same everywhere; masks are nested in severity.

    floor(s d_model) dimensions are multiplied by 0 after the embedding and after every sublayer, so all matrices
    lose rows or columns: d_model itself shrinks, with norms that still divide by the full width.  Under LayerNorm
    a removed dimension still carries the mean of the others.  The stream before the first block belongs to
    layer 0.  scope: layers.
    """
    check_dimensions(shape, scope)

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array:
        return ranks(jax.random.uniform(key, (shape.d_model,)), np.ones(shape.d_model, bool))

    def apply(params: Params, fitted: Array, severity: Array, where: Where, key: Array) -> Edit:
        touched_X = states_of(scope.layer_L(shape) & where.layer_L)
        n = np.int32(shape.d_model)
        return Edit(residual_XD=multiplier(fitted, n, severity, touched_X[:, None], "zero"))

    return Degradation(
        name="random_dimensions",
        scope=scope,
        settings={},
        unit="fraction",
        severities=FRACTIONS,
        random=True,
        promises=Promises(nested=True, exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, structured_bits),
    )


def check_dimensions(shape: Shape, scope: Scope) -> None:
    """Raises ValueError where the scope means nothing to the residual stream."""
    refuse(scope, "head", "the residual stream belongs to no head")
    refuse(scope, "matrices", "a dimension is removed from all matrices")
    scope.check(shape)


def states_of(layer_L: Array) -> Array:
    """bool [X], X = 2 L + 1: the states of the residual stream that belong to these layers, two for each and the
    one before the first block for layer 0."""
    return jnp.concatenate([layer_L[:1], jnp.repeat(layer_L, 2)])
