"""The model against the slow numpy reference, for every architecture and every field of Edit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model as reference
from model_cases import OPTIONS, forward, neutral_edit, random_edit, random_params, random_tokens, shape_of

from wane.scaling import model
from wane.scaling.edit import SITES, Edit
from wane.scaling.quantize import IDENTITY_BITS

SHAPES_EDITED = ("llama", "norm after", "no residual", "grouped queries", "experts", "all at once")


def assert_close(actual, expected, tolerance=1e-5):
    """Largest error against the largest entry."""
    assert np.all(np.isfinite(actual))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_architecture_agrees_with_numpy(option):
    shape = shape_of(option)
    params, tokens = random_params(shape), random_tokens(shape)
    logits, _ = forward(params, tokens, shape)
    assert logits.dtype == np.float32
    for dtype in (np.float32, np.float64):
        expected = reference.forward(params, tokens, shape, dtype=dtype)
        assert expected.dtype == dtype
        assert_close(logits, expected)


@pytest.mark.parametrize("option", SHAPES_EDITED)
def test_an_edit_agrees_with_numpy(option):
    shape = shape_of(option)
    params, tokens, edit = random_params(shape), random_tokens(shape), random_edit(shape)
    logits, _ = forward(params, tokens, shape, Edit(**edit))
    assert_close(logits, reference.forward(params, tokens, shape, edit=edit))


@pytest.mark.parametrize("field", random_edit(shape_of("experts")))
def test_each_field_of_edit_acts_alone_as_in_numpy(field):
    shape = shape_of("experts")
    params, tokens, edit = random_params(shape), random_tokens(shape), random_edit(shape)
    plain = reference.forward(params, tokens, shape)
    expected = reference.forward(params, tokens, shape, edit={field: edit[field]})
    assert np.abs(expected - plain).max() > 0.01 * np.abs(plain).max()
    one = neutral_edit(params, edit, shape.top_k) | {field: edit[field]}
    assert_close(forward(params, tokens, shape, Edit(**one))[0], expected)


def test_activations_rounded_with_one_scale_per_tensor_agree_with_numpy():
    shape = shape_of("grouped queries")
    params, tokens = random_params(shape), random_tokens(shape)
    bits = {site: np.float32([4, 8, IDENTITY_BITS]) for site in SITES}
    absmax = {site: np.float32([1.7, 2.3, 2.9]) + i for i, site in enumerate(SITES)}

    def round_site(site, layer, x):
        if bits[site][layer] >= IDENTITY_BITS:
            return x
        return reference.quantize(x, float(absmax[site][layer]), float(bits[site][layer]))[0]

    logits, _ = forward(params, tokens, shape, Edit(activation_bits=bits, activation_absmax=absmax))
    assert_close(logits, reference.forward(params, tokens, shape, round_site=round_site))


def test_activations_rounded_with_one_scale_per_token_agree_with_numpy():
    shape = shape_of("grouped queries")
    params, tokens = random_params(shape), random_tokens(shape)
    bits = {"attn_in": np.float32([4, 4, 4]), "down_in": np.float32([8, 3, 8])}
    logits, output = forward(params, tokens, shape, Edit(activation_bits=bits))
    on_tie = []

    def round_site(site, layer, x):
        """What the model rounded to, checked.  The entry -absmax lies on a tie (-7.5 of 4 bits), so that an
        error of one ulp moves it by a level: there the model may be one level off."""
        if site not in bits:
            return x
        actual = np.asarray(output.inner[site][layer], np.float64)
        absmax = np.abs(x).max(-1, keepdims=True)
        rounded, scale, quotient = reference.quantize(x, absmax, float(bits[site][layer]))
        tie = np.abs(quotient - np.floor(quotient) - 0.5) < 1e-4
        np.testing.assert_allclose(actual[~tie], rounded[~tie], atol=1e-5)
        assert np.all(np.abs(actual - rounded) < 1.0001 * scale)
        on_tie.append(tie.mean())
        return actual

    assert_close(logits, reference.forward(params, tokens, shape, round_site=round_site))
    assert np.mean(on_tie) < 0.1


def test_nll_is_that_of_the_next_token():
    shape = shape_of("llama")
    params, tokens_BT = random_params(shape), random_tokens(shape, extra=1)
    x_BSD = forward(params, tokens_BT[:, :-1], shape)[1].x_BSD
    logits = reference.forward(params, tokens_BT[:, :-1], shape)
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [[-logp[b, s, tokens_BT[b, s + 1]] for s in range(shape.context)] for b in range(2)]
    np.testing.assert_allclose(model.nll(params, x_BSD, tokens_BT, shape), expected, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_parameter_counts_are_those_of_the_tree(option):
    shape = shape_of(option)
    params = jax.eval_shape(lambda key: model.init_params(key, shape), jax.random.key(0))
    sizes = {name: sum(a.size for a in jax.tree.leaves(tree)) for name, tree in params.items()}
    matrices = sum(params["blocks"][name].size for name in shape.matrices)
    counts = shape.param_counts()
    assert sum(sizes.values()) == counts["total"]
    assert sizes["blocks"] + sizes.get("final_norm", 0) == counts["non_embedding"]
    assert matrices == counts["blocks"]
    assert counts["router"] == params["blocks"].get("router", np.zeros(0)).size
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))


def test_layers_start_different_with_the_promised_standard_deviation():
    shape = shape_of("standard, other constants", d_model=64, head_dim=16, d_ff=256, n_layers=4)
    blocks = model.init_params(jax.random.key(0), shape)["blocks"]
    for name, (fan_in, _) in shape.matrices.items():
        std = fan_in**-0.5 * (8**-0.5 if name in ("o", "down") else 1)
        np.testing.assert_allclose(np.std(blocks[name], axis=(1, 2)), std, rtol=0.05)
        assert not np.allclose(blocks[name][0], blocks[name][1])
