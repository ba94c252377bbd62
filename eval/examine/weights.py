"""Weights that are set to zero: which, the edit that does it, and what the gradient says that it costs."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.gradients import mean_gradient
from wane.scaling.edit import Edit, Params
from wane.scaling.program import Program
from wane.scaling.shape import MLP, Shape

MATRICES = ("q", "k", "v", "o", *MLP)
BEYOND = np.iinfo(np.int32).max  # an index that no matrix has: it fills a removal up


class Removal(NamedTuple):
    """matrix: index into MATRICES, -1 for none.  index_K: of the weights, in the matrix of all layers laid flat;
    BEYOND for none."""

    matrix: np.int32
    index_K: np.ndarray


class Chosen(NamedTuple):
    """Weights of one matrix of one layer that are set to zero together.  of: how many such choices the matrix has
    in that layer, for all of which those that are drawn speak."""

    matrix: str
    layer: int
    index_K: np.ndarray
    of: float

    def removal(self, width: int) -> Removal:
        """Of a fixed width, so that weights and groups of all matrices share one executable."""
        index = np.pad(self.index_K.astype(np.int32), (0, width - len(self.index_K)), constant_values=BEYOND)
        return Removal(np.int32(MATRICES.index(self.matrix)), index)


def nothing(width: int) -> Removal:
    return Removal(np.int32(-1), np.full(width, BEYOND, np.int32))


def drawn(shape: Shape, number: int, share: float, rng: np.random.Generator) -> list[Chosen]:
    """`number` random choices in every matrix of every layer, each of a share of the weights of that layer (of all
    its experts), at least one."""
    found = []
    for matrix in shape.matrices:
        total = int(np.prod(shape.full(matrix)))
        in_layer = total // shape.n_layers
        size = max(1, round(share * in_layer))
        for layer in range(shape.n_layers):
            for _ in range(number):
                index_K = layer * in_layer + rng.choice(in_layer, size, replace=False)
                found.append(Chosen(matrix, layer, index_K, in_layer / size))
    return found


def set_to_zero(params: Params, removal: Removal) -> Edit:
    blocks = {}
    for number, matrix in enumerate(MATRICES):
        if matrix in params["blocks"]:
            w = params["blocks"][matrix]
            index_K = jnp.where(removal.matrix == number, removal.index_K, BEYOND)
            blocks[matrix] = w.ravel().at[index_K].set(0, mode="drop").reshape(w.shape)
    return Edit(params={"blocks": blocks})


@functools.lru_cache(maxsize=32)
def first_order(shape: Shape, precision: str) -> Program:
    """(params, tokens_NT) -> matrix name -> -w g of every weight, nats per token: what setting it to zero costs to
    first order, g the gradient of the mean loss."""

    def estimate(params: Params, tokens_NT: Array) -> dict[str, Array]:
        gradient = mean_gradient(params, tokens_NT, shape, tuple(shape.matrices))
        return {name: -params["blocks"][name] * g for name, g in gradient.items()}

    return Program(estimate, precision)
