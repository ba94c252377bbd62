"""Round-to-nearest fake quantisation of activations."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.calibrate import input_statistics
from wane.scaling.degrade.contract import BITS, EVERYTHING, Degradation, Promises, Scope, Where, bits_of
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import SITES, Edit, Params
from wane.scaling.quantize import IDENTITY_BITS
from wane.scaling.shape import Shape

Granularity = Literal["token", "tensor"]


def activations(
    shape: Shape, scope: Scope = EVERYTHING, *, granularity: Granularity = "token"
) -> Degradation:
    """Rounds the inputs of the matrices in scope to 2^b levels, symmetric, gradients straight through.

    Severity is given in bits, 8 to 2.  granularity: `token` takes one scale per token, from the token itself;
    `tensor` one per layer and site, max|x| over calibration data, and larger values saturate.
    """
    refuse(scope, "head", "activations are rounded for all heads together")
    scope.check(shape)
    sites = sites_in(scope, shape)
    in_scope_L = scope.layer_L(shape)

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Array] | None:
        if granularity == "token":
            return None
        inputs = input_statistics(params, calibration_NT, shape)
        return {site: inputs[site].absmax_L for site in sites}

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        bits_L = jnp.where(in_scope_L & where.layer_L, bits_of(severity), IDENTITY_BITS)
        return Edit(activation_bits=dict.fromkeys(sites, bits_L), activation_absmax=fitted)

    return Degradation(
        name="activations",
        scope=scope,
        settings={"granularity": granularity},
        unit="bits",
        severities=BITS,
        random=False,
        needs_calibration=granularity == "tensor",
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=CostOf(shape, full_bits),
    )


def sites_in(scope: Scope, shape: Shape) -> tuple[str, ...]:
    """Sites whose matrices are in scope.  Raises ValueError where only a part of a site's matrices is: they
    read the same activation."""
    chosen = set(scope.matrices or shape.matrices)
    readers = {site: {name for name in names if name in shape.matrices} for site, names in SITES.items()}
    for names in readers.values():
        if names & chosen and not names <= chosen:
            missing = ", ".join(sorted(names - chosen))
            raise ValueError(
                f"scope.matrices = {scope.matrices}: {', '.join(sorted(names))} read the same activation; "
                f"add {missing}"
            )
    return tuple(site for site, names in readers.items() if names <= chosen)
