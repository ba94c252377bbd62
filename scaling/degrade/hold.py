"""Keeping a degradation in force while other parameters are trained under it."""

import jax.numpy as jnp

from wane.scaling.edit import Edit, Params, fold
from wane.scaling.shape import Shape


def hold_zeros(params: Params, edit: Edit, *, shape: Shape) -> Params:
    """params with every block weight zero that the edit removed; gradients of removed weights are zero."""
    kept = {name: w != 0 for name, w in fold(params, edit, shape).items()}
    held = {name: jnp.where(mask, params["blocks"][name], 0) for name, mask in kept.items()}
    return {**params, "blocks": {**params["blocks"], **held}}


def hold_nothing(params: Params, edit: Edit) -> Params:
    """params as they are: what acts on activations, or once on the weights, has nothing to keep in force."""
    return params
