"""The transformer: the only file that knows the module library (Flax Linen).

Everyone else sees pure functions over a nested dict of arrays:
`init_params`, `embed`, `block`, `unembed`, `apply`, `nll`.  Parameters are f32; activations and matrix
products run in `shape.dtype`; softmax, norms and the loss run in f32.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from wane.scaling.attention import attend, attend_causal, attention_map
from wane.scaling.corrupt import corrupt_embeddings, corrupt_tokens, halved
from wane.scaling.edit import SITES, Edit, Params, merge
from wane.scaling.product import product
from wane.scaling.quantize import fake_quantize_activation, fake_quantize_range
from wane.scaling.shape import Shape

Inner = dict[str, Array]
Cache = dict[str, Array]
# What the backward pass reads of a block instead of computing it again: all that cost a matrix product.
SAVED = ("q", "k", "v", "heads", "norm", "mid", "gate", "up", "down")
STREAMS = ("block_in", "mid")  # of a block's intermediates: the residual stream


class Output(NamedTuple):
    """x_BSD: residual stream after the last block, before the final norm.  inner: what was asked for of the blocks'
    intermediates, stacked [L, ...]; None where only the last layers ran."""

    x_BSD: Array
    inner: Any


def normalize(x: Array, scale: Array | None, bias: Array | None, eps: float) -> Array:
    """RMSNorm (Zhang & Sennrich 2019); LayerNorm where there is a bias; identity where there is no scale."""
    if scale is None:
        return x
    x32 = x.astype(jnp.float32)
    if bias is not None:
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rotate(x_BSHK: Array, positions_S: Array, theta: float) -> Array:
    """Rotary position embedding (Su et al. 2021), halves rotated against each other as in Llama."""
    half = x_BSHK.shape[-1] // 2
    angle = positions_S[:, None] * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    a, b = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BSHK.dtype)


def route(x_BSD: Array, router_DE: Array, top_k: int, edit: Edit) -> tuple[Array, Array]:
    """Router probabilities and routing weights, both [B, S, E] in f32: softmax over the top k experts of each
    token (Jiang et al. 2024, arXiv 2401.04088), ties to the lower index; the MLP adds nothing where none is left.

    expert_LE takes experts out before the choice; active_L (traced) replaces top_k.
    """
    logits = jnp.matmul(x_BSD.astype(jnp.float32), router_DE, preferred_element_type=jnp.float32)
    open_E = jnp.ones(logits.shape[-1], bool) if edit.expert_LE is None else edit.expert_LE != 0
    closed = jnp.where(open_E, logits, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-closed, axis=-1, stable=True), axis=-1, stable=True)
    chosen = (rank < (top_k if edit.active_L is None else edit.active_L)) & open_E
    largest = jnp.max(jnp.where(chosen, logits, jnp.finfo(jnp.float32).min), axis=-1, keepdims=True)
    size = jnp.where(chosen, jnp.exp(jnp.where(chosen, logits - lax.stop_gradient(largest), 0)), 0)
    total = jnp.sum(size, axis=-1, keepdims=True)
    return jax.nn.softmax(logits, axis=-1), size / jnp.where(total > 0, total, 1)


def restrict(x_BSD: Array, edit: Edit, after: int) -> Array:
    """The residual stream under the edit's multipliers and map behind a sublayer: 0 attention, 1 MLP."""
    if edit.residual_XD is not None:
        x_BSD = x_BSD * edit.residual_XD[after].astype(x_BSD.dtype)
    if edit.residual_map is not None:
        map_DD = edit.residual_map[after].astype(x_BSD.dtype)
        # The identity must leave x as it is: TF32 and bf16 passes would round it.
        x_BSD = jnp.matmul(x_BSD, map_DD, precision=lax.Precision.HIGHEST)
    return x_BSD


