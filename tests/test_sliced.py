"""Models that are really smaller give the logits of the masked ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK
from model_cases import random_edit, random_params, random_tokens, shape_of

from wane.eval.metrics.contract import Weights
from wane.eval.metrics.deployment import parameters
from wane.scaling import model
from wane.scaling.corrupt import Corruption
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where
from wane.scaling.degrade.sliced_stream import extend_sliced, sliced_caches
from wane.scaling.degrade.slicing import slice_model
from wane.scaling.edit import Edit, Lens, merge
from wane.scaling.generate import empty_caches, extend
from wane.scaling.sliced import sliced

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnums=2, **QUICK)
def logits(params, tokens_BS, shape, edit):
    output = model.apply(params, tokens_BS, shape, edit)
    return model.unembed(merge(params, edit), output.x_BSD, shape)


def neutral(edit: Edit) -> Edit:
    """An edit of the same structure that changes nothing."""
    if edit.residual_map is not None:
        return Edit(
            residual_map=jnp.broadcast_to(jnp.eye(edit.residual_map.shape[1]), edit.residual_map.shape)
        )
    return jax.tree.map(jnp.ones_like, edit)


def check(params, edit, shape):
    """Slices and compares; returns the smaller model."""
    small, tokens_BS = sliced(params, edit, shape), random_tokens(shape, seed=4)
    masked = np.asarray(logits(params, tokens_BS, shape, edit))
    ours = logits(small.params, tokens_BS, small.shape, small.edit)
    np.testing.assert_allclose(ours, masked, atol=2e-5 * max(1, np.abs(masked).max()))
    if edit.bias is None:
        undone = logits(params, tokens_BS, shape, neutral(edit))
        assert np.abs(masked - undone).max() > 0.01, "the edit does something"
    sizes = jax.tree.map(jnp.shape, small.params)
    assert sizes == jax.tree.map(jnp.shape, random_params(small.shape)), "the arrays are those of the shape"
    return small


def units(shape, *, neurons, heads, attention=None, mlp=None) -> Edit:
    """Multipliers from 0/1 lists, broadcast over layers; neurons and heads that stay count other than 1."""
    size = (*shape.lead("up"), shape.d_ff)
    neuron_LF = np.random.default_rng(5).uniform(0.5, 2, size) * neurons
    head_LH = 1.5 * np.broadcast_to(heads, (shape.n_layers, shape.n_heads))
    fields = {"neuron_LF": neuron_LF, "head_LH": head_LH, "attn_L": attention, "mlp_L": mlp}
    return Edit(**{name: jnp.asarray(m, jnp.float32) for name, m in fields.items() if m is not None})


SOME_NEURONS = np.array([1, 0, 0, 1, 1] * 4)
SOME_HEADS = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize(
    "option", ["llama", "layernorm", "norm after", "no residual", "grouped queries", "experts", "all at once"]
)
def test_neurons_heads_and_a_layer_are_cut_out(option):
    shape = shape_of(option)
    edit = units(shape, neurons=SOME_NEURONS, heads=SOME_HEADS, attention=[1, 0, 0.5], mlp=[0.5, 0, 1])
    small = check(random_params(shape), edit, shape)
    grouped = shape.n_kv_heads is not None  # its two groups keep two heads, or one, of two
    assert (small.shape.n_layers, small.shape.d_ff) == (2, 12)
    assert (small.shape.n_heads, small.shape.n_kv_heads) == ((4, 2) if grouped else (3, None))
    assert jax.tree.leaves(small.edit) == [] or option not in ("llama", "layernorm", "experts")


def test_layers_keep_as_many_units_as_the_fullest_and_are_filled_with_zeros():
    shape = shape_of("llama")
    neurons = np.arange(20) < np.array([[4], [0], [9]])  # the second MLP is gone, its attention is not
    edit = units(shape, neurons=neurons, heads=[[0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    small = check(random_params(shape), edit, shape)
    assert (small.shape.n_layers, small.shape.d_ff, small.shape.n_heads) == (3, 9, 2)
    down = np.asarray(small.params["blocks"]["down"])
    np.testing.assert_array_equal((down != 0).any(-1).sum(-1), [4, 0, 9])


def test_a_group_goes_with_its_key_and_value_and_groups_keep_equally_many_heads():
    shape = shape_of("grouped queries", n_heads=6, n_kv_heads=3)
    edit = units(
        shape, neurons=np.ones(20), heads=[[0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]]
    )
    small = check(random_params(shape), edit, shape)
    assert (small.shape.n_heads, small.shape.n_kv_heads) == (2, 2)


def projector(shape, kept: int) -> np.ndarray:
    q_DK = np.linalg.qr(np.random.default_rng(3).standard_normal((shape.d_model, kept)))[0]
    return np.float32(q_DK @ q_DK.T)


def narrowed(shape, form: str, kept: int) -> Edit:
    states = 2 * shape.n_layers + 1
    if form == "map":
        return Edit(residual_map=jnp.asarray(np.stack([projector(shape, kept)] * states)))
    stays_D = np.random.default_rng(7).permutation(shape.d_model) < kept
    return Edit(residual_XD=jnp.asarray(np.stack([stays_D] * states), jnp.float32))


@pytest.mark.parametrize(
    ("option", "form"),
    [
        *((o, "map") for o in ("llama", "no norm", "no residual", "qk norm", "tied", "experts")),
        ("tied", "multipliers"),
    ],
)
def test_the_residual_stream_is_narrowed(option, form):
    shape = shape_of(option, norm_eps=0.1)  # large enough that a wrong one shows
    small = check(random_params(shape), narrowed(shape, form, 7), shape)
    assert small.shape.d_model == 7
    assert jax.tree.leaves(small.edit) == []


def test_dimensions_that_are_gone_from_some_states_only_stay_multiplied():
    shape = shape_of("llama")
    edit = narrowed(shape, "multipliers", 9)
    alive = np.flatnonzero(edit.residual_XD[0])
    edit = Edit(
        residual_XD=edit.residual_XD.at[3, alive[:4]].set(0.5),
        attn_L=jnp.array([1.0, 0, 1]),
        mlp_L=jnp.zeros(3),
    )
    small = check(random_params(shape), edit, shape)
    assert small.shape.d_model == 9
    assert small.shape.n_layers == 3, "the second layer scales what passes it by"


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        ("llama", {"neuron_LF": 0, "head_LH": 0}),
        ("no residual", {"attn_L": 0, "mlp_L": 0}),
        ("norm after", {"attn_L": 0, "mlp_L": 0}),
        ("experts", {"expert_LE": 0}),
    ],
)
def test_where_all_is_gone_one_unit_stays_that_does_nothing(option, fields):
    shape = shape_of(option)
    size = {
        "neuron_LF": (3, 20), "head_LH": (3, 4), "attn_L": 3, "mlp_L": 3, "expert_LE": (3, shape.n_experts),
    }  # fmt: skip
    small = check(random_params(shape), Edit(**{name: jnp.zeros(size[name]) for name in fields}), shape)
    if "expert_LE" in fields:
        assert small.shape.n_experts == 1
        assert small.shape.top_k == 1
    else:
        assert small.shape.n_layers == 1


def test_no_dimension_is_left():
    shape = shape_of("llama")
    assert check(random_params(shape), narrowed(shape, "map", 0), shape).shape.d_model == 1


@pytest.mark.parametrize("option", ["llama", "norm after", "experts"])
def test_biases_gates_and_replaced_weights_come_along(option):
    """Every field that acts without rounding at once."""
    shape = shape_of(option)
    edit = jax.tree.map(jnp.asarray, random_edit(shape))
    edit |= {"neuron_LF": edit["neuron_LF"] * SOME_NEURONS, "head_LH": edit["head_LH"] * SOME_HEADS}
    small = check(random_params(shape), Edit(**edit), shape)
    assert small.shape.d_ff < shape.d_ff
    assert small.edit.bias["q"].shape[-1] == small.shape.matrices["q"][1]


def test_a_lens_acts_behind_the_layers_that_are_left():
    shape = shape_of("llama")
    rng = np.random.default_rng(0)
    lens = Lens(jnp.asarray(rng.standard_normal((16, 16)), jnp.float32), jnp.ones(16))
    small = check(
        random_params(shape),
        Edit(attn_L=jnp.array([1.0, 0, 0]), mlp_L=jnp.array([1.0, 0, 0]), lens=lens),
        shape,
    )
    assert small.shape.n_layers == 1


def test_token_by_token_the_smaller_model_says_the_same():
    shape = shape_of("grouped queries")
    edit = units(shape, neurons=SOME_NEURONS, heads=[0, 0, 1, 1], attention=[1, 0, 1], mlp=[1, 0, 1])
    small = check(random_params(shape), edit, shape)
    assert small.shape.n_kv_heads == 1
    tokens_BS = random_tokens(shape, seed=4)
    run = jax.jit(functools.partial(extend, shape=small.shape, edit=small.edit), **QUICK)
    caches, said = empty_caches(len(tokens_BS), shape.context, small.shape), []
    for s in range(shape.context):
        step, caches = run(small.params, tokens_BS[:, s : s + 1], caches)
        said.append(step)
    whole = logits(small.params, tokens_BS, small.shape, small.edit)
    np.testing.assert_allclose(jnp.concatenate(said, axis=1), whole, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings", "changed"),
    [
        ("random_neurons", {"replace": "rescale"}, {"d_ff": 10}),
        ("glu_importance", {}, {"d_ff": 10}),
        ("random_heads", {"group": "layer"}, {"n_heads": 2}),
        ("remove_layers", {}, {"n_layers": 2}),
        ("early_exit", {}, {"n_layers": 2}),
        ("random_dimensions", {}, {"d_model": 8}),
        ("pca_dimensions", {}, {"d_model": 8}),
    ],
)
def test_half_of_what_a_method_takes_is_half_the_shape(method, settings, changed):
    """And the parameters that are left are those that the metric of the same name counts."""
    shape = shape_of("llama", n_layers=4)
    params, degradation = random_params(shape), build(method, shape, settings=settings)
    calibration = random_tokens(shape, batch=3, extra=1)
    fitted = jax.jit(degradation.fit, **QUICK)(params, calibration, KEY)
    edit = degradation.apply(params, fitted, jnp.float32(0.5), Where.everywhere(shape), KEY)
    small = sliced(params, edit, shape)
    assert {name: getattr(small.shape, name) for name in changed} == changed
    norms = (
        small.shape.param_counts()["norms"] - shape.param_counts()["norms"]
    )  # which the metric leaves whole
    counted = parameters(None, Weights(shape, params, merge(params, edit), edit))
    shortcuts = 9 * 8 * 8 - 8 * 8 if method == "pca_dimensions" else 0  # that one basis for all does not need
    assert small.shape.param_counts()["total"] == pytest.approx(float(counted) + norms - shortcuts, abs=0.5)


TWO_BASES = Edit(
    residual_map=jnp.stack([jnp.diag(jnp.arange(16.0) < k) * 1.0 for k in (8, 8, 9, 8, 8, 8, 8)])
)

LENS_ON_HALF = dataclasses.replace(
    narrowed(shape_of("llama"), "map", 8), lens=Lens(jnp.eye(16), jnp.zeros(16))
)


@pytest.mark.parametrize(
    ("option", "edit", "message"),
    [
        ("llama", Edit(), "nothing shrinks"),
        ("llama", Edit(head_LH=jnp.ones((3, 4)).at[0].set(0)), "d16-L3-f20 is gone from every layer"),
        ("llama", Edit(params={"blocks": {"q": jnp.zeros((3, 16, 24))}}), "nothing shrinks"),
        (
            "llama",
            Edit(activation_bits={"o_in": jnp.full(3, 4)}),
            "edit.activation_bits: .* slice without it",
        ),
        ("llama", Edit(cache_bits={"k": jnp.full(3, 4)}), "edit.cache_bits"),
        ("llama", Edit(corruption=Corruption(substitute=jnp.float32(0.1))), "edit.corruption"),
        ("llama", TWO_BASES, "edit.residual_map: .*slice_model"),
        ("layernorm", narrowed(shape_of("llama"), "map", 7), 'shape.norm = "layernorm"'),
        ("norm after", narrowed(shape_of("llama"), "map", 7), 'shape.norm_position = "after"'),
        ("llama", LENS_ON_HALF, "edit.lens"),
    ],
)
def test_what_cannot_be_sliced_is_one_line(option, edit, message):
    shape = shape_of(option)
    with pytest.raises(ValueError, match=message) as error:
        sliced(random_params(shape), edit, shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["llama", "qk norm", "no residual"])
def test_a_stream_with_a_basis_at_every_place_says_token_by_token_what_the_masked_model_says(option):
    shape = shape_of(option)
    params, tokens_BS = random_params(shape), random_tokens(shape, seed=4)
    maps = [
        projector(shape, k) if k < 16 else np.eye(16, dtype=np.float32) for k in (9, 12, 16, 11, 7, 16, 13)
    ]
    edit = Edit(residual_map=jnp.asarray(np.stack(maps)))
    small = slice_model(params, edit, shape)
    run = jax.jit(functools.partial(extend_sliced, shape=shape), **QUICK)
    prompt, caches = run(small, tokens_BS[:, :4], sliced_caches(len(tokens_BS), shape.context, shape))
    said = [prompt]
    for s in range(4, shape.context):
        step, caches = run(small, tokens_BS[:, s : s + 1], caches)
        said.append(step)
    masked = logits(params, tokens_BS, shape, edit)
    np.testing.assert_allclose(jnp.concatenate(said, axis=1), masked, atol=1e-4 * np.abs(masked).max())
