"""Removal of layers by similarity, distance and ablation, against recorded vectors and slow numpy."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained
from test_model_parity import toy_model

from wane.scaling import model
from wane.scaling.degrade.contract import EVERYTHING, Scope, Where
from wane.scaling.degrade.drop_consecutive_layers import drop_consecutive_layers, start_of_run
from wane.scaling.degrade.drop_layers_by_ablation import drop_layers_by_ablation
from wane.scaling.degrade.drop_layers_by_similarity import drop_layers_by_similarity
from wane.scaling.degrade.remove_layers import remove_layers
from wane.scaling.degrade.similarity import (
    angular_distance,
    block_influence,
    block_influences,
    cosine,
    distance_table,
    similarities,
)
from wane.scaling.edit import Edit
from wane.scaling.shape import Shape

DEPTH = np.load(Path(__file__).parent / "golden" / "toy_depth.npz")
KEY = jax.random.key(0)


@functools.cache
def toy():
    """(shape, params, calibration, evaluation tokens) of the toy decoder; windows gain a last token, which only
    a loss would read."""
    shape, params, arrays = toy_model()
    padded = [np.pad(arrays[name], ((0, 0), (0, 1))) for name in ("calib_tokens", "eval_tokens")]
    return shape, params, *map(jnp.asarray, padded)


@functools.cache
def measured(part: str, layer_drop_norm: bool = True):
    shape, params, calibration, _ = toy()
    return jax.jit(
        lambda p, t: similarities(p, t, shape, part, layer_drop_norm=layer_drop_norm), **QUICK
    )(params, calibration)  # fmt: skip


@functools.partial(jax.jit, static_argnums=2, **QUICK)
def logits(params, tokens_BT, shape, edit):
    return model.unembed(params, model.apply(params, tokens_BT[:, :-1], shape, edit).x_BSD, shape)


@functools.cache
def fitted(build, **settings):
    """(method, fitted state) on the toy decoder."""
    shape, params, calibration, _ = toy()
    method = build(shape, **settings)
    return method, jax.jit(lambda p, t: method.fit(p, t, KEY), **QUICK)(params, calibration)


def at(build, severity: float, where: Where | None = None, **settings) -> Edit:
    shape, params, _, _ = toy()
    method, state = fitted(build, **settings)
    return method.apply(params, state, jnp.float32(severity), where or Where.everywhere(shape), KEY)


def removed(m_L) -> set[int]:
    return set(np.flatnonzero(np.asarray(m_L) == 0).tolist())


@pytest.mark.parametrize(
    ("part", "norm", "name"),
    [
        ("attention", True, "sim_attn_prenorm"),
        ("attention", False, "sim_attn_postnorm"),
        ("mlp", True, "sim_mlp_prenorm"),
        ("mlp", False, "sim_mlp_postnorm"),
        ("block", True, "sim_block"),
    ],
)
def test_similarities_are_the_recorded_ones(part, norm, name):
    np.testing.assert_allclose(measured(part, norm), DEPTH[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("part", "severity", "ids", "name"),
    [
        ("joint", "0.375", "drop3_all", "logits_drop3_all"),
        ("attention", "0.5", "drop2_attn", "logits_drop2_attn"),
        ("mlp", "0.5", "drop2_mlp", "logits_drop2_mlp"),
        ("block", "0.5", "drop2_block_discrete", "logits_drop2_block"),
    ],
)
def test_what_is_dropped_and_what_is_left_are_the_recorded_ones(part, severity, ids, name):
    shape, params, _, evaluation = toy()
    edit = at(drop_layers_by_similarity, float(severity), part=part)
    _, ranks = fitted(drop_layers_by_similarity, part=part)
    np.testing.assert_array_equal(np.argsort(ranks)[: len(DEPTH[ids])], DEPTH[ids])
    np.testing.assert_allclose(logits(params, evaluation, shape, edit), DEPTH[name], atol=1e-4)


def test_block_influence_is_the_recorded_one_and_gives_the_order_of_the_cosine():
    shape, params, calibration, _ = toy()
    influence = jax.jit(block_influences, static_argnums=2, **QUICK)(params, calibration, shape)
    np.testing.assert_allclose(influence * 96, DEPTH["bi_sum"], rtol=1e-5)
    h = DEPTH["hidden_calib"].reshape(5, -1, 32)
    np.testing.assert_allclose(
        block_influence(h[0], h[1]), DEPTH["bi_per_token_layer0"], rtol=1e-4, atol=1e-6
    )
    both = [fitted(drop_layers_by_similarity, criterion=c)[1] for c in ("cosine", "block_influence")]
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(np.argsort(both[1]), np.argsort(DEPTH["bi_sum"]))


def test_zero_states_have_the_similarity_of_the_references():
    """torch's cosine of a zero vector is 0; block influence of one is a half."""
    x, zero = jnp.ones(4), jnp.zeros(4)
    assert (cosine(x, zero), block_influence(x, zero), block_influence(zero, zero)) == (0, 0.5, 0.5)