class Block(nn.Module):
    """One transformer block: attention, then MLP, each on a norm of the residual stream."""

    shape: Shape

    def setup(self):
        shape = self.shape
        for name in shape.matrices:
            # init_params draws them
            setattr(self, name, self.param(name, nn.initializers.zeros, shape.full(name)[1:]))
        if shape.n_experts is not None:
            self.router = self.param("router", nn.initializers.zeros, (shape.d_model, shape.n_experts))
        for name in ("attn_norm", "mlp_norm"):
            setattr(self, name, norm_params(self, name, shape))
        if shape.qk_norm:
            ones = nn.initializers.ones
            self.q_norm = self.param("q_norm_scale", ones, (shape.head_dim,))
            self.k_norm = self.param("k_norm_scale", ones, (shape.head_dim,))

    def __call__(self, x_BSD: Array, edit: Edit, cache: Cache | None) -> tuple[Array, Inner, Cache | None]:
        inner: Inner = {"block_in": x_BSD}
        x_BSD, cache = self.behind_attention(x_BSD, edit, inner, cache)
        x_BSD = inner["mid"] = checkpoint_name(x_BSD, "mid")
        return self.behind_mlp(x_BSD, edit, inner), inner, cache

    def behind_attention(self, x_BSD, edit, inner, cache=None):
        def attention(x):
            return self.attention(x, edit, cache, inner)

        x_BSD, cache = self.sublayer(x_BSD, self.attn_norm, attention, edit.attn_L)
        return restrict(x_BSD, edit, 0), cache

    def behind_mlp(self, x_BSD, edit, inner):
        x_BSD, _ = self.sublayer(x_BSD, self.mlp_norm, lambda x: (self.mlp(x, edit, inner), None), edit.mlp_L)
        return restrict(x_BSD, edit, 1)

    def sublayer(self, x_BSD, norm, f, gate):
        """Residual connection with norm before (default) or after; gate 0 leaves x_BSD as it was."""
        shape = self.shape
        before = shape.norm_position == "before"
        y, aux = f(normalize(x_BSD, *norm, shape.norm_eps) if before else x_BSD)
        if gate is not None:
            y = y * gate.astype(y.dtype)
        if shape.residual:
            y = x_BSD + y * jnp.asarray(shape.residual_scale, y.dtype)
        if not before:
            y = normalize(y, *norm, shape.norm_eps)
        if gate is not None and not (before and shape.residual):
            y = jnp.where(gate == 0, x_BSD, y)
        return y, aux

    def attention(self, x_BSD, edit, cache, inner):
        shape = self.shape
        B, S, _ = x_BSD.shape
        x_BSD = self.enter("attn_in", x_BSD, edit, inner)
        q, k, v = (
            self.product(name, x_BSD, edit).reshape(B, S, -1, shape.head_dim) for name in ("q", "k", "v")
        )
        if shape.qk_norm:
            q = normalize(q, self.q_norm, None, shape.norm_eps)
            k = normalize(k, self.k_norm, None, shape.norm_eps)
        start = 0 if cache is None else cache["length"]
        positions_S = start + jnp.arange(S)
        if shape.rope_theta is not None:
            q, k = rotate(q, positions_S, shape.rope_theta), rotate(k, positions_S, shape.rope_theta)
        inner |= {"q": q, "k": k, "v": v}
        if edit.cache_bits is not None:
            k, v = (self.cached(name, t, edit) for name, t in (("k", k), ("v", v)))
        inner["cached_k"] = k  # as attention reads them
        if cache is not None:
            k = lax.dynamic_update_slice_in_dim(cache["k"], k, start, axis=1)
            v = lax.dynamic_update_slice_in_dim(cache["v"], v, start, axis=1)
            cache = {"k": k, "v": v, "length": start + S}
        inner["attn_map"] = attention_map(q, k, positions_S)
        if cache is None:
            q, k, v = (checkpoint_name(t, name) for name, t in zip("qkv", (q, k, v), strict=True))
            heads_BSHK = attend_causal(q, k, v)
        else:
            heads_BSHK = attend(q, k, v, positions_S)
        if edit.head_LH is not None:
            heads_BSHK = heads_BSHK * edit.head_LH[:, None].astype(heads_BSHK.dtype)
        x = self.enter("o_in", heads_BSHK.reshape(B, S, -1), edit, inner)
        inner["attn_out"] = self.product("o", x, edit)
        return inner["attn_out"], cache

    def mlp(self, x_BSD, edit, inner):
        """With experts hidden units are [B, S, E, F]: all experts run and the routing weights, 0 for all but
        the top k, add them up."""
        routed_BSD = x_BSD  # the router reads what no edit of its neighbours' inputs has rounded
        x_BSD = self.enter("mlp_in", x_BSD, edit, inner)
        h = checkpoint_name(self.product("up", x_BSD, edit), "up")
        if self.shape.activation == "swiglu":
            h = nn.silu(checkpoint_name(self.product("gate", x_BSD, edit), "gate")) * h
        else:
            h = nn.gelu(h, approximate=True)  # the tanh form, as in GPT-2
        if edit.neuron_LF is not None:
            h = h * edit.neuron_LF.astype(h.dtype)
        y = self.product("down", self.enter("down_in", h, edit, inner), edit)
        if self.shape.n_experts is not None:
            y = checkpoint_name(y, "down")  # read by the gradient of the routing weights
            inner["router"], inner["route"] = route(routed_BSD, self.router, self.shape.top_k, edit)
            y = jnp.einsum("bse,bsed->bsd", inner["route"].astype(y.dtype), y)
        inner["mlp_out"] = y
        return y

    def enter(self, site, x, edit, inner):
        """The input of a site's matrices as they see it: recorded, and rounded where the edit says so."""
        if edit.activation_bits is not None and site in edit.activation_bits:
            absmax = None if edit.activation_absmax is None else edit.activation_absmax[site]
            x = fake_quantize_activation(x, edit.activation_bits[site], absmax)
        inner[site] = x
        return x

    def cached(self, name, t_BSGK, edit):
        """Keys or values as a cache in few bits holds them."""
        if name not in edit.cache_bits:
            return t_BSGK
        if edit.cache_range is not None and name in edit.cache_range:
            low, high = edit.cache_range[name]
        else:
            t = t_BSGK.astype(jnp.float32)
            low, high = jnp.min(t, axis=-1, keepdims=True), jnp.max(t, axis=-1, keepdims=True)
        return fake_quantize_range(t_BSGK, edit.cache_bits[name], low, high)

    def product(self, name, x, edit):
        w = getattr(self, name).astype(x.dtype)
        if w.ndim == 2:
            y = product(x, w)
        else:
            y = jnp.einsum("bsei,eio->bseo" if x.ndim == 4 else "bsi,eio->bseo", x, w)
        if edit.bias is not None and name in edit.bias:
            y = y + edit.bias[name].astype(y.dtype)
        return y


