"""What the degraded model would cost if it were deployed as a smaller one.

Counted are units that are gone whole: heads whose rows of `o` are zero, key-value heads all of whose query heads
are gone, neurons whose rows of `down` are zero, residual dimensions that a multiplier or a projection took away;
a sublayer that is passed by has none left.  Weights that are zero here and there save nothing in a dense product,
and neither do fewer bits: rows tell those in bits_per_weight.  SliceGPT's products on the residual connection are
added.  Assumed: 16 bits per cached value unless the edit rounds the cache; where it does, 32 more for each head of
each token, step and least value in 16 bits each, as a scale of weights takes them, and none where calibration fixed
the range of a channel for all tokens; key and value heads kept while any of their queries is; attention over a full
context; each token runs through top_k experts, or all that are left.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Statistic, Sums, Weights
from wane.scaling.edit import fold

CACHE_BITS = 16.0
RANGE_BITS = 2 * 16.0  # step and least value of one head of one token


class Left(NamedTuple):
    """What is left of each layer, f32: heads [L], key-value heads [L], neurons [L] (of all experts), experts [L];
    residual dimensions [2 L + 1] of the stream before each sublayer and, last, behind all."""

    heads: Array
    kv_heads: Array
    neurons: Array
    experts: Array
    dimensions: Array


def heads_left(weights: Weights) -> Array:
    """bool [L, H]: the heads that some row of `o` still reads."""
    shape = weights.shape
    o_LIO = fold(weights.trained, weights.edit, shape)["o"]
    return jnp.any(o_LIO.reshape(shape.n_layers, shape.n_heads, -1) != 0, axis=-1)


def left(weights: Weights) -> Left:
    shape, edit = weights.shape, weights.edit
    after = fold(weights.trained, edit, shape)
    L, H, G = shape.n_layers, shape.n_heads, shape.kv_heads
    head_LH = heads_left(weights)
    group_LG = jnp.any(head_LH.reshape(L, G, H // G), axis=-1)
    neuron_LF = jnp.any(after["down"] != 0, axis=-1).reshape(L, -1)
    expert_LE = jnp.any(neuron_LF.reshape(L, shape.n_experts or 1, -1), axis=-1)
    dimensions_X = jnp.full(2 * L + 1, shape.d_model, jnp.float32)
    if edit.residual_XD is not None:
        dimensions_X = jnp.sum(edit.residual_XD != 0, axis=-1)
    if edit.residual_map is not None:
        dimensions_X = jnp.trace(edit.residual_map, axis1=1, axis2=2)  # of a projection: its rank
    parts = head_LH.sum(-1), group_LG.sum(-1), neuron_LF.sum(-1), expert_LE.sum(-1), dimensions_X
    return Left(*(part.astype(jnp.float32) for part in parts))


def _per_layer(weights: Weights) -> tuple[Left, Array]:
    """What is left, and the multiply-adds of the block matrices per layer if a token ran through all experts."""
    shape, rest = weights.shape, left(weights)
    before, between, after = rest.dimensions[:-1:2], rest.dimensions[1::2], rest.dimensions[2::2]
    attention = shape.head_dim * (before * (rest.heads + 2 * rest.kv_heads) + rest.heads * between)
    mlp = rest.neurons * (between * (2 if "gate" in shape.matrices else 1) + after)
    return rest, jnp.stack([attention, mlp])


def parameters(_: Sums, weights: Weights) -> Array:
    """Block matrices of the units that are left, shortcuts, embedding, unembedding, routers and norms."""
    rest, matrices = _per_layer(weights)
    counts = weights.shape.param_counts()
    others = counts["total"] - counts["blocks"]
    return matrices.sum() + _shortcuts(weights, rest) + others - _sliced_embeddings(weights, rest)


def flops(_: Sums, weights: Weights) -> Array:
    """Per token of a full context, as Shape.flops_per_token counts them."""
    shape = weights.shape
    rest, (attention_L, mlp_L) = _per_layer(weights)
    active = shape.top_k if weights.edit.active_L is None else weights.edit.active_L
    visited_L = 1.0
    if shape.n_experts is not None:
        visited_L = jnp.minimum(active, rest.experts) / jnp.maximum(rest.experts, 1)
    router = 0 if shape.n_experts is None else shape.n_layers * shape.d_model * shape.n_experts
    scores = 2 * shape.context * shape.head_dim * rest.heads.sum()
    unembed = shape.vocab * rest.dimensions[-1]
    matrices = attention_L.sum() + (mlp_L * visited_L).sum() + router
    return 2 * (matrices + _shortcuts(weights, rest) + scores + unembed)


def cache_bytes(_: Sums, weights: Weights) -> Array:
    """Keys and values of one token in all layers, with the ranges that tell how they were rounded."""
    edit, per_head_L = weights.edit, 0.0
    for name in ("k", "v"):
        bits_L = (edit.cache_bits or {}).get(name, CACHE_BITS)
        own = name not in (edit.cache_range or {})
        per_head_L += weights.shape.head_dim * bits_L + jnp.where(own & (bits_L < CACHE_BITS), RANGE_BITS, 0)
    return jnp.sum(left(weights).kv_heads * per_head_L) / 8


def _shortcuts(weights: Weights, rest: Left) -> Array | float:
    """Entries of the matrices that turn one sliced basis into the next on every residual connection."""
    if weights.edit.residual_map is None:
        return 0.0
    sliced = jnp.any(rest.dimensions < weights.shape.d_model - 0.5)
    return jnp.where(sliced, jnp.sum(rest.dimensions[:-1] * rest.dimensions[1:]), 0)


def _sliced_embeddings(weights: Weights, rest: Left) -> Array:
    """Entries of embedding and unembedding that belong to dimensions that are gone."""
    shape = weights.shape
    first, last = shape.d_model - rest.dimensions[0], shape.d_model - rest.dimensions[-1]
    return shape.vocab * (first if shape.tied_embeddings else first + last)


METRICS = tuple(
    Statistic(name=name, unit=unit, meaning=meaning, better="lower", values=values, version=version)
    for name, unit, meaning, values, version in (
        (
            "deployed_parameters", "parameters",
            "parameters of the model without its removed units, embeddings included", parameters, 1,
        ),
        (
            "deployed_flops", "FLOPs/token",
            "matrix-product FLOPs per token of a full context without the removed units", flops, 1,
        ),
        (
            "deployed_cache", "bytes/token",
            "keys and values of one token in all layers, ranges of a rounded cache included", cache_bytes, 2,
        ),
    )
)  # fmt: skip
