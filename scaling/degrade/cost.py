"""What a degradation really did to the block matrices: removed entries, weight error, deployed bits.

Embedding, unembedding and norms are never degraded by these methods and are not counted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import Cost, Scope
from wane.scaling.edit import Edit, Params, fold
from wane.scaling.quantize import divide
from wane.scaling.shape import Shape

FULL_BITS = 16  # of an untouched weight, a bias entry and a scale

Removed = dict[str, Array]  # matrix name -> bool [L, I, O]
Bits = Callable[[Removed, Edit], Array]


class CostOf(NamedTuple):
    """A `Degradation.cost`.  bits: bits per block weight from the removed entries and the edit (structured_bits,
    MaskedBits, full_bits, or a method's own).  A value: what is equal is compiled once."""

    shape: Shape
    bits: Bits

    def __call__(self, params: Params, edit: Edit, severity: Array) -> Cost:
        def bits(removed: Removed) -> Array:
            return self.bits(removed, edit) + bias_bits(edit, self.shape)

        return compared(params, edit, self.shape, bits)

    @property
    def computes(self) -> str | None:
        """In words, as `wane.scaling.executables` wants it said; None where the bits are a closure, hold an array
        or a function, or come from elsewhere: then words do not say what they are."""
        value = isinstance(self.bits, tuple)
        kind = type(self.bits) if value else self.bits
        ours = kind.__module__.startswith("wane.") and "<locals>" not in kind.__qualname__
        bits = repr(self.bits) if value else kind.__qualname__
        told = ours and " at 0x" not in bits and "array(" not in bits.lower()
        return f"cost of {self.shape}, {kind.__module__} {bits}" if told else None


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


class MaskedBits(NamedTuple):
    """Kept weights, and one bit of bitmap per weight in scope of each matrix that lost any weight (what the
    indices of 2:4 sparsity take on hardware, too)."""

    shape: Shape
    scope: Scope

    def __call__(self, removed: Removed, edit: Edit) -> Array:
        return structured_bits(removed, edit) + self.bitmap(removed)

    def bitmap(self, removed: Removed) -> Array:
        bits = 0
        for name, mask in self.scope.weights(self.shape).items():
            full = np.broadcast_to(mask, self.shape.full(name)).sum((-2, -1), dtype=np.int32)
            bits += jnp.sum(jnp.where(removed[name].any((-2, -1)), full, 0))
        return divide(jnp.asarray(bits, jnp.float32), jnp.float32(self.shape.param_counts()["blocks"]))


def full_bits(removed: Removed, edit: Edit) -> Array:
    """Nothing is stored in fewer bits."""
    return jnp.float32(FULL_BITS)


def bias_bits(edit: Edit, shape: Shape) -> Array:
    """Mean replacement stores a bias entry for each output whose mean it restores."""
    entries = sum(jnp.sum(b_LO != 0, dtype=jnp.int32) for b_LO in (edit.bias or {}).values())
    return FULL_BITS * (entries / shape.param_counts()["blocks"])
