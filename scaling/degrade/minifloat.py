"""Rounding of weights to floating-point formats of few bits: FP8, FP6, FP4 and Microscaling."""

import functools
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.rounding import PER_TENSOR, by_groups, check_groups, check_tensor, weight_rounder
from wane.scaling.quantize import Grid, divide
from wane.scaling.shape import Shape

Exponent = Literal[2, 3, 4, 5]
Scaling = Literal["absmax", "mx"]
MX_GROUP = 32
SCALE_BITS = {"absmax": 16, "mx": 8}
WIDTHS = (2, 15)
F32_EXPONENT, F32_BIAS = 23, 127  # where the exponent of an f32 starts, and what it is shifted by


def minifloat(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    exponent_bits: Exponent = 4,
    scaling: Scaling = "absmax",
    group_size: int = 0,
    per_tensor: bool = False,
) -> Degradation:
    """Rounds weights to floating-point numbers of b bits: a sign, exponent_bits, and the rest mantissa.

    Half to even, subnormal numbers kept, larger values saturate.  Severity is given in bits.  exponent_bits 4 is
    e4m3 at 8 bits (largest 448), 5 is e5m2 (57344), 3 is e3m2 at 6 bits (28), 2 is e2m1 at 4 bits (6), as in the
    OCP specifications OFP8 and MX v1.0: e4m3 and e5m2 (and formats of these exponents with more mantissa) set
    codes aside for infinity and NaN, the others do not.  Where b - 1 is less than exponent_bits there is no
    mantissa and the exponent is shorter.  Fewer than 2 bits act, and are charged, as 2.
    scaling: `absmax` maps max|w| of `group_size` consecutive inputs of each output (0: of all inputs, per_tensor:
    of the matrix) to the largest number; `mx` shares a power of two among 32 inputs, or group_size (Microscaling,
    section 6.3: its exponent is that of max|w| less that of the largest number).
    """
    scope.check(shape)
    check_tensor(per_tensor, group_size)
    size = group_size or (MX_GROUP if scaling == "mx" and not per_tensor else 0)
    check_groups(size, scope.weights(shape), shape)
    size = PER_TENSOR if per_tensor else size
    find = functools.partial(find_scale, exponent_bits=exponent_bits, scaling=scaling)
    return weight_rounder(
        name="minifloat",
        shape=shape,
        scope=scope,
        settings={
            "exponent_bits": exponent_bits,
            "scaling": scaling,
            "group_size": group_size,
            "per_tensor": per_tensor,
        },
        severities=(16.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0),
        supported=lambda bits: jnp.clip(jnp.rint(bits), *WIDTHS),
        find=by_groups(find, size),
        round_matrix=functools.partial(round_scaled, exponent_bits=exponent_bits),
        scale_bits=SCALE_BITS[scaling],
        zero_point=False,
        group_size=size,
    )


def fields(bits: Array, exponent_bits: int) -> tuple[Array, Array]:
    """(exponent bits, mantissa bits), int32, of a format with `bits` in all."""
    free = jnp.clip(jnp.rint(bits), *WIDTHS).astype(jnp.int32) - 1
    exponent = jnp.minimum(free, exponent_bits)
    return exponent, free - exponent


def power_of_two(n: Array) -> Array:
    """2^n in f32 for int32 n, exact; n from -126 to 127 (beyond: clipped)."""
    exponent = jnp.clip(n, 1 - F32_BIAS, F32_BIAS) + F32_BIAS
    return lax.bitcast_convert_type(jnp.left_shift(exponent, F32_EXPONENT), jnp.float32)


def exponent_of(x: Array) -> Array:
    """floor(log2 |x|), int32, exact; -127 for zero and f32 subnormals."""
    return jnp.right_shift(lax.bitcast_convert_type(jnp.abs(x), jnp.int32), F32_EXPONENT) - F32_BIAS


def largest(bits: Array, exponent_bits: int) -> tuple[Array, Array]:
    """(the largest number of a format, its exponent)."""
    exponent, mantissa = fields(bits, exponent_bits)
    special = (mantissa >= {4: 3, 5: 2}.get(exponent_bits, 99)) & (exponent == exponent_bits)
    top = power_of_two(exponent - 1).astype(jnp.int32)  # largest exponent field less bias, if all are numbers
    if exponent_bits == 5:  # the whole top exponent is set aside
        top = top - special
    unit = power_of_two(-mantissa)  # of the mantissa's last bit
    lost = 1 + special if exponent_bits == 4 else 1  # one code at the top is NaN
    return power_of_two(top) * (2 - lost * unit), top


def round_float(x: Array, bits: Array, exponent_bits: int) -> Array:
    """The nearest number of a format, half to even, saturating."""
    exponent, mantissa = fields(bits, exponent_bits)
    lowest = 2 - power_of_two(exponent - 1).astype(jnp.int32)  # exponent of the smallest normal number
    quantum = power_of_two(jnp.maximum(exponent_of(x), lowest) - mantissa)
    limit, _ = largest(bits, exponent_bits)
    return jnp.clip(jnp.rint(x / quantum) * quantum, -limit, limit)


def find_scale(w_GIO: Array, bits: Array, inside_GIO: Array, *, exponent_bits: int, scaling: Scaling) -> Grid:
    """One scale over axis 1; 1 for an empty or an all-zero group."""
    absmax = jnp.max(jnp.abs(jnp.where(inside_GIO, w_GIO, 0)), axis=1, keepdims=True)
    limit, top = largest(bits, exponent_bits)
    if scaling == "mx":
        scale = power_of_two(exponent_of(absmax) - top)
    else:
        scale = divide(absmax, limit)
    scale = jnp.where(absmax > 0, scale, 1.0)
    return Grid(scale, jnp.zeros_like(scale), jnp.broadcast_to(bits, scale.shape))


def round_scaled(w_IO: Array, grid: Grid, *, exponent_bits: int) -> Array:
    return round_float(divide(w_IO, grid.scale), grid.bits, exponent_bits) * grid.scale
