"""docs/adding_a_metric.md: its example is a complete metric."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from test_sweep import SHAPE, splits_of, subject_of

from wane.eval import metrics
from wane.eval.cell import sweep
from wane.eval.study import Degrade, Evaluation
from wane.scaling.model import apply, unembed
from wane.train.data import Data, open_data

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_metric.md"


def added(monkeypatch, example, group):
    """The names of the metrics of the page's n-th example, under a group of their own."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[example]
    namespace = {}
    exec(compile(code, PAGE.name, "exec"), namespace)
    monkeypatch.setitem(metrics.INSTRUMENTS, group, namespace["METRICS"])
    for metric in namespace["METRICS"]:
        monkeypatch.setitem(metrics.METRICS, metric.name, metric)
    return tuple(metric.name for metric in namespace["METRICS"])


def swept(group, degrade):
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3))
    subject.settings = Evaluation(metrics=("loss", group), sequences=3, batch=4, calibration_sequences=4)
    return subject, sweep(subject, degrade, range(1), "cell", 1, lambda n: None)[0]


def test_the_example_is_a_metric(monkeypatch):
    assert added(monkeypatch, 0, "surety") == ("top_probability",)
    subject, rows = swept("surety", Degrade(method="rtn", severities=(8.0,)))
    assert subject.settings.metrics == ("loss", "top_probability")
    tokens = subject.splits.evaluation.tokens_NT[:, :-1]
    logits = unembed(subject.params, apply(subject.params, tokens, SHAPE).x_BSD, SHAPE)
    expected = np.asarray(jax.nn.softmax(logits, axis=-1)).max(-1)
    (found,) = (
        row["value"]
        for row in rows
        if row["metric"] == "top_probability" and row["task"] == "all" and row["severity"] == 0
    )
    assert found == pytest.approx(expected.mean(), rel=1e-5)


def test_the_second_example_looks_into_the_blocks(monkeypatch):
    assert added(monkeypatch, 1, "dead") == ("dead_units",)
    _, rows = swept("dead", Degrade(method="random_neurons", severities=(0.5,)))
    found = {
        (row["severity"], row["at"]): row["value"]
        for row in rows
        if row["metric"] == "dead_units" and row["task"] == "all"
    }
    whole, half = ([found[s, float(l)] for l in range(SHAPE.n_layers)] for s in (0.0, 0.5))
    np.testing.assert_allclose(whole, 0, atol=1e-3)
    np.testing.assert_allclose(half, 0.5, atol=0.01)


def test_groups_and_metrics_are_chosen_by_name():
    assert metrics.chosen(("kl", "loss")) == ("loss", "kl")
    assert set(metrics.chosen(("prediction",))) == {m.name for m in metrics.INSTRUMENTS["prediction"]}
    with pytest.raises(ValueError, match="'los' is not a metric; did you mean loss"):
        metrics.chosen(("los",))
