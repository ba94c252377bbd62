"""Fake quantisation of one array with traced bits: quantise, dequantise, and gradients straight through.

Uniform symmetric and asymmetric rounding to nearest, half to even, in the conventions of GPTQ (Frantar et al.
2022) and of Google's qwix.  All scales are computed in f32.  XLA on CPU turns x / broadcast(s) into
x * (1 / s), which is one ulp off and flips levels that sit on a rounding tie (every symmetric row has one),
so divisions stand behind an optimisation barrier.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

IDENTITY_BITS = 16  # at 16 bits and above nothing is rounded
TERNARY_BITS = 1.585  # log2(3): the setting that means {-1, 0, 1} times one scale


@jax.custom_vjp
def straight_through(x: Array, y: Array) -> Array:
    """y in the forward pass, the gradient of x in the backward pass (Bengio et al. 2013)."""
    return y


straight_through.defvjp(lambda x, y: (y, None), lambda _, g: (g, jnp.zeros_like(g)))


def divide(x: Array, scale: Array) -> Array:
    """IEEE x / scale with scale broadcast to x; without the barrier XLA multiplies by a reciprocal."""
    return x / lax.optimization_barrier(jnp.broadcast_to(scale, x.shape))


def levels(bits: Array) -> Array:
    """2^bits - 1 for integer bits, exact, by a shift; bits is any real array and is rounded to an integer."""
    whole = jnp.clip(jnp.rint(bits), 1, 24).astype(jnp.int32)
    return (jnp.left_shift(jnp.int32(1), whole) - 1).astype(jnp.float32)


def quantize_symmetric(x: Array, absmax: Array, bits: Array) -> Array:
    """Codes -2^(b-1) .. 2^(b-1) - 1 times absmax / (2^(b-1) - 1/2) (GPTQ sym, qwix absmax).

    absmax broadcasts against x and is positive or zero (an all-zero group stays zero).
    """
    top = (levels(bits) + 1) / 2
    scale = divide(absmax, top - 0.5)
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.clip(jnp.rint(divide(x, scale)), -top, top - 1) * scale


def quantize_asymmetric(x: Array, low: Array, high: Array, bits: Array) -> Array:
    """Codes 0 .. 2^b - 1 with an integer zero point; the range is extended to contain 0 (GPTQ asym)."""
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    empty = (low == 0) & (high == 0)
    low, high = jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)
    top = levels(bits)
    scale = divide(high - low, top)
    zero = jnp.rint(divide(-low, scale))
    return (jnp.clip(jnp.rint(divide(x, scale)) + zero, 0, top) - zero) * scale


def quantize_ternary(x: Array, absmean: Array) -> Array:
    """{-1, 0, 1} times the mean absolute value (BitNet b1.58, Ma et al. 2024, eq. 1-3)."""
    scale = jnp.where(absmean > 0, absmean, 1.0)
    return jnp.clip(jnp.rint(divide(x, scale)), -1, 1) * scale


def is_ternary(bits: Array) -> Array:
    return jnp.abs(bits - TERNARY_BITS) < 0.01


def fake_quantize_activation(x_BSI: Array, bits: Array, absmax: Array | None) -> Array:
    """Symmetric fake quantisation of an activation, straight-through gradient, in the dtype of x.

    absmax None: one scale per token, from the token itself.  absmax a scalar: one scale per tensor, fixed by
    calibration, so that a sequence's result does not depend on its batch.  bits >= 16: x, bit for bit.
    """
    x = x_BSI.astype(jnp.float32)
    reach = jnp.max(jnp.abs(x), axis=-1, keepdims=True) if absmax is None else absmax
    rounded = quantize_symmetric(x, reach, bits).astype(x_BSI.dtype)
    return straight_through(x_BSI, jnp.where(bits >= IDENTITY_BITS, x_BSI, rounded))
