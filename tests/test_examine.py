"""Examinations of units: planted copies and identities, a slow float64 model, one executable for all."""

import dataclasses
import itertools
import math
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model

from wane.eval.examine import EXAMINATIONS, ablation, settings_of, synergy
from wane.eval.examine.contract import Examined
from wane.eval.examine.losses import Losses, token_losses
from wane.eval.examine.tasks import concentration, overlaps
from wane.eval.examine.units import count, taken_out, units_of, without
from wane.eval.measure import Batches
from wane.eval.metrics.concentration import effective_number, gini
from wane.eval.redundancy import overlap_of_least_sensitive
from wane.eval.sweep import streams
from wane.scaling.model import init_params
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

SHAPE = Shape(d_model=16, n_layers=3, n_heads=2, head_dim=8, d_ff=24, vocab=512, context=32)
EXPERTS = dataclasses.replace(SHAPE, n_layers=2, n_experts=3, top_k=2, d_ff=8)


def evaluation_of(sequences=2, scored=None, tasks=("L1", "S", "L3")):
    data = Data(sources="graded", context=32, facts=16, task_shares=dict.fromkeys(tasks, 1.0))
    stream = open_data(data, steps=4, batch_size=4)
    return stream.evaluation(sequences, 0, scored), np.asarray(stream.calibration(8, 0))


def params_of(shape, seed=0):
    return jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(seed), shape))


def examined_of(shape=SHAPE, params=None, seed=0, sequences=2, scored=None):
    params = params_of(shape, seed) if params is None else params
    evaluation, calibration_NT = evaluation_of(sequences, scored)
    batches = Batches.of(evaluation, 4)
    return Examined(
        shape=shape, params=params, batches=batches, stream=streams(shape, "highest")(params, batches),
        evaluation=evaluation, calibration_NT=calibration_NT, precision="highest", seed=(0, seed),
    )  # fmt: skip


def findings(name, examined, **settings):
    """All findings, and how many forward passes were reported."""
    ticks = []
    found = list(EXAMINATIONS[name].run(examined, settings_of(name, settings), ticks.append))
    return found, sum(ticks)


def values(found, metric, task="all"):
    """place -> value."""
    chosen = [f for f in found if f.metric == metric and f.task == task]
    assert len({f.place for f in chosen}) == len(chosen)
    return {f.place: f.value for f in chosen}


def with_weights(params, **changes):
    return params | {"blocks": params["blocks"] | {n: jnp.asarray(w) for n, w in changes.items()}}


def slow_rise(examined, edited_params):
    """Rise of the mean loss per task of other parameters, token by token in float64."""
    evaluation = examined.evaluation
    change_NS = slow_losses(examined, edited_params) - slow_losses(examined, examined.params)
    rise = {"all": change_NS.mean()}
    return rise | {t.name: change_NS[evaluation.task_N == i].mean() for i, t in enumerate(evaluation.tasks)}


def slow_losses(examined, params):
    tokens_NT = examined.evaluation.tokens_NT
    logits = reference_model.forward(jax.device_get(params), tokens_NT[:, :-1], examined.shape)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens_NT[:, 1:, None], axis=-1)[..., 0]
    return np.log(np.exp(logits).sum(axis=-1)) - chosen


def folded(params, shape, unit):
    """Parameters of a plain model without a unit: what it writes is zero."""
    o, down = (np.array(params["blocks"][n]) for n in ("o", "down"))
    if unit.part in ("layer", "attention"):
        o[unit.layer] = 0
    if unit.part in ("layer", "mlp"):
        down[unit.layer] = 0
    if unit.part == "head":
        first = unit.index * shape.head_dim
        o[unit.layer, first : first + shape.head_dim] = 0
    if unit.part == "neurons":
        down[unit.layer].reshape(-1, shape.d_model)[list(unit.neurons)] = 0
    return with_weights(params, o=o, down=down)


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_every_unit_removed_alone_is_the_model_without_its_weights(shape):
    examined = examined_of(shape)
    found, _ = findings("ablation", examined, groups=2, share=0.25)
    told = defaultdict(dict)
    for f in found:
        if f.metric == "ablation_effect":
            told[f.place][f.task] = f.value
    rng, expected = np.random.default_rng(examined.seed), {}
    for kind in ablation.Settings().units:
        for unit in units_of(kind, shape, 2, 0.25, rng):
            expected[unit.place] = slow_rise(examined, folded(examined.params, shape, unit))
    assert told.keys() == expected.keys()
    for place, rise in expected.items():
        assert told[place] == pytest.approx(rise, abs=2e-4), place
    assert max(abs(v) for rise in expected.values() for v in rise.values()) > 0.05


