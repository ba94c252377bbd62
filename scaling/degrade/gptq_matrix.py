"""GPTQ for the matrices that read one site: a grid per group of inputs, then the solver of hessian.py."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.hessian import compensate, in_order, join, part, pose
from wane.scaling.degrade.sequential import Matrices
from wane.scaling.quantize import IDENTITY_BITS, Grid, Scheme, find_grid, round_to


def quantize(
    weights: Matrices,
    inside: Matrices,
    hessian_II: Array,
    bits: Array,
    *,
    scheme: Scheme,
    group_size: int,
    act_order: bool,
    static_groups: bool,
    blocksize: int,
    percdamp: float,
) -> tuple[Matrices, dict[str, Grid]]:
    """The matrices that read one site, rounded, and their grids, broadcastable to them.

    inside: bool, what may change; all else stays as it is.  Groups of `group_size` inputs (0: all inputs) run
    in the order of solving; with static_groups in the original order, found before anything is rounded.
    """
    problem = pose(weights, inside, hessian_II, percdamp=percdamp, blocksize=blocksize, act_order=act_order)
    w_IO, inside_IO, _, order_I = problem
    I, B = len(order_I), min(blocksize, len(order_I))
    size = group_size or I
    find = functools.partial(grids_of, bits=bits, scheme=scheme, size=size)
    place_I = jnp.arange(I) // size  # the grid that serves each input, in the order of solving
    if not group_size:
        grid = find(join(weights), join(inside))  # of the trained weights, those of dead inputs too
    elif static_groups:
        grid = find(in_order(w_IO, order_I), in_order(inside_IO, order_I))
        place_I = order_I // size
    else:
        found = jax.eval_shape(find, w_IO[:I], inside_IO[:I])
        grid = jax.tree.map(lambda a: jnp.zeros(a.shape), found)  # each is found when its block begins

    def begin(w_IO, first, grid):
        if not group_size or static_groups:
            return grid
        return renew(grid, w_IO[:I], inside_IO[:I], first, find, size, B)

    def choose(w_BO, first, i, grid):
        own = jax.tree.map(lambda a_GO: a_GO[place_I[first + i]], grid)
        return jnp.where(inside_IO[first + i], round_to(w_BO[i], own), w_BO[i]), grid

    w_IO, grid = compensate(problem, blocksize=blocksize, state=grid, begin=begin, choose=choose)
    if group_size:
        grid = jax.tree.map(lambda a_GO: in_order(a_GO[place_I], order_I), grid)
    new, pieces = part(in_order(w_IO, order_I), weights), [part(leaf, weights) for leaf in grid]
    new = {name: jnp.where(bits < IDENTITY_BITS, w, weights[name]) for name, w in new.items()}
    return new, {name: Grid(*(piece[name] for piece in pieces)) for name in weights}


def grids_of(w_IO: Array, inside_IO: Array, *, bits: Array, scheme: Scheme, size: int) -> Grid:
    """One grid per `size` consecutive inputs of each output, leaves [G, O]."""
    w_GIO, inside_GIO = (x.reshape(-1, size, x.shape[1]) for x in (w_IO, inside_IO))
    return jax.tree.map(lambda a: a[:, 0], find_grid(w_GIO, bits, scheme, axis=1, inside=inside_GIO))


def renew(
    grid: Grid, w_IO: Array, inside_IO: Array, first: Array, find: Callable[..., Grid], size: int, B: int
) -> Grid:
    """The grids of the groups that start in the block of B inputs from `first` on, found anew."""
    groups = len(w_IO) // size
    n = min(-(-B // size), groups)  # no block sees more groups start
    start = jnp.minimum((first + size - 1) // size, groups - n)
    new = find(*(lax.dynamic_slice_in_dim(x, start * size, n * size) for x in (w_IO, inside_IO)))
    fresh = ((start + jnp.arange(n)) * size >= first)[:, None]  # later groups are found again in their turn

    def replaced(old, new):
        kept = lax.dynamic_slice_in_dim(old, start, n)
        return lax.dynamic_update_slice_in_dim(old, jnp.where(fresh, new, kept), start, axis=0)

    return jax.tree.map(replaced, grid, new)
