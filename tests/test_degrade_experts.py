"""Routing methods against loops over calibration tokens, and what they do to a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, Case, bench, floor_share, tokens
from reference_model import forward as reference_forward

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.fewer_experts import fewer_experts
from wane.scaling.degrade.remove_experts import remove_experts
from wane.scaling.shape import Shape

MOE = SHAPES["moe"]
RANDOM = Case.on("moe", "remove_experts")
USAGE = Case.on("moe", "remove_experts", order="usage", group="global")
FEWER = Case.on("moe", "fewer_experts")


def calibration_sums(b) -> tuple[np.ndarray, np.ndarray]:
    """[L, E] tokens that each expert serves and its sum of routing weights, token by token."""
    tokens_NT, E = np.asarray(tokens(b.shape)), b.shape.n_experts
    inner = model.apply(b.params, tokens_NT[:, :-1], b.shape).inner
    x = np.asarray(inner["mlp_in"], np.float64)
    router = np.asarray(b.params["blocks"]["router"], np.float64)
    used, weight = np.zeros((2, b.shape.n_layers, E))
    for l, n, s in np.ndindex(x.shape[:3]):
        logits = x[l, n, s] @ router[l]
        best = sorted(range(E), key=lambda e: -logits[e])[: b.shape.top_k]
        total = sum(np.exp(logits[e]) for e in best)
        for e in best:
            used[l, e] += 1
            weight[l, e] += np.exp(logits[e]) / total
    return used, weight


@pytest.mark.parametrize("order", ["usage", "weight"])
@pytest.mark.parametrize("group", ["layer", "global"])
def test_the_least_used_experts_go_first(order, group):
    b = bench(Case.on("moe", "remove_experts", order=order, group=group), "moe")
    score = calibration_sums(b)[order == "weight"]
    for severity in ("0.25", "0.5", "0.75"):
        kept = b.at(float(severity))[0].expert_LE != 0
        for s, k in zip(score, kept, strict=True) if group == "layer" else [(score.ravel(), kept.ravel())]:
            expected = np.ones(s.size, bool)
            expected[np.argsort(s, kind="stable")[: floor_share(s.size, severity)]] = False
            np.testing.assert_array_equal(k, expected)


def test_a_scope_and_a_selector_keep_other_layers():
    method = remove_experts(MOE, Scope(layers=(1, 2)), group="global")
    b = bench(RANDOM, "moe")
    fitted = method.fit(b.params, tokens(MOE), jax.random.key(0))
    edit = method.apply(b.params, fitted, jnp.float32(0.5), Where.everywhere(MOE), jax.random.key(0))
    np.testing.assert_array_equal((edit.expert_LE != 0).sum(1), [4, 2])


def test_removed_experts_are_removed_weights():
    b = bench(RANDOM, "moe")
    edit, folded, cost = b.at(0.5)
    gone = edit.expert_LE == 0
    for name in ("gate", "up", "down"):
        np.testing.assert_array_equal((folded[name] == 0).all((2, 3)), gone)
        assert (folded[name] != 0).any((2, 3)).sum() == gone.size // 2
    mlp = sum(b.params["blocks"][name].size for name in ("gate", "up", "down"))
    share = mlp / 2 / MOE.param_counts()["blocks"]
    assert cost.removed_fraction == pytest.approx(share)
    assert cost.bits_per_weight == pytest.approx(16 * (1 - share))


@pytest.mark.parametrize(
    ("case", "severity", "edit"),
    [
        (USAGE, 0.5, "expert_LE"),
        (USAGE, 1.0, "expert_LE"),
        (FEWER, 0.5, "active_L"),
        (FEWER, 1.0, "active_L"),
    ],
    ids=str,
)
def test_the_degraded_model_is_the_numpy_one(case, severity, edit):
    b = bench(case, "moe")
    made = b.at(severity)[0]
    tokens_BS = np.asarray(tokens(MOE))[:2, :-1]
    expected = reference_forward(b.params, tokens_BS, MOE, edit={edit: getattr(made, edit)})
    x_BSD = model.apply(b.params, tokens_BS, MOE, made).x_BSD
    np.testing.assert_allclose(model.unembed(b.params, x_BSD, MOE), expected, atol=1e-5)


def test_each_token_runs_through_the_experts_that_are_asked_for():
    b = bench(FEWER, "moe")
    for severity, active in ((0.0, 2), (0.49, 2), (0.5, 1), (0.99, 1), (1.0, 0)):
        edit, _, cost = b.at(severity)
        np.testing.assert_array_equal(edit.active_L, active)
        route = model.apply(b.params, tokens(MOE)[:, :-1], MOE, edit).inner["route"]
        np.testing.assert_array_equal((route > 0).sum(-1), active)
        np.testing.assert_allclose(route.sum(-1), min(active, 1), rtol=1e-6)
        assert (cost.removed_fraction, cost.compression_ratio) == (0, 1)
    np.testing.assert_array_equal(b.at(0.5, Where.only(MOE, 1))[0].active_L, [2, 1])


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_default_grid_reaches_every_number_of_experts(k):
    shape = Shape(
        d_model=8, n_layers=1, n_heads=1, head_dim=8, d_ff=8, vocab=8, context=4, n_experts=8, top_k=k
    )  # fmt: skip
    method = fewer_experts(shape)
    run = jax.jit(lambda s: method.apply({}, (), s, Where.everywhere(shape), jax.random.key(0)).active_L[0])
    assert [int(run(jnp.float32(s))) for s in method.severities] == list(range(k, -1, -1))


@pytest.mark.parametrize("builder", [remove_experts, fewer_experts])
def test_what_cannot_be_routed_is_one_line(builder):
    with pytest.raises(ValueError, match=r"d16-L3-f24 has a dense MLP; give the family n_experts"):
        builder(SHAPES["mha-swiglu"])
    with pytest.raises(ValueError, match=r"scope.head = 1: experts belong to no head; leave it out"):
        builder(MOE, Scope(head=1))
    with pytest.raises(ValueError, match=r"scope.matrices = \('up',\): a token runs through all matrices"):
        builder(MOE, Scope(matrices=("up",)))
