"""Round-to-nearest fake quantisation of weights."""

import functools

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import BITS, EVERYTHING, Degradation, Scope
from wane.scaling.degrade.rounding import (
    PER_TENSOR,
    Find,
    Round,
    by_groups,
    check_groups,
    check_tensor,
    weight_rounder,
)
from wane.scaling.quantize import TERNARY_BITS, Convention, Grid, Scheme, find_grid, round_to
from wane.scaling.shape import Shape

RTN_BITS = (*BITS, TERNARY_BITS, 1.0)
SCALE_BITS = 16


def rtn(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    symmetric: bool = True,
    group_size: int = 0,
    per_tensor: bool = False,
    convention: Convention = "gptq",
    mse: bool = False,
) -> Degradation:
    """Rounds weights to the nearest of 2^b levels, gradients straight through.

    Severity is given in bits: 8 to 2, 1.585 = log2(3) for ternary weights, 1 for binary ones, whose scale is the
    mean absolute value (quantize.find_grid).  One scale for `group_size` consecutive inputs of each output, 0:
    for all inputs, per_tensor: for a whole matrix.  symmetric: range [-max|w|, max|w|]; else [min w, max w] with
    an integer zero point.  convention: how a range becomes a grid where the published quantisers differ; mse:
    GPTQ's search for the range of least error (quantize.Scheme).  Codes are not nested: a coarser grid is no
    subset of a finer one.
    """
    scope.check(shape)
    check_tensor(per_tensor, group_size)
    check_groups(group_size, scope.weights(shape), shape)
    scheme = Scheme(convention=convention, symmetric=symmetric, mse=mse)
    size = PER_TENSOR if per_tensor else group_size
    return weight_rounder(
        name="rtn",
        shape=shape,
        scope=scope,
        settings={
            "symmetric": symmetric,
            "group_size": group_size,
            "per_tensor": per_tensor,
            "convention": convention,
            "mse": mse,
        },
        severities=RTN_BITS,
        supported=lambda bits: bits,
        find=uniform_grid(scheme, size),
        round_matrix=uniform_rounding(scheme),
        scale_bits=SCALE_BITS,
        zero_point=not symmetric,
        group_size=size,
    )


def uniform_grid(scheme: Scheme, group_size: int) -> Find:
    """Grids of 2^b equidistant levels per group of inputs."""

    def find(w_GIO: Array, bits: Array, inside_GIO: Array) -> Grid:
        return find_grid(w_GIO, bits, scheme, axis=1, inside=inside_GIO)

    return by_groups(find, group_size)


def uniform_rounding(scheme: Scheme) -> Round:
    return functools.partial(round_to, zero_first=scheme.zero_first)


def round_matrix(w_IO: Array, bits: Array, scheme: Scheme, group_size: int) -> Array:
    """All of one matrix, rounded with ranges over groups of inputs (0: all inputs)."""
    grid = uniform_grid(scheme, group_size)(w_IO, bits, jnp.ones((1, 1), bool))
    return uniform_rounding(scheme)(w_IO, grid)
