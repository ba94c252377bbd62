"""Laws and behavioural redundancy of curves whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from wane.eval.laws import laws, laws_in, laws_text
from wane.eval.removable import removable, removable_section

S = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def points(
    curve: str, group: str, excess: np.ndarray, loss=2.0, unit="fraction", removed=1.0
) -> pd.DataFrame:
    common = {"curve": curve, "group": group, "task": "all", "severity": S, "setting_unit": unit}
    common |= {"removed_fraction": S * removed}
    both = {"excess_loss": excess, "loss": loss + excess}
    return pd.concat([pd.DataFrame(common | {"metric": m, "mean": mean}) for m, mean in both.items()])


def test_the_relation_that_made_the_curve_is_found():
    made = pd.concat(
        [
            points("power", "wide", 3.0 * S**2.5),
            points("odds", "wide", 0.4 * S / (1 - S)),
            points("bits", "wide", S, unit="bits"),
        ]
    )
    found = laws(made).set_index("curve")
    assert list(found.index) == ["odds", "power"]
    assert found.loc["power", "relation"] == "power"
    assert found.loc["power", "parameters"] == "a 3, b 2.5"
    assert found.loc["odds", "relation"] == "odds"
    assert set(found["by_aicc"]) == {"odds", "power"}
    assert found.loc["odds", "slice_misses"] == pytest.approx(np.log(2.0 / 0.4))  # of loss 2
    assert (found["left_out"] < 1e-3).all()
    assert (found["extrapolated"] < 1e-3).all()


def test_a_model_that_follows_the_slice_law_has_slope_minus_1():
    found = laws(points("sliced", "wide", 2.0 / (1 - S) - 2.0))
    assert found["slope"].item() == pytest.approx(-1)
    assert found["slope_error"].item() < 1e-6
    assert found["slice_misses"].item() < 1e-9
    text = laws_text(found)
    assert "| -1.000 ± 0.000 |" in text
    assert text.splitlines()[-1].startswith("- ")


def test_short_curves_are_left_out():
    assert laws(points("power", "wide", 3.0 * S**2.5)[::4]).empty


def test_a_study_without_long_curves_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("wane.eval.laws.load_curves", lambda path: None)
    monkeypatch.setattr("wane.eval.laws.summary.prepare", lambda frame: frame)
    monkeypatch.setattr("wane.eval.laws.summary.plain_curves", lambda frame: points("a", "w", S)[::4])
    with pytest.raises(ValueError, match="no curve of fractions has 4 severities"):
        laws_in(tmp_path)


def test_most_is_removed_by_the_method_that_allows_most():
    made = pd.concat(
        [
            points("random", "wide", 0.2 * S),  # .02 at severity .1
            points("magnitude", "wide", 0.1 * S),  # .02 at severity .2
            points("neurons", "wide", 0.05 * S, removed=0.3),  # at .4, of which .3 are of all weights
            points("random", "deep", 0.4 * S),
            points("nothing", "flat", 0.001 * S),
        ]
    )
    found = removable(made).set_index("group")
    assert found.loc["wide", "curve"] == "magnitude"
    assert found.loc["wide", "removed"] == pytest.approx(0.2, abs=1e-3)
    assert found.loc["deep", "removed"] == pytest.approx(0.05, abs=1e-3)
    assert found.loc["flat", "bounded"]
    text = removable_section(made, ["flat", "wide", "deep"])
    assert text.index("flat") < text.index("wide") < text.index("deep")
    assert "≥ 90.0%" in text


def test_no_curve_no_section():
    assert removable_section(points("bits", "wide", S, unit="bits"), ["wide"]) == ""
