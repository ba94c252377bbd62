"""Gradient scores of weights and exact zero-sensitivity, against difference quotients and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import AS_USUAL, QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.ablation import ablation_effects
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.fisher_weights import fisher_weights
from wane.scaling.degrade.gradients import loss, mean_gradient, mean_over_sequences
from wane.scaling.degrade.stream import batched, over_batches
from wane.scaling.degrade.taylor_weights import taylor_weights
from wane.scaling.degrade.units import heads, neurons
from wane.scaling.degrade.zero_sensitivity import row_effects, unit_effects, zero_sensitivity
from wane.scaling.edit import Edit

SHAPE = SHAPES["gqa-gelu"]
KEY = jax.random.key(0)
PARAMS, TOKENS = trained(SHAPE), tokens(SHAPE)
NAMES = ("k", "down")


@functools.cache
def losses_N():
    """Program: block matrices -> mean loss of each sequence."""

    def of_blocks(blocks):
        params = {**PARAMS, "blocks": {**PARAMS["blocks"], **blocks}}
        x_BSD = model.apply(params, TOKENS[:, :-1], SHAPE).x_BSD
        return model.nll(params, x_BSD, TOKENS, SHAPE).mean(1)

    return jax.jit(of_blocks, **QUICK)


@functools.cache
def sequence_gradients() -> dict[str, np.ndarray]:
    """matrix -> [N, L, I, O]: forward mode would be a column each; this is reverse mode of each sequence's loss."""
    weights = {name: PARAMS["blocks"][name] for name in NAMES}
    return jax.tree.map(np.float64, jax.jit(jax.jacrev(losses_N().__wrapped__), **QUICK)(weights))


def test_gradients_are_difference_quotients():
    """The reference of the other tests, at a few weights."""
    for name in NAMES:
        w = PARAMS["blocks"][name]
        for where in ((0, 3, 5), (1, 7, 2)):
            h = 0.02
            up, down = (np.float64(losses_N()({name: w.at[where].add(s)})) for s in (h, -h))
            got = sequence_gradients()[name][(slice(None), *where)]
            np.testing.assert_allclose((up - down) / (2 * h), got, atol=5e-5)
            assert np.abs(got).max() > 5e-4


def test_streamed_gradients_are_those_of_all_sequences_at_once():
    params, tokens_NT = PARAMS, TOKENS
    mean = jax.jit(lambda p: mean_gradient(p, tokens_NT, SHAPE, NAMES), **QUICK)(params)
    square = jax.jit(lambda p: mean_over_sequences(jnp.square, p, tokens_NT, SHAPE, NAMES), **QUICK)(params)
    for name, g in sequence_gradients().items():
        np.testing.assert_allclose(mean[name], g.mean(0), rtol=1e-3, atol=1e-8)
        np.testing.assert_allclose(square[name], np.square(g).mean(0), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "settings", "score"),
    [
        (taylor_weights, {}, lambda w, g: np.abs(w * g.mean(0))),
        (taylor_weights, {"average": "sequence"}, lambda w, g: np.abs(w * g).mean(0)),
        (fisher_weights, {}, lambda w, g: np.square(w * g).mean(0) / 2),
    ],
)
def test_weights_of_lowest_score_go_first(build, settings, score):
    """Over both matrices together; neighbours in rank may change places by rounding."""
    method = build(SHAPE, Scope(matrices=NAMES), **settings)
    rank = jax.jit(lambda p: method.fit(p, TOKENS, KEY), **QUICK)(PARAMS)["rank"]
    order = np.argsort(np.concatenate([rank[name].ravel() for name in NAMES]))
    blocks = PARAMS["blocks"]
    scores = [score(np.float64(blocks[name]), sequence_gradients()[name]).ravel() for name in NAMES]
    ascending = np.concatenate(scores)[order]
    assert (np.diff(ascending) >= -1e-4 * ascending[1:]).all()
    assert ascending[0] < 0.01 * ascending[-1]


@functools.partial(jax.jit, **QUICK)
def logits(edit):
    x_BSD = model.apply(PARAMS, TOKENS[:, :-1], SHAPE, edit).x_BSD
    return model.unembed(PARAMS, x_BSD, SHAPE)


