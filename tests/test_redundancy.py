"""Redundancy told by losses, on known cases."""

import itertools

import numpy as np
import pytest

from wane.eval.redundancy import behavioural_redundancy, overlap_of_least_sensitive, rank_correlation


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 300, 301]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(
        np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]
    )
    assert np.isnan(rank_correlation([1, 2, 3], [5, 5, 5]))
    with pytest.raises(ValueError, match="same units"):
        rank_correlation([1, 2], [1, 2, 3])


def test_overlap_of_the_least_sensitive():
    a = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert overlap_of_least_sensitive(a, a).jaccard == 1
    assert overlap_of_least_sensitive(a, a[::-1]).jaccard == 0
    assert overlap_of_least_sensitive(a, [0, 1, 9, 2, 8, 7]).jaccard == 2 / 4  # {0, 1, 2} and {0, 1, 3}
    assert overlap_of_least_sensitive(a, a[::-1], share=1).jaccard == 1
    for share, k in ((0.5, 3), (0.34, 2), (0.8, 5)):  # against all pairs of sets
        sets = [set(s) for s in itertools.combinations(range(6), k)]
        every = [len(x & y) / len(x | y) for x in sets for y in sets]
        assert overlap_of_least_sensitive(a, a, share).expected == pytest.approx(np.mean(every))


def test_ties_are_no_agreement():
    found = overlap_of_least_sensitive(np.zeros(4000), np.zeros(4000))
    assert found.jaccard == pytest.approx(found.expected, abs=0.03)
    with pytest.raises(ValueError, match="same units"):
        overlap_of_least_sensitive([1, 2], [1])
    with pytest.raises(ValueError, match="share = 0"):
        overlap_of_least_sensitive([1, 2], [1, 2], 0)


def test_behavioural_redundancy_of_known_curves():
    severities = np.linspace(0, 1, 21)
    assert behavioural_redundancy(severities, 0.1 * severities) == pytest.approx((0.2, False))
    square = behavioural_redundancy(severities, severities**2, tolerance=0.25)
    assert square == pytest.approx((0.5, False))
    between = behavioural_redundancy(severities, severities**2, tolerance=0.3)
    assert between.fraction == pytest.approx(np.sqrt(0.3), abs=1e-3)


def test_redundancy_that_was_not_exhausted_is_a_lower_bound():
    assert behavioural_redundancy([0, 0.3, 0.6], [0, 0.001, 0.01]) == (0.6, True)
    assert behavioural_redundancy([0, 0.3, 0.6, 0.9], [0, 0.001, 0.01, np.inf]) == (0.6, True)
    assert behavioural_redundancy([0, 0.3, 0.6], [0, -0.1, 0.5]).fraction > 0.3  # helps, then harms


def test_a_plateau_at_the_tolerance_counts_to_its_end():
    found = behavioural_redundancy([0, 0.2, 0.4, 0.6], [0, 0.02, 0.02, 0.5])
    assert found == pytest.approx((0.4, False))


def test_redundancy_of_a_curve_that_starts_above_the_tolerance_and_of_no_curve():
    assert behavioural_redundancy([0, 0.5], [0.1, 0.2]) == (0, False)
    with pytest.raises(ValueError, match="1 finite"):
        behavioural_redundancy([0, 0.5, 1], [0, np.nan, 1])
