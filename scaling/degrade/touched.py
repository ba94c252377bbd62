"""What a point may change, layer by layer, as a sequential method needs it beside a layer's statistics."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Params
from wane.scaling.quantize import straight_through
from wane.scaling.shape import Shape

Matrices = dict[str, Array]  # those of one layer (and expert) that read one site: name -> [I, O]


def touched(in_scope: dict[str, np.ndarray], where: Where, shape: Shape) -> dict[str, Array]:
    """Matrix name -> bool [L, I or 1, O or 1]: in scope and selected; the same for all experts of a layer."""
    entries = {name: mask & where.entries(name, shape) for name, mask in in_scope.items()}
    return {name: mask.reshape(len(mask), *mask.shape[-2:]) for name, mask in entries.items()}


def filled(inside: dict[str, Array], weights: Matrices) -> Matrices:
    """One layer's slice of `touched` for these matrices, in their shapes."""
    return {name: jnp.broadcast_to(inside[name], w_IO.shape) for name, w_IO in weights.items()}


def masked(params: Params, new: dict[str, Array]) -> dict[str, Array]:
    """new in value; its gradient is that of the trained weight, and 0 where a weight is removed."""
    trained = params["blocks"]
    return {name: jnp.where(w == 0, 0, straight_through(trained[name], w)) for name, w in new.items()}
