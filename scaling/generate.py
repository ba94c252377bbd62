"""Token by token with a key-value cache: what a model under an edit says when it hears itself."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.edit import Edit, Params
from wane.scaling.model import Cache, block, embed, enter, init_cache, leave, unembed
from wane.scaling.shape import Shape


def empty_caches(batch: int, length: int, shape: Shape) -> Cache:
    """One cache per layer, stacked: leaves [L, ...]."""
    one = init_cache(batch, length, shape)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (shape.n_layers, *a.shape)), one)


def extend(params: Params, tokens_BS: Array, caches: Cache, shape: Shape, edit: Edit) -> tuple[Array, Cache]:
    """S further tokens behind those in the caches: (logits [B, S, V] f32, the caches with them).  Otherwise as
    `advance`."""
    x_BSD, caches = advance(params, tokens_BS, caches, shape, edit)
    return unembed(params, x_BSD, shape), caches


def advance(params: Params, tokens_BS: Array, caches: Cache, shape: Shape, edit: Edit) -> tuple[Array, Cache]:
    """S further tokens behind those in the caches: (the residual stream behind the last block [B, S, D], the caches
    with them).

    params: merged with the edit's.  Agrees with `apply` on all tokens at once.  Raises ValueError for an edit of
    the input tokens, which is defined on whole sequences.
    """
    if edit.corruption is not None:
        raise ValueError("input corruption: is defined on whole sequences; generate without it")

    def through(x_BSD: Array, layer: tuple) -> tuple[Array, Cache]:
        params_l, edit_l, cache_l = layer
        x_BSD, _, cache_l = block(params_l, x_BSD, shape, edit_l, cache_l)
        return x_BSD, cache_l

    x_BSD = enter(embed(params, tokens_BS, shape), edit)
    x_BSD, caches = lax.scan(through, x_BSD, (params["blocks"], edit.per_layer(), caches))
    return leave(x_BSD, edit), caches
