"""A model whose residual stream was sliced, running: all tokens at once, or token by token with a cache."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.attention import attend, attend_causal
from wane.scaling.degrade.slicing import Sliced
from wane.scaling.model import Cache, init_cache, normalize, rotate
from wane.scaling.shape import Shape


def sliced_logits(sliced: Sliced, tokens_BS: Array, shape: Shape) -> Array:
    """Logits [B, S, V] of a sliced model; `shape` is that of the model before slicing."""
    return extend_sliced(sliced, tokens_BS, None, shape)[0]


def sliced_caches(batch: int, length: int, shape: Shape) -> list[Cache]:
    """An empty key-value cache for every layer: heads are as many as before slicing."""
    return [init_cache(batch, length, shape) for _ in range(shape.n_layers)]


def extend_sliced(
    sliced: Sliced, tokens_BS: Array, caches: list[Cache] | None, shape: Shape
) -> tuple[Array, list[Cache] | None]:
    """S further tokens behind those in the caches, as `wane.scaling.generate.extend`; None: there are none
    before and nothing is kept.  Widths differ between blocks, so they are no scan."""
    embed, blocks, unembed = jax.tree.map(lambda w: w.astype(shape.dtype), sliced[:3])
    x, kept = embed[tokens_BS], []
    for block, cache in zip(blocks, caches or [None] * len(blocks), strict=True):
        y, cache = _attention(block, _normalized(x, shape), shape, cache)
        x = _joined(x, y, block.get("attn_shortcut"), shape)
        x = _joined(x, _mlp(block, _normalized(x, shape), shape), block.get("mlp_shortcut"), shape)
        kept.append(cache)
    logits = (
        jnp.matmul(_normalized(x, shape), unembed, preferred_element_type=jnp.float32) + sliced.unembed_bias
    )
    return logits * shape.logit_scale, None if caches is None else kept


def _joined(x: Array, y: Array, shortcut: Array | None, shape: Shape) -> Array:
    """What a sublayer gives, on the stream in its new basis."""
    if not shape.residual:
        return y
    return y + (x if shortcut is None else x @ shortcut)


def _normalized(x: Array, shape: Shape) -> Array:
    """Root mean square over the d_model original dimensions, of which the sliced ones are 0."""
    if shape.norm == "none":
        return x
    x32 = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x32), -1, keepdims=True) / shape.d_model
    return (x32 * lax.rsqrt(square + shape.norm_eps)).astype(x.dtype)


def _attention(block: dict, x: Array, shape: Shape, cache: Cache | None) -> tuple[Array, Cache | None]:
    B, S = x.shape[:2]
    q, k, v = (
        (x @ block[name] + block["bias"][name]).reshape(B, S, -1, shape.head_dim) for name in ("q", "k", "v")
    )
    if shape.qk_norm:
        q = normalize(q, block["q_norm_scale"], None, shape.norm_eps)
        k = normalize(k, block["k_norm_scale"], None, shape.norm_eps)
    start = 0 if cache is None else cache["length"]
    positions_S = start + jnp.arange(S)
    if shape.rope_theta is not None:
        q, k = rotate(q, positions_S, shape.rope_theta), rotate(k, positions_S, shape.rope_theta)
    if cache is None:
        return attend_causal(q, k, v).reshape(B, S, -1) @ block["o"], None
    k = lax.dynamic_update_slice_in_dim(cache["k"], k, start, axis=1)
    v = lax.dynamic_update_slice_in_dim(cache["v"], v, start, axis=1)
    heads = attend(q, k, v, positions_S)
    return heads.reshape(B, S, -1) @ block["o"], {"k": k, "v": v, "length": start + S}


def _mlp(block: dict, x: Array, shape: Shape) -> Array:
    h = x @ block["up"] + block["bias"]["up"]
    if shape.activation == "swiglu":
        h = jax.nn.silu(x @ block["gate"] + block["bias"]["gate"]) * h
    else:
        h = jax.nn.gelu(h, approximate=True)
    return h @ block["down"]
