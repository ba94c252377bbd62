"""Noise on weights: the control for structured error of the same size."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.rounding import check_groups
from wane.scaling.degrade.weights import Weights, draw
from wane.scaling.edit import Edit, Params, fold
from wane.scaling.shape import Shape

Kind = Literal["gaussian", "sign_preserving"]
SIGMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def gaussian_noise(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    match: str = "none",
    match_settings: Mapping[str, Any] | None = None,
    kind: Kind = "gaussian",
    group_size: int = 0,
) -> Degradation:
    """Adds noise to the weights, of the energy of another method's error; a draw keeps its direction.

    match: `none`, severity is sigma, the root mean square of the noise over that of the weights; the name of a
    method, severity is that method's, and the noise has exactly the energy of what that method, with
    match_settings, does to the weights (multipliers folded in; a method that changes no weight gives none).
    Both hold for the weights in scope of every output (of every group of group_size inputs); a random method is
    matched draw by draw.
    kind: `gaussian`, or `sign_preserving`: w (1 +- c), random signs, c at most 1; where the energy asks for more,
    as only a method that does more than remove weights can, c stays 1.
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    check_groups(group_size, in_scope, shape)
    match_settings = dict(match_settings or {})
    energy = functools.partial(group_energy, group_size=group_size)
    matched = matched_method(match, shape, scope, match_settings)

    def trained(params: Params) -> Weights:
        """The weights in scope, 0 elsewhere."""
        return {name: jnp.where(mask, params["blocks"][name], 0) for name, mask in in_scope.items()}

    def fit(params: Params, calibration_NT: Array, key: Array) -> tuple[Weights, Any]:
        """(noise of energy 1 in every group, what the matched method learned)."""
        # Another key than the matched method's, whose mask would follow the noise.
        normal = draw(jax.random.normal, jax.random.fold_in(key, 1), shape)
        noise = {name: jnp.where(mask, normal[name], 0) for name, mask in in_scope.items()}
        if kind == "sign_preserving":
            noise = {name: jnp.sign(noise[name]) * w for name, w in trained(params).items()}
        tiny = jnp.finfo(jnp.float32).tiny  # a group out of scope stays 0
        noise = {name: z * lax.rsqrt(jnp.maximum(energy(z), tiny)) for name, z in noise.items()}
        return noise, matched and matched.fit(params, calibration_NT, key)

    def sizes(params: Params, fitted: Any, severity: Array, key: Array) -> Weights:
        """Root of the noise energy of each group, broadcast to the group's weights."""
        weights = trained(params)
        norm = {name: jnp.sqrt(energy(w)) for name, w in weights.items()}
        if matched is None:
            size = {name: severity * n for name, n in norm.items()}
        else:
            edit = matched.apply(params, fitted, severity, Where.everywhere(shape), key)
            after = fold(params, edit, shape)
            size = {
                name: jnp.sqrt(energy(jnp.where(in_scope[name], after[name] - w, 0)))
                for name, w in weights.items()
            }
        if kind == "sign_preserving":
            return {name: jnp.minimum(s, norm[name]) for name, s in size.items()}
        return size

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        noise, learned = fitted
        size = sizes(params, learned, severity, key)
        noisy = {}
        for name, z in noise.items():
            selected = in_scope[name] & where.entries(name, shape)
            # A constant to the gradient: the noise is drawn once, and the root has no derivative at 0.
            added = lax.stop_gradient(jnp.where(selected, size[name] * z, 0))
            noisy[name] = params["blocks"][name] + added
        return Edit(params={"blocks": noisy})

    return Degradation(
        name="gaussian_noise",
        scope=scope,
        settings={
            "match": match,
            "match_settings": match_settings or None,
            "kind": kind,
            "group_size": group_size,
        },
        unit=matched.unit if matched else "sigma",
        severities=matched.severities if matched else SIGMAS,
        random=True,
        sequential=bool(matched and matched.sequential),
        needs_calibration=bool(matched and matched.needs_calibration),
        promises=Promises(identity=matched.promises.identity if matched else 0.0),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=CostOf(shape, full_bits),
    )


def matched_method(match: str, shape: Shape, scope: Scope, settings: Mapping[str, Any]) -> Degradation | None:
    """The method whose error is matched, on the same scope; None for `none`."""
    if match == "none":
        if settings:
            raise ValueError(
                f'match_settings = {settings}: settings of the matched method, got match = "none"; '
                "leave them out or name the method"
            )
        return None
    from wane.scaling.degrade import build  # here, because the table of methods imports this file

    return build(match, shape, scope, settings)


def group_energy(x: Array, *, group_size: int) -> Array:
    """Sum of squares over the inputs of each output, or of each group of inputs, broadcast to [.., I, O]."""
    groups = x.reshape(*x.shape[:-2], -1, group_size or x.shape[-2], x.shape[-1])
    total = jnp.sum(jnp.square(groups), axis=-2, keepdims=True)
    return jnp.broadcast_to(total, groups.shape).reshape(x.shape)
