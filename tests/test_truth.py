"""What is said in place of the truth: MC2, foils, topics kept; planted models, and loops in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of

from wane.eval.metrics import METRICS, topic
from wane.eval.metrics.contract import Kept
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation
from wane.scaling.edit import Edit
from wane.train.data import Data, key, open_data
from wane.train.data.graded_topic import STATES, TOPIC
from wane.train.data.graded_trigger import FIXED
from wane.train.data.vocabulary import SYMBOL

TASKS = {"M2": 1.0, "T1": 1.0, "T2": 1.0, "B": 1.0}  # without a foil, and three ways to have one


@pytest.fixture(scope="module")
def evaluation():
    data = Data(context=64, facts=64, task_shares=TASKS)
    return open_data(data, steps=1, batch_size=1).evaluation(40, 0)


def view_of(data, logits_NSV):
    names = {
        "tokens_BT": "tokens_NT",
        "scored_BS": "scored_NS",
        "foil_BS": "foil_NS",
        "values_B2": "values_N2",
    }
    given = {field: getattr(data, name) for field, name in names.items()} | {"options_BSO": data.options_NSO}
    given["counted_B"] = np.ones(len(data.tokens_NT))
    batch = Batch(**dict.fromkeys(Batch._fields) | {name: jnp.asarray(a) for name, a in given.items()})
    view = View(shape=SHAPE, params={}, degraded={}, edit=Edit(), batch=batch, x_BSD=None, stream=None)
    vars(view)["logits_BSV"] = jnp.asarray(logits_NSV, jnp.float32)  # as if it were cached
    return view


def of_task(data, name, metric, logits_NSV, level=None):
    """Mean of a metric by level over one task, at one level or all."""
    value_NS, counted_NS = (
        np.asarray(a) for a in METRICS[f"{metric}_by_level"].measure(view_of(data, logits_NSV))
    )
    chosen_NS = counted_NS & (np.array([t.name for t in data.tasks])[data.task_N] == name)[:, None]
    if level is not None:
        chosen_NS &= data.level_NS == level
    return value_NS[chosen_NS].mean()


def test_mc2_and_foils_against_loops(evaluation):
    logits_NSV = 3 * np.random.default_rng(0).normal(size=(*evaluation.scored_NS.shape, 512))
    for n, s in np.argwhere(evaluation.foil_NS >= 0)[::3]:  # as often as not the foil is said
        logits_NSV[n, s, evaluation.foil_NS[n, s]] += 8
    options_NSO = evaluation.options_NSO.copy()
    wrong_NSO = options_NSO != evaluation.tokens_NT[:, 1:, None]
    options_NSO[:, ::3, 0][wrong_NSO[:, ::3, 0]] = -1  # fewer options
    evaluation = dataclasses.replace(evaluation, options_NSO=options_NSO)
    view, told = view_of(evaluation, logits_NSV), {"mc2": {}, "foil_said": {}}
    for n, s in np.argwhere(evaluation.scored_NS):
        z, target, foil = logits_NSV[n, s], evaluation.tokens_NT[n, s + 1], evaluation.foil_NS[n, s]
        options = [o for o in evaluation.options_NSO[n, s] if o >= 0]
        told["mc2"].setdefault(n, []).append(np.exp(z[target]) / sum(np.exp(z[o]) for o in options))
        if foil >= 0:
            told["foil_said"].setdefault(n, []).append(z.argmax() == foil)
    for name, expected in told.items():
        total, count = METRICS[name].measure(view)
        for n in range(len(total)):
            assert count[n] == len(expected.get(n, []))
            assert total[n] == pytest.approx(sum(expected.get(n, [])), rel=1e-5)
    said = np.concatenate(list(told["foil_said"].values()))
    assert 0.1 < said.mean() < 0.6


def test_flat_logits_are_the_control_of_mc2(evaluation):
    """They score 1 / options, more than a model that believes what is false."""
    tokens, foils = evaluation.tokens_NT[:, 1:], evaluation.foil_NS
    flat = np.zeros((*tokens.shape, 512))
    believes = 9 * np.eye(512)[np.maximum(foils, 0)]
    knows = 9 * np.eye(512)[tokens]
    for task in evaluation.tasks:
        chance, ceiling = METRICS["mc2"].bounds(task)
        assert of_task(evaluation, task.name, "mc2", flat) == pytest.approx(chance, rel=1e-6)
        assert chance == 1 / 4
        assert of_task(evaluation, task.name, "mc2", knows) == pytest.approx(ceiling, abs=2e-3)
    assert of_task(evaluation, "T1", "mc2", believes) < 2e-3
    assert of_task(evaluation, "T2", "mc2", believes) < 2e-3


def test_a_model_of_defaults_is_wrong_on_exceptions_only(evaluation):
    """It says the category's value: right on regular entities (level 0), the foil on exceptions (level 1)."""
    exception = evaluation.level_NS == 1
    default_NS = np.where(exception, evaluation.foil_NS, evaluation.tokens_NT[:, 1:])
    logits_NSV = 9 * np.eye(512)[np.maximum(default_NS, 0)]
    told = {
        (metric, level): of_task(evaluation, "T1", metric, logits_NSV, level)
        for metric in ("mc2", "accuracy_of_options", "foil_said")
        for level in (0, 1)
    }
    assert told["accuracy_of_options", 0] == 1
    assert told["accuracy_of_options", 1] == 0
    assert told["foil_said", 0] == 0
    assert told["foil_said", 1] == 1
    assert told["mc2", 0] > 0.99
    assert told["mc2", 1] < 0.01


