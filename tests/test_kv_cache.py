"""Rounded keys and values: against attention in numpy, through a real cache, and what a calibrated range is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.kv_cache import key_range, kv_cache
from wane.scaling.edit import Edit

SHAPE = SHAPES["gqa-gelu"]
EVERYWHERE = Where.everywhere(SHAPE)
KEY = jax.random.key(0)


@functools.cache
def fitted(**settings):
    method = kv_cache(SHAPE, **settings)
    return jax.jit(method.fit)(trained(SHAPE), tokens(SHAPE), KEY)


def at(bits: float, where: Where = EVERYWHERE, scope: Scope | None = None, **settings) -> Edit:
    method = kv_cache(SHAPE, scope or Scope(), **settings)
    return method.apply({}, fitted(**settings), jnp.float32(1 - bits / 16), where, KEY)


@functools.partial(jax.jit, **QUICK)
def run(params, tokens_BS, edit):
    """(logits, intermediates)."""
    output = model.apply(params, tokens_BS, SHAPE, edit)
    return model.unembed(params, output.x_BSD, SHAPE), output.inner


def rounded(x, low, high, bits):
    """The nearest of 2^bits points from low to high."""
    points = low[..., None] + (high - low)[..., None] * np.linspace(0, 1, 2**bits)
    nearest = np.abs(x[..., None] - points).argmin(-1)[..., None]
    return np.take_along_axis(np.broadcast_to(points, (*x.shape, 2**bits)), nearest, -1)[..., 0]


def attention(q_SK, k_SK, v_SK):
    """Causal attention of one head, token by token."""
    out = np.zeros_like(q_SK)
    for t in range(len(q_SK)):
        score = k_SK[: t + 1] @ q_SK[t] / np.sqrt(q_SK.shape[1])
        weight = np.exp(score - score.max())
        out[t] = weight / weight.sum() @ v_SK[: t + 1]
    return out


@pytest.mark.parametrize(
    "settings", [{}, {"which": "k"}, {"which": "v"}, {"granularity": "channel_keys"}], ids=str
)
def test_attention_reads_rounded_keys_and_values(settings):
    edit = at(3, **settings)
    inner = jax.tree.map(np.asarray, run(trained(SHAPE), tokens(SHAPE)[:, :-1], edit)[1])
    group = SHAPE.n_heads // SHAPE.kv_heads
    which = settings.get("which", "both")
    for layer, b, h in [(0, 0, 0), (1, 2, 3), (1, 5, 1)]:
        q, k, v = (inner[name][layer, b, :, h // (group if name != "q" else 1)] for name in "qkv")
        low, high = k.min(1, keepdims=True), k.max(1, keepdims=True)
        if "granularity" in settings:
            low, high = np.asarray(edit.cache_range["k"][layer, :, h // group])
        if which != "v":
            k = rounded(k, low, high, 3)
        if which != "k":
            v = rounded(v, v.min(1, keepdims=True), v.max(1, keepdims=True), 3)
        recorded = inner["o_in"][layer, b].reshape(SHAPE.context, SHAPE.n_heads, -1)[:, h]
        np.testing.assert_allclose(attention(q, k, v), recorded, atol=1e-5)


@pytest.mark.parametrize("granularity", ["token", "channel_keys"])
def test_decoding_with_a_cache_gives_the_full_forward(granularity):
    params, tokens_BS, edit = trained(SHAPE), tokens(SHAPE)[:2, :-1], at(1, granularity=granularity)
    full = run(params, tokens_BS, edit)[0]
    caches = [model.init_cache(2, SHAPE.context, SHAPE) for _ in range(SHAPE.n_layers)]

    @functools.partial(jax.jit, **QUICK)
    def extend(tokens_B1, caches):
        x, new = model.embed(params, tokens_B1, SHAPE), []
        for layer, cache in enumerate(caches):
            params_l, edit_l = jax.tree.map(lambda a, l=layer: a[l], (params["blocks"], edit.per_layer()))
            x, _, cache = model.block(params_l, x, SHAPE, edit_l, cache)
            new.append(cache)
        return model.unembed(params, x, SHAPE), new

    for t in range(SHAPE.context):
        logits, caches = extend(tokens_BS[:, t : t + 1], caches)
        np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-4)
    held = np.asarray(caches[1]["v"])  # [B, C, G, K]: two values per token and head
    assert max(len(np.unique(held[b, t, g])) for b, t, g in np.ndindex(held.shape[:3])) == 2
    assert np.abs(full - run(params, tokens_BS, at(16, granularity=granularity))[0]).max() > 1e-3


@pytest.mark.parametrize("granularity", ["token", "channel_keys"])
def test_no_token_sees_a_later_one(granularity):
    params, edit = trained(SHAPE), at(2, granularity=granularity)
    before = np.asarray(tokens(SHAPE)[:, :-1])
    after = before.copy()
    after[:, 5:] = (after[:, 5:] + 3) % SHAPE.vocab
    logits = [run(params, t, edit)[0] for t in (before, after)]
    np.testing.assert_array_equal(logits[0][:, :5], logits[1][:, :5])
    assert (np.asarray(logits[0][:, 5:]) != logits[1][:, 5:]).any()


def test_a_channels_range_is_that_of_the_calibration_data():
    params, tokens_NT = trained(SHAPE), tokens(SHAPE)
    k_LBSGK = run(params, tokens_NT[:, :-1], Edit())[1]["k"]
    low, high = np.moveaxis(np.asarray(jax.jit(key_range, static_argnums=2)(params, tokens_NT, SHAPE)), 1, 0)
    assert low.shape == (SHAPE.n_layers, SHAPE.kv_heads, SHAPE.head_dim)
    np.testing.assert_allclose(low, np.min(k_LBSGK, (1, 2)), rtol=1e-5)
    np.testing.assert_allclose(high, np.max(k_LBSGK, (1, 2)), rtol=1e-5)


def test_16_bits_give_the_same_bits():
    params, tokens_BS = trained(SHAPE), tokens(SHAPE)[:, :-1]
    for granularity in ("token", "channel_keys"):
        edit = at(16, granularity=granularity)
        np.testing.assert_array_equal(run(params, tokens_BS, edit)[0], run(params, tokens_BS, Edit())[0])
    assert tuple(kv_cache(SHAPE).cost(params, edit, 0.0)) == (0, 0, 16, 1)


def test_where_scope_and_which_choose():
    assert at(4).cache_bits["k"].tolist() == at(4).cache_bits["v"].tolist() == [4, 4]
    assert at(4, Where.only(SHAPE, 1)).cache_bits["v"].tolist() == [16, 4]
    assert at(4, scope=Scope(layers=(0, 1))).cache_bits["k"].tolist() == [4, 16]
    assert set(at(4, which="v").cache_bits) == {"v"}


@pytest.mark.parametrize(
    ("scope", "settings", "message"),
    [
        (Scope(head=1), {}, "scope.head = 1: .* leave it out"),
        (Scope(matrices=("k",)), {}, "scope.matrices = .* leave it out"),
        (Scope(layers=(0, 9)), {}, "scope.layers = "),
        (Scope(), {"which": "v", "granularity": "channel_keys"}, 'got which = "v"'),
    ],
)
def test_what_cannot_be_is_one_line(scope, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        kv_cache(SHAPE, scope, **settings)
    assert "\n" not in str(error.value)
