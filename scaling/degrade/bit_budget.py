"""A storage budget shared out over matrices: two neighbouring widths, the wider one by priority."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.contract import Scope
from wane.scaling.shape import Shape

WIDTHS = (1, 2, 4, 8, 16)  # 16: left as it was trained
LARGEST = 2**30  # storage is counted in int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The matrices in scope of a shape in one line, M of them: by name, then by layer, then by expert.

    scale_bits, zero_point, group_size: what is stored beside the codes, as in rounding.StoredBits.
    """

    shape: Shape
    scope: Scope
    group_size: int
    scale_bits: int
    zero_point: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.scope.weights(self.shape))

    @functools.cached_property
    def storage_WM(self) -> np.ndarray:
        """int32: storage of every matrix at each of WIDTHS, in a common unit of bits; 0 out of scope."""
        rows = [self.flatten({name: self.stored(name, width) for name in self.names}) for width in WIDTHS]
        bits_WM = np.stack(rows).astype(np.int64)
        unit = max(math.gcd(*bits_WM.ravel().tolist()), -(-int(bits_WM[-1].sum()) // LARGEST))
        return (-(-bits_WM // unit)).astype(np.int32)  # rounded up where the unit does not divide

    def stored(self, name: str, width: int) -> np.ndarray:
        """int64, of the shape of Shape.lead: bits of each matrix of this name."""
        fan_in, fan_out = self.shape.matrices[name]
        bits = fan_in * fan_out * width
        if width < WIDTHS[-1]:
            scales = fan_in // (self.group_size or fan_in) * fan_out
            bits += scales * (self.scale_bits + self.zero_point * width)
        layers = self.scope.layer_L(self.shape).reshape(-1, *[1] * (len(self.shape.lead(name)) - 1))
        return np.broadcast_to(layers * np.int64(bits), self.shape.lead(name))

    def flatten(self, values: dict[str, Array]) -> Array:
        """Matrix name -> one value per matrix, as one line [M]."""
        numpy = np if all(isinstance(v, np.ndarray) for v in values.values()) else jnp
        return numpy.concatenate([values[name].ravel() for name in self.names])

    def split(self, values_M: Array) -> dict[str, Array]:
        """The inverse of flatten."""
        sizes = [math.prod(self.shape.lead(name)) for name in self.names]
        parts = jnp.split(values_M, np.cumsum(sizes)[:-1])
        return {
            name: part.reshape(self.shape.lead(name)) for name, part in zip(self.names, parts, strict=True)
        }

    def allocate(self, priority_M: Array, ratio: Array) -> Array:
        """[M] f32, the width of each matrix: storage at most that of 16 bits divided by `ratio`.

        The largest width that all matrices can have, and the next one for those of highest priority that still
        fit, in their order.  Where not even the smallest width fits, all have it.
        """
        storage_WM = jnp.asarray(self.storage_WM)
        budget = storage_WM[-1].sum().astype(jnp.float32) / ratio
        fits_W = storage_WM.sum(1).astype(jnp.float32) <= budget
        low = jnp.maximum(jnp.sum(fits_W) - 1, 0)
        high = jnp.minimum(low + 1, len(WIDTHS) - 1)
        extra_M = storage_WM[high] - storage_WM[low]

        def step(used: Array, m: Array) -> tuple[Array, Array]:
            wider = (used + extra_M[m]).astype(jnp.float32) <= budget
            return used + jnp.where(wider, extra_M[m], 0), wider

        order_M = jnp.argsort(-priority_M, stable=True)
        _, wider = lax.scan(step, storage_WM[low].sum(), order_M)
        wider_M = jnp.zeros(len(order_M), bool).at[order_M].set(wider)
        return jnp.asarray(WIDTHS, jnp.float32)[jnp.where(wider_M, high, low)]


def evenly(count: int) -> np.ndarray:
    """[count] priorities that know nothing: any number of the first ones lie spread over the whole line."""
    golden = (np.sqrt(5) - 1) / 2
    return -((np.arange(count) * golden) % 1.0).astype(np.float32)
