"""docs/adding_a_metric.md: its example is a complete metric."""

import dataclasses
import re
import sys
import types
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


def examples():
    """The files that the page shows."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def added(monkeypatch, example, group):
    """The names of the metrics of the page's n-th example, under a group of their own."""
    namespace = {}
    exec(compile(examples()[example], PAGE.name, "exec"), namespace)
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


def test_the_two_lines_of_the_page_put_it_into_the_table(monkeypatch):
    """The table's own file, read with both lines in it, as the page has them."""
    text = PAGE.read_text()
    (imported, entry), code = re.findall(r"`(surety,|\"surety\": surety.METRICS,)`", text), examples()[0]
    module = types.ModuleType("wane.eval.metrics.surety")
    exec(compile(code, PAGE.name, "exec"), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(metrics, "surety", module, raising=False)
    source, before = Path(metrics.__file__).read_text(), ("    structure,\n", "}\nMETRICS: dict")
    assert all(source.count(place) == 1 for place in before)
    for place, line in zip(before, (imported, entry), strict=True):
        source = source.replace(place, f"    {line}\n{place}")
    namespace = {}
    exec(compile(source, metrics.__file__, "exec"), namespace)
    assert namespace["INSTRUMENTS"]["surety"] == module.METRICS
    assert namespace["METRICS"].keys() - metrics.METRICS.keys() == {"top_probability"}


def test_the_plan_reckons_with_what_the_page_says(monkeypatch):
    added(monkeypatch, 0, "surety")
    assert metrics.extra_forwards(("loss", "top_probability")) == 0.1  # "a tenth of a forward pass"
    assert not metrics.costly("surety")
    said = dataclasses.replace(metrics.METRICS["top_probability"], free_running=True)
    monkeypatch.setitem(metrics.INSTRUMENTS, "surety", (said,))
    assert metrics.extra_forwards(("loss", "top_probability")) == 10  # "ten forward passes"
    assert metrics.costly("surety")


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
