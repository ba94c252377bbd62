"""What a degradation really did to the block matrices: removed entries, weight error, deployed bits.

Embedding, unembedding and norms are never degraded by these methods and are not counted.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import Cost
from wane.scaling.edit import Edit, Params, fold
from wane.scaling.quantize import divide
from wane.scaling.shape import Shape

FULL_BITS = 16  # of an untouched weight, a bias entry and a scale

Removed = dict[str, Array]  # matrix name -> bool [L, I, O]
Bits = Callable[[Removed, Edit], Array]


def cost_of(params: Params, edit: Edit, shape: Shape, bits: Bits) -> Cost:
    """Cost of an edit.  bits: bits per block weight from the removed entries and the edit (structured_bits,
    masked_bits, full_bits, or a method's own)."""
    return compared(params, edit, shape, lambda removed: bits(removed, edit) + bias_bits(edit, shape))


def compared(params: Params, edit: Edit, shape: Shape, bits: Callable[[Removed], Array]) -> Cost:
    """Trained and degraded block matrices compared entry by entry; bits(removed) per block weight."""
    after = fold(params, edit, shape)
    before = {name: params["blocks"][name] for name in after}
    removed = {name: (after[name] == 0) & (w_LIO != 0) for name, w_LIO in before.items()}
    lost = sum(jnp.sum(jnp.square(w_LIO - after[name])) for name, w_LIO in before.items())
    total = sum(jnp.sum(jnp.square(w_LIO)) for w_LIO in before.values())
    per_weight = bits(removed)
    return Cost(fraction(removed), lost / total, per_weight, FULL_BITS / per_weight)


def fraction(removed: Removed) -> Array:
    """Removed entries of all block weights, counted in integers: exactly 1 when all are."""
    count = sum(jnp.sum(mask, dtype=jnp.int32) for mask in removed.values())
    # Behind a barrier, because XLA on CPU multiplies by a rounded reciprocal.
    return divide(count.astype(jnp.float32), jnp.float32(sum(mask.size for mask in removed.values())))


def structured_bits(removed: Removed, edit: Edit) -> Array:
    """Whole units are gone: only what is left is stored."""
    return FULL_BITS * (1 - fraction(removed))


def masked_bits(removed: Removed, edit: Edit, *, in_scope: dict[str, np.ndarray], shape: Shape) -> Array:
    """Kept weights, and one bit of bitmap per weight in scope of each matrix that lost any weight (what the
    indices of 2:4 sparsity take on hardware, too)."""
    bitmap = 0
    for name, mask in in_scope.items():
        full = np.broadcast_to(mask, shape.full(name)).sum((-2, -1), dtype=np.int32)
        bitmap += jnp.sum(jnp.where(removed[name].any((-2, -1)), full, 0))
    weights = jnp.float32(shape.param_counts()["blocks"])
    return structured_bits(removed, edit) + divide(jnp.asarray(bitmap, jnp.float32), weights)


def full_bits(removed: Removed, edit: Edit) -> Array:
    """Nothing is stored in fewer bits."""
    return jnp.float32(FULL_BITS)


def bias_bits(edit: Edit, shape: Shape) -> Array:
    """Mean replacement stores a bias entry for each output whose mean it restores."""
    entries = sum(jnp.sum(b_LO != 0, dtype=jnp.int32) for b_LO in (edit.bias or {}).values())
    return FULL_BITS * (entries / shape.param_counts()["blocks"])
