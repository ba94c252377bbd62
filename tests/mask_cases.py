"""A random mask of a pack, for the tests of training under masks."""

import jax
import jax.numpy as jnp

from wane.scaling.degrade import build
from wane.train.mask import degradation_mask


def random_mask(shape, fraction, seeds):
    """Random weights of every matrix removed, one draw per replica."""
    tokens_NT = jnp.zeros((1, shape.context + 1), jnp.int32)
    keys_R = jax.vmap(jax.random.key)(jnp.array(seeds))
    return degradation_mask(build("random_weights", shape), shape, tokens_NT, fraction, keys_R)
