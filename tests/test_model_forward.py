"""What a forward pass promises: causality, a cache, a shared prefix, precision, recomputation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model as reference
from model_cases import OPTIONS, forward, random_edit, random_params, random_tokens, shape_of

from wane.scaling import model
from wane.scaling.edit import Edit

BF16_ROUNDING = 2.0**-8  # largest relative error of one rounding to bfloat16


@pytest.mark.parametrize("option", ["llama", "all at once"])
def test_no_gradient_flows_from_a_position_to_later_ones(option):
    shape = shape_of(option)
    params, tokens = random_params(shape), random_tokens(shape)
    direction_V = np.random.default_rng(0).standard_normal(shape.vocab).astype(np.float32)

    def readout(x_BSD):
        x_BSD = model.apply(params, None, shape, start=(0, x_BSD)).x_BSD
        return model.unembed(params, x_BSD, shape) @ direction_V

    jacobian = jax.jit(jax.jacrev(readout))(model.embed(params, tokens, shape))
    size_BSBS = np.abs(jacobian).max(-1)
    for b in range(2):
        for t in range(shape.context):
            assert np.all(size_BSBS[b, t, b, t + 1 :] == 0)
            assert np.all(size_BSBS[b, t, b, : t + 1] > 1e-7)
            assert np.all(size_BSBS[b, t, 1 - b] == 0)


@pytest.mark.parametrize("option", ["grouped queries", "all at once"])
def test_prefill_and_token_by_token_equal_the_full_forward(option):
    shape = shape_of(option)
    params, tokens = random_params(shape), random_tokens(shape)
    full, _ = forward(params, tokens, shape)

    @jax.jit
    def extend(tokens, caches):
        x, new = model.embed(params, tokens, shape), []
        for layer, cache in enumerate(caches):
            params_l = jax.tree.map(lambda a: a[layer], params["blocks"])  # noqa: B023
            x, _, cache = model.block(params_l, x, shape, cache_l=cache)
            new.append(cache)
        return model.unembed(params, x, shape), new

    prefill, longer = 4, shape.context + 3  # a cache may be longer than what it will hold
    caches = [model.init_cache(2, longer, shape) for _ in range(shape.n_layers)]
    logits, caches = extend(tokens[:, :prefill], caches)
    steps = [logits]
    for t in range(prefill, shape.context):
        logits, caches = extend(tokens[:, t : t + 1], caches)
        steps.append(logits)
    error = np.abs(np.concatenate(steps, axis=1) - full).max()
    assert error < 1e-5 * np.abs(full).max()
    assert int(caches[0]["length"]) == shape.context


@functools.partial(jax.jit, static_argnames="shape")
def resume(params, layer, x_BSD, shape, edit):
    return model.apply(params, None, shape, edit, start=(layer, x_BSD)).x_BSD


def assert_resumes(shape, edit):
    params, tokens = random_params(shape), random_tokens(shape)
    _, (last, inner) = forward(params, tokens, shape, edit)
    entered = [*inner["block_in"], last]
    assert not np.array_equal(entered[0], last)
    for layer, x_BSD in enumerate(entered):
        np.testing.assert_array_equal(resume(params, jnp.int32(layer), x_BSD, shape, edit), last)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_forward_from_a_later_block_has_the_same_bits(option):
    assert_resumes(shape_of(option), None)


@pytest.mark.parametrize("option", ["llama", "all at once"])
def test_an_edited_forward_from_a_later_block_has_the_same_bits(option):
    shape = shape_of(option)
    assert_resumes(shape, Edit(**random_edit(shape)))


def test_a_bfloat16_forward_from_a_later_block_has_the_same_bits():
    assert_resumes(shape_of("llama", dtype="bfloat16"), None)


def test_bfloat16_is_close_to_float32_and_keeps_its_sensitive_parts_in_float32():
    f32, bf16 = shape_of("grouped queries"), shape_of("grouped queries", dtype="bfloat16")
    params, tokens_BT = random_params(f32), random_tokens(f32, extra=1)

    def run(shape):
        logits, output = forward(params, tokens_BT[:, :-1], shape)
        return output, logits, model.nll(params, output.x_BSD, tokens_BT, shape)

    _, exact, exact_nll = run(f32)
    output, logits, nll = run(bf16)
    assert output.x_BSD.dtype == output.inner["attn_in"].dtype == jnp.bfloat16
    assert output.inner["attn_map"].dtype == logits.dtype == nll.dtype == jnp.float32
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 8 * BF16_ROUNDING
    np.testing.assert_allclose(nll, exact_nll, atol=0.2)


def test_softmax_and_loss_of_bfloat16_lose_nothing_to_float64():
    shape = shape_of("llama", dtype="bfloat16")
    params, tokens_BT = random_params(shape), random_tokens(shape, extra=1)
    logits, (x_BSD, inner) = forward(params, tokens_BT[:, :-1], shape)
    q, k = (np.asarray(inner[name][0], np.float64) for name in ("q", "k"))
    scores = np.einsum("bshk,bchk->bhsc", q, k) / np.sqrt(shape.head_dim)
    weights = np.exp(scores) * np.tri(shape.context)
    np.testing.assert_allclose(inner["attn_map"][0], weights / weights.sum(-1, keepdims=True), atol=1e-6)

    logits = np.asarray(logits, np.float64)
    chosen = np.take_along_axis(logits, np.asarray(tokens_BT)[:, 1:, None], -1)[..., 0]
    expected = np.log(np.exp(logits).sum(-1)) - chosen
    np.testing.assert_allclose(model.nll(params, x_BSD, tokens_BT, shape), expected, atol=1e-5)


@pytest.mark.parametrize("bias", [None, np.float32(0.5)])
def test_norm_of_bfloat16_is_wrong_by_its_last_rounding_only(bias):
    x = jnp.asarray(30 + np.random.default_rng(0).standard_normal((4, 256)), jnp.bfloat16)
    expected = reference.norm(np.asarray(x, np.float64), 1.25, bias, 1e-5)
    actual = model.normalize(x, jnp.float32(1.25), bias, 1e-5)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=1.01 * BF16_ROUNDING, atol=1e-5)


def test_remat_gives_the_same_gradient_in_less_memory():
    def compiled(remat):
        shape = shape_of("llama", n_layers=8, context=64, remat=remat)
        params, tokens_BT = random_params(shape), random_tokens(shape, batch=4, extra=1)

        def loss(params):
            x_BSD = model.apply(params, tokens_BT[:, :-1], shape).x_BSD
            return model.nll(params, x_BSD, tokens_BT, shape).mean()

        gradient = jax.jit(jax.grad(loss)).lower(params).compile()
        return gradient(params), gradient.memory_analysis().temp_size_in_bytes

    (plain, plain_bytes), (remat, remat_bytes) = compiled(False), compiled(True)
    assert remat_bytes < 0.7 * plain_bytes
    for expected, actual in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
