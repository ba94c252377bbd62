"""What an edit means: merging, the part that acts in a block, and the plain model that it equals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, complete, logits_of, tokens, trained

from wane.scaling.edit import Edit, fold, merge

SHAPE = SHAPES["gqa-gelu"]
MHA = SHAPES["mha-swiglu"]


def logits(params, edit, shape):
    return np.asarray(logits_of(params, complete(params, edit, shape), tokens(shape), shape))


def test_merge_replaces_what_the_edit_names_and_nothing_else():
    params = trained(SHAPE)
    q = params["blocks"]["q"] + 1
    merged = merge(params, Edit(params={"blocks": {"q": q}, "embed": params["embed"] * 2}))
    assert merged["blocks"]["q"] is q
    assert merged["blocks"]["k"] is params["blocks"]["k"]
    np.testing.assert_array_equal(merged["embed"], params["embed"] * 2)
    assert merge(params, None) is params
    assert merge(params, Edit()) is params
    assert params["blocks"]["q"] is not q


def test_only_what_acts_inside_a_block_is_sliced():
    edit = Edit(params={"blocks": {}}, weight_bits={"q": jnp.ones((2, 1, 1))}, attn_L=jnp.ones(2))
    assert jax.tree.leaves(edit.per_layer()) == [edit.attn_L]


def some_zeros(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Multipliers 0, 1 and 1.5."""
    return np.random.default_rng(seed).choice([0.0, 1.0, 1.5], shape).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("field", ["head_LH", "neuron_LF", "attn_L", "mlp_L"])
def test_folded_matrices_are_the_same_model(name, field):
    shape = SHAPES[name]
    L = shape.n_layers
    size = {"head_LH": (L, shape.n_heads), "neuron_LF": (*shape.lead("up"), shape.d_ff)}.get(field, (L,))
    multipliers = some_zeros(size, 1)
    multipliers[0] = 0
    params, edit = trained(shape), Edit(**{field: multipliers})
    folded = fold(params, edit, shape)
    plain = logits({**params, "blocks": params["blocks"] | folded}, Edit(), shape)
    np.testing.assert_allclose(logits(params, edit, shape), plain, atol=1e-5)
    assert np.abs(plain - logits(params, Edit(), shape)).max() > 1e-4


def test_nothing_reads_a_removed_neuron():
    neuron_LF = np.ones((MHA.n_layers, MHA.d_ff), np.float32)
    neuron_LF[1, 3] = 0
    folded = fold(trained(MHA), Edit(neuron_LF=neuron_LF), MHA)
    zero = {name: np.argwhere(np.asarray(w) == 0) for name, w in folded.items()}
    assert {name for name, where in zero.items() if len(where)} == {"gate", "up", "down"}
    assert {tuple(x) for x in zero["up"][:, [0, 2]]} == {(1, 3)}
    assert {tuple(x) for x in zero["gate"][:, [0, 2]]} == {(1, 3)}
    assert {tuple(x) for x in zero["down"][:, [0, 1]]} == {(1, 3)}
    assert (len(zero["up"]), len(zero["down"])) == (MHA.d_model, MHA.d_model)


@pytest.mark.parametrize(("heads", "groups"), [((0,), ()), ((0, 1), (0,)), ((1, 2, 3), (1,))])
def test_keys_and_values_go_with_the_last_query_head_of_their_group(heads, groups):
    K = SHAPE.head_dim
    head_LH = np.ones((SHAPE.n_layers, SHAPE.n_heads), np.float32)
    head_LH[0, list(heads)] = 0
    folded = fold(trained(SHAPE), Edit(head_LH=head_LH), SHAPE)
    gone = {name: np.asarray(folded[name][0] == 0) for name in "qkvo"}
    for h in range(SHAPE.n_heads):
        assert gone["q"][:, h * K : (h + 1) * K].all() == (h in heads) == gone["o"][h * K : (h + 1) * K].all()
    for g in range(SHAPE.kv_heads):
        for name in "kv":
            columns = gone[name][:, g * K : (g + 1) * K]
            assert columns.all() == columns.any() == (g in groups)
    assert not any(np.asarray(w[1] == 0).any() for w in folded.values())


def test_fold_takes_edited_matrices_and_leaves_vectors_out():
    params = trained(SHAPE)
    folded = fold(params, Edit(params={"blocks": {"up": params["blocks"]["up"] * 2}}), SHAPE)
    assert set(folded) == set(SHAPE.matrices)
    np.testing.assert_array_equal(folded["up"], params["blocks"]["up"] * 2)
    np.testing.assert_array_equal(folded["q"], params["blocks"]["q"])
