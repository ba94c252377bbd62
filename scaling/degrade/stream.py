"""Sums over calibration sequences, one batch in memory at a time."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.calibrate import BATCH

T = TypeVar("T")


def batched(tokens_NT: Array, batch: int = BATCH) -> Array:
    """[n, B, T]; B is the largest divisor of the number of sequences that divides `batch` too."""
    return tokens_NT.reshape(-1, math.gcd(len(tokens_NT), batch), tokens_NT.shape[1])


def sum_over_batches(of_batch: Callable[[Array], T], tokens_NT: Array, batch: int = BATCH) -> T:
    """Sum of of_batch(tokens_BT), a pytree of arrays, over all sequences, in the batches of `batched`.

    Starts at zero instead of at the first batch, so that of_batch is compiled once.
    """
    batches = batched(tokens_NT, batch)
    result = jax.eval_shape(of_batch, jax.ShapeDtypeStruct(batches.shape[1:], batches.dtype))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), result)
    return lax.scan(lambda total, b: (jax.tree.map(jnp.add, total, of_batch(b)), None), zero, batches)[0]
