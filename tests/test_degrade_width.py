"""Importance of neurons and heads, against recorded vectors and slow numpy."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.glu_importance import batch_norms, glu_importance, static
from wane.scaling.degrade.random_heads import random_heads
from wane.scaling.degrade.scored_heads import focus, output_norms, row_norms, scored_heads, taylor
from wane.scaling.edit import Edit
from wane.scaling.shape import Parametrization, Shape

GLU = np.load(Path(__file__).parent / "golden" / "glu_importance.npz")
KEY = jax.random.key(0)
GQA = SHAPES["gqa-gelu"]
PARAMS, TOKENS = trained(GQA), tokens(GQA)


@functools.cache
def glu_model():
    """(shape, params, tokens): one block whose attention writes nothing, without norms, and one token of the
    vocabulary for each recorded input of its MLP."""
    x_BSD, gate, up, down = (jnp.asarray(GLU[name]) for name in ("x", "gate", "up", "down"))
    B, S, D = x_BSD.shape
    shape = Shape(
        d_model=D, n_layers=1, n_heads=1, head_dim=8, d_ff=len(gate), vocab=B * S, context=S, norm="none",
        parametrization=Parametrization(name="standard"),
    )  # fmt: skip
    blocks = {name: jnp.zeros(shape.full(name)) for name in "qkvo"}
    blocks |= {"gate": gate.T[None], "up": up.T[None], "down": down.T[None]}
    params = {"embed": x_BSD.reshape(-1, D), "blocks": blocks, "unembed": jnp.zeros((D, B * S))}
    return shape, params, jnp.pad(jnp.arange(B * S).reshape(B, S), ((0, 0), (0, 1)))


@functools.cache
def importance(score: str):
    """(method, rank [F]) of the recorded MLP."""
    shape, params, tokens_NT = glu_model()
    method = glu_importance(shape, score=score)
    return method, jax.jit(lambda p, t: method.fit(p, t, KEY), **QUICK)(params, tokens_NT)


@pytest.mark.parametrize("score", ["ppm", "vow", "pon", "l2"])
def test_static_importance_is_the_recorded_one(score):
    writers = [jnp.asarray(GLU[name].T) for name in ("gate", "up")]
    np.testing.assert_allclose(static(score, writers), GLU[score], rtol=1e-5)


def test_maw_is_the_largest_absolute_weight():
    """Not peak to peak, which is what the reference computes under this name."""
    writers = [jnp.asarray(GLU[name].T) for name in ("gate", "up")]
    expected = [max(map(abs, g)) + max(map(abs, u)) for g, u in zip(GLU["gate"], GLU["up"], strict=True)]
    np.testing.assert_allclose(static("maw", writers), expected, rtol=1e-6)
    assert np.abs(static("maw", writers) - GLU["maw"]).min() > 0.1


def scores_seen(score: str) -> np.ndarray:
    """The score that a method ranks, read from the order that it gives."""
    return np.argsort(importance(score)[1]["rank_LU"][0])


@pytest.mark.parametrize(
    ("score", "recorded"), [("hybrid", "ppm_hybrid"), ("partition", "neuron_partition_score")]
)
def test_calibrated_importance_ranks_as_recorded(score, recorded):
    np.testing.assert_array_equal(scores_seen(score), np.argsort(GLU[recorded], kind="stable"))


def test_norms_of_batches_are_the_recorded_ones_and_depend_on_batches():
    shape, params, tokens_NT = glu_model()
    norms = jax.jit(batch_norms, static_argnums=(2, 3), **QUICK)
    np.testing.assert_allclose(norms(params, tokens_NT, shape, 1)[0], GLU["X_d_norm"], rtol=1e-4)
    square_BF = np.square(np.float64(GLU["down_in"])).sum(1)
    ragged = np.sqrt(square_BF[:3].sum(0)) + np.sqrt(square_BF[3])
    np.testing.assert_allclose(norms(params, tokens_NT, shape, 3)[0], ragged, rtol=1e-4)
    one = np.sqrt(square_BF.sum(0))  # a batch larger than the calibration set
    np.testing.assert_allclose(norms(params, tokens_NT, shape, 9)[0], one, rtol=1e-4)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("activation", np.abs(GLU["down_in"]).mean((0, 1))),
        ("wanda", np.abs(GLU["down"]).sum(0) * np.sqrt(np.square(GLU["down_in"]).sum((0, 1)))),
    ],
)
def test_activation_scores_rank_as_numpy_does(score, expected):
    np.testing.assert_array_equal(scores_seen(score), np.argsort(expected))


@pytest.mark.parametrize(("score", "name"), [("ppm", "maw"), ("hybrid", "hybrid")])
@pytest.mark.parametrize("percent", ["20", "37.5", "50"])
def test_what_is_kept_and_what_the_mlp_then_gives_are_the_recorded_ones(score, name, percent):
    shape, params, _ = glu_model()
    method, fitted = importance(score)
    edit = method.apply(params, fitted, jnp.float32(float(percent) / 100), Where.everywhere(shape), KEY)
    kept = np.flatnonzero(edit.neuron_LF[0])
    np.testing.assert_array_equal(kept, GLU[f"keep_{name}_{percent}"])
    if name == "maw":
        x_BSD = jnp.asarray(GLU["x"])
        params_l, edit_l = jax.tree.map(lambda a: a[0], (params["blocks"], edit))
        y_BSD = model.block(params_l, x_BSD, shape, edit_l)[0] - x_BSD
        np.testing.assert_allclose(y_BSD, GLU[f"out_maw_{percent}"], rtol=1e-3, atol=2e-4)


@functools.cache
def inner(name: str) -> dict:
    shape = SHAPES[name]
    return jax.jit(lambda p, t: model.apply(p, t[:, :-1], shape).inner, **QUICK)(
        trained(shape), tokens(shape)
    )


def test_gelu_models_are_scored_by_up_alone():
    up_LDF = np.asarray(PARAMS["blocks"]["up"])
    fitted = glu_importance(GQA, score="l2").fit(PARAMS, TOKENS, KEY)
    np.testing.assert_array_equal(np.argsort(fitted["rank_LU"]), np.argsort(np.linalg.norm(up_LDF, axis=1)))


def test_experts_rank_all_neurons_of_a_layer_together():
    """A neuron of an expert that serves no token has no activation and goes first."""
    shape = Shape(
        d_model=8, n_layers=2, n_heads=2, head_dim=4, d_ff=6, vocab=16, context=8, n_experts=3, top_k=1
    )
    params = trained(shape)
    router = params["blocks"]["router"].at[:, :, 1].set(0)  # zero logits, between those of the other two
    push = jnp.abs(router).at[:, :, 0].set(-10 * jnp.abs(router[:, :, 2]))
    params = {**params, "blocks": {**params["blocks"], "router": push}}
    tokens_NT = jax.random.randint(KEY, (4, 9), 0, 16)
    route = jax.jit(lambda p: model.apply(p, tokens_NT[:, :-1], shape).inner["route"], **QUICK)(params)
    used_LE = np.asarray((route > 0).any((1, 2)))
    method = glu_importance(shape, score="activation")
    rank = jax.jit(lambda p: method.fit(p, tokens_NT, KEY), **QUICK)(params)["rank_LU"].reshape(2, 3, 6)
    for l in range(2):
        idle = 6 * int((~used_LE[l]).sum())
        assert {int(r) for e in range(3) if not used_LE[l, e] for r in rank[l, e]} == set(range(idle))
    assert 0 < used_LE.sum() < used_LE.size


def head_scores(score: str, unit: str, normalise: bool = False) -> np.ndarray:
    """[L, U] by loops over heads; taylor by a difference quotient of the loss of each sequence."""
    shape, params = GQA, PARAMS
    L, H, K = shape.n_layers, shape.n_heads, shape.head_dim
    groups = [[h] for h in range(H)] if unit == "head" else [[0, 1], [2, 3]]

    @functools.partial(jax.jit, **QUICK)
    def losses_N(m_LH):
        x = model.apply(params, TOKENS[:, :-1], shape, Edit(head_LH=m_LH)).x_BSD
        return model.nll(params, x, TOKENS, shape).mean(1)

    def one(l, heads):
        rows = [i for h in heads for i in range(h * K, h * K + K)]
        if score == "magnitude":
            return np.linalg.norm(params["blocks"]["o"][l][np.array(rows)])
        if score == "activation":
            return np.sqrt(np.square(np.float64(inner("gqa-gelu")["o_in"])[l][..., rows]).sum(-1).mean())
        if score == "entropy":
            p = np.maximum(np.float64(inner("gqa-gelu")["attn_map"])[l][:, heads], 1e-300)
            return (p * np.log(p)).sum(-1).mean()
        ones, h = jnp.ones((L, H)), jnp.array(heads)
        f = {step: np.float64(losses_N(ones.at[l, h].add(step / 16))) for step in (-2, -1, 1, 2)}
        return np.abs(8 * (f[1] - f[-1]) - (f[2] - f[-2])).mean() / 12 * 16  # five-point formula

    s_LU = np.array([[one(l, heads) for heads in groups] for l in range(L)])
    return s_LU / np.linalg.norm(s_LU, axis=1, keepdims=True) if normalise else s_LU


MEASURES = {"magnitude": row_norms, "activation": output_norms, "taylor": taylor, "entropy": focus}


@pytest.mark.parametrize("unit", ["head", "kv_group"])
@pytest.mark.parametrize("score", MEASURES)
def test_scores_of_heads_are_those_of_loops(score, unit):
    measure = jax.jit(MEASURES[score], static_argnums=(2, 3), **QUICK)
    s_LU = measure(PARAMS, TOKENS, GQA, GQA.n_heads if unit == "head" else GQA.kv_heads)
    np.testing.assert_allclose(s_LU, head_scores(score, unit), rtol=1e-3, atol=3e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_heads_of_lowest_score_go_first(normalise):
    method = scored_heads(GQA, score="magnitude", normalise=normalise)
    rank_LU = method.fit(PARAMS, TOKENS, KEY)["rank_LU"]
    expected = head_scores("magnitude", "head", normalise).ravel()
    np.testing.assert_array_equal(np.argsort(rank_LU.ravel()), np.argsort(expected))


def test_a_key_value_group_goes_with_all_its_heads():
    """4 query heads on 2 key-value heads; a selected or scoped head alone stays alone."""
    method = random_heads(GQA, unit="kv_group", replace="rescale")
    assert sorted(method.fit(PARAMS, None, KEY)["rank_LU"].ravel()) == [0, 1, 2, 3]

    def at(method, severity, where):
        return np.asarray(method.apply(PARAMS, fitted, jnp.float32(severity), where, KEY).head_LH)

    everywhere = Where.everywhere(GQA)
    fitted = {"rank_LU": jnp.array([[0, 3], [2, 1]])}  # each layer loses one of its groups
    half = at(method, 0.5, everywhere).reshape(2, 2, 2)
    assert (half[:, :, 0] == half[:, :, 1]).all()
    assert (half == 0).sum() == 4
    np.testing.assert_allclose(half.mean(), 1)  # rescaled by groups left
    assert (at(method, 0.24, everywhere) == 1).all()
    np.testing.assert_array_equal(at(method, 1.0, Where.only(GQA, 1, 2)), [[1, 1, 1, 1], [1, 1, 0, 1]])
    scoped = random_heads(GQA, Scope(head=3), unit="kv_group")
    fitted = scoped.fit(PARAMS, None, KEY)
    np.testing.assert_array_equal(at(scoped, 1.0, everywhere), [[1, 1, 1, 0]] * 2)


def test_a_batch_of_no_sequence_is_refused():
    with pytest.raises(ValueError, match="glu_importance.batch = 0: must be 1 or more"):
        glu_importance(GQA, score="hybrid", batch=0)
