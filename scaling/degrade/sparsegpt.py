"""SparseGPT: the least salient weights go, and the later inputs of each output make up for them."""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import FULL_BITS, CostOf, MaskedBits, Removed
from wane.scaling.degrade.hessian import check_solver, compensate, cuts, join, part, pose
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import lowest
from wane.scaling.degrade.rounding import StoredBits, hold_grid, rounded_edit, weight_bits
from wane.scaling.degrade.rtn import uniform_grid
from wane.scaling.degrade.sequential import Matrices, gram, kept, rewrite
from wane.scaling.degrade.weights import check_pattern, pattern
from wane.scaling.edit import Edit, Params
from wane.scaling.quantize import IDENTITY_BITS, Scheme, divide, find_grid, round_to
from wane.scaling.shape import Shape

Group = Literal["block", "n:4", "n:8"]
GRID = Scheme(convention="gptq", symmetric=False, mse=False)  # of the kept weights, one scale per output


def sparsegpt(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    group: Group = "block",
    blocksize: int = 128,
    percdamp: float = 0.01,
    quantize_bits: int = 0,
    reference_count: bool = False,
    true_sequential: bool = False,
) -> Degradation:
    """Removes the weights whose loss costs least and updates the others (Frantar & Alistarh 2023, algorithm 1).

    group: `block` ranks each matrix in blocks of `blocksize` inputs, all outputs together; `n:4` and `n:8` each
    aligned group of 4 or 8 inputs of an output, so that severity .5 of n:4 is 2:4 sparsity.  percdamp: share of
    its mean diagonal added to the Hessian.  quantize_bits: what is left is rounded to so many bits in the same
    pass (0: not), at every severity but 0.  reference_count: each block loses one weight more, as in the
    published code.  true_sequential: q, k, v, then o, then gate, up, then down, each on inputs made by the
    former.  Saliency is w^2 / U_ii^2, with U of hessian.py, of the inputs that the pruned blocks before make.
    Weights of an input that is 0 on all calibration data become 0 besides the count.  Masks of a larger
    severity need not contain those of a smaller.  Cost: two forwards of the calibration set (true_sequential
    five) and one Cholesky factor per site and point.
    """
    scope.check(shape)
    check_solver(blocksize, percdamp)
    check_pattern(group, scope, shape)
    M = pattern(group)
    check_settings(group, M, blocksize, quantize_bits, reference_count)
    in_scope = scope.weights(shape)
    settings = {"blocksize": blocksize, "percdamp": percdamp, "quantize_bits": quantize_bits}
    settings |= {"reference_count": reference_count}
    solver = functools.partial(prune, M=M, **settings)

    def apply(params: Params, tokens_NT: Array, severity: Array, where: Where, key: Array) -> Edit:
        def solve(weights, hessian_II, inside):
            return solver(weights, inside, hessian_II * (2 / len(tokens_NT)), severity), {}

        walked = functools.partial(rewrite, params, tokens_NT, shape, in_scope, where)
        new, _ = walked(measure=gram, solve=solve, true_sequential=true_sequential)
        edit = lattice(lax.stop_gradient(params), severity, where) if quantize_bits else Edit()
        return dataclasses.replace(edit, params={"blocks": kept(params, new)})

    def lattice(params, severity, where):
        bits = jnp.where(severity > 0, quantize_bits, IDENTITY_BITS)
        acts = {name: mask & where.entries(name, shape) for name, mask in in_scope.items()}
        widths = weight_bits(bits, in_scope, where, shape)
        return rounded_edit(params, widths, acts, shape, uniform_grid(GRID, 0), round_to)

    def hold(params: Params, edit: Edit) -> Params:
        rounded = hold_grid(params, edit, round_matrix=round_to) if quantize_bits else params
        return hold_zeros(rounded, edit, shape=shape)

    return Degradation(
        name="sparsegpt",
        scope=scope,
        settings={"group": group, **settings, "true_sequential": true_sequential},
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        sequential=True,
        needs_calibration=True,
        promises=Promises(exact_count=not (reference_count or quantize_bits)),
        fit=lambda params, calibration_NT, key: calibration_NT,
        apply=apply,
        hold=hold,
        cost=CostOf(shape, SparseBits(shape, scope)),
    )