def test_concentration_and_overlap_are_those_of_the_effects():
    examined = examined_of()
    found, _ = findings("ablation", examined, units=("head",))
    tasks = [task.name for task in examined.evaluation.tasks]
    effects = {task: list(values(found, "ablation_effect", task).values()) for task in ("all", *tasks)}
    for task, effect in effects.items():
        assert list(values(found, "ablation_gini", task).values()) == [gini(effect)]
        assert list(values(found, "effective_units", task).values()) == [effective_number(effect)]
    overlaps = [f for f in found if f.metric == "least_sensitive_overlap"]
    assert [f.task for f in overlaps] == [f"{a} and {b}" for a, b in itertools.combinations(tasks, 2)]
    for f, (a, b) in zip(overlaps, itertools.combinations(tasks, 2), strict=True):
        assert (f.value, f.chance) == overlap_of_least_sensitive(*np.abs([effects[a], effects[b]]))
    assert {f.place.part for f in overlaps} == {"head"}


def test_a_unit_whose_removal_helps_a_task_much_is_not_one_it_is_insensitive_to():
    """Task A depends least on units 1 and 2, task B on 0 and 1."""
    rise_UJ = np.array([[0, -9, 0.1], [0, 0.1, 0.2], [0, 0.2, 7], [0, 5, 9]])
    (found,) = overlaps(rise_UJ, ("all", "A", "B"), "head")
    assert (found.value, found.task) == (1 / 3, "A and B")


def test_one_unit_has_an_effective_number_and_no_gini_coefficient():
    found = list(concentration(np.array([[0.5]]), ("all",), "layer"))
    assert [(f.metric, f.value) for f in found] == [("effective_units", 1)]
    lost = list(concentration(np.array([[0.5], [np.nan]]), ("all",), "layer"))
    assert [(f.metric, f.value) for f in lost] == [("ablation_gini", np.inf), ("effective_units", np.inf)]


def test_what_does_nothing_costs_exactly_nothing():
    """A layer that writes nothing, and one head of another."""
    params = params_of(SHAPE)
    o, down = (np.array(params["blocks"][n]) for n in ("o", "down"))
    o[1], down[1], o[2, :8] = 0, 0, 0
    found, _ = findings("ablation", examined_of(params=with_weights(params, o=o, down=down)), groups=2)
    effect = {(p.at, p.part, p.at_2): v for p, v in values(found, "ablation_effect").items()}
    assert {v for (layer, *_), v in effect.items() if layer == 1} == {0.0}
    assert effect[2, "head", 0] == 0
    assert abs(effect[2, "head", 1]) > 1e-4


def test_effects_of_a_model_without_effect_have_no_concentration():
    params = params_of(SHAPE)
    dead = with_weights(params, **{n: 0 * params["blocks"][n] for n in ("o", "down")})
    found, _ = findings("ablation", examined_of(params=dead), units=("layer",))
    assert {f.metric for f in found} == {"ablation_effect", "least_sensitive_overlap"}


def test_groups_of_neurons_are_disjoint_and_of_the_asked_share():
    units = units_of("neurons", SHAPE, 3, 0.25, np.random.default_rng(0))
    assert [(u.layer, u.index) for u in units] == list(itertools.product(range(3), range(3)))
    for layer in range(3):
        taken = [n for u in units if u.layer == layer for n in u.neurons]
        assert len(taken) == len(set(taken)) == 3 * 6
    assert units[0].neurons != units[3].neurons
    assert count("neurons", SHAPE, 8, 0.25) == 3 * 4  # no more than there are
    assert count("neurons", SHAPE, 8, 1e-9) == 3 * 8  # of at least one neuron each


def test_synergy_is_the_difference_of_three_models():
    examined = examined_of()
    found, _ = findings("synergy", examined, unit="sublayer")
    units = units_of("sublayer", SHAPE, 1, 1.0, np.random.default_rng(0))
    alone = {u: slow_rise(examined, folded(examined.params, SHAPE, u)) for u in units}
    told = {task: values(found, "synergy", task) for task in ("all", "S")}
    assert len(told["all"]) == math.comb(6, 2)
    for a, b in itertools.combinations(units, 2):
        both = slow_rise(examined, folded(folded(examined.params, SHAPE, a), SHAPE, b))
        part = a.part if a.layer != b.layer and a.part == b.part else f"{a.part} + {b.part}"
        for task, of_task in told.items():
            (value,) = [v for p, v in of_task.items() if (p.at, p.at_2, p.part) == (a.layer, b.layer, part)]
            assert value == pytest.approx(both[task] - alone[a][task] - alone[b][task], abs=1e-4)


