"""Effective rank of matrices (Roy & Vetterli 2007): how many directions a matrix really uses."""

import jax
import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.rounding import lift
from wane.scaling.edit import Params
from wane.scaling.shape import Shape


def effective_rank(w_IO: Array) -> Array:
    """exp of the entropy of the singular values, normalised to sum 1; from 1 to min(I, O).  0 for a zero matrix."""
    return rank_of_spectrum(jnp.linalg.svd(w_IO, compute_uv=False))


def rank_of_spectrum(values: Array) -> Array:
    """The effective rank of a matrix with these singular values [min(I, O)]."""
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def relative_effective_rank(params: Params, names: tuple[str, ...], shape: Shape) -> dict[str, Array]:
    """Matrix name -> [L] or [L, E]: effective rank divided by that of a random matrix of the same size.

    Raw effective ranks compare sizes, not matrices: a square Gaussian matrix has .80 of its side, a 1:4 one .97.
    """
    ranks = {}
    for name in names:
        # The yardstick is one Gaussian matrix; its effective rank hardly varies, and no draw should depend on it.
        random_IO = jax.random.normal(jax.random.key(0), shape.matrices[name])
        own = lift(effective_rank, len(shape.lead(name)))(params["blocks"][name])
        ranks[name] = own / effective_rank(random_IO)
    return ranks
