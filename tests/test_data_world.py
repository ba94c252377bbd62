"""What a config says of the world: the entropy of L1, the exceptions of T1, and what tasks make of it."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from wane.launch.studies import load_study
from wane.train.data import TASKS, Data, key, open_data
from wane.train.data.graded_language import successors
from wane.train.data.graded_truth import categorised
from wane.train.data.task import World

SHARP, FLAT = (0.9, 0.06, 0.04, 0.0), (0.25, 0.25, 0.25, 0.25)


def task_of(name, **fields):
    stream = open_data(Data(context=64, facts=64, task_shares={name: 1.0}, **fields), steps=1, batch_size=1)
    return stream.evaluation(4, 0).tasks[0]


@pytest.mark.parametrize("p", [SHARP, FLAT])
@pytest.mark.parametrize(("name", "order"), [("L1", 1), ("L1o2", 2)])
def test_successors_come_as_often_as_the_config_says(name, order, p):
    world = World(seed=3, facts=1, successors=p)
    tokens, level, _ = TASKS[name].generate(key.generator("world", 11), 400, 200, world, "train")
    x = tokens[:, 1:] - 64
    context = x[:, order - 1 : -1] + 64 * x[:, :-order] * (order - 1)
    rank = (successors(3, order)[context] == x[:, order:, None]).argmax(axis=-1)
    count = np.bincount(rank.ravel(), minlength=4)
    np.testing.assert_allclose(count / count.sum(), p, atol=0.006)
    task = task_of(name, successors=p)
    assert task.ceiling == pytest.approx(count.max() / count.sum(), abs=0.006)
    surprise = -np.log(np.array(p)[rank])  # of who knows the table
    told = task.entropy(level[level >= 0])
    assert told.shape == rank.ravel().shape
    np.testing.assert_allclose(told, surprise.mean(), atol=0.02)
    assert task.chance == 1 / 64


def test_a_chain_of_another_entropy_moves_no_other_task():
    """The filler of R1 is the same chain, and must not say what L1 was."""
    for name in set(TASKS) - {"L1", "L1o2"}:
        here, there = (
            TASKS[name].generate(key.generator("world", 5), 3, 65, World(seed=0, facts=64, **other), "train")
            for other in ({}, {"successors": SHARP})
        )
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_share_of_the_entities_are_exceptions():
    for task in ("T1", "T13"):
        for facts, rate in ((16384, 0.2), (1000, 0.5), (1000, 0.03), (77, 0.0), (16384, 0.9)):
            _, values, defaults = categorised(World(seed=1, facts=facts, exceptions=rate), task)
            exception = (values != defaults).any(axis=1)
            assert (exception == (values != defaults).all(axis=1)).all()
            assert exception.sum() == math.floor(facts * rate + 1e-6)
            runs = np.flatnonzero(np.diff(np.cumsum(exception), prepend=0))
            assert len(runs) < 2 or np.ptp(np.diff(runs)) <= 1  # spread evenly
    usual, told = (categorised(World(seed=1, facts=16384, **o), "T1") for o in ({}, {"exceptions": 0.2}))
    assert all((a == b).all() for a, b in zip(usual, told, strict=True))
    fifth = np.flatnonzero((usual[1] != usual[2])[:, 0])
    np.testing.assert_array_equal(fifth, np.arange(4, 16384, 5))


def test_exceptions_are_asked_as_often_as_there_are():
    data = open_data(
        Data(context=128, facts=500, exceptions=0.6, task_shares={"T1": 1.0}), steps=1, batch_size=1
    ).evaluation(300, 2)
    assert Counter(data.level_NS[data.scored_NS])[1] / data.scored_NS.sum() == pytest.approx(0.6, abs=0.02)


def test_the_usual_world_is_that_of_the_config():
    world = open_data(Data(context=64), steps=1, batch_size=1).sources[0].world
    assert world == World(seed=0, facts=256)
    for name in ("L1", "L1o2"):
        told, written = task_of(name), TASKS[name]
        assert (told.ceiling, told.knobs) == (written.ceiling, written.knobs)
        assert told.entropy(np.zeros(1)) == written.entropy(np.zeros(1))
        assert f"{written.entropy(np.zeros(1))[0]:.3f} nats" in written.knobs


def test_a_study_takes_the_knobs_from_the_command_line():
    study = load_study(
        "quickstart", ["data.successors=[1,0,0,0]", "data.exceptions=0.4", 'data.task_shares={"L1":1}']
    )
    assert study.data.successors == (1.0, 0.0, 0.0, 0.0)
    assert study.data.exceptions == 0.4
    assert json.loads(json.dumps(study.data.successors)) == [1, 0, 0, 0]
    task = open_data(study.data, steps=1, batch_size=1).evaluation(1, 0).tasks[0]
    assert (task.ceiling, task.entropy(np.zeros(1))[0]) == (1, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"successors": (0.5, 0.5)},
            r"data.successors = \(0.5, 0.5\): must be 4 numbers from 0 up that sum to 1",
        ),
        ({"successors": (0.25, 0.5, 0.15, 0.1)}, "none above the one before it"),
        ({"successors": (0.5, 0.25, 0.15, 0.2)}, "data.successors = .*sum to 1"),
        ({"successors": (1.1, 0, 0, -0.1)}, "data.successors = .*from 0 up"),
        ({"successors": (float("nan"), 0.2, 0.2, 0.2)}, "data.successors"),
        ({"successors": "much"}, "data.successors = 'much': must be numbers"),
        ({"successors": 1.2}, "data.successors = 1.2: must be numbers"),
        ({"exceptions": -0.1}, "data.exceptions = -0.1: must be at least 0, below 0.9375"),
        ({"exceptions": 0.94}, "data.exceptions = 0.94"),
        ({"exceptions": float("nan")}, "data.exceptions = nan"),
    ],
)
def test_knobs_that_no_world_has_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        Data(**fields)
    assert "\n" not in str(error.value)
