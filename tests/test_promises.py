"""The table of promises: every method, each held to what it declares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import CASES, QUICK, bench, complete, floor_share, loss_and_logits, tokens, trained

from wane.scaling.degrade import METHODS
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit

GRID = ("0.0", "0.1", "0.25", "0.3", "0.5", "0.7", "0.99", "1.0")
UNCOUNTED = ("rtn", "activations", "gaussian_noise")
TABLE = [(case, "mha-swiglu") for case in CASES] + [(case, "gqa-gelu") for case in CASES if not case.settings]
EVERY = [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in TABLE]
COUNTED = [p for p in EVERY if p.values[0].method not in UNCOUNTED]
DEFAULTS = EVERY[len(CASES) :]


def test_every_method_is_in_the_table():
    assert {case.method for case in CASES} == set(METHODS)


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same_bits(a, b) -> bool:
    a, b = leaves(a), leaves(b)
    return len(a) == len(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def run_model(b, edit):
    return loss_and_logits(b.params, complete(b.params, edit, b.shape), tokens(b.shape), b.shape)


def removed_in(b, severity: float) -> dict[str, np.ndarray]:
    """Matrix -> bool [L, I, O] of what is gone; no trained weight of the models is 0."""
    return {name: w == 0 for name, w in b.at(severity)[1].items()}


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_severity_0_is_the_identity(case, shape):
    b = bench(case, shape)
    edit, folded, cost = b.at(0.0)
    (_, logits), _ = run_model(b, edit)
    (_, trained_logits), _ = run_model(b, Edit(activation_absmax=edit.activation_absmax))
    assert np.abs(logits - trained_logits).max() <= b.method.promises.identity
    if b.method.promises.identity == 0:
        assert same_bits(folded, {name: b.params["blocks"][name] for name in folded})
    assert (cost.removed_fraction, cost.relative_weight_error) == (0, 0)
    assert (cost.bits_per_weight, cost.compression_ratio) == (16, 1)


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_removal_is_nested(case, shape):
    b = bench(case, shape)
    if not b.method.promises.nested:
        assert case.method in UNCOUNTED
        return
    masks = [removed_in(b, float(s)) for s in GRID]
    for less, more in zip(masks, masks[1:], strict=False):
        assert all((more[name] | ~less[name]).all() for name in less)
    assert sum(m.sum() for m in masks[4].values()) > 0


@pytest.mark.parametrize(("case", "shape"), COUNTED)
def test_exact_count(case, shape):
    b = bench(case, shape)
    assert b.method.promises.exact_count
    for severity in GRID:
        edit = b.at(float(severity))[0]
        for units in ranking_groups(edit, dict(b.method.settings)):
            assert (units == 0).sum() == floor_share(units.size, severity)


def ranking_groups(edit, settings) -> list[np.ndarray]:
    """What is counted together: weights of a row, of a matrix, of the model; units of a layer, of the model."""
    group = settings.get("group", "global")  # of layers there is one group
    if edit.params is None:
        fields = (edit.head_LH, edit.neuron_LF, edit.attn_L, edit.mlp_L)
        units = next(u for u in fields if u is not None)
        return list(units) if group == "layer" else [units]
    blocks = edit.params["blocks"].values()
    if group == "row":
        return [column for w_LIO in blocks for w_IO in w_LIO for column in w_IO.T]
    if group == "layer":
        return [w_IO for w_LIO in blocks for w_IO in w_LIO]
    return [np.concatenate([w_LIO.ravel() for w_LIO in blocks])]


@pytest.mark.parametrize(("case", "shape"), COUNTED)
def test_severity_1_removes_everything(case, shape):
    edit, _, cost = bench(case, shape).at(1.0)
    assert all((units == 0).all() for units in ranking_groups(edit, {}))
    if case.method.endswith("weights") or case.method == "remove_layers" and not case.settings:
        assert cost.removed_fraction == 1
        np.testing.assert_allclose(cost.relative_weight_error, 1, rtol=1e-6)


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_same_key_same_edit_and_no_recompilation(case, shape):
    b = bench(case, shape)
    again = b.fit(b.params, tokens(b.shape), jax.random.key(1))
    assert same_bits(again, b.fitted)
    severity = b.severity(0.5, 4, 0.3)
    assert same_bits(b.at(severity), b.at(severity, fitted=again))
    other = b.fit(b.params, tokens(b.shape), jax.random.key(2))
    for where in (b.everywhere, Where.only(b.shape, 1), Where.only(b.shape, 0, 2)):
        for s in (0.0, severity, b.severity(0.9, 2, 1.0)):
            b.at(s, where, other)
    assert b.run._cache_size() == 1
    assert b.fit._cache_size() == 1


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_other_key_other_edit_only_where_random(case, shape):
    b = bench(case, shape)
    severity = b.severity(0.5, 4, 0.3)
    edits = [
        b.at(severity, fitted=b.fit(b.params, tokens(b.shape), jax.random.key(seed)))[1] for seed in range(12)
    ]
    differ = any(not same_bits(edits[0], other) for other in edits[1:])
    assert differ == b.method.random


@pytest.mark.parametrize(("case", "shape"), DEFAULTS)
def test_draws_map(case, shape):
    b = bench(case, shape)
    severity = jnp.float32(b.severity(0.5, 4, 0.3))
    keys = jax.random.split(jax.random.key(3), 3)

    def folded(key):
        fitted = b.method.fit(b.params, tokens(b.shape), key)
        return b._run(b.params, fitted, severity, b.everywhere, key)[1]

    together = jax.jit(jax.vmap(folded), **QUICK)(keys)
    for i, key in enumerate(keys):
        alone = b.at(severity, fitted=b.fit(b.params, tokens(b.shape), key))[1]
        for name, w_LIO in alone.items():
            np.testing.assert_allclose(together[name][i], w_LIO, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(together[name][i] == 0, w_LIO == 0)


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_gradient_goes_straight_through(case, shape):
    b = bench(case, shape)
    severity = jnp.float32(b.severity(0.4, 4, 0.3))

    def filled(params):
        edit = b.method.apply(params, b.fitted, severity, b.everywhere, jax.random.key(0))
        return complete(params, edit, b.shape)

    @functools.partial(jax.jit, **QUICK)
    def gradient(params, g_edit):
        return jax.vjp(filled, params)[1](g_edit)[0]

    _, (g, g_edit) = loss_and_logits(b.params, filled(b.params), tokens(b.shape), b.shape)
    g = jax.tree.map(jnp.add, g, gradient(b.params, g_edit))
    assert all(np.isfinite(leaf).all() for leaf in leaves(g))
    assert b.method.promises.straight_through
    assert all(np.abs(g["blocks"][name]).max() > 0 for name in b.shape.matrices)


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_where_degrades_the_selected_layer_and_nothing_else(case, shape):
    b = bench(case, shape)
    severity = b.severity(0.6, 3, 0.5)
    everywhere, layer = b.at(severity)[0], 1
    some = b.at(severity, Where.only(b.shape, layer))[0]
    untouched = b.at(0.0)[0]
    for all_L, one_L, none_L in zip(*map(jax.tree.leaves, (everywhere, some, untouched)), strict=True):
        expected = np.where(
            (np.arange(len(all_L)) == layer).reshape(-1, *[1] * (all_L.ndim - 1)), all_L, none_L
        )
        np.testing.assert_array_equal(one_L, expected)


@pytest.mark.parametrize(("case", "shape"), EVERY)
def test_hold_keeps_the_degradation_on_other_parameters(case, shape):
    b = bench(case, shape)
    severity = b.severity(0.5, 3, 0.3)
    edit, folded, _ = b.at(severity)
    moved = trained(b.shape, seed=5)
    held = b.method.hold(moved, edit)
    for name in b.shape.matrices:
        now, before = np.asarray(held["blocks"][name]), np.asarray(moved["blocks"][name])
        if case.method == "rtn":
            again = b.method.apply(moved, b.fitted, jnp.float32(severity), b.everywhere, jax.random.key(0))
            np.testing.assert_allclose(now, again.params["blocks"][name], rtol=1e-6)
            assert (now != before).any()
        elif b.method.promises.exact_count:
            np.testing.assert_array_equal(now, np.where(folded[name] == 0, 0, before))
        else:
            np.testing.assert_array_equal(now, before)
    np.testing.assert_array_equal(held["embed"], moved["embed"])
