"""Sums over some tokens of a batch, from which covariances are made.

Read is one token of each run of neighbours.  Which one moves on by a prime number from run to run and from sequence
to sequence: items of a task are all of one length, and positions at one distance would see each item at one place.
All members and severities are read at the same tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.contract import Sums
from wane.eval.metrics.view import View

Positions = Callable[[int, int], np.ndarray]
EVERY = 16  # tokens of a run, where sums are over a 16th of all tokens
PRIME = 10007  # above every context, so that it falls in step with no run; 7 modulo 16, 23 modulo 128
CONSTANT = 1e-4  # of the mean square: less variance may be rounding of f32, 4e-5 for 2048 tokens of a batch
MINIBATCH = 64  # tokens: what costs their square must not grow with the batch


def one_of_each(S: int, B: int, runs: int) -> np.ndarray:
    """Positions [B, runs] of S: one in each of so many runs of about one length."""
    end_n = np.arange(runs + 1) * S // runs
    turn_Bn = np.arange(B)[:, None] + np.arange(runs)
    return end_n[:-1] + PRIME * turn_Bn % np.diff(end_n)


def spaced(S: int, B: int) -> np.ndarray:
    """The positions [B, n] that sums are over: a 16th of all."""
    return one_of_each(S, B, -(-S // EVERY))


def few(S: int, B: int) -> np.ndarray:
    """The positions [B, n] of a minibatch: one of every sequence where there are many."""
    return one_of_each(S, B, min(S, max(1, MINIBATCH // B)))


def chosen(x: Array, positions: Positions) -> Array:
    """Tokens [.., N, D] in f32 of [.., B, S, D]."""
    *lead, B, S, D = x.shape
    return x[..., np.arange(B)[:, None], positions(S, B), :].astype(jnp.float32).reshape(*lead, -1, D)


def weight(view: View, positions: Positions) -> Array:
    """Of each token of `chosen`, [N]."""
    return chosen(view.weight_BS[..., None], positions)[:, 0]


def products(x: Array, y: Array, weight: Array) -> Array:
    """Sums over tokens of x_d y_e, [.., D, E] of [.., N, D], [.., N, E] and weights [.., N]."""
    return jnp.einsum("...nd,...ne->...de", x * weight[..., None], y)


def moments(x: Array, weight: Array) -> Sums:
    """Of x [.., N, D] the number of tokens, their sum and that of their products [.., D, D]."""
    total = jnp.einsum("...n,...nd->...d", weight, x)
    return {"n": weight.sum(axis=-1), "sum": total, "products": products(x, x, weight)}


class Centre(NamedTuple):
    """mean [.., D]; varies: bool [.., D], whether a dimension does so by more than rounding."""

    mean: Array
    varies: Array


def centre(sums: Sums) -> Centre:
    """Of `moments`."""
    n = jnp.maximum(sums["n"], 1)[..., None]
    mean, square = sums["sum"] / n, jnp.diagonal(sums["products"], axis1=-2, axis2=-1) / n
    return Centre(mean, ~(square - mean**2 <= CONSTANT * square))  # what is not a number stays so


def covariance(products: Array, x: Centre, y: Centre, n: Array) -> Array:
    """[.., D, E] from the sum of products and the number of tokens; 0 of no tokens and where one is constant."""
    n = jnp.maximum(jnp.asarray(n), 1)[..., None, None]
    cov = products / n - x.mean[..., :, None] * y.mean[..., None, :]
    return jnp.where(x.varies[..., :, None] & y.varies[..., None, :], cov, 0)


def own_covariance(sums: Sums) -> Array:
    """[.., D, D] of `moments`."""
    of = centre(sums)
    return covariance(sums["products"], of, of, sums["n"])


def participation_ratio(cov_DD: Array) -> Array:
    """(sum of eigenvalues)^2 / sum of their squares of [.., D, D]: k for k directions of equal variance (Gao et al.
    2017, bioRxiv 214262); 0 where nothing varies."""
    square = jnp.sum(cov_DD**2, axis=(-2, -1))
    return jnp.trace(cov_DD, axis1=-2, axis2=-1) ** 2 / jnp.where(square > 0, square, 1)