def test_equal_vectors_have_no_angle_and_opposite_ones_half_a_turn():
    """Rounding puts the cosine of a quarter of these with themselves above 1."""
    x = jax.random.normal(KEY, (1000, 32))
    assert (cosine(x, x) > 1).any()
    np.testing.assert_allclose(angular_distance(x, x), 0, atol=2e-4)
    np.testing.assert_allclose(angular_distance(x, -x), 1, atol=2e-4)


@functools.cache
def table(distance: str) -> np.ndarray:
    shape, params, calibration, _ = toy()
    return np.asarray(
        jax.jit(lambda p, t: distance_table(p, t, shape, distance), **QUICK)(params, calibration)
    )


@pytest.mark.parametrize("n", [2, 3])
def test_angular_distances_are_the_recorded_ones(n):
    per_start = np.array([table("angular")[i, i + n] for i in range(5 - n)])
    np.testing.assert_allclose(6 * per_start, DEPTH[f"angular_sum_n{n}"], rtol=1e-5)
    np.testing.assert_allclose(per_start[1:], DEPTH[f"pruneme_dist_n{n}"], rtol=1e-5)
    edit = at(drop_consecutive_layers, n / 4)
    assert removed(edit.attn_L) == removed(edit.mlp_L) == set(DEPTH[f"angular_remove_n{n}"].tolist())


def test_consecutive_similarities_are_the_recorded_ones():
    theirs = DEPTH["sim_block_consecutive"]
    for i in range(4):
        for gap in range(1, 5 - i):
            np.testing.assert_allclose(1 - table("cosine")[i, i + gap], theirs[i, gap - 1], rtol=1e-5)
    edit = at(drop_consecutive_layers, 0.5, distance="cosine", starts="gap_plus_one")
    assert removed(edit.attn_L) == set(DEPTH["drop2_block_consecutive"].tolist())


@pytest.mark.parametrize("starts", ["all", "after_first", "gap_plus_one"])
@pytest.mark.parametrize("scope", [None, (1, 6), (2, 4)])
def test_the_start_is_the_argmin_over_the_starts_of_its_convention(starts, scope):
    """Against a loop, on random tables of 7 blocks."""
    first, end = scope or (0, 7)
    find = jax.jit(start_of_run, static_argnums=(2, 3, 4))
    for seed in range(5):
        distance_PP = np.random.default_rng(seed).random((8, 8)).astype(np.float32)
        for n in range(1, end - first + 1):
            gap = n + (starts == "gap_plus_one")
            possible = [i for i in range(first, end - gap + 1) if i or starts != "after_first"]
            best = min(possible, key=lambda i: distance_PP[i, i + gap], default=first)
            assert find(distance_PP, jnp.int32(n), first, end, starts) == best


def test_consecutive_removal_counts_exactly_and_keeps_to_scope_and_selection():
    shape = toy()[0]
    for severity, n in ((0.0, 0), (0.24, 0), (0.25, 1), (0.99, 3), (1.0, 4)):
        assert len(removed(at(drop_consecutive_layers, severity).attn_L)) == n
    inside = at(drop_consecutive_layers, 1.0, scope=Scope(layers=(1, 3)))
    assert removed(inside.mlp_L) == {1, 2}
    assert removed(at(drop_consecutive_layers, 1.0, Where.only(shape, 2)).mlp_L) == {2}


def slow_losses(shape, params, tokens_NT, gone: list[tuple[str, int]]) -> np.ndarray:
    """Per-token loss without some sublayers, block by block, in f64 behind the model."""
    x_BSD = model.embed(params, tokens_NT[:, :-1], shape)
    for l in range(shape.n_layers):
        gates = {f"{name}_L": jnp.float32((name, l) not in gone) for name in ("attn", "mlp")}
        params_l = jax.tree.map(lambda a, l=l: a[l], params["blocks"])
        x_BSD = model.block(params_l, x_BSD, shape, Edit(**gates))[0]
    z = np.float64(model.unembed(params, x_BSD, shape))
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(z, np.asarray(tokens_NT)[:, 1:, None], -1)[..., 0], np.float64(x_BSD)


SUBLAYERS = {
    "block": [[("attn", l), ("mlp", l)] for l in range(3)],
    "joint": [[("attn", l)] for l in range(3)] + [[("mlp", l)] for l in range(3)],
}


