"""Weights rounded to a lattice: a method finds a grid and rounds one matrix; the rest is shared."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.contract import Degradation, Promises, Scope, Where, bits_of, no_fit
from wane.scaling.degrade.cost import FULL_BITS, CostOf, Removed
from wane.scaling.edit import Edit, Params
from wane.scaling.quantize import IDENTITY_BITS, Grid, straight_through
from wane.scaling.shape import Shape

Bits = dict[str, Array]  # matrix name -> bits of each weight, broadcastable to the matrix
Grids = dict[str, Grid]
Find = Callable[[Array, Array, Array], Grid]  # (w_IO, bits, inside_IO) -> grid, broadcastable to w_IO
Round = Callable[[Array, Grid], Array]  # (w_IO, grid) -> w_IO; unchanged by a second call
PER_TENSOR = -1  # in place of a group size, inside this package


def weight_rounder(
    *,
    name: str,
    shape: Shape,
    scope: Scope,
    settings: Mapping[str, Any],
    severities: tuple[float, ...],
    supported: Callable[[Array], Array],
    find: Find,
    round_matrix: Round,
    scale_bits: int,
    zero_point: bool,
    group_size: int,
) -> Degradation:
    """Rounds every matrix in scope to `round_matrix(w_IO, find(w_IO, bits, inside_IO))`, straight-through.

    supported(bits) -> the width that is really used.  scale_bits, zero_point, group_size: what is stored besides
    the codes, as in `StoredBits`.
    """
    in_scope = scope.weights(shape)

    def apply(params: Params, fitted: tuple, severity: Array, where: Where, key: Array) -> Edit:
        asked = bits_of(severity)
        used = jnp.where(asked < IDENTITY_BITS, supported(asked), IDENTITY_BITS)
        bits = weight_bits(used, in_scope, where, shape)
        return rounded_edit(params, bits, in_scope, shape, find, round_matrix)

    storage = StoredBits(shape, group_size=group_size, scale_bits=scale_bits, zero_point=zero_point)
    return Degradation(
        name=name,
        scope=scope,
        settings=settings,
        unit="bits",
        severities=severities,
        random=False,
        promises=Promises(),
        fit=no_fit,
        apply=apply,
        hold=functools.partial(hold_grid, round_matrix=round_matrix),
        cost=CostOf(shape, storage),
    )


def weight_bits(bits: Array, in_scope: dict[str, np.ndarray], where: Where, shape: Shape) -> Bits:
    """Bits of each weight: the point's bits where it acts, 16 elsewhere."""
    return {
        name: jnp.where(mask & where.entries(name, shape), bits, IDENTITY_BITS)
        for name, mask in in_scope.items()
    }


def rounded_edit(
    params: Params, bits: Bits, in_scope: dict[str, np.ndarray], shape: Shape, find: Find, round_matrix: Round
) -> Edit:
    """Every matrix in scope rounded to its own grid; weights with 16 bits keep theirs.

    Ranges are taken over the weights in scope only, and not by where a point acts.
    """
    blocks, grids = {}, {}
    for name, mask in in_scope.items():
        grid = lift(functools.partial(_grid, find=find), len(shape.lead(name)))
        grid = grid(params["blocks"][name], align(bits[name], name, shape), align(mask, name, shape))
        grids[name] = jax.tree.map(lax.stop_gradient, grid)
        blocks[name] = round_leaf(params["blocks"][name], grids[name], round_matrix)
    return Edit(params={"blocks": blocks}, weight_bits=bits, weight_grid=grids)


def align(x: Array, name: str, shape: Shape) -> Array:
    """x, broadcastable to a matrix, with all the leading axes of that matrix."""
    return jnp.broadcast_to(x, (*shape.lead(name), *x.shape[-2:]))


def _grid(w_IO: Array, bits: Array, inside: Array, find: Find) -> Grid:
    width = jnp.min(bits)  # one width per matrix; a selector only says where it acts
    return find(w_IO, width, inside)._replace(bits=bits)


