"""Chance and floors: what a model that has learnt nothing, or of which nothing is left, scores on every task."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of, value

from wane.eval.study import Degrade, Evaluation
from wane.scaling.model import init_params
from wane.train.data import TASKS, Data, open_data
from wane.train.data.options import values_of

SEEDS, SEQUENCES = 12, 24


@functools.cache
def random_splits():
    data = Data(sources="graded", context=64, facts=256, task_shares=dict.fromkeys(TASKS, 1.0))
    return splits_of(open_data(data, steps=4, batch_size=4), SEQUENCES)


@pytest.fixture(scope="module")
def of_random_members():
    """(metric, task) -> its value of every member with random weights; what rows tell of it."""
    shape, splits = dataclasses.replace(SHAPE, context=64), random_splits()
    settings = Evaluation(
        metrics=("loss", "accuracy", "accuracy_of_values", "accuracy_of_options", "forced_choice"),
        sequences=SEQUENCES, batch=48,
    )  # fmt: skip
    found, told = {}, {}
    for seed in range(SEEDS):
        subject = subject_of(splits, shape=shape)
        subject.params = init_params(jax.random.key(100 + seed), shape)
        subject.settings = settings
        rows = rows_of(subject, Degrade(method="rtn", severities=(16.0,)))[0]
        for row in rows:
            found.setdefault((row["metric"], row["task"]), []).append(row["value"])
            if row["metric"] != "loss":
                told[row["metric"], row["task"]] = row["uniform"]
    return found, told, rows


@pytest.fixture(scope="module")
def answers():
    """Task -> scored answers of the evaluation set of `of_random_members`."""
    evaluation = random_splits().evaluation
    scored = [evaluation.scored_NS & (evaluation.task_N == i)[:, None] for i in range(len(evaluation.tasks))]
    told = [evaluation.tokens_NT[:, 1:][mine] for mine in scored]
    return {task.name: answer for task, answer in zip(evaluation.tasks, told, strict=True)}


READOUTS = ("accuracy", "accuracy_of_values", "accuracy_of_options", "forced_choice")


@pytest.mark.parametrize("task", TASKS)
def test_a_random_member_scores_what_rows_say_that_it_would(of_random_members, answers, task):
    """One in as many answers as it chooses from, since rows of the unembedding are alike.  Members differ most if
    they always say one token, which scores its frequency f: by the root of sum f^2 / n."""
    found, told, _ = of_random_members
    count = values_of(TASKS[task])[1]
    choices = dict(zip(READOUTS, (SHAPE.vocab, count, min(4, count), 2), strict=True))
    shares = np.bincount(answers[task]) / len(answers[task])
    for metric in READOUTS:
        if (metric, task) not in found:
            assert metric == "forced_choice"
            continue
        n = choices[metric]
        assert told[metric, task] == pytest.approx(1 / n)
        error = np.sqrt(np.sum(shares**2) / n / SEEDS) + np.std(found[metric, task], ddof=1) / np.sqrt(SEEDS)
        assert abs(np.mean(found[metric, task]) - 1 / n) < 4 * error


def test_floors_are_those_of_who_knows_frequencies_alone(of_random_members, answers):
    """By hand: the most frequent answer; the mean of -ln f(token) over the tokens of a task."""
    _, _, rows = of_random_members
    evaluation = random_splits().evaluation
    told = {(row["metric"], row["task"]): row["floor"] for row in rows}
    expected = {"accuracy": [], "loss": []}
    for i, task in enumerate(evaluation.tasks):
        tokens = evaluation.tokens_NT[evaluation.task_N == i, 1:].ravel().tolist()
        expected["loss"].append(-np.mean([np.log(tokens.count(token) / len(tokens)) for token in tokens]))
        expected["accuracy"].append(max(np.bincount(answers[task.name])) / len(answers[task.name]))
        for metric in expected:
            assert told[metric, task.name] == pytest.approx(expected[metric][-1])
        assert told["accuracy_of_values", task.name] == told["accuracy", task.name]
    for metric, values in expected.items():
        assert told[metric, "all"] == pytest.approx(np.mean(values))
    assert told["accuracy_of_options", "K"] is None


def test_over_all_tasks_a_random_member_is_right_once_in_as_many_tokens_as_there_are(of_random_members):
    found, _, _ = of_random_members
    by_member = np.mean([found["accuracy", task] for task in TASKS], axis=0)
    error = by_member.std(ddof=1) / np.sqrt(SEEDS)
    assert abs(by_member.mean() - 1 / SHAPE.vocab) < 4 * error < 2 / SHAPE.vocab


@pytest.fixture(scope="module")
def usual():
    """A member with random weights, evaluated on the usual mixture."""
    splits = splits_of(open_data(Data(sources="graded", context=64, facts=16), steps=4, batch_size=4), 3)
    subject = subject_of(splits, seed=17, shape=dataclasses.replace(SHAPE, context=64))
    metrics = ("loss", "accuracy", "accuracy_of_values", "accuracy_of_options", "forced_choice")
    subject.settings = Evaluation(metrics=metrics, sequences=3, batch=4, calibration_sequences=4)
    return subject


def floor_of(subject):
    """(metric, task) -> what is left where every block is gone, in float64: each token's embedding under the final
    norm, read by the unembedding."""
    params, evaluation = jax.device_get(subject.params), subject.splits.evaluation
    shape, tokens_NT = subject.member.shape, evaluation.tokens_NT
    x_NSD = np.float64(params["embed"])[tokens_NT[:, :-1]]
    x_NSD /= np.sqrt(np.mean(x_NSD**2, axis=-1, keepdims=True) + shape.norm_eps)
    z_NSV = (x_NSD * params["final_norm"]["scale"]) @ np.float64(params["unembed"]) * shape.logit_scale
    target_NS, scored_NS = tokens_NT[:, 1:], evaluation.scored_NS

    def logit(token_NS):
        return np.take_along_axis(z_NSV, np.maximum(token_NS, 0)[..., None], axis=-1)[..., 0]

    nll_NS = np.log(np.exp(z_NSV).sum(-1)) - logit(target_NS)
    right_NS = z_NSV.argmax(-1) == target_NS
    odds_NS = logit(target_NS) - logit(evaluation.foil_NS)
    options_NSO = evaluation.options_NSO
    each_NSO = np.take_along_axis(z_NSV, np.maximum(options_NSO, 0), axis=-1)
    each_NSO = np.where(options_NSO < 0, -np.inf, each_NSO)
    told = {}
    for i, task in enumerate(evaluation.tasks):
        mine_NS = scored_NS & (evaluation.task_N == i)[:, None]
        first, count = values_of(task)
        among = z_NSV[mine_NS][:, first : first + count].argmax(-1) + first
        told["loss", task.name] = nll_NS[evaluation.task_N == i].mean()
        told["accuracy", task.name] = right_NS[mine_NS].mean()
        told["accuracy_of_values", task.name] = (among == target_NS[mine_NS]).mean()
        told["accuracy_of_options", task.name] = np.mean(
            each_NSO[mine_NS].max(-1) == logit(target_NS)[mine_NS]
        )
        asked_NS = mine_NS & (evaluation.foil_NS >= 0)
        if asked_NS.any():
            told["forced_choice", task.name] = (odds_NS[asked_NS] > 0).mean()
    return told


@pytest.mark.parametrize("method", ["random_weights", "magnitude_weights", "remove_layers", "wanda"])
def test_what_takes_everything_leaves_the_floor_that_the_embedding_alone_has(usual, method):
    """On every task of the usual mixture, by every readout."""
    rows, _, _ = rows_of(usual, Degrade(method=method, severities=(1.0,)))
    found = {(r["metric"], r["task"]): r["value"] for r in rows if r["severity"] == 1 and r["task"] != "all"}
    expected = floor_of(usual)
    assert {task for _, task in expected} == {name for name, task in TASKS.items() if task.mixed}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_what_takes_everything_leaves_the_same_model():
    """Severity 1 of any weight method and of all layers: the embedding read by the unembedding, a floor that is
    measured with every curve."""
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3))
    floors = {}
    for name in ("random_weights", "magnitude_weights", "remove_layers", "wanda"):
        rows, _, _ = rows_of(subject, Degrade(method=name, severities=(1.0,)))
        floors[name] = [
            value(rows, metric, severity=1.0) for metric in ("loss", "kl", "accuracy", "top1_agreement")
        ]
        assert value(rows, "loss", severity=0.0) != floors[name][0]
    assert len({tuple(values) for values in floors.values()}) == 1
