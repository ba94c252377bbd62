"""What stands in for what was removed: zero, survivors scaled up, or the mean over calibration data."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.rank import Convention, count_as

Replace = Literal["zero", "rescale", "mean"]


def multiplier(
    rank: Array, n: Array, severity: Array, touched: Array, replace: Replace, convention: Convention = "floor"
) -> Array:
    """f32 of the shape of rank: 0 for the count_as(n, severity) lowest ranks, 1 for all others; exactly 1
    wherever `touched` (bool, broadcastable) is False.

    `rescale` divides the survivors by the fraction that is really left, (n - removed) / n, so that the mean
    over draws is the trained value; where n * severity is a whole number this is 1 / (1 - severity).  n: size
    of each ranking group, broadcastable.
    """
    removed = count_as(n, severity, convention)
    survivor = jnp.float32(1)
    if replace == "rescale":
        left = jnp.maximum(n - removed, 1)  # no survivor, nothing to scale
        survivor = jnp.asarray(n, jnp.float32) / left.astype(jnp.float32)
    return jnp.where(touched, jnp.where(rank >= removed, survivor, 0), 1)


def mean_output(mean: Array, w: Array, degraded: Array) -> Array:
    """The bias [.., O] that a matrix's product must gain so that its mean output over the calibration data stays:
    mean input [.., I] times what the weights [.., I, O] lost."""
    return jnp.einsum("...i,...io->...o", mean, w - degraded)