def norm_params(module: nn.Module, name: str, shape: Shape) -> tuple[Any, Any]:
    """(scale, bias) of a norm over d_model: RMSNorm has no bias, norm "none" has neither."""
    if shape.norm == "none":
        return None, None
    scale = module.param(f"{name}_scale", nn.initializers.ones, (shape.d_model,))
    if shape.norm == "rmsnorm":
        return scale, None
    return scale, module.param(f"{name}_bias", nn.initializers.zeros, (shape.d_model,))


def init_params(key: Array, shape: Shape) -> Params:
    """f32 parameters: embed [V, D], blocks (leaves [L, ...]), final_norm, and unembed [D, V] unless tied."""
    sizes = {name: shape.full(name) for name in shape.matrices}
    std = shape.parametrization.embed_std
    stds = {name: shape.init_std(name) for name in sizes} | {"embed": std, "unembed": std}
    if shape.n_experts is not None:
        # An output weight (train/optimizer.py): its logits shrink with width as those of the unembedding do.
        stds |= {"router": std * shape.logit_scale}
        sizes |= {"router": (shape.n_layers, shape.d_model, shape.n_experts)}
    sizes |= {"embed": (shape.vocab, shape.d_model)}
    if not shape.tied_embeddings:
        sizes |= {"unembed": (shape.d_model, shape.vocab)}
    # One draw for all of them: every call of the generator adds .3 s of compilation.
    counts = [math.prod(size) for size in sizes.values()]
    parts = jnp.split(jax.random.normal(key, (sum(counts),)), list(itertools.accumulate(counts))[:-1])
    weights = {
        name: stds[name] * part.reshape(size) for part, (name, size) in zip(parts, sizes.items(), strict=True)
    }
    x = jnp.zeros((1, 1, shape.d_model), shape.dtype)
    constants = jax.vmap(lambda key: Block(shape).init(key, x, Edit(), None)["params"])
    blocks = {
        name: weights.pop(name, leaf)
        for name, leaf in constants(jax.random.split(key, shape.n_layers)).items()
    }
    params = {**weights, "blocks": blocks}
    if shape.norm != "none":
        params["final_norm"] = {"scale": jnp.ones(shape.d_model)}
    if shape.norm == "layernorm":
        params["final_norm"]["bias"] = jnp.zeros(shape.d_model)
    return params


def embed(params: Params, tokens_BS: Array, shape: Shape) -> Array:
    """Residual stream before the first block, [B, S, D] in shape.dtype."""
    return params["embed"][tokens_BS].astype(shape.dtype)


