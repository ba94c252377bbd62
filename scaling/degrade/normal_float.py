"""NormalFloat: levels at quantiles of the normal distribution (QLoRA, Dettmers et al. 2023)."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import norm

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.rounding import PER_TENSOR, by_groups, check_groups, check_tensor, weight_rounder
from wane.scaling.quantize import Grid, divide
from wane.scaling.shape import Shape

WIDTHS = (2, 8)  # the fewest bits with a level on both sides of 0, the most that are tabulated
SCALE_BITS = 16
CELLS = 1024  # of [-1, 1]: each is narrower than two borders between levels are apart
# As printed (QLoRA, appendix E); the construction gives them to 2e-7.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def normal_float(
    shape: Shape, scope: Scope = EVERYTHING, *, group_size: int = 0, per_tensor: bool = False
) -> Degradation:
    """Rounds weights to 2^b levels that are equally likely under a normal distribution; 4 bits: NF4.

    Levels are scaled to max|w| of `group_size` consecutive inputs of each output, 0: of all inputs, per_tensor:
    of the matrix.  A weight halfway between two levels takes the lower one.  Severity is given in bits: 8 to 2;
    more than 8 act, and are charged, as 8, fewer than 2 as 2.  Levels of `normal_levels`.
    """
    scope.check(shape)
    check_tensor(per_tensor, group_size)
    check_groups(group_size, scope.weights(shape), shape)
    size = PER_TENSOR if per_tensor else group_size
    return weight_rounder(
        name="normal_float",
        shape=shape,
        scope=scope,
        settings={"group_size": group_size, "per_tensor": per_tensor},
        severities=(16.0, 8.0, 4.0, 3.0, 2.0),
        supported=lambda bits: jnp.clip(jnp.rint(bits), *WIDTHS),
        find=by_groups(absmax_grid, size),
        round_matrix=round_normal,
        scale_bits=SCALE_BITS,
        zero_point=False,
        group_size=size,
    )


def normal_levels(bits: int) -> np.ndarray:
    """The 2^bits ascending levels in [-1, 1], 0 among them, f32 (QLoRA, section 3 and appendix E).

    Quantiles of N(0, 1) at equal distances from 1/2 to a last one, 2^(b-1) above 0 and one fewer below it, divided
    by the largest.  The last probability leaves half a cell outside, averaged over both sides (.9677 at 4 bits).
    """
    codes = 2**bits
    last = 1 - (1 / (2 * codes) + 1 / (2 * codes - 2)) / 2
    above = norm.ppf(np.linspace(last, 0.5, codes // 2 + 1)[:-1])
    below = -norm.ppf(np.linspace(last, 0.5, codes // 2)[:-1])
    both = np.sort(np.concatenate([above, [0.0], below]))
    return (both / both.max()).astype(np.float32)


def levels_of(bits: int) -> np.ndarray:
    """What weights are rounded to: NF4 as printed, others as constructed."""
    return np.float32(NF4) if bits == 4 else normal_levels(bits)


def cell_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every width in WIDTHS and each of CELLS equal cells of [-1, 1]: the level below, the border to the next
    level (the middle between the two) and the level above, [widths, CELLS] each."""
    found = []
    for bits in range(WIDTHS[0], WIDTHS[1] + 1):
        levels = levels_of(bits)
        borders = np.append((levels[1:] + levels[:-1]) / 2, np.float32(np.inf))
        # A little lower than where the cell begins: x + 1 is rounded before the cell is told.
        first = np.searchsorted(borders, np.arange(CELLS) * 2 / CELLS - 1 - 1e-6)
        found.append((levels[first], borders[first], np.append(levels, 1)[first + 1]))
    return tuple(np.float32(table) for table in zip(*found, strict=True))


TABLES = cell_tables()


def absmax_grid(w_GIO: Array, bits: Array, inside_GIO: Array) -> Grid:
    """Scale max|w| over axis 1; 1 for an empty or an all-zero group."""
    absmax = jnp.max(jnp.abs(jnp.where(inside_GIO, w_GIO, 0)), axis=1, keepdims=True)
    scale = jnp.where(absmax > 0, absmax, 1.0)
    return Grid(scale, jnp.zeros_like(scale), jnp.broadcast_to(bits, scale.shape))


def round_normal(w_IO: Array, grid: Grid) -> Array:
    """Nearest level times the scale.  grid.bits: a scalar.

    A cell has one border at most, so that one look into a table does what a search among 255 levels would.
    """
    width = jnp.clip(jnp.rint(grid.bits), *WIDTHS).astype(jnp.int32)
    below, border, above = (jnp.asarray(table)[width - WIDTHS[0]] for table in TABLES)
    x_IO = divide(w_IO, grid.scale)
    cell_IO = jnp.clip(jnp.floor((x_IO + 1) * (CELLS / 2)), 0, CELLS - 1).astype(jnp.int32)
    return jnp.where(x_IO > border[cell_IO], above[cell_IO], below[cell_IO]) * grid.scale
