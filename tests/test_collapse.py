"""Severities of onset: by hand, and of curves whose point of collapse is known."""

import numpy as np
import pandas as pd
import pytest

from wane.eval.collapse import CURVE, collapses, onset


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4, 4, 4, 4], None),
        ([4, 4, 2, 2], None),  # at half of it, not below
        ([4, 4, 0, 0], 0.3),  # halfway from 4 to 0
        ([4, 6, 10, 20], 0.3),  # upwards: 8 lies halfway from 6 to 10
        ([4, 1, 4, 1], 0.4 + 0.2 * 2 / 3),  # a first excursion does not count
        ([4, 1, 4, 4], None),
        ([4, 1, 1, 10], 0.4 + 0.2 * 7 / 9),  # from one side to the other it was inside
        ([4, np.nan, 0, 0], 0.2),  # on the line over the gap
        ([4, 0, 0, np.nan], 0.1),
        ([4, 0, 0, np.inf], 0.1),
        ([0, 0, 1, 1], 0.2),  # nothing is a factor of 0
    ],
)
def test_by_hand(values, expected):
    severities = np.array([0, 0.2, 0.4, 0.6])
    found = onset(severities, np.array(values, float))
    assert found == (None if expected is None else pytest.approx(expected))
    order = [2, 0, 3, 1]
    assert onset(severities[order], np.array(values, float)[order]) == found


def test_a_larger_factor_is_later_and_finer_grids_agree():
    grid = np.linspace(0, 1, 2001)
    entropy = 3 * np.exp(-2 * grid)
    for factor in (1.5, 2.0, 4.0):
        assert onset(grid, entropy, factor) == pytest.approx(np.log(factor) / 2, abs=1e-5)
    assert onset(grid, entropy, 8.0) is None


@pytest.mark.parametrize(
    ("severities", "values", "factor", "words"),
    [
        ([0, 0.5], [1, 1], 1.0, "factor = 1.0: must be above 1"),
        ([0, 0.5], [1, -1], 2.0, "value_Q = -1.0: must be 0 or more"),
        ([0, 0.5, 0.5], [1, 1, 1], 2.0, "must not repeat"),
        ([0.1, 0.5], [1, 1], 2.0, "finite value at severity 0"),
        ([0, 0.5], [np.nan, 1], 2.0, "finite value at severity 0"),
        ([], [], 2.0, "finite value at severity 0"),
    ],
)
def test_wrong_arguments(severities, values, factor, words):
    with pytest.raises(ValueError, match=words):
        onset(np.array(severities), np.array(values, float), factor)


def rows(member, at, entropy, distinct):
    common = dict.fromkeys(CURVE) | {"member_id": member, "at": at}
    return [
        common | {"metric": metric, "severity": severity, "value": value}
        for metric, values in (("output_entropy", entropy), ("distinct_1", distinct))
        for severity, value in zip((0, 0.5, 1.0), values, strict=True)
    ]


def test_curves_of_a_table():
    frame = pd.DataFrame(
        rows("a", 0.0, (4, 4, 0), (0.8, 0.2, 0.2)) + rows("a", 1.0, (4, 4, 4), (0.8, 0.8, 0.8))
        + rows("b", 0.0, (4, 4, 0), (0.8, 0.8, None)) + rows("c", 0.0, (None, 4, 0), (0.8, 0.1, 0.1))
        + [dict.fromkeys(CURVE) | {"member_id": "a", "metric": "loss", "severity": 0, "value": 1.0}]
    )  # fmt: skip
    found = collapses(frame).set_index(["member_id", "at"])
    assert set(found.index) == {("a", 0.0), ("a", 1.0), ("b", 0.0)}
    told = found[["output_entropy", "distinct_1", "collapse"]]
    assert told.loc[("a", 0.0)].tolist() == pytest.approx([0.75, 1 / 3, 1 / 3])
    assert told.loc[("a", 1.0)].isna().all()
    assert told.loc[("b", 0.0)].isna().tolist() == [False, True, False]
    assert told.loc[("b", 0.0), "collapse"] == 0.75
    late = collapses(frame, entropy_factor=4.0, distinct_factor=3.9).set_index(["member_id", "at"])
    assert late.loc[("a", 0.0), "output_entropy"] == 0.875
    assert late.loc[("a", 0.0), "distinct_1"] > 0.45


def test_a_table_without_speech_has_no_collapse():
    found = collapses(pd.DataFrame(rows("a", 0.0, (1, 1, 1), (1, 1, 1)))[:0])
    assert len(found) == 0
    assert list(found.columns) == [*CURVE, "output_entropy", "distinct_1", "collapse"]
