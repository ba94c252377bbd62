"""Mixed precision: effective rank, the budget, and who gets the bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.bit_budget import Budget, evenly
from wane.scaling.degrade.contract import EVERYTHING, Scope, Where, severity_of
from wane.scaling.degrade.effective_rank import effective_rank, relative_effective_rank
from wane.scaling.degrade.mixed_precision import mixed_precision, ratio_of
from wane.scaling.degrade.rtn import rtn
from wane.scaling.edit import merge
from wane.scaling.shape import Shape

SHAPE = SHAPES["mha-swiglu"]
WIDE = Shape(d_model=64, n_layers=3, n_heads=4, head_dim=16, d_ff=96, vocab=32, context=8)
EXPERTS = Shape(
    d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=8, vocab=32, context=8, n_experts=3, top_k=2
)


@jax.jit
def rank_of(w_IO):
    return effective_rank(w_IO)


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    w_IO = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    p = np.linalg.svd(np.float64(w_IO), compute_uv=False)
    p /= p.sum()
    np.testing.assert_allclose(rank_of(w_IO), np.exp(-(p * np.log(p)).sum()), rtol=1e-5)
    np.testing.assert_allclose(rank_of(np.eye(24, 16, dtype=np.float32)), 16, rtol=1e-5)
    np.testing.assert_allclose(rank_of(np.outer(w_IO[:, 0], w_IO[0])), 1, rtol=1e-3)
    assert rank_of(np.zeros((24, 16), np.float32)) == 0


def test_a_random_matrix_has_relative_rank_1_whatever_its_size():
    ranks = jax.jit(lambda p: relative_effective_rank(p, ("q", "down"), WIDE))(trained(WIDE))
    for name in ("q", "down"):
        np.testing.assert_allclose(ranks[name], np.ones(3), atol=0.03)


def reference_allocation(costs, priority, ratio):
    """Greedy, in integers."""
    budget = sum(c[16] for c in costs) / ratio
    fitting = [w for w in (1, 2, 4, 8, 16) if sum(c[w] for c in costs) <= budget]
    low = fitting[-1] if fitting else 1
    high = {1: 2, 2: 4, 4: 8, 8: 16, 16: 16}[low]
    bits, used = [low] * len(costs), sum(c[low] for c in costs)
    for m in sorted(range(len(costs)), key=lambda m: -priority[m]):
        if used + costs[m][high] - costs[m][low] <= budget:
            used, bits[m] = used + costs[m][high] - costs[m][low], high
    return bits


@pytest.mark.parametrize("scope", [EVERYTHING, Scope(layers=(1, 3), matrices=("k", "down"))], ids=str)
@pytest.mark.parametrize("group_size", [0, 16])
def test_the_budget_is_shared_out_by_priority(scope, group_size):
    budget = Budget(shape=WIDE, scope=scope, group_size=group_size, scale_bits=16, zero_point=True)
    costs = []
    for name in budget.names:
        I, O = WIDE.matrices[name]
        scales = I // (group_size or I) * O
        for inside in scope.layer_L(WIDE):
            costs.append({w: inside * (I * O * w + (w < 16) * scales * (16 + w)) for w in (1, 2, 4, 8, 16)})
    priority = np.random.default_rng(3).normal(size=len(costs)).astype(np.float32)
    allocate = jax.jit(budget.allocate)
    for ratio in (1, 1.5, 2, 3, 4, 5.3, 6, 8, 10, 40):
        got = np.asarray(allocate(priority, jnp.float32(ratio)))
        inside = np.array([c[16] > 0 for c in costs])
        expected = np.array(reference_allocation(costs, priority, ratio))
        np.testing.assert_array_equal(got[inside], expected[inside], err_msg=f"ratio {ratio}")


def test_storage_of_the_largest_models_fits_int32():
    huge = Shape(
        d_model=8191, n_layers=80, n_heads=64, head_dim=128, d_ff=28673, vocab=32, context=8, n_experts=8
    )
    budget = Budget(shape=huge, scope=EVERYTHING, group_size=0, scale_bits=16, zero_point=False)
    assert 2**28 < budget.storage_WM[-1].astype(np.int64).sum() < 2**31


def test_the_even_priority_is_spread_over_the_line():
    first = np.argsort(-evenly(21), kind="stable")[:7]
    assert np.diff(np.sort(first)).max() <= 5
    assert len(set(evenly(500).tolist())) == 500


@pytest.mark.parametrize("ratio", [1, 2, 4, 6, 8, 10, 3.7])
def test_ratios_survive_the_severity(ratio):
    assert float(jax.jit(ratio_of)(jnp.float32(severity_of(ratio, "ratio")))) == np.float32(ratio)


class Run:
    """A method on a shape, jitted once."""

    def __init__(self, shape, **settings):
        self.shape, self.params = shape, trained(shape)
        self.method = mixed_precision(shape, **settings)
        self.fitted = jax.jit(self.method.fit, **QUICK)(self.params, tokens(shape), jax.random.key(0))
        self.run = jax.jit(self._run, **QUICK)

    def _run(self, severity, where):
        edit = self.method.apply(self.params, self.fitted, severity, where, jax.random.key(0))
        held = self.method.hold(merge(self.params, edit), edit)
        return edit, self.method.cost(self.params, edit, severity), held

    def at(self, ratio, where=None):
        severity = jnp.float32(severity_of(ratio, "ratio"))
        return jax.tree.map(np.asarray, self.run(severity, where or Where.everywhere(self.shape)))


@functools.lru_cache
def run(shape, **settings) -> Run:
    return Run(shape, **settings)


@pytest.mark.parametrize("settings", [{"by": "effective_rank"}, {"by": "uniform", "group_size": 32}], ids=str)
def test_storage_is_at_or_just_under_the_target(settings):
    largest = 96 * 64 * 8 / WIDE.param_counts()["blocks"]  # bits per weight of one matrix's step from 8 to 16
    for ratio in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0):
        cost = run(WIDE, **settings).at(ratio)[1]
        assert cost.compression_ratio >= ratio * (1 - 1e-6)
        lowest = np.mean([1 + 16 / (settings.get("group_size") or 64)])
        assert cost.bits_per_weight > min(16 / ratio, lowest) - largest
    assert run(WIDE, **settings).at(1.0)[1].relative_weight_error == 0


def test_matrices_of_higher_rank_have_4_bits_and_the_others_2():
    r = run(WIDE, by="effective_rank")
    edit = r.at(6.0)[0]
    bits_M = np.concatenate([edit.weight_bits[name].min((-2, -1)) for name in WIDE.matrices])
    assert set(bits_M.tolist()) == {2.0, 4.0}
    ranks = relative_effective_rank(r.params, tuple(WIDE.matrices), WIDE)
    rank_M = np.concatenate([ranks[name] for name in WIDE.matrices])
    costs = []
    for name in WIDE.matrices:
        I, O = WIDE.matrices[name]
        costs += [{w: I * O * w + (w < 16) * O * 16 for w in (1, 2, 4, 8, 16)}] * WIDE.n_layers
    np.testing.assert_array_equal(bits_M, reference_allocation(costs, rank_M, 6))


def test_sensitivity_is_the_loss_that_2_bits_cost_one_matrix_per_weight():
    r = run(EXPERTS, by="sensitivity")
    names = list(EXPERTS.matrices)
    sizes = [int(np.prod(EXPERTS.lead(name))) for name in names]
    assert r.fitted.shape == (sum(sizes),)
    whole = jax.jit(
        lambda p: rtn(EXPERTS).apply(
            p, (), jnp.float32(severity_of(2, "bits")), Where.everywhere(EXPERTS), jax.random.key(0)
        )
    )(r.params).params["blocks"]

    @jax.jit
    def loss(params):
        x_BSD = model.apply(params, tokens(EXPERTS)[:, :-1], EXPERTS).x_BSD
        return model.nll(params, x_BSD, tokens(EXPERTS), EXPERTS).mean()

    base = loss(r.params)
    for name, index in (("v", (1,)), ("down", (0, 2))):
        leaf = r.params["blocks"][name].at[index].set(whole[name][index])
        alone = loss({**r.params, "blocks": {**r.params["blocks"], name: leaf}}) - base
        m = sum(sizes[: names.index(name)]) + np.ravel_multi_index(index, EXPERTS.lead(name))
        size = np.prod(EXPERTS.matrices[name])
        np.testing.assert_allclose(r.fitted[m] * size, alone, atol=3e-6)


@pytest.mark.parametrize("by", ["effective_rank", "sensitivity"])
def test_hold_selection_and_one_executable(by):
    r = run(EXPERTS, by=by)
    edit, _, held = r.at(3.0)
    assert len({float(b) for bits in edit.weight_bits.values() for b in bits.ravel()}) == 2
    some = r.at(3.0, Where.only(EXPERTS, 1))[0]
    for name, w in edit.params["blocks"].items():
        np.testing.assert_array_equal(held["blocks"][name], w)
        np.testing.assert_array_equal(some.params["blocks"][name][1], w[1])
        np.testing.assert_array_equal(some.params["blocks"][name][0], r.params["blocks"][name][0])
    assert r.run._cache_size() == 1


def test_a_head_is_no_matrix():
    with pytest.raises(ValueError, match=r"scope\.head = 1"):
        mixed_precision(SHAPE, Scope(head=1))