def round_leaf(w: Array, grid: Grid, round_matrix: Round) -> Array:
    """A leaf [.., I, O] on its grid, straight-through; weights with 16 bits keep theirs, bit for bit."""

    def matrix(w_IO: Array, grid: Grid) -> Array:
        rounded_IO = lax.stop_gradient(round_matrix(w_IO, grid._replace(bits=jnp.min(grid.bits))))
        return jnp.where(grid.bits < IDENTITY_BITS, straight_through(w_IO, rounded_IO), w_IO)

    return lift(matrix, w.ndim - 2)(w, grid)


def hold_grid(params: Params, edit: Edit, *, round_matrix: Round) -> Params:
    """params on the lattices that the edit's weights were rounded to, straight-through."""
    held = {name: round_leaf(params["blocks"][name], g, round_matrix) for name, g in edit.weight_grid.items()}
    return {**params, "blocks": {**params["blocks"], **held}}


def lift(f: Callable, leading: int) -> Callable:
    """f over `leading` further axes in front of all its arguments."""
    for _ in range(leading):
        f = jax.vmap(f)
    return f


def check_groups(group_size: int, in_scope: dict[str, np.ndarray], shape: Shape) -> None:
    """Raises ValueError where groups would be ragged."""
    if group_size < 0:
        raise ValueError(f"group_size = {group_size}: must be 0 (one scale per output) or positive")
    for name in in_scope:
        fan_in = shape.matrices[name][0]
        if group_size and fan_in % group_size:
            raise ValueError(
                f"group_size = {group_size}: must divide the {fan_in} inputs of matrix {name} of "
                f"{shape.name}; choose a divisor of {fan_in}, or 0 for one scale per output"
            )


def check_tensor(per_tensor: bool, group_size: int) -> None:
    """Raises ValueError where both a scale per tensor and one per group are asked for."""
    if per_tensor and group_size:
        raise ValueError(
            f"per_tensor = True: one scale per matrix, got group_size = {group_size} too; leave one out"
        )


def by_groups(find: Find, group_size: int) -> Find:
    """find(w, bits, inside) over axis 1 of [G, inputs of a group, O], as a `Find` for w_IO.

    group_size: consecutive inputs of one output that share a scale; 0 = all inputs, PER_TENSOR = the matrix.
    """

    def of_matrix(w_IO: Array, bits: Array, inside: Array) -> Grid:
        I, O = w_IO.shape
        inside_IO = jnp.broadcast_to(inside, w_IO.shape)
        if group_size == PER_TENSOR:
            grid = find(w_IO.reshape(1, I * O, 1), bits, inside_IO.reshape(1, I * O, 1))
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (1, 1, 1))[0], grid)
        size = group_size or I
        grid = find(w_IO.reshape(-1, size, O), bits, inside_IO.reshape(-1, size, O))

        def spread(a: Array) -> Array:
            a_GO = jnp.broadcast_to(a, (I // size, 1, O))[:, 0]
            return a_GO if size == I else jnp.repeat(a_GO, size, axis=0)

        return jax.tree.map(spread, grid)

    return of_matrix


class StoredBits(NamedTuple):
    """Bits per block weight: codes of edit.weight_bits, and per scale that is used (one for `group_size` inputs
    of an output, 0: all inputs, PER_TENSOR: the matrix) scale_bits, with a zero point as many more as one code
    has."""

    shape: Shape
    group_size: int
    scale_bits: int
    zero_point: bool

    def __call__(self, removed: Removed, edit: Edit) -> Array:
        weights = self.shape.param_counts()["blocks"]
        total = weights * jnp.float32(FULL_BITS)
        for name, bits in (edit.weight_bits or {}).items():
            I, O = self.shape.matrices[name]
            whole = self.group_size == PER_TENSOR
            size = I * O if whole else self.group_size or I
            lowest = _lowest(bits, O if whole else 1, size, I)
            overhead = jnp.where(lowest < FULL_BITS, self.scale_bits + self.zero_point * lowest, 0)
            saved = FULL_BITS - jnp.mean(bits) - jnp.mean(overhead) / size
            total -= math.prod(self.shape.full(name)) * saved
        return total / weights


def _lowest(bits: Array, outputs: int, size: int, I: int) -> Array:
    """The smallest width among the weights that share a scale."""
    if outputs > 1:
        return bits.min((-2, -1))
    if bits.shape[-2] == 1:
        return bits
    return bits.reshape(*bits.shape[:-2], I // size, size, bits.shape[-1]).min(-2)
