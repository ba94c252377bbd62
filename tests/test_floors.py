"""Chance and floors: what a model that has learnt nothing, or of which nothing is left, scores on every task."""

import dataclasses

import jax
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of, value

from wane.eval.study import Degrade, Evaluation
from wane.scaling.model import init_params
from wane.train.data import TASKS, Data, open_data
from wane.train.data.options import values_of

SEEDS, SEQUENCES = 12, 24
# A constant answer to these scores how frequent it is, not one over their number.
SKEWED = ("L0", "G")


@pytest.fixture(scope="module")
def of_random_members():
    """(metric, task) -> its value of every member with random weights."""
    shape = dataclasses.replace(SHAPE, context=64)
    data = Data(sources="graded", context=64, facts=256, task_shares=dict.fromkeys(TASKS, 1.0))
    splits = splits_of(open_data(data, steps=4, batch_size=4), SEQUENCES)
    settings = Evaluation(
        metrics=("loss", "accuracy", "accuracy_of_values", "accuracy_of_options", "forced_choice"),
        sequences=SEQUENCES, batch=48,
    )  # fmt: skip
    found = {}
    for seed in range(SEEDS):
        subject = subject_of(splits, shape=shape)
        subject.params = init_params(jax.random.key(100 + seed), shape)
        subject.settings = settings
        for row in rows_of(subject, Degrade(method="rtn", severities=(16.0,)))[0]:
            found.setdefault((row["metric"], row["task"]), []).append(row["value"])
    return found


def within(values, chance):
    """Whether chance is inside 5 standard errors of the mean over members."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return abs(np.mean(values) - chance) < 5 * max(error, 0.1 * chance / np.sqrt(len(values)))


@pytest.mark.parametrize("task", TASKS)
def test_a_random_member_scores_chance(of_random_members, task):
    count = values_of(TASKS[task])[1]
    if task not in SKEWED:
        assert within(of_random_members["accuracy_of_values", task], 1 / count)
        assert within(of_random_members["accuracy_of_options", task], 1 / min(4, count))
    if ("forced_choice", task) in of_random_members:
        assert within(of_random_members["forced_choice", task], 0.5)
    assert np.mean(of_random_members["accuracy", task]) <= max(TASKS[task].chance, 0.25)


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
