"""Wanda: weights times the norm of their inputs, compared within each output; no weight is updated."""

import functools
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, MaskedBits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import lowest
from wane.scaling.degrade.sequential import kept, rewrite
from wane.scaling.degrade.weights import check_pattern, grouped, pattern
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Group = Literal["row", "n:4", "n:8"]
ALPHA, ALPHA_MAX, TOLERANCE = 0.4, 0.8, 1e-3  # of the variant's bisection (Sun et al. 2023, appendix)


def wanda(
    shape: Shape, scope: Scope = EVERYTHING, *, group: Group = "row", use_variant: bool = False
) -> Degradation:
    """Removes the weights of smallest |w_ij| ||x_i||, block after block (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    group: compared among all inputs of each output (`row`), or among each aligned group of 4 or 8 of them, so
    that severity .5 of n:4 is 2:4 sparsity.  use_variant (with group row): each output loses the weights that
    hold a share alpha of its sum of scores, with one alpha per matrix bisected in [0, .8] until the matrix has
    lost the severity to .001: counts are approximate, and severities that need a larger alpha are not reached.
    Inputs are those that the pruned blocks before make; masks of a larger severity need not contain those of
    a smaller.  An input that is 0 on all calibration data goes first.  Cost: two forwards of the calibration
    set per point.
    """
    if use_variant and group != "row":
        raise ValueError(
            f'use_variant = True: acts on group = "row" only, got group = "{group}"; leave it out'
        )
    scope.check(shape)
    check_pattern(group, scope, shape)
    in_scope = scope.weights(shape)
    choose = variant if use_variant else functools.partial(least, M=pattern(group))

    def apply(params: Params, tokens_NT: Array, severity: Array, where: Where, key: Array) -> Edit:
        def solve(weights, energy_I, inside):
            new = {}
            for name, w_IO in weights.items():
                removed_IO = choose(metric(w_IO, energy_I), inside[name], severity)
                new[name] = jnp.where(removed_IO, 0, w_IO)
            return new, {}

        new, _ = rewrite(params, tokens_NT, shape, in_scope, where, measure=energy, solve=solve)
        return Edit(params={"blocks": kept(params, new)})

    return Degradation(
        name="wanda",
        scope=scope,
        settings={"group": group, "use_variant": use_variant},
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        sequential=True,
        needs_calibration=True,
        promises=Promises(exact_count=not use_variant),
        fit=lambda params, calibration_NT, key: calibration_NT,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, MaskedBits(shape, scope)),
    )


def energy(x_TI: Array) -> Array:
    """Sum of squares of each input, [I] in f32; a constant factor changes no mask."""
    x = x_TI.astype(jnp.float32)
    return jnp.sum(x * x, axis=0)


def metric(w_IO: Array, energy_I: Array) -> Array:
    """|w| sqrt(energy); |w| where no token was seen, as for an expert that calibration never reached."""
    seen_I = jnp.where(jnp.any(energy_I > 0), energy_I, 1)
    return jnp.abs(w_IO) * jnp.sqrt(seen_I)[:, None]


def least(metric_IO: Array, inside_IO: Array, severity: Array, *, M: int) -> Array:
    """bool: the lowest of all inputs of each output, or of each M of them."""
    score, inside = ((grouped(x, M) if M else x) for x in (metric_IO, inside_IO))
    return lowest(score, inside, severity, axis=-2).reshape(metric_IO.shape)


def variant(metric_IO: Array, inside_IO: Array, severity: Array) -> Array:
    """bool: in each output the lowest entries whose running sum stays within alpha times the total."""
    score_IO = jnp.where(inside_IO, metric_IO, jnp.inf)
    sorted_IO = jnp.sort(score_IO, axis=0)
    running_IO = jnp.cumsum(sorted_IO, axis=0)
    total_O = jnp.sum(jnp.where(inside_IO, metric_IO, 0), axis=0)

    def mask(alpha):
        n_O = jnp.sum(running_IO <= alpha * total_O, axis=0)
        threshold_O = jnp.take_along_axis(sorted_IO, jnp.maximum(n_O - 1, 0)[None], axis=0)
        return (score_IO <= threshold_O) & (n_O > 0) & (severity > 0)

    def excess(alpha):
        removed = jnp.sum(mask(alpha), dtype=jnp.int32) / jnp.maximum(jnp.sum(inside_IO, dtype=jnp.int32), 1)
        return removed - severity

    def unsettled(search):
        alpha, low, high = search
        return (jnp.abs(excess(alpha)) > TOLERANCE) & (high - low >= TOLERANCE)

    def halve(search):
        alpha, low, high = search
        too_many = excess(alpha) > 0
        low, high = jnp.where(too_many, low, alpha), jnp.where(too_many, alpha, high)
        return (low + high) / 2, low, high

    start = (jnp.float32(ALPHA), jnp.float32(0), jnp.float32(ALPHA_MAX))
    return mask(lax.while_loop(unsettled, halve, start)[0])
