"""Numbers of evaluation sequences from a pilot: on simulated changes of loss whose spread is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from wane.configs.quickstart import STUDY
from wane.eval.precision import RANGE, half_width, largest_variance, sequences_for, unit_variances
from wane.eval.study import Degrade, Evaluation
from wane.scaling.config import override

SD = {"easy": 0.1, "hard": 0.5}  # of a sequence's change, per task


def rows(rng, n, excess=(0.3,), draws=1, tasks=SD):
    """Losses of one member: sequences differ by far more than a degradation changes them."""
    out = []
    for draw in range(draws):
        base = {task: rng.normal(3, 2, n) for task in tasks}
        for severity, mean in zip((0.0, 0.25, 0.5, 0.75), (0.0, *excess), strict=False):
            for task, sd in tasks.items():
                change = rng.normal(mean, sd, n) if severity else np.zeros(n)
                out.append(
                    {"task": task, "severity": severity, "draw": draw, "per_sequence": base[task] + change}
                )
            out.append({"task": "all", "severity": severity, "draw": draw, "per_sequence": np.zeros(1)})
    return pd.DataFrame(out).assign(metric="loss", status="ok")


def test_variance_is_that_of_the_mean_change_over_tasks():
    found = unit_variances(rows(np.random.default_rng(0), 20_000, draws=2))
    assert len(found) == 2
    assert np.allclose(found["excess"], 0.3, atol=0.01)
    assert np.allclose(found["variance"], (0.1**2 + 0.5**2) / 4, rtol=0.05)


def test_one_task_stands_as_all():
    rng = np.random.default_rng(1)
    frame = rows(rng, 5000, tasks={"text": 0.2})
    frame = frame[frame["task"] == "text"].assign(task="all")
    assert np.allclose(unit_variances(frame)["variance"], 0.04, rtol=0.1)


def test_so_many_sequences_reach_the_precision():
    """Over 2,000 evaluations of the number that a pilot asks for, 95 % of the means lie within the precision."""
    rng = np.random.default_rng(2)
    precision = 0.05
    n = sequences_for(precision, (0.1**2 + 0.5**2) / 4)
    means = [np.mean([rng.normal(0, sd, n).mean() for sd in SD.values()]) for _ in range(2000)]
    assert np.mean(np.abs(means) <= precision) == pytest.approx(0.95, abs=0.015)
    assert half_width(n, 0.065) <= precision < half_width(n - 1, 0.065)


def test_points_beyond_the_range_do_not_count():
    rng = np.random.default_rng(3)
    near = rows(rng, 200, excess=(0.3,))
    far = rows(rng, 200, excess=(0.3, RANGE + 1))
    wide = far["severity"] == 0.5
    far.loc[wide, "per_sequence"] = far.loc[wide, "per_sequence"].map(lambda v: v * 5)
    assert largest_variance([near, far]) < 0.1 < unit_variances(far)["variance"].max()
    beyond = rows(rng, 50, excess=(RANGE + 2,))
    assert largest_variance([beyond[:0]]) == 0.0
    assert largest_variance([beyond]) == 0.0


def test_a_diverged_point_is_left_out():
    frame = rows(np.random.default_rng(4), 50, excess=(0.3, 0.4))
    broken = frame["severity"] == 0.5
    frame.loc[broken, "status"] = "diverged"
    frame["per_sequence"] = [None if b else v for b, v in zip(broken, frame["per_sequence"], strict=True)]
    assert unit_variances(frame)["severity"].tolist() == [0.25]


@pytest.mark.parametrize(
    ("field", "value"),
    [("precision", 0.0), ("precision", -1.0), ("pilot_sequences", 1), ("scored_tokens", 0)],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused(field, value):
    with pytest.raises(ValueError, match=f"evaluation.{field} = "):
        Evaluation(**{field: value})


def test_what_is_read_is_decided_by_one_of_the_two():
    with pytest.raises(ValueError, match="scored_tokens = 9: evaluation.precision = 0.01 decides"):
        Evaluation(scored_tokens=9, precision=0.01)


def test_a_pilot_needs_a_degradation_of_the_whole_model():
    layers = (Degrade(method="magnitude_weights", each="layer"),)
    with pytest.raises(ValueError, match="a pilot needs"):
        dataclasses.replace(STUDY, degradations=layers, evaluation=Evaluation(precision=0.01))
    assert override(STUDY, {"evaluation.precision": "0.01"}).evaluation.precision == 0.01
