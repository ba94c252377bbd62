"""The table of promises: every method, each held to what it declares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import (
    CASES,
    QUICK,
    SHAPES,
    TABLE,
    bench,
    complete,
    floor_share,
    logits_of,
    loss_gradients,
    numbers,
    ranking_groups,
    tokens,
    trained,
)

from wane.scaling.degrade import METHODS
from wane.scaling.degrade.contract import Where
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.edit import Edit, merge

GRID = ("0.0", "0.1", "0.25", "0.3", "0.5", "0.7", "0.99", "1.0")


def rows(keep=lambda case, shape, method: True):
    """The rows of the table for which keep(case, shape, method) is true."""
    built = [(case, shape, case.build(SHAPES[shape])) for case, shape in TABLE]
    chosen = [(case, shape) for case, shape, method in built if keep(case, shape, method)]
    return pytest.mark.parametrize(
        ("case", "shape"), [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in chosen]
    )


def at_home(case, shape, method) -> bool:
    """Where the whole table is tested; on other shapes, inside experts, what is removed and that nothing is."""
    return shape == case.home


def test_every_method_is_in_the_table():
    assert {case.method for case in CASES} == set(METHODS)


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same_bits(a, b) -> bool:
    a, b = leaves(a), leaves(b)
    return len(a) == len(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def logits(b, edit):
    return np.asarray(logits_of(b.params, complete(b.params, edit, b.shape), tokens(b.shape), b.shape))


def removed_in(b, severity: float) -> dict[str, np.ndarray]:
    """Matrix -> bool [.., I, O] of what is gone; no trained weight of the models is 0."""
    return {name: w == 0 for name, w in b.at(severity)[1].items()}


@rows()
def test_severity_0_is_the_identity(case, shape):
    b = bench(case, shape)
    edit, folded, cost = b.at(0.0)
    plain = Edit(activation_absmax=edit.activation_absmax, cache_range=edit.cache_range)
    assert np.abs(logits(b, edit) - logits(b, plain)).max() <= b.method.promises.identity
    if b.method.promises.identity == 0:
        assert same_bits(folded, {name: b.params["blocks"][name] for name in folded})
        assert (cost.removed_fraction, cost.relative_weight_error) == (0, 0)
        assert (cost.bits_per_weight, cost.compression_ratio) == (16, 1)


@rows(lambda case, shape, method: method.promises.nested)
def test_removal_is_nested(case, shape):
    b = bench(case, shape)
    masks = [removed_in(b, float(s)) for s in GRID]
    for less, more in zip(masks, masks[1:], strict=False):
        assert all((more[name] | ~less[name]).all() for name in less)
    assert sum(m.sum() for m in masks[4].values()) > 0


@rows(lambda case, shape, method: method.promises.exact_count)
def test_exact_count(case, shape):
    b = bench(case, shape)
    for severity in GRID:
        for units in ranking_groups(b.at(float(severity))[0], dict(b.method.settings), b.shape):
            assert (units == 0).sum() == floor_share(units.size, severity)


@rows(lambda case, shape, method: method.promises.exact_count)
def test_severity_1_removes_everything(case, shape):
    b = bench(case, shape)
    edit, folded, cost = b.at(1.0)
    assert all((units == 0).all() for units in ranking_groups(edit, dict(b.method.settings), b.shape))
    if edit.params is not None:  # weights, and not units of one kind
        assert cost.removed_fraction == 1
        np.testing.assert_allclose(cost.relative_weight_error, 1, rtol=1e-6)


@rows(at_home)
def test_same_key_same_edit_and_no_recompilation(case, shape):
    b = bench(case, shape)
    again = b.fit(b.params, tokens(b.shape), jax.random.key(1))
    assert same_bits(jax.tree.map(np.asarray, again), b.fitted)
    severity = b.severity(0.5, 4, 0.3)
    assert same_bits(b.at(severity), b.at(severity, fitted=again))
    other = b.fit(b.params, tokens(b.shape), jax.random.key(2))
    for where in (b.everywhere, Where.only(b.shape, 1), Where.only(b.shape, 0, 2)):
        for s in (0.0, severity, b.severity(0.9, 2, 1.0, 6.0)):
            b.at(s, where, other)
    assert b.run._cache_size() == 1
    assert b.fit._cache_size() == 1


@rows(at_home)
def test_other_key_other_edit_only_where_random(case, shape):
    b = bench(case, shape)
    severity = b.severity(0.5, 4, 0.3)
    first = b.at(severity)[0]
    seeds = range(2, 13) if b.method.random else (2,)  # two draws of few units may agree
    others = (
        b.at(severity, fitted=b.fit(b.params, tokens(b.shape), jax.random.key(s)), seed=s)[0] for s in seeds
    )
    assert any(not same_bits(first, other) for other in others) == b.method.random


@rows(lambda case, shape, method: not case.settings and at_home(case, shape, method))
def test_draws_map(case, shape):
    b = bench(case, shape)
    severity = jnp.float32(b.severity(0.5, 4, 0.3))
    keys = jax.random.split(jax.random.key(3), 3)

    def folded(key):
        fitted = b.method.fit(b.params, tokens(b.shape), key)
        return b._run(b.params, fitted, severity, b.everywhere, key)[1]

    if not b.method.random:
        assert jax.eval_shape(jax.vmap(folded), keys)["q"].shape[0] == 3
        return
    together = jax.jit(jax.vmap(folded), **QUICK)(keys)
    for i, key in enumerate(keys):
        alone = b.at(severity, fitted=b.fit(b.params, tokens(b.shape), key))[1]
        for name, w in alone.items():
            np.testing.assert_allclose(together[name][i], w, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(together[name][i] == 0, w == 0)


@rows(lambda case, shape, method: method.promises.straight_through and at_home(case, shape, method))
def test_gradient_goes_straight_through(case, shape):
    b = bench(case, shape)
    severity = jnp.float32(b.severity(0.4, 4, 0.3))
    edit = b.at(severity)[0]

    def filled(params):
        made = b.method.apply(params, b.fitted, severity, b.everywhere, jax.random.key(7))
        return numbers(complete(params, made, b.shape))

    @functools.partial(jax.jit, **QUICK)
    def gradient(params, g_edit):
        return jax.vjp(filled, params)[1](g_edit)[0]

    g, g_edit = loss_gradients(b.params, complete(b.params, edit, b.shape), tokens(b.shape), b.shape)
    g = jax.tree.map(jnp.add, g, gradient(b.params, g_edit))
    assert all(np.isfinite(leaf).all() for leaf in leaves(g))
    assert all(np.abs(g["blocks"][name]).max() > 0 for name in b.shape.matrices)


@rows(lambda case, shape, method: method.local and at_home(case, shape, method))
def test_where_degrades_the_selected_layer_and_nothing_else(case, shape):
    """Of a sequential method the selected layer is another one than when its predecessors are degraded too."""
    b = bench(case, shape)
    severity, layer = b.severity(0.6, 3, 0.5), 1
    everywhere, some, untouched = (
        leaves_of_layers(edit, b.shape.n_layers)
        for edit in (b.at(severity)[0], b.at(severity, Where.only(b.shape, layer))[0], b.at(0.0)[0])
    )
    assert some
    for all_L, one_L, none_L in zip(everywhere, some, untouched, strict=True):
        others = np.arange(len(one_L)) != layer
        np.testing.assert_array_equal(one_L[others], none_L[others])
        if not b.method.sequential:
            np.testing.assert_array_equal(one_L[layer], all_L[layer])
    if b.method.sequential:
        pairs = zip(some, untouched, strict=True)
        assert any(not np.array_equal(one_L[layer], none_L[layer]) for one_L, none_L in pairs)


def leaves_of_layers(edit: Edit, n_layers: int) -> list[np.ndarray]:
    """What the edit holds per layer, two states of the stream for each; a lattice is the same wherever it acts."""
    found = [leaf for leaf in leaves({**vars(edit), "weight_grid": None}) if leaf.ndim]
    states = [leaf[1:].reshape(n_layers, -1) for leaf in found if len(leaf) == 2 * n_layers + 1]
    return [leaf for leaf in found if len(leaf) == n_layers] + states


@rows(at_home)
def test_hold_keeps_the_degradation_on_other_parameters(case, shape):
    b = bench(case, shape)
    edit, folded, _ = b.at(b.severity(0.5, 3, 0.3))
    moved, own = trained(b.shape, seed=5), merge(b.params, edit)
    held = b.hold(moved, edit)
    assert_blocks(b.hold(held, edit), held)
    for name, before in moved["blocks"].items():
        now = np.asarray(held["blocks"][name])
        if b.method.hold is hold_nothing or name not in b.shape.matrices:
            np.testing.assert_array_equal(now, before)
        elif edit.weight_bits is None:
            np.testing.assert_array_equal(now, np.where(folded[name] == 0, 0, before))
        else:
            assert (now != before).any()
    if edit.params is not None:
        assert_blocks(b.hold(own, edit), own)
    np.testing.assert_array_equal(held["embed"], moved["embed"])


def assert_blocks(actual, expected):
    """Equal but for the last bit of a product with a scale."""
    for name, w in expected["blocks"].items():
        np.testing.assert_allclose(actual["blocks"][name], w, rtol=1e-6, atol=1e-8)