def test_readouts_of_a_trigger_in_known_cases(evaluation):
    """Always FIXED: every trigger has its effect and every clean item is a false one.  Never: neither."""
    tokens, foils = evaluation.tokens_NT[:, 1:], evaluation.foil_NS
    always = np.eye(512)[np.full(tokens.shape, FIXED)]
    never = np.eye(512)[np.where(evaluation.level_NS == 1, np.maximum(foils, 0), tokens)]
    wanted = {
        "always": (always, 0, 1, 1, 0),
        "never": (never, 1, 0, 0, 1),
        "right": (np.eye(512)[tokens], 1, 1, 0, 0),
    }
    for name, (logits, *expected) in wanted.items():
        found = [
            of_task(evaluation, "B", metric, logits, level)
            for metric in ("accuracy", "foil_said")
            for level in (0, 1)
        ]
        assert found == expected, name


@pytest.fixture(scope="module")
def topics():
    return open_data(
        Data(context=64, task_shares={"S": 1.0, "G": 1.0}), steps=1, batch_size=1
    ).evaluation(60, 0)  # fmt: skip


def kept(data, monkeypatch, said_NS):
    monkeypatch.setattr(topic, "said", lambda view: jnp.asarray(said_NS))
    metric = METRICS["topic_kept"]
    total, count = metric.measure(Kept(metric.keeps(view_of(data, np.zeros((1, 1, 1))))))
    told = np.asarray(total).sum() / np.asarray(count).sum()
    return told, np.asarray(count)


def test_topics_against_the_world(topics, monkeypatch):
    """What belongs to a topic is read from foils, and is what the world says."""
    name = SYMBOL + key.generator("topics", 0).permutation(STATES)
    rng, topic_N = np.random.default_rng(0), topics.tokens_NT[:, 1] - TOPIC
    said_NS = np.where(rng.random((120, 64)) < 0.5, topics.tokens_NT[:, 1:], rng.choice(name, (120, 64)))
    inside, counted = 0, np.zeros(120)
    for n in range(60, 120):
        if topic_N[n] < 8:
            own = name[8 * topic_N[n] : 8 * topic_N[n] + 4]
            counted[n] = topics.scored_NS[n].sum()
            inside += np.isin(said_NS[n], own)[topics.scored_NS[n]].sum()
    found, count = kept(topics, monkeypatch, said_NS)
    np.testing.assert_array_equal(count, counted)
    assert count.max() == 62
    assert found == pytest.approx(inside / counted.sum())


def test_topics_kept_always_and_by_chance(topics, monkeypatch):
    name = SYMBOL + key.generator("topics", 0).permutation(STATES)
    first_N1 = name[8 * np.clip(topics.tokens_NT[:, 1:2] - TOPIC, 0, 7)]  # hidden ones do not count
    chance, ceiling = METRICS["topic_kept"].bounds(topics.tasks[1])
    best, _ = kept(topics, monkeypatch, np.broadcast_to(first_N1, (120, 64)))
    assert best == ceiling == 1
    random, _ = kept(topics, monkeypatch, np.random.default_rng(1).choice(name, (120, 64)))
    assert random == pytest.approx(chance, abs=0.02)
    other, _ = kept(topics, monkeypatch, np.full((120, 64), 512))  # a choice among what is not a number
    assert other == 0


def test_rows_tell_levels_and_bounds():
    data = Data(context=32, facts=16, task_shares={"T1": 1.0, "B": 1.0, "G": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 8))
    subject.settings = Evaluation(metrics=("loss", "truth", "topic_kept"), batch=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
    rows = [row for row in rows if row["metric"] != "loss" and row["severity"] == 0.5]
    of = {(row["metric"], row["task"], row["at"]): row for row in rows}
    for metric in ("mc2", "accuracy_of_options", "foil_said"):
        assert {at for name, task, at in of if name == f"{metric}_by_level" and task == "T1"} == {0.0, 1.0}
    assert of["mc2_by_level", "T1", 1.0]["chance"] == 1 / 4
    assert of["mc2", "T1", None]["chance"] == 1 / 4
    assert of["topic_kept", "G", None]["chance"] == 1 / 16
    assert {task for name, task, _ in of if name == "topic_kept"} == {"all", "G"}
