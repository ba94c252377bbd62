"""Fake quantisation of one array with traced bits: find a grid, quantise, dequantise, gradients straight through.

Uniform symmetric and asymmetric rounding to nearest, half to even, in the conventions of GPTQ (Frantar et al.
2022), AWQ (Lin et al. 2023) and Google's qwix.  All scales are computed in f32.  XLA on CPU turns x / broadcast(s)
into x * (1 / s), which is one ulp off and flips levels that sit on a rounding tie (every symmetric row has one),
so divisions stand behind an optimisation barrier.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

IDENTITY_BITS = 16  # at 16 bits and above nothing is rounded
TERNARY_BITS = 1.585  # log2(3): the setting that means {-1, 0, 1} times one scale
SHRINKS = np.float32(1 - np.arange(80) / 100)  # of GPTQ's search for the range of least error
SHRINK_NORM = 2.4
HAIR = 2.0**-20  # by which an activation's -absmax, on a tie by construction, is moved off it

Convention = Literal["gptq", "gptq_code", "awq", "qwix"]
Axis = int | tuple[int, ...]


class Grid(NamedTuple):
    """A lattice scale * (code - zero) with code in 0 .. 2^bits - 1; all broadcast against the weights.

    bits 1.585 is ternary (codes 0, 1, 2, zero 1), 1 is binary (codes 0, 1, zero 1/2: the sign times scale / 2).
    """

    scale: Array
    zero: Array
    bits: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the range of some weights becomes a grid of b bits.

    symmetric: the grid is centred on 0; else it spans [min, max] with an integer zero point.
    convention, symmetric: `gptq` and `qwix` scale absmax / (2^(b-1) - 1/2), so that absmax saturates by half a
    step, `awq` absmax / (2^(b-1) - 1); asymmetric: `gptq` and `qwix` extend the range to contain 0 (qwix adds the
    zero point before rounding), `awq` does not, which destroys a group without a sign change.  `gptq_code` is
    gptq with a slip of its published code: a symmetric range without a negative value stays [0, max], and what
    lies above 47 % of max saturates.
    mse: shrink the range to the share 1, .99, ... .21 of least sum |error|^2.4 (GPTQ's quantiser; gptq only).
    """

    convention: Convention
    symmetric: bool
    mse: bool

    def __post_init__(self):
        if self.mse and not self.convention.startswith("gptq"):
            raise ValueError(
                f'mse = True: convention "gptq" searches, got convention = "{self.convention}"; leave one out'
            )

    @property
    def zero_first(self) -> bool:
        """The zero point is added before rounding, not after."""
        return self.convention == "qwix" and not self.symmetric


@jax.custom_vjp
def straight_through(x: Array, y: Array) -> Array:
    """y in the forward pass, the gradient of x in the backward pass (Bengio et al. 2013)."""
    return y


straight_through.defvjp(lambda x, y: (y, None), lambda _, g: (g, jnp.zeros_like(g)))


def divide(x: Array, scale: Array) -> Array:
    """IEEE x / scale with scale broadcast to x; without the barrier XLA multiplies by a reciprocal.

    The scale is made to depend on x, so that vmap over x alone does not take the broadcast out of the barrier.
    """
    return x / lax.optimization_barrier(jnp.where(x == x, scale, x))


def levels(bits: Array) -> Array:
    """2^bits - 1 for integer bits, exact, by a shift; bits is any real array and is rounded to an integer."""
    whole = jnp.clip(jnp.rint(bits), 1, 24).astype(jnp.int32)
    return (jnp.left_shift(jnp.int32(1), whole) - 1).astype(jnp.float32)


def is_ternary(bits: Array) -> Array:
    return jnp.abs(bits - TERNARY_BITS) < 0.01


def is_binary(bits: Array) -> Array:
    return jnp.asarray(bits) < 1.5


