"""The two searches of AWQ (Lin et al. 2023, arXiv 2306.00978) for matrices that share their inputs.

Inputs that are large on average get a scale s > 1: their weights are rounded as Q(w s) / s, so that they lose less
and others more.  Then the range of every group of weights is clipped where that lowers the error of its output.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.rtn import uniform_grid
from wane.scaling.quantize import (
    IDENTITY_BITS,
    Grid,
    Scheme,
    dequantize,
    divide,
    find_grid,
    quantize,
    round_to,
)

Objective = Literal["output", "diagonal"]
FLOOR = 1e-4  # of scales
CLIP_STEPS = np.float32(1 - np.arange(10) / 20)  # a range is shrunk to half at most


class Target(NamedTuple):
    """One matrix to round.  bits: of each weight, 16 = it stays; inside: bool, has part in the ranges; both
    broadcast to w_IO."""

    w_IO: Array
    bits: Array
    inside: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """objective: `output`, the published one; `diagonal`, that of qwix: the squared error of each weight times the
    mean activity of its input, activity relative to the largest, and a last ratio of 1."""

    scheme: Scheme
    group_size: int  # inputs of an output that share a scale; 0 = all
    n_grid: int  # ratios that are tried
    objective: Objective

    @property
    def ratios(self) -> np.ndarray:
        """Exponents of the activity, the first is 0: no scaling, plain rounding to nearest."""
        last = self.objective == "diagonal"
        return np.float32(np.linspace(0, 1, self.n_grid, endpoint=last))

    def activity(self, mean_I: Array) -> Array:
        """From the mean |x| of each input."""
        if self.objective == "output":
            return mean_I
        return jnp.maximum(divide(mean_I, jnp.max(mean_I) + 1e-8), FLOOR)


def input_scales(activity_I: Array, ratio: Array) -> Array:
    """s_I = activity^ratio, with geometric mean 1 of its largest and smallest."""
    s_I = jnp.maximum(activity_I**ratio, FLOOR)
    return divide(s_I, jnp.sqrt(jnp.max(s_I) * jnp.min(s_I)))


def round_scaled(
    target: Target, s_I: Array, search: Search, limit_IO: Array | None = None
) -> tuple[Array, Grid]:
    """(Q(clip(w s, +-limit)) / s, the lattice of these values); weights with 16 bits keep theirs."""
    scaled_IO = target.w_IO * s_I[:, None]
    if limit_IO is not None:
        scaled_IO = jnp.clip(scaled_IO, -limit_IO, limit_IO)
    width = jnp.min(target.bits)
    grid = uniform_grid(search.scheme, search.group_size)(scaled_IO, width, target.inside)
    code_IO = quantize(scaled_IO, grid, zero_first=search.scheme.zero_first)
    scale_IO = divide(jnp.broadcast_to(grid.scale, code_IO.shape), s_I[:, None])
    value_IO = jnp.where(
        target.bits < IDENTITY_BITS, dequantize(code_IO, grid._replace(scale=scale_IO)), target.w_IO
    )
    return value_IO, Grid(scale_IO, grid.zero, target.bits)


def losses_of(
    output: Callable[[Mapping[str, Array]], Array],
    weights: Mapping[str, Array],
    rounded: Callable[[Array], Mapping[str, Array]],
    activity_I: Array,
    ratios: np.ndarray,
) -> Array:
    """Mean squared change of output(weights) for each ratio, [n_grid] in f32.

    rounded(s_I) -> the weights rounded with these scales of their inputs.
    """
    want = output(weights).astype(jnp.float32)

    def loss(ratio: Array) -> Array:
        got = output(rounded(input_scales(activity_I, ratio))).astype(jnp.float32)
        return jnp.mean(jnp.square(got - want))

    return lax.map(loss, jnp.asarray(ratios))


def linear_losses(target: Target, gram_II: Array, activity_I: Array, search: Search) -> Array:
    """Sum over tokens and outputs of the squared change of x @ w for each ratio, [n_grid], from x^T x."""

    def loss(ratio: Array) -> Array:
        error_IO = round_scaled(target, input_scales(activity_I, ratio), search)[0] - target.w_IO
        return jnp.sum(error_IO * jnp.matmul(gram_II, error_IO, precision="highest"))

    return lax.map(loss, jnp.asarray(search.ratios))


def diagonal_losses(target: Target, activity_I: Array, search: Search) -> Array:
    """Sum of (error activity)^2 for each ratio, [n_grid]."""

    def loss(ratio: Array) -> Array:
        error_IO = round_scaled(target, input_scales(activity_I, ratio), search)[0] - target.w_IO
        return jnp.sum(jnp.square(error_IO * activity_I[:, None]))

    return lax.map(loss, jnp.asarray(search.ratios))


def clip_limits(target: Target, s_I: Array, gram_Ggg: Array, search: Search) -> tuple[Array, Array]:
    """(limit [G, 1, O] of |w s|, its error [G, 1, O]): of the ranges 1, .95, ... .55 of max|w s| the one that
    changes the output of its group least, summed over tokens; the first one among equals.

    gram_Ggg: x^T x of the inputs of each group, divided by s on both sides here.
    """
    G, size, _ = gram_Ggg.shape
    s_Gg1 = s_I.reshape(G, size, 1)
    w_GgO = target.w_IO.reshape(G, size, -1) * s_Gg1
    inside_GgO = jnp.broadcast_to(target.inside, target.w_IO.shape).reshape(w_GgO.shape)
    gram_Ggg = divide(gram_Ggg, s_Gg1 * jnp.swapaxes(s_Gg1, 1, 2))
    reach_G1O = jnp.max(jnp.abs(jnp.where(inside_GgO, w_GgO, 0)), axis=1, keepdims=True)
    width = jnp.min(target.bits)

    def step(k: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        limit = reach_G1O * jnp.asarray(CLIP_STEPS)[k]
        clipped = jnp.clip(w_GgO, -limit, limit)
        grid = find_grid(clipped, width, search.scheme, axis=1, inside=inside_GgO)
        rounded = round_to(clipped, grid, zero_first=search.scheme.zero_first)
        error = jnp.where(inside_GgO, rounded - w_GgO, 0)
        change = jnp.einsum("gij,gjo->gio", gram_Ggg, error, precision="highest")
        change = jnp.sum(error * change, axis=1, keepdims=True)
        better = change < best[1]
        return jnp.where(better, limit, best[0]), jnp.where(better, change, best[1])

    return lax.fori_loop(0, len(CLIP_STEPS), step, (reach_G1O, jnp.full_like(reach_G1O, jnp.inf)))


def spread(limit_G1O: Array, I: int) -> Array:
    """A limit per group as a limit per weight [I, O]."""
    return jnp.repeat(limit_G1O[:, 0], I // len(limit_G1O), axis=0)


def group_grams(x_TI: Array, size: int) -> Array:
    """x^T x [G, g, g] of each group of `size` consecutive inputs."""
    x_TGg = x_TI.reshape(len(x_TI), -1, size)
    return jnp.einsum("tgi,tgj->gij", x_TGg, x_TGg, precision=lax.Precision.HIGHEST)


def best_scales(losses_K: Array, activity_I: Array, ratios: np.ndarray) -> Array:
    """s_I of the first ratio of least loss."""
    return input_scales(activity_I, jnp.asarray(ratios)[jnp.argmin(losses_K)])
