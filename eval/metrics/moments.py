"""Sums over some tokens of a batch, from which covariances are made."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.contract import Sums
from wane.eval.metrics.view import View

Positions = Callable[[int, int], np.ndarray]
EVERY = 16  # positions: of every sequence the last one, the 16th before it, ..
MINIBATCH = 64  # tokens: what costs their square must not grow with the batch


def spaced(S: int, B: int) -> np.ndarray:
    """The positions of each sequence that sums are over: a 16th of all."""
    return np.arange(S - 1, -1, -EVERY)


def few(S: int, B: int) -> np.ndarray:
    """The positions of each of B sequences that make a minibatch: evenly spread, the last included."""
    count = min(S, max(1, MINIBATCH // B))
    return S - 1 - np.arange(count) * S // count


def chosen(x: Array, positions: Positions) -> Array:
    """Tokens [.., N, D] in f32 of [.., B, S, D]."""
    *lead, B, S, D = x.shape
    return x[..., positions(S, B), :].astype(jnp.float32).reshape(*lead, -1, D)


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


def covariance(products: Array, x: Array, y: Array, n: Array) -> Array:
    """[.., D, E] from the sum of products, the sums of both and their number; 0 of no tokens."""
    n = jnp.maximum(jnp.asarray(n), 1)[..., None]
    return products / n[..., None] - (x / n)[..., :, None] * (y / n)[..., None, :]


def own_covariance(sums: Sums) -> Array:
    """[.., D, D] of `moments`."""
    return covariance(sums["products"], sums["sum"], sums["sum"], sums["n"])


def participation_ratio(cov_DD: Array) -> Array:
    """(sum of eigenvalues)^2 / sum of their squares of [.., D, D]: k for k directions of equal variance (Gao et al.
    2017, bioRxiv 214262); 0 where nothing varies."""
    square = jnp.sum(cov_DD**2, axis=(-2, -1))
    return jnp.trace(cov_DD, axis1=-2, axis2=-1) ** 2 / jnp.where(square > 0, square, 1)