def find_grid(x: Array, bits: Array, scheme: Scheme, *, axis: Axis, inside: Array | bool = True) -> Grid:
    """The grid of the values of x that share one scale: those along `axis`, which is kept with size 1.

    inside: bool, broadcastable to x; values outside have no part in the range.  bits broadcasts against the
    result.  At 1.585 bits the scale is the mean absolute value (ternary, BitNet b1.58, Ma et al. 2024, eq. 1-3),
    at 1 bit values become +- their mean absolute value (XNOR-Net, Rastegari et al. 2016, eq. 6), in every scheme.
    """
    inside = jnp.broadcast_to(inside, x.shape)
    some = jnp.any(inside, axis, keepdims=True)
    low = jnp.where(some, jnp.min(jnp.where(inside, x, jnp.inf), axis, keepdims=True), 0)
    high = jnp.where(some, jnp.max(jnp.where(inside, x, -jnp.inf), axis, keepdims=True), 0)
    if scheme.convention == "awq":
        grid = _awq_grid(low, high, bits, scheme.symmetric)
    elif scheme.convention == "qwix":
        grid = _qwix_grid(low, high, bits, scheme.symmetric)
    else:
        low, high = _gptq_range(low, high, scheme)
        grid = _span(low, high, bits, scheme.symmetric)
        if scheme.mse:
            grid = _shrink(x, low, high, grid, scheme.symmetric, axis, inside)
    absmean = jnp.sum(jnp.abs(x), axis, keepdims=True, where=inside)
    absmean = divide(absmean, jnp.maximum(jnp.sum(inside, axis, keepdims=True), 1).astype(x.dtype))
    return _few_levels(grid, absmean, bits)


def _gptq_range(low: Array, high: Array, scheme: Scheme) -> tuple[Array, Array]:
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    if scheme.symmetric:
        high = jnp.maximum(-low, high)
        mirrored = (low < 0) | (scheme.convention == "gptq")
        low = jnp.where(mirrored, -high, low)
    empty = (low == 0) & (high == 0)
    return jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)


def _span(low: Array, high: Array, bits: Array, symmetric: bool) -> Grid:
    top = levels(bits)
    scale = divide(high - low, top)
    zero = jnp.broadcast_to((top + 1) / 2, scale.shape) if symmetric else jnp.rint(divide(-low, scale))
    return Grid(scale, zero, jnp.broadcast_to(bits, scale.shape))


def _awq_grid(low: Array, high: Array, bits: Array, symmetric: bool) -> Grid:
    top = levels(bits)
    if symmetric:
        reach = jnp.maximum(jnp.maximum(-low, high), 1e-5)
        scale = divide(reach, jnp.maximum((top + 1) / 2 - 1, 1))
        zero = jnp.broadcast_to((top + 1) / 2, scale.shape)
    else:
        scale = divide(jnp.maximum(high - low, 1e-5), top)
        zero = jnp.clip(-jnp.rint(divide(low, scale)), 0, top)
    return Grid(scale, zero, jnp.broadcast_to(bits, scale.shape))


def _qwix_grid(low: Array, high: Array, bits: Array, symmetric: bool) -> Grid:
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    if symmetric:
        high = jnp.maximum(-low, high)
        low = -high
    top = levels(bits)
    half = (top + 1) / 2
    scale = divide(high - low, top)
    scale = jnp.where(scale < np.sqrt(np.finfo(np.float32).tiny), 1.0, scale)
    zero = jnp.clip(jnp.rint(-half - divide(low, scale)), -half, half - 1) + half
    zero = jnp.broadcast_to(half, scale.shape) if symmetric else zero
    return Grid(scale, zero, jnp.broadcast_to(bits, scale.shape))


def _shrink(
    x: Array, low: Array, high: Array, grid: Grid, symmetric: bool, axis: Axis, inside: Array
) -> Grid:
    """The grid of the shrunk range of least error; the first one among equals."""

    def step(i, best):
        least, scale, zero = best
        p = jnp.asarray(SHRINKS)[i]
        new = _span(p * low, p * high, grid.bits, symmetric)
        error = jnp.sum(jnp.abs(round_to(x, new) - x) ** SHRINK_NORM, axis, keepdims=True, where=inside)
        better = error < least
        return tuple(
            jnp.where(better, a, b) for a, b in zip((error, *new[:2]), (least, scale, zero), strict=True)
        )

    start = (jnp.full_like(grid.scale, jnp.inf), grid.scale, grid.zero)
    _, scale, zero = lax.fori_loop(0, len(SHRINKS), step, start)
    return grid._replace(scale=scale, zero=zero)


