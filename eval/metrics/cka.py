"""Centred kernel alignment with linear kernels: how alike two sets of activations of the same examples are,
whatever the rotation and the scale of either (Kornblith et al. 2019, arXiv 1905.00414)."""

import jax
import jax.numpy as jnp
from jax import Array, lax

CONSTANT = 1e-10  # of the squared mean: of centred examples a variance below it is rounding in f32


def cka(x_ND: Array, y_NE: Array) -> Array:
    """Linear CKA of N examples, in [0, 1]: 1 for the same up to rotation and scale.  With few examples it is too
    high: about 1 for unrelated activations where N <= D and N <= E."""
    x_ND, y_NE = (a - a.mean(axis=0) for a in (x_ND, y_NE))
    return alignment(x_ND.T @ x_ND, y_NE.T @ y_NE, x_ND.T @ y_NE)


def alignment(xx_DD: Array, yy_EE: Array, xy_DE: Array) -> Array:
    """Linear CKA from covariances: |xy|^2 / (|xx| |yy|) (Kornblith et al., eq. 5); nan where one is 0."""
    return jnp.sum(xy_DE**2) / (jnp.sqrt(jnp.sum(xx_DD**2)) * jnp.sqrt(jnp.sum(yy_EE**2)))


def unbiased_cka(x_MND: Array, y_MNE: Array) -> Array:
    """CKA of M minibatches of N > 3 examples each: sums of the unbiased HSIC stand for its expectation (Nguyen et
    al. 2021, arXiv 2010.15327, eq. 4).  About 0 for unrelated activations, however few; may leave [0, 1]."""

    def one(pair: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        n_N = jnp.ones(pair[0].shape[0])
        k_NN, m_NN = (kernel(a, n_N) for a in pair)
        return tuple(hsic(*kernels, n_N.sum()) for kernels in ((k_NN, k_NN), (m_NN, m_NN), (k_NN, m_NN)))

    xx, yy, xy = (sums_M.sum() for sums_M in lax.map(one, (x_MND, y_MNE)))
    return unbiased_alignment(xx, yy, xy)


def unbiased_alignment(xx: Array, yy: Array, xy: Array) -> Array:
    """CKA from sums of `hsic`; nan where that of either with itself is not above 0: nothing varies, or so little
    that the estimate came out below."""
    known = (xx > 0) & (yy > 0)
    norm = jnp.sqrt(jnp.where(known, xx, 1)) * jnp.sqrt(jnp.where(known, yy, 1))
    return jnp.where(known, xy / norm, jnp.nan)


def kernel(x_ND: Array, weight_N: Array) -> Array:
    """The linear kernel [N, N] that `hsic` reads: its diagonal, and examples of weight 0, are 0.

    Centred, though the unbiased HSIC does not depend on it: a large mean would cost the digits of f32.  What is
    left of examples that are all the same is rounding, and counts as 0.
    """
    mean_D = weight_N @ x_ND / jnp.maximum(weight_N.sum(), 1)
    x_ND = (x_ND - mean_D) * weight_N[:, None]
    constant = jnp.sum(x_ND**2) <= CONSTANT * weight_N.sum() * jnp.sum(mean_D**2)
    x_ND = jnp.where(constant, 0, x_ND)
    return jnp.where(jnp.eye(len(x_ND), dtype=bool), 0, x_ND @ x_ND.T)


def hsic(k_NN: Array, m_NN: Array, n: Array) -> Array:
    """The unbiased Hilbert-Schmidt independence criterion of two of `kernel` (Song et al. 2012, JMLR 13, eq. 5) of
    n examples; 0 where n <= 3, for which it does not exist."""
    k_N, m_N = k_NN.sum(axis=0), m_NN.sum(axis=0)
    same, all_pairs, shared = jnp.vdot(k_NN, m_NN), k_N.sum() * m_N.sum(), jnp.vdot(k_N, m_N)
    n = jnp.maximum(n, 4)
    total = same + all_pairs / ((n - 1) * (n - 2)) - 2 * shared / (n - 2)
    return total / (n * (n - 3))


hsic_pairs = jax.vmap(jax.vmap(hsic, (None, 0, None)), (0, None, None))  # [L, N, N], [M, N, N] -> [L, M]
hsic_each = jax.vmap(hsic, (0, 0, None))  # [L, N, N] twice -> [L]