def slow_effect(edit: Edit) -> float:
    """Rise of the mean loss under an edit, softmax in f64."""

    def nll(edit):
        z = np.float64(logits(edit))
        log_sum = np.log(np.exp(z).sum(-1))
        return (log_sum - np.take_along_axis(z, np.asarray(TOKENS)[:, 1:, None], -1)[..., 0]).mean()

    return nll(edit) - nll(Edit())


@functools.cache
def measured(field: str):
    """Program: parameters -> effects of all units."""
    kind = {"neuron_LF": neurons, "head_LH": heads}[field](SHAPE, Scope())
    return jax.jit(lambda p: unit_effects(p, TOKENS, SHAPE, kind), **QUICK)


@functools.partial(jax.jit, **QUICK)
def measured_rows(params):
    return row_effects(params, TOKENS, SHAPE, "k", np.ones((2, 8), bool))


@pytest.mark.parametrize("units", [neurons, heads])
def test_effects_of_units_are_those_of_single_removals(units):
    kind = units(SHAPE, Scope())
    effects = measured(kind.field)(PARAMS)
    for u in (0, effects.shape[1] - 1):
        one = jnp.ones(kind.size).at[1, u].set(0)
        np.testing.assert_allclose(
            effects[1, u], slow_effect(Edit(**{kind.field: one})), rtol=0.02, atol=1e-7
        )
    assert np.abs(effects[1]).min() > 0


def test_effects_of_rows_are_those_of_single_removals():
    w = PARAMS["blocks"]["k"]
    effects = measured_rows(PARAMS)
    for l, o in ((0, 0), (1, 5)):
        edit = Edit(params={"blocks": {"k": w.at[l, :, o].set(0)}})
        np.testing.assert_allclose(effects[l, o], slow_effect(edit), rtol=0.02, atol=1e-7)


def test_an_effect_below_the_rounding_of_the_loss_is_measured():
    """A change of 1e-7 of one unit: the loss is 3.5 and a step of f32 there is 2.4e-7."""
    step = 2.0**-12

    def edit_of(u):
        return Edit(neuron_LF=jnp.ones((2, 32)).at[0, u].add(step))

    units = jnp.arange(4)
    measure = jax.jit(lambda p: ablation_effects(p, TOKENS, SHAPE, edit_of, units, "loss"), **AS_USUAL)

    def mean_loss(m_LF):
        return loss(PARAMS, TOKENS, SHAPE, Edit(neuron_LF=m_LF))

    slope = jax.jit(jax.grad(mean_loss), **AS_USUAL)(jnp.ones((2, 32)))[0, :4]
    np.testing.assert_allclose(measure(PARAMS), slope * step, atol=6e-8)


def test_units_out_of_scope_are_not_measured():
    kind = heads(SHAPE, Scope(layers=(1, 2), head=2))
    effects = jax.jit(lambda p: unit_effects(p, TOKENS, SHAPE, kind), **QUICK)(PARAMS)
    np.testing.assert_array_equal(effects != 0, [[0, 0, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("unit", ["neuron", "head", "row"])
def test_units_of_lowest_effect_go_first(unit):
    scope = Scope(matrices=("k",)) if unit == "row" else Scope()
    method = zero_sensitivity(SHAPE, scope, unit=unit, group="global")
    fitted = jax.jit(lambda p: method.fit(p, TOKENS, KEY), **QUICK)(PARAMS)
    edit = method.apply(PARAMS, fitted, jnp.float32(0.25), Where.everywhere(SHAPE), KEY)
    if unit == "row":
        effects = measured_rows(PARAMS)
        gone = (edit.params["blocks"]["k"] == 0).all(1)
        assert gone.sum() == 4
    else:
        kind = {"neuron": neurons, "head": heads}[unit](SHAPE, scope)
        effects = measured(kind.field)(PARAMS)
        gone = getattr(edit, kind.field) == 0
        assert gone.sum() == kind.in_scope_LU.size // 4
    assert np.asarray(effects)[np.asarray(gone)].max() <= np.asarray(effects)[~np.asarray(gone)].min()


@pytest.mark.parametrize(
    ("n", "batch", "sizes"), [(6, 8, (3, 2)), (16, 8, (2, 8)), (5, 8, (5, 1)), (6, 1, (6, 1))]
)
def test_batches_cover_all_sequences_once(n, batch, sizes):
    tokens_NT = jnp.arange(n * 3).reshape(n, 3)
    assert batched(tokens_NT, batch).shape == (*sizes, 3)
    assert over_batches(lambda b: b.sum(), tokens_NT, batch) == tokens_NT.sum()
