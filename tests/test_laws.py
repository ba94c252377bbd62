"""Laws and behavioural redundancy of curves whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from wane.eval.axes import NOISE
from wane.eval.laws import laws, laws_in, laws_text
from wane.eval.removable import removable, removable_section

S = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


BITS = np.array([16.0, 8, 7, 6, 5, 4, 3, 2])


def points(
    curve: str, group: str, excess: np.ndarray, loss=2.0, unit="fraction", removed=1.0, severity=S, **noise
) -> pd.DataFrame:
    """Mean curves; noise: axis -> the places along it."""
    common = {"curve": curve, "group": group, "task": "all", "severity": severity, "setting_unit": unit}
    common |= {"removed_fraction": severity * removed} | dict.fromkeys(NOISE, np.nan) | noise
    both = {"excess_loss": excess, "loss": loss + excess}
    return pd.concat([pd.DataFrame(common | {"metric": m, "mean": mean}) for m, mean in both.items()])


def test_the_relation_that_made_the_curve_is_found():
    made = pd.concat(
        [
            points("power", "wide", 3.0 * S**2.5),
            points("odds", "wide", 0.4 * S / (1 - S)),
            points("sigma", "wide", S, unit="sigma"),
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


def test_a_line_that_does_not_start_at_1_has_its_intercept_read():
    """ln PPL0 / ln PPL = .9 - .6 s behind the dense model, against numpy's line; what each form misses too."""
    ratio = np.where(S > 0, 0.9 - 0.6 * S, 1.0)
    (row,) = laws(points("m", "wide", 2.0 / ratio - 2.0)).to_dict("records")
    slope, intercept = np.polyfit(S, ratio, 1)
    assert (row["free_slope"], row["intercept"]) == pytest.approx((slope, intercept))
    assert row["slope"] == pytest.approx(np.sum(S * (ratio - 1)) / np.sum(S**2))
    alone = [np.arange(len(S)) != i for i in range(1, len(S))]
    free = [np.polyval(np.polyfit(S[a], ratio[a], 1), S[~a]) - ratio[~a] for a in alone]
    through = [1 + np.sum(S[a] * (ratio[a] - 1)) / np.sum(S[a] ** 2) * S[~a] - ratio[~a] for a in alone]
    for name, missed in (("free", free), ("line", through), ("ratio", 1 - S[1:] - ratio[1:])):
        assert row[f"{name}_misses"] == pytest.approx(np.sqrt(np.mean(np.square(missed)))), name
    assert row["free_misses"] < row["line_misses"] < row["ratio_misses"]
    text = laws_text(pd.DataFrame([row]))
    assert f" | {row['intercept']:.3f} ± {row['intercept_error']:.3f} | " in text
    headers, rule, first, *_ = text.splitlines()
    assert headers.count("|") == rule.count("|") == first.count("|")


def test_a_model_of_which_nothing_is_left_bends_no_line():
    whole = np.append(S, 1.0)
    excess = np.append(2.0 / (1 - S) - 2.0, 4.0)  # finite, where the law says infinite
    (row,) = laws(points("m", "wide", excess, severity=whole)).to_dict("records")
    for name, truth in (("slope", -1), ("free_slope", -1), ("intercept", 1)):
        assert row[name] == pytest.approx(truth), name
    assert max(row["ratio_misses"], row["line_misses"], row["free_misses"]) < 1e-9


def test_laws_of_bits():
    severity = 1 - BITS / 16
    falls, powers = 40 * 2 ** (-2 * 0.9 * BITS), 30 * BITS**-3.5
    made = pd.concat(
        [
            points(name, "wide", excess * (severity > 0), unit="bits", severity=severity)
            for name, excess in (("rtn", falls), ("gptq", powers))
        ]
    )
    found = laws(made).set_index("curve")
    assert found["relation"].to_dict() == {"gptq": "bits power", "rtn": "bits exponential"}
    assert found.loc["gptq", "parameters"] == "c 30, gamma 3.5"
    assert found.loc["rtn", "parameters"] == f"c 40, k {0.9 * np.log(4):.3g}"
    assert found[["slope", "free_slope", "intercept", "free_misses"]].isna().all(axis=None)
    text = laws_text(found.reset_index())
    assert "- bits power: C P^-gamma" in text
    assert "A 2^(-2 gamma b) with gamma = k / ln 4" in text
    headers, _, row, *_ = text.splitlines()
    assert headers.count("|") == row.count("|")


def test_the_noise_of_each_severity_is_an_axis_of_its_own():
    """Not smooth in the severity: no family of severities follows, a power of the noise does."""
    noise = np.array([0, 0.001, 0.002, 0.05, 0.06, 0.061, 0.5, 0.52, 2, 2.1])
    made = points(
        "m", "wide", 0.8 * noise**1.3, stream_noise_to_signal=noise**0.5, block_noise_to_signal=noise
    )
    (row,) = laws(made).to_dict("records")
    assert row["block noise power"] == pytest.approx(1.3)
    assert row["stream noise power"] == pytest.approx(2.6)
    assert row["block noise power misses"] < 1e-6 < 0.1 < row["left_out"]
    assert "| 2.60 (0.00) | 1.30 (0.00) |" in laws_text(laws(made))
    (plain,) = laws(points("m", "wide", S)).to_dict("records")
    assert np.isnan(plain["stream noise power"])
    assert laws_text(laws(points("m", "wide", S))).splitlines()[2].endswith("|  |  |")


def test_members_tell_what_a_left_out_seed_tells():
    """Two seeds on the same power, a third away by a factor e: it misses the others' fit by about 1, and they miss
    one that it has a part in by a half."""
    members = pd.concat(
        [
            points("m", "wide", factor * 3.0 * S**2.5).assign(member_id=name)
            for name, factor in (("a", 1.0), ("b", 1.0), ("c", np.e))
        ]
    )
    (row,) = laws(points("m", "wide", 3.0 * S**2.5), members).to_dict("records")
    assert row["by_seed"] == row["relation"] == "power"
    assert row["seed_left_out"] == pytest.approx(np.sqrt((1 + 0.25 + 0.25) / 3), rel=1e-3)
    assert laws(points("m", "wide", 3.0 * S**2.5))["by_seed"].item() is None


def test_short_curves_are_left_out():
    assert laws(points("power", "wide", 3.0 * S**2.5)[::4]).empty


def test_a_study_without_long_curves_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("wane.eval.laws.load_curves", lambda path: None)
    monkeypatch.setattr("wane.eval.laws.summary.prepare", lambda frame: frame)
    monkeypatch.setattr("wane.eval.laws.summary.plain_curves", lambda frame: points("a", "w", S)[::4])
    monkeypatch.setattr("wane.eval.laws.summary.member_curves", lambda frame: points("a", "w", S)[:0])
    with pytest.raises(ValueError, match="no curve of fractions or bits has 4 severities"):
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
