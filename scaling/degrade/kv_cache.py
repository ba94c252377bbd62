"""Fake quantisation of keys and values, as a cache in few bits would hold them."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import BITS, EVERYTHING, Degradation, Promises, Scope, Where, bits_of
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.stream import over_batches
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply as forward
from wane.scaling.quantize import IDENTITY_BITS
from wane.scaling.shape import Shape

Which = Literal["both", "k", "v"]
Granularity = Literal["token", "channel_keys"]


def kv_cache(
    shape: Shape, scope: Scope = EVERYTHING, *, which: Which = "both", granularity: Granularity = "token"
) -> Degradation:
    """Rounds keys (after rotation) and values to 2^b levels, as a cache in few bits would hold them.

    Severity is given in bits; gradients go straight through.  The levels span a range, both ends included (KIVI,
    Liu et al. 2024, arXiv 2402.02750, section 3.1).  granularity: `token` takes the range of each token and head
    from itself; `channel_keys` takes for keys, whose outliers stay in their channels, one range per channel,
    least and largest value over calibration data, and what lies outside saturates.  (KIVI takes a channel's
    range from 32 tokens of the sequence itself and keeps the latest tokens in full precision; a calibrated
    range serves every token as it comes, so that decoding with a cache gives what the full forward gives.)
    """
    refuse(scope, "head", "keys and values are rounded for all heads together")
    refuse(scope, "matrices", "keys and values are rounded, not weights (choose by `which`)")
    scope.check(shape)
    if granularity == "channel_keys" and which == "v":
        raise ValueError('granularity = "channel_keys": is about keys, got which = "v"; use "token"')
    in_scope_L = scope.layer_L(shape)

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Array] | None:
        if granularity == "token":
            return None
        return {"k": key_range(params, calibration_NT, shape)}

    def apply(
        params: Params, fitted: dict[str, Array] | None, severity: Array, where: Where, key: Array
    ) -> Edit:
        bits_L = jnp.where(in_scope_L & where.layer_L, bits_of(severity), IDENTITY_BITS)
        bits = dict.fromkeys(("k", "v") if which == "both" else (which,), bits_L)
        return Edit(cache_bits=bits, cache_range=fitted)

    return Degradation(
        name="kv_cache",
        scope=scope,
        settings={"which": which, "granularity": granularity},
        unit="bits",
        severities=BITS,
        random=False,
        needs_calibration=granularity == "channel_keys",
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=CostOf(shape, full_bits),
    )


def key_range(params: Params, tokens_NT: Array, shape: Shape) -> Array:
    """Least and largest value of every key channel over T - 1 tokens of each sequence, [L, 2, G, K] in f32."""

    def of_batch(tokens_BT: Array) -> Array:
        k_LBSGK = forward(params, tokens_BT[:, :-1], shape).inner["k"].astype(jnp.float32)
        return jnp.stack([-jnp.min(k_LBSGK, axis=(1, 2)), jnp.max(k_LBSGK, axis=(1, 2))], axis=1)

    outer = over_batches(of_batch, tokens_NT, join=jnp.maximum, start=-jnp.inf)
    return outer * jnp.array([-1.0, 1.0])[:, None, None]