def block(
    params_l: Params, x_BSD: Array, shape: Shape, edit_l: Edit | None = None, cache_l: Cache | None = None
) -> tuple[Array, Inner, Cache | None]:
    """One block.  params_l and edit_l are one layer's slices.  Returns (x_BSD, inner, cache_l).

    inner holds every intermediate, the residual stream that enters (block_in) and the input of each matrix
    (attn_in, o_in, mlp_in, down_in) included; what is ignored of it XLA removes.  cache_l: keys and values
    [B, C, G, K] so far and their `length`; None = no cache.
    """
    return Block(shape).apply({"params": params_l}, x_BSD, edit_l or Edit(), cache_l)


def behind_attention(
    params_l: Params, x_BSD: Array, shape: Shape, edit_l: Edit | None = None
) -> tuple[Array, Inner]:
    """The first half of a block: (residual stream behind attention, its intermediates)."""
    inner: Inner = {}
    args = x_BSD, edit_l or Edit(), inner
    x_BSD, _ = Block(shape).apply({"params": params_l}, *args, method="behind_attention")
    return x_BSD, inner


def behind_mlp(
    params_l: Params, x_BSD: Array, shape: Shape, edit_l: Edit | None = None
) -> tuple[Array, Inner]:
    """The second half of a block: (residual stream behind the MLP, its intermediates)."""
    inner: Inner = {}
    args = x_BSD, edit_l or Edit(), inner
    return Block(shape).apply({"params": params_l}, *args, method="behind_mlp"), inner


def unembed(params: Params, x_BSD: Array, shape: Shape) -> Array:
    """Logits [B, S, V] in f32: final norm, unembedding (the embedding transposed when tied), logit scale."""
    norm = params.get("final_norm", {})
    x = normalize(x_BSD, norm.get("scale"), norm.get("bias"), shape.norm_eps)
    w_DV = params["embed"].T if shape.tied_embeddings else params["unembed"]
    # The weights are scaled and not the logits, which are larger and would all be written twice.
    return product(x, (w_DV * shape.logit_scale).astype(x.dtype), "float32")


def apply(
    params: Params,
    tokens_BS: Array,
    shape: Shape,
    edit: Edit | None = None,
    start: tuple[Array, Array] | None = None,
    keep: Callable[[Inner], Any] = dict,
) -> Output:
    """Residual stream after all blocks, under an edit.

    keep: what is wanted of each block's intermediates (`block`), a pytree; by default all of them.  A forward pass
    drops by itself what is not used at all; the gradient of one does not, so training says what it wants (`only`),
    and of what is read in part all of it is written for every layer, so metrics say which part.  Where tokens are
    deleted, the residual streams stand at the original positions, as behind the last block: each that of the last
    token left; what is inside of sublayers stands as the shorter sequence has it.

    start = (layer, x_BSD), both traced: x_BSD is the residual stream before block `layer` (inner["block_in"]
    of a full forward), and only the blocks from there on run; tokens_BS is then not read.  Same bits as the
    full forward.
    """
    params, edit = merge(params, edit), edit or Edit()
    if start is not None:
        return Output(leave(_blocks_from(params, *start, shape, edit), edit), None)
    corrupt_BS, source_BS = corrupt_tokens(tokens_BS, edit.corruption, shape.vocab)
    x_BSD = embed(params, corrupt_BS, shape)

    def run(params: Params, edit: Edit, x_BSD: Array) -> Output:
        def in_place(
            x_BSD: Array,
        ) -> Array:  # after a deletion: what stood last before each original position
            return x_BSD if source_BS is None else jnp.take_along_axis(x_BSD, source_BS[..., None], axis=1)

        def keep_in_place(inner: Inner) -> Any:
            return keep(inner | {name: in_place(inner[name]) for name in STREAMS})

        x_BSD, inner = _blocks(params, x_BSD, shape, edit, keep_in_place)
        return Output(leave(in_place(x_BSD), edit), inner)

    def loss_B(x_BSD: Array) -> Array:  # targets stay the tokens before corruption
        frozen, fixed = lax.stop_gradient((params, edit))
        return _sequence_loss(frozen, run(frozen, fixed, x_BSD).x_BSD, tokens_BS, shape)

    return run(params, edit, corrupt_embeddings(x_BSD, tokens_BS, edit.corruption, loss_B))


