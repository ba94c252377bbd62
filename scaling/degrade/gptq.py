"""GPTQ: weights rounded one input after another, the later inputs of each output making up for the errors."""

import functools
from typing import Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Promises, Scope, Where, bits_of
from wane.scaling.degrade.cost import FULL_BITS, CostOf
from wane.scaling.degrade.gptq_matrix import quantize
from wane.scaling.degrade.hessian import check_solver
from wane.scaling.degrade.rounding import StoredBits, check_groups, hold_grid, weight_bits
from wane.scaling.degrade.rtn import RTN_BITS
from wane.scaling.degrade.sequential import gram, rewrite
from wane.scaling.edit import Edit, Params
from wane.scaling.quantize import Grid, Scheme, round_to, straight_through
from wane.scaling.shape import Shape


def gptq(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    symmetric: bool = False,
    group_size: int = 0,
    act_order: bool = False,
    static_groups: bool = False,
    mse: bool = False,
    blocksize: int = 128,
    percdamp: float = 0.01,
    true_sequential: bool = False,
    convention: Literal["gptq", "gptq_code"] = "gptq",
) -> Degradation:
    """Rounds weights to 2^b levels one input at a time and updates the later ones (Frantar et al. 2022).

    Severity is given in bits, as for rtn.  group_size: consecutive inputs of an output that share a scale, found
    when the first of them is reached on weights with the errors of all earlier blocks of `blocksize` inputs; 0:
    one scale per output, of the trained weights.  act_order: inputs of largest square sum first, and groups run
    in that order; static_groups: scales of all groups beforehand, in the original order.  symmetric, mse,
    convention: quantize.Scheme.  percdamp: share of its mean diagonal added to the Hessian.  true_sequential:
    q, k, v, then o, then gate, up, then down, each on inputs made by the former.  Weights of an input that is 0
    on all calibration data become 0.  Inputs are those that the rounded blocks before make.  Cost: two forwards
    of the calibration set (true_sequential five) and one Cholesky factor per site and point.  What is stored is
    counted without the group numbers of act_order, log2(groups) bits per input.
    """
    scope.check(shape)
    check_solver(blocksize, percdamp)
    in_scope = scope.weights(shape)
    check_groups(group_size, in_scope, shape)
    if static_groups and not group_size:
        raise ValueError("static_groups = True: acts with a group_size, got group_size = 0; leave it out")
    solver = functools.partial(
        quantize,
        scheme=Scheme(convention=convention, symmetric=symmetric, mse=mse),
        group_size=group_size,
        act_order=act_order,
        static_groups=static_groups,
        blocksize=blocksize,
        percdamp=percdamp,
    )

    def apply(params: Params, tokens_NT: Array, severity: Array, where: Where, key: Array) -> Edit:
        bits = bits_of(severity)

        def solve(weights, hessian_II, inside):
            return solver(weights, inside, hessian_II * (2 / len(tokens_NT)), bits)

        walked = functools.partial(rewrite, params, tokens_NT, shape, in_scope, where)
        new, grids = walked(measure=gram, solve=solve, true_sequential=true_sequential)
        widths = weight_bits(bits, in_scope, where, shape)
        return Edit(
            params={"blocks": {n: straight_through(params["blocks"][n], w) for n, w in new.items()}},
            weight_bits=widths,
            weight_grid={
                name: with_bits(grid, widths[name], shape.lead(name)) for name, grid in grids.items()
            },
        )

    storage = StoredBits(shape, group_size=group_size, scale_bits=FULL_BITS, zero_point=not symmetric)
    return Degradation(
        name="gptq",
        scope=scope,
        settings={
            "symmetric": symmetric,
            "group_size": group_size,
            "act_order": act_order,
            "static_groups": static_groups,
            "mse": mse,
            "blocksize": blocksize,
            "percdamp": percdamp,
            "true_sequential": true_sequential,
            "convention": convention,
        },
        unit="bits",
        severities=RTN_BITS,
        random=False,
        sequential=True,
        needs_calibration=True,
        promises=Promises(),
        fit=lambda params, calibration_NT, key: calibration_NT,
        apply=apply,
        hold=functools.partial(hold_grid, round_matrix=round_to),
        cost=CostOf(shape, storage),
    )


def with_bits(grid: Grid, bits: Array, lead: tuple[int, ...]) -> Grid:
    """bits of each weight, 16 where it keeps its trained value, with all leading axes of the matrix."""
    return grid._replace(bits=jnp.broadcast_to(bits, (*lead, *bits.shape[-2:])))
