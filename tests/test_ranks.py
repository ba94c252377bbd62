"""Ranks against sorting one token at a time, and of predictions whose ranks are known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import AS_USUAL
from test_sweep import SHAPE, over_tasks, rows_of, splits_of, subject_of, value

from wane.eval.metrics import ranks
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.model import apply, unembed
from wane.train.data import Data, open_data

rng = np.random.default_rng(0)


def slow_rank(logits_V, token):
    """Its place in a stable sort."""
    return 1 + sorted(range(len(logits_V)), key=lambda v: -logits_V[v]).index(token)


def test_ranks_with_ties():
    logits, tokens = rng.integers(0, 4, (5, 30, 8)).astype(np.float32), rng.integers(0, 8, (5, 30))
    expected = [[slow_rank(logits[b, s], tokens[b, s]) for s in range(30)] for b in range(5)]
    np.testing.assert_array_equal(ranks.rank(jnp.asarray(logits), jnp.asarray(tokens)), expected)
    assert set(np.ravel(expected)) == set(range(1, 9))


def test_of_logits_that_are_not_numbers_every_token_is_last():
    logits = jnp.full((1, 2, 8), jnp.nan)
    np.testing.assert_array_equal(ranks.rank(logits, jnp.array([[0, 7]])), [[8, 8]])


def view_of(logits, full, targets, options):
    batch = SimpleNamespace(options_BSO=jnp.asarray(options), values_B2=jnp.ones((len(logits), 2), int))
    scored = jnp.asarray(rng.random(targets.shape) < 0.7)
    named = {"logits_BSV": logits, "full_BSV": full, "targets_BS": targets, "scored_BS": scored}
    view = SimpleNamespace(batch=batch, **{name: jnp.asarray(a) for name, a in named.items()})
    view.of_full = lambda f: f(view)
    return view


def test_options_are_averaged_over_those_that_there_are():
    logits = np.float32([[[0, 5, 4, 3, 2, 1], [0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 0]]])
    options = np.array([[[1, 2, 3, 4], [5, 1, -1, -1], [1, 2, 3, 4]]])
    view = view_of(logits, logits, np.ones((1, 3), int), options)
    found, _ = ranks.rank_of_options(view)
    np.testing.assert_allclose(found, [[2.5, 3, 2.5]])


def test_the_argmax_is_compared_behind_the_prompt():
    """Of 12 tokens the prompt has 6; the last of them predicts the first step."""
    full = rng.standard_normal((1, 12, 7)).astype(np.float32)
    logits = np.where(np.isin(np.arange(12), (0, 5, 8))[:, None], -full, full)
    view = view_of(logits, full, np.zeros((1, 12), int), np.zeros((1, 12, 4), int))
    sums, counts = ranks.argmax_kept(view)
    np.testing.assert_array_equal(sums, [[0, 2, 2, 0, 0, 0]])  # steps 1, 2 to 3, 4 to 6
    np.testing.assert_array_equal(counts, [[1, 2, 3, 0, 0, 0]])


def test_through_a_sweep_against_loops():
    tasks = {"L1": 1.0, "L2": 1.0, "S": 1.0}
    stream = open_data(Data(sources="graded", context=32, facts=16, task_shares=tasks), steps=4, batch_size=4)
    subject = subject_of(splits_of(stream, 3))
    names = ("loss", "accuracy", "ranks", "accuracy_by_level")
    subject.settings = Evaluation(metrics=names, sequences=3, batch=4, calibration_sequences=4)
    degrade = Degrade(method="magnitude_weights", severities=(0.6,))
    rows, _, _ = rows_of(subject, degrade)
    method, key, data = degrade.built(SHAPE), subject.draw_key(degrade, 0), subject.splits.evaluation
    fitted = method.fit(subject.params, subject.calibration(degrade), key)
    edit = method.apply(subject.params, fitted, 0.6, Where.everywhere(SHAPE), key)
    read = data.tokens_NT[:, :-1]
    run = jax.jit(lambda p, e: unembed(p, apply(p, read, SHAPE, e).x_BSD, SHAPE), **AS_USUAL)
    logits, full = (np.asarray(run(subject.params, e), np.float64) for e in (edit, None))
    answers, options, levels = [], [], {}
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        answers.append(slow_rank(logits[n, s], data.tokens_NT[n, s + 1]))
        if n % 4 == 0:  # of every batch of 4 the first
            options.append(np.mean([slow_rank(logits[n, s], o) for o in data.options_NSO[n, s] if o >= 0]))
        task = data.tasks[data.task_N[n]]
        if task.level:
            levels.setdefault((task.name, float(data.level_NS[n, s])), []).append(answers[-1])
    at = {"severity": 0.6}
    looked_at_NS = data.scored_NS & (np.arange(len(read)) % 4 == 0)[:, None]
    assert value(rows, "rank_of_answer", **at) == pytest.approx(
        over_tasks(answers, data.scored_NS, data), rel=1e-5
    )
    # two tokens whose logits differ in the last bit may change places
    expected = over_tasks(options, looked_at_NS, data)
    assert value(rows, "rank_of_options", **at) == pytest.approx(expected, abs=2 / (4 * len(options)))
    for (task, level), expected in levels.items():
        found = value(rows, "rank_of_answer_by_level", task, at=level, **at)
        assert found == pytest.approx(np.mean(expected), rel=1e-5)
    assert len(levels) > 3
    assert len(options) > 10
    kept = logits.argmax(-1) == full.argmax(-1)
    assert value(rows, "argmax_kept", at=4.0, **at) == pytest.approx(kept[:, 15:][:, 3:7].mean(), rel=1e-6)
    assert {r["value"] for r in rows if r["metric"] == "argmax_kept" and r["severity"] == 0} == {1.0}
    # a rank of 1 is a hit
    right = over_tasks(np.array(answers) == 1, data.scored_NS, data)
    assert value(rows, "accuracy", **at) == pytest.approx(right, rel=1e-5)
