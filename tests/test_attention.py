"""The products and the attention that CPUs run, against their plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wane.scaling.attention import attend, attend_causal, attention_map
from wane.scaling.product import gradients, product


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def qkv(S, H, G, K=6, B=3):
    return normal(0, B, S, H, K), normal(1, B, S, G, K), normal(2, B, S, G, K)


def slow(q, k, v):
    """One position after another, in float64."""
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    out = np.zeros_like(q)
    B, S, H, K = q.shape
    for b, s, h in np.ndindex(B, S, H):
        g = h * k.shape[2] // H
        scores = k[b, : s + 1, g] @ q[b, s, h] / np.sqrt(K)
        weights = np.exp(scores - scores.max())
        out[b, s, h] = weights / weights.sum() @ v[b, : s + 1, g]
    return out


@pytest.mark.parametrize(("S", "H", "G"), [(1, 2, 2), (4, 2, 2), (33, 3, 1), (64, 4, 2), (128, 2, 2)])
def test_attention_agrees_with_one_position_after_another(S, H, G):
    arrays = qkv(S, H, G)
    expected = slow(*arrays)
    np.testing.assert_allclose(attend_causal(*arrays), expected, atol=2e-6)
    np.testing.assert_allclose(attend(*arrays, jnp.arange(S)), expected, atol=2e-6)


@pytest.mark.parametrize(("S", "H", "G"), [(4, 2, 2), (33, 3, 1), (64, 4, 2), (128, 2, 2)])
def test_its_gradients_are_those_of_the_plain_form(S, H, G):
    arrays, g = qkv(S, H, G), normal(3, 3, S, H, 6)
    fast = jax.jit(lambda *a: jax.vjp(attend_causal, *a)[1](g))(*arrays)
    plain = jax.jit(lambda *a: jax.vjp(lambda *t: attend(*t, jnp.arange(S)), *a)[1](g))(*arrays)
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_large_scores_do_not_overflow():
    q, k, v = qkv(128, 2, 2)
    arrays = 300 * q, 300 * k, v
    np.testing.assert_allclose(attend_causal(*arrays), slow(*arrays), atol=1e-4)
    grads = jax.grad(lambda *a: attend_causal(*a).sum(), argnums=(0, 1, 2))(*arrays)
    assert all(np.isfinite(leaf).all() for leaf in grads)


def test_attention_keeps_its_dtype():
    arrays = [t.astype(jnp.bfloat16) for t in qkv(128, 2, 2)]
    out, pull = jax.vjp(attend_causal, *arrays)
    assert {out.dtype, *(g.dtype for g in pull(out))} == {jnp.bfloat16.dtype}
    np.testing.assert_allclose(out.astype(np.float32), slow(*arrays), atol=0.03)


def test_the_map_sums_to_1_over_the_past():
    q, k, _ = qkv(8, 4, 2)
    found = np.asarray(attention_map(q, k, jnp.arange(8)))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert (found[..., np.triu_indices(8, 1)[0], np.triu_indices(8, 1)[1]] == 0).all()


@pytest.mark.parametrize("out", [None, "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_product_are_those_of_automatic_differentiation(dtype, out):
    x, w = normal(0, 2, 5, 7).astype(dtype), normal(1, 7, 3).astype(dtype)

    def plain(x, w):
        return jnp.matmul(x, w, preferred_element_type=out)

    y, pull = jax.vjp(lambda x, w: product(x, w, out), x, w)
    expected, pull_plain = jax.vjp(plain, x, w)
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)
    for ours, theirs in zip(pull(expected), pull_plain(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), rtol=1e-5 if dtype == "float32" else 0.02
        )


def text(f, arguments, platform):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_other_platforms_get_the_plain_forms():
    """On CPU the gradient's operand stands behind a barrier and queries go in blocks; elsewhere neither."""
    x, w, g = normal(0, 5, 7), normal(1, 7, 3), normal(2, 5, 3)
    pull = lambda x, w, g: jax.vjp(product, x, w)[1](g)  # noqa: E731
    assert "optimization_barrier" in text(pull, (x, w, g), "cpu")
    assert "optimization_barrier" not in text(pull, (x, w, g), "tpu")
    arrays = qkv(128, 2, 2)
    assert text(attend_causal, arrays, "cpu").count("dot_general") == 8
    assert text(attend_causal, arrays, "tpu").count("dot_general") == 2
    back = lambda *a: jax.grad(lambda *t: attend_causal(*t).sum(), argnums=(0, 1, 2))(*a)  # noqa: E731
    for platform in ("tpu", "cuda"):
        plain = text(back, arrays, platform)
        assert "dot_general" in plain
        assert "dynamic_update_slice" not in plain
        assert "scatter" not in plain


def test_the_plain_gradients_are_what_the_cpu_computes():
    """The branches of one function, side by side on this machine."""
    x, w, g = normal(0, 50, 7), normal(1, 7, 3), normal(2, 50, 3)
    for ours, theirs in zip(gradients(x, w, g), (g @ w.T, x.T @ g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