def prune(
    weights: Matrices,
    inside: Matrices,
    hessian_II: Array,
    severity: Array,
    *,
    M: int,
    blocksize: int,
    percdamp: float,
    quantize_bits: int,
    reference_count: bool,
) -> Matrices:
    """The matrices that read one site, pruned.  inside: bool, what may change; all else stays as it is.

    M = 0: each block of inputs loses the count(n, severity) least salient of its n weights of each matrix,
    chosen when the block is reached; else each M inputs of each output lose count(M, severity), chosen when
    the first of them is reached.
    """
    problem = pose(weights, inside, hessian_II, percdamp=percdamp, blocksize=blocksize, act_order=False)
    d_I = jnp.diagonal(problem.factor_II)
    B = min(blocksize, len(d_I))
    pick = functools.partial(lowest, severity=severity, axis=0)
    counted = "one_more" if reference_count else "floor"
    bits = jnp.float32(quantize_bits)
    grid = find_grid(join(weights), bits, GRID, axis=0, inside=join(inside))  # dead inputs included

    def candidates(w_BO, first):
        """(saliency, bool what may go) of the inputs from `first` on."""
        d_B = lax.dynamic_slice_in_dim(d_I, first, len(w_BO))
        may_go = lax.dynamic_slice_in_dim(problem.inside_IO, first, len(w_BO))
        return divide(w_BO * w_BO, (d_B * d_B)[:, None]), may_go

    def begin(w_IO, first, removed_BO):
        if M:
            return removed_BO
        both = candidates(lax.dynamic_slice_in_dim(w_IO, first, B), first)
        of_each = zip(*(jnp.split(x, cuts(weights), axis=1) for x in both), strict=True)
        masks = [pick(s.ravel(), i.ravel(), convention=counted).reshape(s.shape) for s, i in of_each]
        return jnp.concatenate(masks, axis=1)

    def next_group(w_BO, first, i, removed_BO):
        w_MO = lax.dynamic_slice_in_dim(w_BO, i, M)
        removed_MO = pick(*candidates(w_MO, first + i))
        return lax.dynamic_update_slice_in_dim(removed_BO, removed_MO, i, axis=0)

    def choose(w_BO, first, i, removed_BO):
        if M:
            removed_BO = lax.cond(
                i % M == 0, lambda: next_group(w_BO, first, i, removed_BO), lambda: removed_BO
            )
        q_O = jnp.where(removed_BO[i], 0, w_BO[i])
        if quantize_bits:
            q_O = round_to(q_O[None], grid)[0]
        return jnp.where(problem.inside_IO[first + i], q_O, w_BO[i]), removed_BO

    nothing_BO = jnp.zeros((B, problem.w_IO.shape[1]), bool)
    w_IO, _ = compensate(problem, blocksize=blocksize, state=nothing_BO, begin=begin, choose=choose)
    new = part(w_IO[: len(problem.order_I)], weights)
    return {name: jnp.where(severity > 0, w, weights[name]) for name, w in new.items()}


class SparseBits(NamedTuple):
    """The codes of what is left, its scales, and a bitmap."""

    shape: Shape
    scope: Scope

    def __call__(self, removed: Removed, edit: Edit) -> Array:
        stored = StoredBits(self.shape, group_size=0, scale_bits=FULL_BITS, zero_point=True)(removed, edit)
        widths = {name: (edit.weight_bits or {}).get(name, FULL_BITS) for name in removed}
        gone = sum(jnp.sum(jnp.where(mask, widths[name], 0)) for name, mask in removed.items())
        bitmap = MaskedBits(self.shape, self.scope).bitmap(removed)
        return stored - gone / self.shape.param_counts()["blocks"] + bitmap


def check_settings(group: Group, M: int, blocksize: int, quantize_bits: int, reference_count: bool) -> None:
    """Raises ValueError naming the setting."""
    if M and blocksize % M:
        raise ValueError(
            f'blocksize = {blocksize}: must be a multiple of {M} with group = "{group}"; 128 is usual'
        )
    if M and reference_count:
        raise ValueError(
            f'reference_count = True: acts on group = "block" only, got group = "{group}"; leave it out'
        )
    if quantize_bits not in (0, *range(2, IDENTITY_BITS)):
        raise ValueError(f"quantize_bits = {quantize_bits}: must be 0 (not rounded) or from 2 to 15")
