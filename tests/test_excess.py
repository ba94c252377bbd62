"""Loss above the entropy and bits of facts, against loops in float64 and models of known knowledge."""

import dataclasses
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of

from wane.eval.metrics import INSTRUMENTS, METRICS
from wane.eval.metrics.excess import recovered
from wane.eval.rows import finished
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.model import apply, unembed
from wane.train.data import TASKS, Data, open_data

P = (0.7, 0.1, 0.1, 0.1)
TOLD, BLIND = 2.36409, 3.12773  # nats of G to who knows the topic, and to who does not
SHARES = {"L1": 1.0, "L1o2": 1.0, "L0": 1.0, "X": 1.0, "K": 1.0, "K3": 1.0, "G": 1.0, "S": 1.0}
NAMES = [metric.name for metric in INSTRUMENTS["excess"]]


@pytest.fixture(scope="module")
def splits():
    stream = open_data(Data(context=64, facts=16, successors=P, task_shares=SHARES), steps=4, batch_size=4)
    return splits_of(stream, 5)


def test_rows_against_loops(splits):
    shape = dataclasses.replace(SHAPE, context=64)
    subject = subject_of(splits, shape=shape)
    subject.settings = Evaluation(sequences=5, batch=6, metrics=("loss", "excess"))
    degrade = Degrade(method="magnitude_weights", severities=(0.6,))
    rows, _, _ = rows_of(subject, degrade)
    method, key, data = degrade.built(shape), subject.draw_key(degrade, 0), splits.evaluation
    edit = method.apply(
        subject.params, method.fit(subject.params, subject.calibration(degrade), key), 0.6,
        Where.everywhere(shape), key,
    )  # fmt: skip
    logits = np.asarray(
        unembed(subject.params, apply(subject.params, data.tokens_NT[:, :-1], shape, edit).x_BSD, shape),
        np.float64,
    )
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, data.tokens_NT[:, 1:, None], -1)[..., 0]
    zipf = 1 / np.arange(1, 65) / (1 / np.arange(1, 65)).sum()
    sure = {"L1": -sum(p * math.log(p) for p in P), "L0": -(zipf * np.log(zipf)).sum()}
    sure["L1o2"] = sure["L1"]
    usual = -sum(p * math.log(p) for p in (0.5, 0.25, 0.15, 0.1))
    told = {}
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        task, level = data.tasks[data.task_N[n]].name, int(data.level_NS[n, s])
        if task in ("K", "K3"):
            told.setdefault(("nll", task, None), []).append(nll[n, s])
            continue
        if task == "S":
            continue
        if task == "G":
            told.setdefault(("topic_gain_by_level", task, level), []).append(BLIND - nll[n, s])
            if level % 10:
                continue
            told.setdefault(("excess_nll_by_level", task, level), []).append(nll[n, s] - TOLD)
        entropy = TOLD if task == "G" else sure[task] if task != "X" else usual * (level >= 100)
        told.setdefault(("excess_nll", task, None), []).append(nll[n, s] - entropy)
        if task == "X":
            told.setdefault(("excess_nll_by_level", task, level), []).append(nll[n, s] - entropy)
    seen = {
        (r["metric"], r["task"], r["at"]): r for r in rows if r["severity"] == 0.6 and r["metric"] in NAMES
    }
    expected = {place: np.mean(v) for place, v in told.items() if place[0] != "nll"}
    # tasks weigh the same
    expected["excess_nll", "all", None] = np.mean([v for p, v in expected.items() if p[0] == "excess_nll"])
    for task, tokens in (("K", 1), ("K3", 3)):
        bits = max(0.0, 6 - np.mean(told["nll", task, None]) / math.log(2))
        expected["recovered_bits", task, None] = (
            16 * 4 * tokens * bits / shape.param_counts()["non_embedding"]
        )
    assert set(seen) == set(expected)
    assert sum(place[0] == "excess_nll_by_level" for place in expected) > 1
    for place, value in expected.items():
        assert seen[place]["value"] == pytest.approx(value, rel=1e-4, abs=1e-5), place


def view_of(data, logits_NSV):
    batch = SimpleNamespace(entropy_BS=jnp.asarray(data.entropy_NS))
    logits = np.asarray(logits_NSV, np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, data.tokens_NT[:, 1:, None], -1)[..., 0]
    return SimpleNamespace(
        batch=batch, nll_BS=jnp.asarray(nll, jnp.float32), scored_BS=jnp.asarray(data.scored_NS)
    )


def test_who_knows_the_distribution_has_no_excess_in_any_cell():
    """X: p of the four images in the rows by chance and one image in the others."""
    from wane.train.data.graded_range import images

    data = open_data(
        Data(context=64, world_seed=4, task_shares={"X": 1.0}), steps=1, batch_size=1
    ).evaluation(400, 7)
    logits = np.full((*data.scored_NS.shape, 512), -30.0)
    asked = np.zeros(data.scored_NS.shape, np.int64)
    tokens = data.tokens_NT
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        lag, chance = data.level_NS[n, s] % 100, data.level_NS[n, s] >= 100
        asked[n, s] = tokens[n, s + 1 - lag] - 64
        logits[n, s, 320 + images(4)[asked[n, s]]] = np.log(
            (0.5, 0.25, 0.15, 0.1) if chance else (1, 1e-9, 1e-9, 1e-9)
        )
    value, known = METRICS["excess_nll_by_level"].measure(view_of(data, logits))
    value, known = np.asarray(value), np.asarray(known)
    assert (known == data.scored_NS).all()
    levels = np.unique(data.level_NS[data.scored_NS])
    assert len(levels) == 4
    for level in levels:
        assert value[known & (data.level_NS == level)].mean() == pytest.approx(0, abs=0.03), level


@pytest.mark.parametrize("known", [0.0, 0.3, 1.0])
def test_recovered_bits_are_those_of_the_facts_that_are_known(known):
    """Who knows a share of the facts, and which, and guesses the others in 64, has 6 bits of each known one."""
    data = Data(context=64, facts=50, task_shares={"K": 1.0, "L1": 1.0})
    task = next(
        task for task in open_data(data, steps=1, batch_size=1).evaluation(1, 0).tasks if task.name == "K"
    )
    shape = dataclasses.replace(SHAPE, n_layers=1)
    nll = (1 - known) * math.log(64)
    value = finished(METRICS["recovered_bits"], nll, task, shape)
    assert value == pytest.approx(50 * 4 * 6 * known / shape.param_counts()["non_embedding"])


def test_worse_than_a_guess_is_no_knowledge_and_no_number_no_value():
    task = dataclasses.replace(TASKS["K"], stored=100)
    assert recovered(9.0, task, SHAPE) == 0
    assert math.isnan(recovered(math.inf, task, SHAPE))
    assert recovered(0.0, TASKS["L1"], SHAPE) is None
    assert finished(METRICS["recovered_bits"], 1.0, None, SHAPE) is None
