"""Column-by-column solver of SparseGPT (Frantar & Alistarh 2023) and GPTQ (Frantar et al. 2022).

Inputs of a matrix w_IO (y = x @ w_IO) are replaced one after another, and what each replacement changes in the
outputs on the calibration data is made up for by all inputs that come later.  With the Hessian H = 2 / N X^T X
of the inputs (N sequences) and the upper triangular U with U^T U = H^-1, replacing input i by q adds
-(w_i - q) / U_ii * U_ij to each later input j (SparseGPT, algorithm 1; GPTQ, eq. 2 in its Cholesky form).
Outputs do not touch each other, so matrices that read the same inputs stand side by side in one problem.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.sequential import Matrices
from wane.scaling.quantize import divide

State = Any  # a pytree: what a method carries from input to input


class Problem(NamedTuple):
    """Inputs stand in the order in which they are solved, and some that do not exist (weight 0, outside,
    correlated with none) fill the last block.

    w_IO: weights, those of dead inputs 0.  inside_IO: bool, what may change.  factor_II: U.
    order_I: the original input at each place.
    """

    w_IO: Array
    inside_IO: Array
    factor_II: Array
    order_I: Array


def pose(
    weights: Matrices,
    inside: Matrices,
    hessian_II: Array,
    *,
    percdamp: float,
    blocksize: int,
    act_order: bool,
) -> Problem:
    """percdamp: share of the mean diagonal of H that is added to it.  act_order: largest diagonal first."""
    w_IO, inside_IO = join(weights), join(inside)
    hessian_II, dead_I = revive(separate(hessian_II, inside_IO.any(1)))
    w_IO = jnp.where(dead_I[:, None] & inside_IO, 0, w_IO)
    diagonal_I = jnp.diagonal(hessian_II)
    damp = percdamp * jnp.mean(diagonal_I)
    order_I = jnp.argsort(-diagonal_I, stable=True) if act_order else jnp.arange(len(w_IO))
    if act_order:
        w_IO, inside_IO, hessian_II = w_IO[order_I], inside_IO[order_I], hessian_II[order_I][:, order_I]
    factor_II = inverse_factor(hessian_II + damp * jnp.eye(len(w_IO)))
    more = -len(w_IO) % min(blocksize, len(w_IO))
    w_IO, inside_IO = (jnp.pad(x, ((0, more), (0, 0))) for x in (w_IO, inside_IO))
    return Problem(w_IO, inside_IO, jax.scipy.linalg.block_diag(factor_II, jnp.eye(more)), order_I)


def check_solver(blocksize: int, percdamp: float) -> None:
    """Raises ValueError where the solver could not run."""
    if blocksize < 1:
        raise ValueError(f"blocksize = {blocksize}: must be at least 1 input; 128 is usual")
    if not percdamp > 0:
        raise ValueError(
            f"percdamp = {percdamp}: must be positive, because fewer calibration tokens than inputs leave the "
            "Hessian singular; 0.01 is usual"
        )


def join(matrices: Matrices) -> Array:
    return jnp.concatenate(list(matrices.values()), axis=1)


def part(joined_IO: Array, weights: Matrices) -> Matrices:
    """The reverse of `join`; also for what has fewer rows than weights."""
    return dict(zip(weights, jnp.split(joined_IO, cuts(weights), axis=1), strict=True))


def in_order(solved_IO: Array, order_I: Array) -> Array:
    """Rows of the solver back at the places of the original inputs, the filling dropped."""
    solved_IO = solved_IO[: len(order_I)]
    return jnp.zeros_like(solved_IO).at[order_I].set(solved_IO)


def cuts(weights: Matrices) -> list[int]:
    """Where along the outputs one matrix ends and the next begins."""
    return list(itertools.accumulate(w_IO.shape[1] for w_IO in weights.values()))[:-1]


def separate(hessian_II: Array, inside_I: Array) -> Array:
    """No error crosses between the inputs inside and the others, which stay as they are."""
    return jnp.where(inside_I[:, None] == inside_I, hessian_II, 0)


def revive(hessian_II: Array) -> tuple[Array, Array]:
    """(H with 1 on the diagonal of the dead inputs, those that were 0 on all calibration data; dead_I).

    No input at all, as for an expert that no calibration token reached, says nothing about which weights
    matter: then H is the identity and nothing is dead.
    """
    silent_I = jnp.diagonal(hessian_II) == 0
    return hessian_II + jnp.diag(silent_I.astype(hessian_II.dtype)), silent_I & jnp.any(~silent_I)


def inverse_factor(hessian_II: Array) -> Array:
    """Upper triangular U with U^T U = H^-1 without the inverse: H = R R^T with R upper triangular (Cholesky
    from the last input to the first), and U = R^-1."""
    r_II = lax.linalg.cholesky(hessian_II[::-1, ::-1], symmetrize_input=False)[::-1, ::-1]
    with jax.default_matmul_precision("highest"):
        return lax.linalg.triangular_solve(r_II, jnp.eye(len(r_II)), left_side=True)


def compensate(
    problem: Problem,
    *,
    blocksize: int,
    state: State,
    begin: Callable[[Array, Array, State], State],
    choose: Callable[[Array, Array, Array, State], tuple[Array, State]],
) -> tuple[Array, State]:
    """(w_IO, state) after all inputs were replaced in order, each error passed on: inside a block of `blocksize`
    inputs at once, to later blocks when the block is done.

    begin(w_IO, first, state) -> state, before the block whose first input is `first`; w_IO has the errors of
    all earlier blocks.  choose(w_BO, first, i, state) -> (q_O, state): what replaces input first + i, row i of
    w_BO, which has the errors of all earlier inputs.  Weights outside must be left as they are.
    """
    I = len(problem.w_IO)
    B = min(blocksize, I)

    def block(carry, first):
        w_IO, state = carry
        state = begin(w_IO, first, state)
        factor_BI = lax.dynamic_slice_in_dim(problem.factor_II, first, B)
        factor_BB = lax.dynamic_slice_in_dim(factor_BI, first, B, axis=1)

        def replace(i, carry):
            w_BO, error_BO, state = carry
            q_O, state = choose(w_BO, first, i, state)
            error_O = divide(w_BO[i] - q_O, factor_BB[i, i])
            w_BO = (w_BO - factor_BB[i][:, None] * error_O).at[i].set(q_O)
            return w_BO, error_BO.at[i].set(error_O), state

        w_BO = lax.dynamic_slice_in_dim(w_IO, first, B)
        w_BO, error_BO, state = lax.fori_loop(0, B, replace, (w_BO, jnp.zeros_like(w_BO), state))
        # U is 0 before the block, and the block's own rows are written over.
        w_IO -= jnp.matmul(factor_BI.T, error_BO, precision=lax.Precision.HIGHEST)
        w_IO = lax.dynamic_update_slice_in_dim(w_IO, w_BO, first, axis=0)
        return (w_IO, state), None

    return lax.scan(block, (problem.w_IO, state), jnp.arange(0, I, B))[0]