def test_units_that_stand_in_for_each_other_have_synergy_and_independent_ones_have_none():
    """Two neurons write a logit so large that one of them is enough: without both the model knows next to nothing.
    Two others raise one rare token each: what they are worth adds up."""
    shape = dataclasses.replace(SHAPE, n_layers=1, d_ff=4, activation="gelu", norm="none")
    evaluation, _ = evaluation_of(2)
    *rare, common = np.argsort(np.bincount(evaluation.tokens_NT[:, 1:].ravel(), minlength=512))[-3:]
    params = jax.tree.map(lambda w: np.zeros_like(w), params_of(shape))
    params["embed"][:, 0] = 1  # every token says the same
    params["blocks"]["up"][0, 0] = 1  # gelu(1) = .84
    for dimension, token in ((1, common), (2, rare[0]), (3, rare[1])):
        params["unembed"][dimension, token] = 1 / shape.residual_scale / shape.logit_scale
    params["blocks"]["down"][0, [0, 1, 2, 3], [1, 1, 2, 3]] = 40, 40, 1, 1
    examined = examined_of(shape, jax.tree.map(jnp.asarray, params))
    found, _ = findings("synergy", examined, unit="neurons", groups=4, share=0.25)
    units = units_of("neurons", shape, 4, 0.25, np.random.default_rng(examined.seed))
    neuron = {unit.label: unit.neurons[0] for unit in units}

    def told(metric):
        pairs = values(found, metric).items()
        return {frozenset(neuron[name] for name in place.part.split(" + ")): v for place, v in pairs}

    synergy_of, effect_of = told("synergy"), told("pair_ablation_effect")
    nothing_left = np.log(510 + 2 * np.exp(float(jax.nn.gelu(1.0))))
    assert synergy_of.pop(frozenset({0, 1})) == pytest.approx(nothing_left, rel=1e-4)
    assert effect_of[frozenset({2, 3})] > 0.01
    assert list(synergy_of.values()) == pytest.approx([0] * 5, abs=1e-5)


def test_pairs_are_drawn_when_there_are_more_and_forwards_says_how_many_passes():
    for name, settings in (
        ("ablation", {"groups": 2}),
        ("synergy", {"unit": "head", "pairs": 4}),
        ("synergy", {"unit": "layer"}),
    ):
        examination, resolved = EXAMINATIONS[name], settings_of(name, settings)
        found, ticks = findings(name, examined_of(), **settings)
        promised = examination.forwards(SHAPE, resolved)
        assert ticks == promised if name == "ablation" or settings["unit"] == "layer" else ticks <= promised
        if "pairs" in settings:
            assert len(values(found, "synergy")) == 4
    one_layer = dataclasses.replace(SHAPE, n_layers=1)
    assert synergy.forwards(one_layer, synergy.Settings()) == 0


def test_all_units_pairs_and_members_share_one_executable():
    shape = dataclasses.replace(SHAPE, d_ff=23)  # not used elsewhere
    for seed in (0, 1):
        examined = examined_of(shape, seed=seed)
        findings("ablation", examined, groups=1)
        findings("synergy", examined, unit="head", pairs=2)
        findings("synergy", examined, unit="sublayer", pairs=2)
    assert token_losses(shape, taken_out, "highest").executables() == 1


def test_a_pass_may_begin_at_the_first_layer_that_changes():
    examined = examined_of()
    losses = Losses(examined, taken_out, without((), SHAPE), lambda n: None)
    kept = without(units_of("layer", SHAPE, 1, 1.0, np.random.default_rng(0))[2:], SHAPE)
    late, early = losses.rise(kept, 2), losses.rise(kept, 0)
    np.testing.assert_array_equal(late, early)
    assert abs(late).max() > 1e-3
    np.testing.assert_array_equal(losses.rise(kept, 3), 0 * late)  # after the last layer nothing is removed
    assert losses.tokens == (6 * 32, 2 * 32, 2 * 32, 2 * 32)


def test_all_is_the_mean_over_tasks_however_many_sequences_each_has():
    examined = examined_of(scored=40)
    losses = Losses(examined, taken_out, without((), SHAPE), lambda n: None)
    assert len(set(losses.tokens[1:])) > 1
    assert losses.tokens[0] == sum(losses.tokens[1:])
    rise_J = losses.rise(without(units_of("layer", SHAPE, 1, 1.0, np.random.default_rng(0))[:1], SHAPE), 0)
    assert rise_J[0] == pytest.approx(rise_J[1:].mean())
    weights = EXAMINATIONS["zero_sensitivity"]
    found = list(weights.run(examined, settings_of("zero_sensitivity", {"weights": 2}), lambda n: None))
    for metric in ("zero_sensitivity", "zero_sensitivity_first_order"):
        means = [
            next(v for p, v in values(found, metric, task).items() if p.part == "weight" and p.axis is None)
            for task in losses.tasks
        ]
        assert means[0] == pytest.approx(np.mean(means[1:]), rel=1e-5)


def test_a_rise_far_below_the_rounding_of_the_loss_is_resolved():
    params = params_of(SHAPE)
    o = np.array(params["blocks"]["o"])
    o[2, :8] *= 1e-5
    examined = examined_of(params=with_weights(params, o=o))
    found, _ = findings("ablation", examined, units=("head",))
    small = next(v for p, v in values(found, "ablation_effect").items() if (p.at, p.at_2) == (2, 0))
    assert 0 < abs(small) < 1e-5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ablations", {}, "did you mean ablation"),
        ("ablation", {"unit": "head"}, "did you mean units"),
        ("ablation", {"units": ("heads",)}, "must be 'layer' or 'sublayer' or 'head' or 'neurons'"),
        ("ablation", {"units": ()}, "must be different ones of layer, sublayer"),
        ("ablation", {"groups": 0}, "needs at least 1"),
        ("synergy", {"share": 1.5}, "above 0 and at most 1"),
        ("synergy", {"pairs": 0}, "pairs = 0: must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of(name, settings)
