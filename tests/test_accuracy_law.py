"""The law of accuracy on curves whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from report_rows import curves_of, point

from wane.eval.accuracy_law import accuracy_law, accuracy_laws, accuracy_text
from wane.eval.laws import laws_in

S = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
BOUNDS = pd.DataFrame({"group": ["wide"], "task": ["K"], "chance": [0.02], "ceiling": [1.0]})


def test_a_model_that_follows_the_law_as_a_difference():
    law = accuracy_law(S, 0.9 * np.exp(-S))
    assert (law.difference.slope, law.difference.intercept) == pytest.approx((-1, 0))
    assert (law.ratio.slope, law.ratio.intercept) == pytest.approx((-1 / math.log(90), 1))
    assert law.r2 == pytest.approx(1)
    assert law.left_out < 1e-9 < 0.01 < law.linear_left_out
    assert law.severities == 9


def test_a_model_that_follows_the_law_as_a_ratio():
    law = accuracy_law(S, 90 ** (1 - S) / 100)
    assert (law.ratio.slope, law.ratio.intercept) == pytest.approx((-1, 1))
    assert law.difference.slope == pytest.approx(-math.log(90))


def test_the_rival_wins_where_accuracy_itself_is_a_line():
    law = accuracy_law(S, 0.9 - 0.8 * S)
    assert law.linear_left_out < 1e-9 < 0.01 < law.left_out


def test_the_strong_severities_are_asked_of_a_line_through_the_mild_ones():
    """A knee at .35: the mild severities follow the law, the strong ones lie a fifth below it."""
    true = 0.9 * np.exp(-S)
    law = accuracy_law(S, np.where(S < 0.35, true, 0.8 * true))
    strong = S >= 0.5
    assert law.extrapolated == pytest.approx(np.sqrt(np.mean((0.2 * true[strong]) ** 2)))
    assert accuracy_law(S, true).extrapolated < 1e-9 < 0.02 < accuracy_law(S, true).linear_extrapolated
    straight = accuracy_law(S, 0.9 - 0.8 * S)
    assert straight.linear_extrapolated < 1e-9 < 0.02 < straight.extrapolated
    mild = np.polyfit(S[:4], true[:4], 1)
    told = np.polyval(mild, S[strong]) - true[strong]
    assert accuracy_law(S, true).linear_extrapolated == pytest.approx(np.sqrt(np.mean(told**2)))


@pytest.mark.parametrize("chosen", [S < 0.45, (S == 0) | (S > 0.35)])
def test_without_mild_or_strong_severities_nothing_is_extrapolated(chosen):
    law = accuracy_law(S[chosen], 0.9 * np.exp(-S[chosen]))
    assert math.isnan(law.extrapolated)
    assert math.isnan(law.linear_extrapolated)
    assert law.left_out < 1e-9


def test_slope_r2_and_left_out_of_a_noisy_curve_by_other_means():
    accuracy = 0.8 * np.exp(-0.7 * S + np.random.default_rng(0).normal(0, 0.1, len(S)))
    law = accuracy_law(S, accuracy)
    slope, intercept = np.polyfit(S, np.log(accuracy / accuracy[0]), 1)
    assert (law.difference.slope, law.difference.intercept) == pytest.approx((slope, intercept))
    assert law.r2 == pytest.approx(np.corrcoef(S, np.log(accuracy))[0, 1] ** 2)
    alone = [np.arange(len(S)) != i for i in range(len(S))]
    told = [np.polyval(np.polyfit(S[a], np.log(accuracy[a]), 1), S[~a]).item() for a in alone]
    assert law.left_out == pytest.approx(np.sqrt(np.mean((np.exp(told) - accuracy) ** 2)))


def test_the_slope_is_found_within_its_error():
    rng = np.random.default_rng(0)
    found = [accuracy_law(S, 0.8 * np.exp(-S + rng.normal(0, 0.05, len(S)))).difference for _ in range(100)]
    inside = [abs(line.slope + 1) < 2.365 * line.slope_error for line in found]  # t of 7 degrees of freedom
    assert 0.9 <= np.mean(inside) <= 0.99


def test_what_has_no_law_is_told():
    with pytest.raises(ValueError, match="severity.0. = 0.1: the first point must be the undegraded model"):
        accuracy_law(S[1:], np.exp(-S[1:]))
    with pytest.raises(ValueError, match="has no logarithm"):
        accuracy_law(S, 0.8 - S)
    assert math.isnan(accuracy_law(S, np.full(len(S), 0.5)).r2)


def curve(accuracy, task="K", unit="fraction"):
    about = {"curve": "random", "group": "wide", "task": task, "metric": "accuracy", "setting_unit": unit}
    return pd.DataFrame({**about, "severity": S, "mean": accuracy})


def test_a_curve_ends_where_accuracy_comes_to_chance():
    """At .6, below .02 + .1 (1 - .02); what rises again behind that is not part of it."""
    accuracy = np.where(S < 0.55, 0.9 * np.exp(-3 * S), 0.02)
    accuracy[-1] = 0.5
    (law,) = accuracy_laws(curve(accuracy), BOUNDS)["law"]
    assert law.severities == 6
    assert law.difference.slope == pytest.approx(-3)


@pytest.mark.parametrize(
    "made",
    [
        curve(np.exp(-S), task="all"),  # chance not known
        curve(np.exp(-S), unit="bits"),
        curve(0.1 * np.exp(-S)),  # nothing learnt
        curve(np.where(S < 0.35, 0.9, 0.02)),  # three severities
    ],
)
def test_what_can_tell_no_slope_is_left_out(made):
    assert accuracy_laws(made, BOUNDS).empty


def test_a_study_tells_both_laws(tmp_path):
    """ln acc of a mean over two seeds, .8 and .9 undegraded, is a line, and the loss follows 1 - s."""
    task = {"metric": "accuracy", "unit": "fraction", "task": "K", "chance": 0.02, "ceiling": 1.0}
    rows = [
        row
        for seed in (0, 1)
        for s in S.tolist()
        for row in (
            point("d128-L2", seed, s, value=2 / (1 - s)),
            point("d128-L2", seed, s, value=(0.8 + 0.1 * seed) * math.exp(-s), **task),
        )
    ]
    curves_of(tmp_path, rows)
    loss, accuracy = laws_in(tmp_path).split("\n\n| curve")
    assert "| m | d128-L2 | " in loss
    assert loss.splitlines()[2].split(" | ")[8] == "1 - s"  # by seed: the members are looked at one by one
    assert "| 0.00 | -1.000 ± 0.000 |" in loss
    assert "| m | d128-L2 | K | 9 | -1.000 ± 0.000 |" in accuracy
    ratio = f"{-1 / math.log(85):.3f}"
    assert f"| 1.00 | {ratio} ± 0.000 | 0.000 | 0.0" in accuracy


def test_the_table_has_as_many_cells_as_headers():
    headers, rule, row, _, note = accuracy_text(accuracy_laws(curve(np.exp(-S)), BOUNDS)).splitlines()
    assert note.startswith("- in print")
    assert headers.count("|") == rule.count("|") == row.count("|")
    assert headers.endswith("| extrapolated | linear extrapolated |")
    assert row.split(" | ")[-2] == "0.000"
    short = curve(np.where(S < 0.45, np.exp(-S), 0.02))
    assert accuracy_text(accuracy_laws(short, BOUNDS)).splitlines()[2].endswith("|  |  |")
