"""Costly quantities are of few sequences: of every batch each EVERY-th."""

import jax.numpy as jnp
from jax import Array

EVERY = 20


def of_few(total_Pb: Array, count: int, sequences: int) -> tuple[Array, Array]:
    """(sum, count) [B, P] from the sums [P, b] over `count` tokens of each sequence that is looked at; 0 of 0
    tokens where one is not."""
    none_BP = jnp.zeros((sequences, len(total_Pb)), jnp.float32)
    return none_BP.at[::EVERY].set(total_Pb.T), none_BP.at[::EVERY].set(count)