def against(params: Params, tokens_BS: Array, shape: Shape) -> Array:
    """The direction in which embeddings raise the loss of their sequence fastest, [B, S, D], `halved`: an attack's.

    An eighth of the batch at a time, its blocks computed again on the way back: a gradient in one piece would take
    many times the memory of the forward pass.
    """
    frugal = dataclasses.replace(shape, remat=True)

    def loss(x_SD: Array, tokens_S: Array) -> Array:
        x_1SD, _ = _blocks(params, x_SD[None], frugal, Edit(), only())
        return _sequence_loss(params, x_1SD, tokens_S[None], shape)[0]

    embedded_BSD = embed(params, tokens_BS, shape)
    at_once = max(1, len(tokens_BS) // 8)
    return halved(lax.map(lambda one: jax.grad(loss)(*one), (embedded_BSD, tokens_BS), batch_size=at_once))


def only(*names: str) -> Callable[[Inner], Inner]:
    """`keep` of `apply`: the intermediates of these names."""
    return lambda inner: {name: inner[name] for name in names}


def _blocks(
    params: Params, x_BSD: Array, shape: Shape, edit: Edit, keep: Callable[[Inner], Any]
) -> tuple[Array, Any]:
    """All blocks as one scan over layers."""

    def body(x_BSD, layer):
        x_BSD, inner, _ = block(layer[0], x_BSD, shape, layer[1])
        return x_BSD, keep(inner)

    saved = () if shape.remat else SAVED
    policy = jax.checkpoint_policies.save_only_these_names(*saved)
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    return lax.scan(body, enter(x_BSD, edit), (params["blocks"], edit.per_layer()))


def _blocks_from(params: Params, first: Array, x_BSD: Array, shape: Shape, edit: Edit) -> Array:
    """The blocks from `first` on, whose number is traced."""
    layers = (params["blocks"], edit.per_layer())

    def step(l, x_BSD):
        params_l, edit_l = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, l, keepdims=False), layers)
        return block(params_l, x_BSD, shape, edit_l)[0]

    if edit.residual_XD is not None or edit.residual_map is not None:
        x_BSD = jnp.where(first == 0, enter(x_BSD, edit), x_BSD)
    return lax.fori_loop(first, shape.n_layers, step, x_BSD)


def enter(x_BSD: Array, edit: Edit) -> Array:
    """The residual stream that enters the first block, under the edit's first multipliers and map."""
    return restrict(x_BSD, edit, 0)  # index 0 of [2 L + 1, ...]: the stream behind the embedding


def leave(x_BSD: Array, edit: Edit) -> Array:
    if edit.lens is None:
        return x_BSD
    return x_BSD @ edit.lens.map_DD.astype(x_BSD.dtype) + edit.lens.bias_D.astype(x_BSD.dtype)


def nll(params: Params, x_BSD: Array, tokens_BT: Array, shape: Shape) -> Array:
    """Negative log-likelihood in nats of each next token, [B, S] in f32; tokens_BT has T = S + 1 tokens and
    x_BSD is the residual stream of the first S."""
    logits_BSV = unembed(params, x_BSD, shape)
    return nll_of_logits(logits_BSV, tokens_BT[:, 1:])


def _sequence_loss(params: Params, x_BSD: Array, tokens_BS: Array, shape: Shape) -> Array:
    """Mean negative log-likelihood of the tokens after the first [B]; x_BSD is the residual stream of the same."""
    return nll(params, x_BSD[:, :-1], tokens_BS, shape).mean(axis=1)


def nll_of_logits(logits_BSV: Array, targets_BS: Array) -> Array:
    """-log softmax(logits)[target], [B, S]."""
    chosen = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BSV, axis=-1) - chosen


def init_cache(batch: int, length: int, shape: Shape) -> Cache:
    """An empty key-value cache of one layer for `length` positions."""
    size = (batch, length, shape.kv_heads, shape.head_dim)
    return {"k": jnp.zeros(size, shape.dtype), "v": jnp.zeros(size, shape.dtype), "length": jnp.int32(0)}


__all__ = [
    "SITES", "Cache", "Edit", "Inner", "Output", "Params", "against", "apply",
    "behind_attention", "behind_mlp", "block", "embed", "enter", "init_cache",
    "init_params", "leave", "merge", "nll", "nll_of_logits", "normalize", "only", "rotate", "route", "unembed",
]  # fmt: skip
