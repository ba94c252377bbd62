"""Calibration sequences, one batch in memory at a time."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

BATCH = 8  # sequences of one forward pass; fewer where 8 does not divide their number
T = TypeVar("T")


def batched(x_N: Array, batch: int = BATCH) -> Array:
    """[n, B, ...]; B is the largest divisor of the number of sequences that divides `batch` too."""
    return x_N.reshape(-1, math.gcd(len(x_N), batch), *x_N.shape[1:])


def over_batches(
    of_batch: Callable[[Array], T],
    x_N: Array,
    batch: int = BATCH,
    *,
    join: Callable[[T, T], T] | None = None,
    start: float = 0.0,
) -> T:
    """of_batch(x_B), a pytree of arrays, over all sequences, joined pairwise; None: summed.

    Begins with arrays of `start` instead of the first batch, so that of_batch is compiled once.
    """
    x_nB = batched(x_N, batch)
    join = join or (lambda a, b: jax.tree.map(jnp.add, a, b))
    result = jax.eval_shape(of_batch, jax.ShapeDtypeStruct(x_nB.shape[1:], x_nB.dtype))
    begin = jax.tree.map(lambda a: jnp.full(a.shape, start, a.dtype), result)
    return lax.scan(lambda total, x_B: (join(total, of_batch(x_B)), None), begin, x_nB)[0]
