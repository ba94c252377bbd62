"""Models to be timed: the trained one, and the degraded one cut to size."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.sliced_stream import extend_sliced, sliced_caches, sliced_logits
from wane.scaling.degrade.slicing import slice_model
from wane.scaling.edit import Edit, Params
from wane.scaling.generate import empty_caches, extend
from wane.scaling.model import apply, unembed
from wane.scaling.narrowed import one_basis
from wane.scaling.shape import Shape
from wane.scaling.sliced import sliced


class Model(NamedTuple):
    """What is timed.  forward(weights, tokens_BS) -> logits_BSV; extend(weights, tokens_BS, caches) ->
    (logits_BSV, caches); caches(batch, length); parameters: how many the arrays hold.

    form: blocks of one size as a scan over layers, or one by one, each with its own widths.  Which of them it
    is changes speed too, so that models are compared in one form.
    """

    form: Literal["scan", "blocks"]
    weights: Any
    forward: Callable[[Any, Array], Array]
    extend: Callable[[Any, Array, Any], tuple[Array, Any]]
    caches: Callable[[int, int], Any]
    parameters: int


def stacked(params: Params, shape: Shape, edit: Edit | None = None) -> Model:
    """A model of one shape for all layers, as it was trained or `sliced`."""

    def forward(weights: tuple[Params, Edit], tokens_BS: Array) -> Array:
        return unembed(weights[0], apply(weights[0], tokens_BS, shape, weights[1]).x_BSD, shape)

    return Model(
        form="scan",
        weights=(params, edit or Edit()),
        forward=forward,
        extend=lambda weights, tokens_BS, caches: extend(weights[0], tokens_BS, caches, shape, weights[1]),
        caches=lambda batch, length: empty_caches(batch, length, shape),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )


def in_blocks(params: Params, shape: Shape, edit: Edit | None = None) -> Model:
    """A model under residual maps, none: as it was trained, block by block.  Raises ValueError as
    `slice_model` does."""
    whole_XDD = jnp.broadcast_to(
        jnp.eye(shape.d_model), (2 * shape.n_layers + 1, shape.d_model, shape.d_model)
    )
    small = slice_model(params, edit or Edit(residual_map=whole_XDD), shape)
    return Model(
        form="blocks",
        weights=small,
        forward=lambda weights, tokens_BS: sliced_logits(weights, tokens_BS, shape),
        extend=lambda weights, tokens_BS, caches: extend_sliced(weights, tokens_BS, caches, shape),
        caches=lambda batch, length: sliced_caches(batch, length, shape),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(small) if leaf.ndim),
    )


def smaller(params: Params, edit: Edit, shape: Shape) -> tuple[Model, dict]:
    """The degraded model cut to size, and its dimensions in words that JSON knows.

    A stream that is projected in another basis at every place (SliceGPT) gives blocks of different widths
    with a shortcut matrix on every residual connection; all else gives a smaller shape.  Raises ValueError
    where nothing shrinks.
    """
    if edit.residual_map is None or one_basis(edit.residual_map):
        small = sliced(params, edit, shape)
        left = small.shape
        names = ("d_model", "n_layers", "n_heads", "kv_heads", "d_ff", "n_experts")
        return stacked(small.params, left, small.edit), {name: getattr(left, name) for name in names}
    model = in_blocks(params, shape, edit)
    ends = (w.shape[1] for block in model.weights.blocks for w in (block["o"], block["down"]))
    return model, {"d_model": [model.weights.embed.shape[1], *ends]}