def _few_levels(grid: Grid, absmean: Array, bits: Array) -> Grid:
    """The grid, or that of 1.585 bits and 1 bit, whose scale comes from the mean absolute value."""
    ternary, binary = is_ternary(bits), is_binary(bits)
    three = jnp.where(absmean > 0, absmean, 1.0)
    scale = jnp.where(binary, 2 * absmean, jnp.where(ternary, three, grid.scale))
    zero = jnp.where(binary, 0.5, jnp.where(ternary, 1.0, grid.zero))
    return Grid(scale, zero, grid.bits)


def quantize(x: Array, grid: Grid, *, zero_first: bool = False) -> Array:
    """Codes (f32 whole numbers) of the nearest points of the grid, half to even."""
    ternary, top = is_ternary(grid.bits), levels(grid.bits)
    steps = divide(x, jnp.where(grid.scale > 0, grid.scale, 1.0))
    code = jnp.rint(steps) + grid.zero
    if zero_first:  # in signed codes, which qwix stores: a shift by an odd number would turn ties round
        half = (top + 1) / 2
        code = jnp.where(ternary, code, jnp.rint(steps + (grid.zero - half)) + half)
    code = jnp.clip(code, 0, jnp.where(ternary, 2, top))
    return jnp.where(is_binary(grid.bits), (x >= 0).astype(x.dtype), code)


def dequantize(code: Array, grid: Grid) -> Array:
    return (code - grid.zero) * grid.scale


def round_to(x: Array, grid: Grid, *, zero_first: bool = False) -> Array:
    """The nearest points of the grid; rounding them again changes nothing."""
    return dequantize(quantize(x, grid, zero_first=zero_first), grid)


def fake_quantize_range(x: Array, bits: Array, low: Array, high: Array) -> Array:
    """x on the 2^bits evenly spaced points from low to high, both included, gradients straight through (KIVI,
    Liu et al. 2024, arXiv 2402.02750, section 3.1).  What lies outside saturates; bits >= 16: x, bit for bit.

    The ends are points, so that nothing lies on a rounding tie by construction: programs that differ in the last
    bit of x, as decoding and the full forward do, give the same points.
    """
    x32 = x.astype(jnp.float32)
    top = jnp.where(is_ternary(bits), 2, levels(bits))
    scale = divide(high - low, top)
    code = jnp.clip(jnp.rint(divide(x32 - low, jnp.where(scale > 0, scale, 1.0))), 0, top)
    rounded = (code * scale + low).astype(x.dtype)
    return straight_through(x, jnp.where(bits >= IDENTITY_BITS, x, rounded))


def fake_quantize_activation(x_BSI: Array, bits: Array, absmax: Array | None = None) -> Array:
    """Symmetric fake quantisation of an activation, straight-through gradient, in the dtype of x.

    Codes -2^(b-1) to 2^(b-1) - 1 times absmax / (2^(b-1) - 1/2), -absmax always becoming the least of them;
    at 1.585 bits -1, 0, 1 times 2/3 absmax, at 1 bit plus or minus half of absmax.  bits >= 16: x, bit for bit.
    absmax None: one scale per token, from the token itself.  absmax a scalar: one scale per tensor, fixed by
    calibration, so that a sequence's result does not depend on its batch.
    """

    def rounded(x_BSI: Array) -> Array:
        x = x_BSI.astype(jnp.float32)
        reach = jnp.max(jnp.abs(x), axis=-1, keepdims=True) if absmax is None else absmax.astype(jnp.float32)
        top, binary = levels(bits), is_binary(bits)
        scale = jnp.where(reach > 0, reach, 1.0) * jnp.where(binary, 1.0, 2 / top)
        least = jnp.where(binary, 0.5, jnp.where(is_ternary(bits), 1.0, (top + 1) / 2))
        most = jnp.where(binary, 0.5, (top - 1) / 2)
        # Two codes have no 0 between them: every value saturates.  The reciprocal stands behind a barrier and is
        # multiplied by on purpose, as kernels do: of a division XLA makes that in some programs and not in others.
        per_scale = jnp.where(binary, np.finfo(np.float32).max, (1 + HAIR) / scale)
        per_scale = lax.optimization_barrier(per_scale)
        return (jnp.clip(jnp.rint(x * per_scale), -least, most) * scale).astype(x_BSI.dtype)

    # A branch, so that x is computed once: a fusion would compute it again for the range and for the rounding.
    return straight_through(x_BSI, lax.cond(bits >= IDENTITY_BITS, lambda x: x, rounded, x_BSI))