@pytest.mark.parametrize(("part", "greedy"), [("block", False), ("joint", False), ("joint", True)])
def test_ablation_removes_what_a_loop_of_losses_removes(part, greedy):
    shape = SHAPES["mha-swiglu"]
    params, tokens_NT = trained(shape), tokens(shape)
    method = drop_layers_by_ablation(shape, part=part, greedy=greedy)
    order = np.argsort(jax.jit(lambda p, t: method.fit(p, t, KEY), **QUICK)(params, tokens_NT))

    def loss(gone):
        return slow_losses(shape, params, tokens_NT, gone)[0].mean()

    units, gone, expected = SUBLAYERS[part], [], []
    while len(expected) < len(units):
        left = [u for u in range(len(units)) if u not in expected]
        expected.append(min(left, key=lambda u: loss(units[u] + (gone if greedy else []))))
        gone = gone + units[expected[-1]]
    np.testing.assert_array_equal(order, expected)


def test_final_state_ranks_by_the_turn_of_the_last_residual_stream():
    shape = SHAPES["mha-swiglu"]
    params, tokens_NT = trained(shape), tokens(shape)
    method = drop_layers_by_ablation(shape, criterion="final_state")
    order = np.argsort(jax.jit(lambda p, t: method.fit(p, t, KEY), **QUICK)(params, tokens_NT))
    full, *without = [slow_losses(shape, params, tokens_NT, g)[1] for g in ([], *SUBLAYERS["block"])]
    turn = [
        1 - ((x * full).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(full, axis=-1)).mean()
        for x in without
    ]
    np.testing.assert_array_equal(order, np.argsort(turn))


def test_iterative_similarity_is_measured_on_what_is_left():
    """Each time the most similar of the blocks left, in the model without those removed; another order here."""
    shape, params, calibration, _ = toy()
    _, ranks = fitted(drop_layers_by_similarity, iterative=True)
    measure = jax.jit(lambda edit: similarities(params, calibration, shape, "block", edit=edit), **QUICK)
    gates, expected = np.ones(4, np.float32), []
    for _ in range(4):
        m_L = jnp.asarray(gates)
        similarity = np.where(gates > 0, measure(Edit(attn_L=m_L, mlp_L=m_L)), -np.inf)
        expected.append(int(similarity.argmax()))
        gates[expected[-1]] = 0
    np.testing.assert_array_equal(np.argsort(ranks), expected)
    assert expected != np.argsort(fitted(drop_layers_by_similarity)[1]).tolist()


def test_sublayers_out_of_scope_or_unselected_stay():
    shape = toy()[0]
    joint = {"part": "joint", "scope": Scope(layers=(1, 3))}
    assert removed(at(drop_layers_by_similarity, 1.0, **joint).attn_L) == {1, 2}
    assert len(removed(at(drop_layers_by_similarity, 0.25, **joint).mlp_L)) == 1  # of four sublayers
    edit = at(drop_layers_by_similarity, 1.0, Where.only(shape, 2), **joint)
    assert removed(edit.attn_L) == removed(edit.mlp_L) == {2}


def order_of(n_layers: int, scope: Scope = EVERYTHING, **settings) -> list[int]:
    shape = Shape(d_model=4, n_layers=n_layers, n_heads=1, head_dim=4, d_ff=4, vocab=4, context=4)
    return np.argsort(
        remove_layers(shape, scope, **settings).fit({}, jnp.zeros((1, 5), jnp.int32), KEY)
    ).tolist()


def test_spread_removal_is_even_and_every_kth_goes_first():
    assert order_of(7, order="spread")[:3] == [3, 1, 5]
    assert order_of(9, order="spread")[0] == 4
    assert order_of(9, Scope(layers=(2, 9)), order="spread")[:3] == [5, 3, 7]
    assert order_of(8, order="spread", every=2)[:4] == [1, 3, 5, 7]
    assert order_of(9, order="spread", every=3)[:3] == [2, 5, 8]
    for n in (1, 2, 5, 12):
        assert sorted(order_of(n, order="spread")) == list(range(n))


def test_joint_removal_by_place_follows_the_forward_pass():
    """Units of 2 layers: attention 0, attention 1, MLP 0, MLP 1."""
    assert order_of(2, order="first", part="joint") == [0, 2, 1, 3]
    assert order_of(2, order="last", part="joint") == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (remove_layers, {"every": 2}, "remove_layers.every = 2"),
        (remove_layers, {"every": 5, "order": "spread"}, "from 2 to 4"),
        (drop_layers_by_similarity, {"criterion": "block_influence", "part": "mlp"}, "criterion"),
        (drop_layers_by_similarity, {"layer_drop_norm": False}, "layer_drop_norm = False"),
        (drop_consecutive_layers, {"scope": Scope(head=1)}, "scope.head = 1"),
        (drop_layers_by_ablation, {"scope": Scope(matrices=("q",))}, "scope.matrices"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        build(toy()[0], **settings)
    assert "\n" not in str(error.value)
