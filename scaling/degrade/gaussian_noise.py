"""Gaussian noise on weights: the control for structured error of the same size."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Promises, Scope, Where, bits_of
from wane.scaling.degrade.cost import cost_of, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.rtn import RTN_BITS, check_groups, quantize_weights, weight_bits
from wane.scaling.degrade.weights import Weights, draw
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Match = Literal["none", "rtn"]
SIGMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def gaussian_noise(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    match: Match = "none",
    symmetric: bool = True,
    group_size: int = 0,
) -> Degradation:
    """Adds Gaussian noise to the weights; a draw keeps its direction at every severity.

    match: `none`, severity is sigma, the root mean square of the noise over that of the weights; `rtn`,
    severity is given in bits and the noise has exactly the energy of the error of round-to-nearest with the
    same `symmetric` and `group_size`.  Both hold for the weights in scope of every output (of every group of
    `group_size` inputs).
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    check_groups(group_size, in_scope, shape)
    energy = functools.partial(group_energy, group_size=group_size)
    rtn_settings = {"in_scope": in_scope, "symmetric": symmetric, "group_size": group_size}

    def fit(params: Params, calibration_NT: Array, key: Array) -> Weights:
        """Noise of energy 1 in every group."""
        normal = draw(jax.random.normal, key, shape)
        noise = {name: jnp.where(mask, normal[name], 0) for name, mask in in_scope.items()}
        tiny = jnp.finfo(jnp.float32).tiny  # a group out of scope stays 0
        return {name: z * lax.rsqrt(jnp.maximum(energy(z), tiny)) for name, z in noise.items()}

    def sizes(params: Params, severity: Array, where: Where) -> Weights:
        """Root of the noise energy of each group, broadcast to the group's weights."""
        trained = {name: params["blocks"][name] for name in in_scope}
        if match == "none":
            return {
                name: severity * jnp.sqrt(energy(jnp.where(in_scope[name], w, 0)))
                for name, w in trained.items()
            }
        rounded = quantize_weights(
            params, weight_bits(bits_of(severity), in_scope, Where.everywhere(shape), shape), **rtn_settings
        )
        return {name: jnp.sqrt(energy(w - rounded[name])) for name, w in trained.items()}

    def apply(params: Params, fitted: Weights, severity: Array, where: Where, key: Array) -> Edit:
        size = sizes(params, severity, where)
        noisy = {}
        for name, z_LIO in fitted.items():
            selected = in_scope[name] & where.entries(name, shape)
            # A constant to the gradient: the noise is drawn once, and the root has no derivative at 0.
            added = lax.stop_gradient(jnp.where(selected, size[name] * z_LIO, 0))
            noisy[name] = params["blocks"][name] + added
        return Edit(params={"blocks": noisy})

    return Degradation(
        name="gaussian_noise",
        scope=scope,
        settings={"match": match, "symmetric": symmetric, "group_size": group_size},
        unit="sigma" if match == "none" else "bits",
        severities=SIGMAS if match == "none" else RTN_BITS,
        random=True,
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=lambda params, edit, severity: cost_of(params, edit, shape, full_bits),
    )


def group_energy(x_LIO: Array, *, group_size: int) -> Array:
    """Sum of squares over the inputs of each output, or of each group of inputs, broadcast to [L, I, O]."""
    L, fan_in, fan_out = x_LIO.shape
    x = x_LIO.reshape(L, -1, group_size or fan_in, fan_out)
    total = jnp.sum(jnp.square(x), axis=2, keepdims=True)
    return jnp.broadcast_to(total, x.shape).reshape(x_LIO.shape)
