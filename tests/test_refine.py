"""Refinement of a grid of severities, on curves whose every value is known."""

import numpy as np
import pytest

from wane.eval.precision import RANGE
from wane.eval.refine import errors, halfway, interpolant, refined
from wane.eval.study import Degrade, Recovery

COARSE = np.linspace(0, 1, 5)
KNEES = np.linspace(0.05, 0.95, 19)


def knee(at):
    """Excess loss that stays small, bends at `at` and leaves the range."""
    return lambda s: 2 * RANGE / (1 + np.exp(-30 * (np.asarray(s) - at)))


def worst(grid, curve):
    """Largest error of the interpolant where the curve is within the range."""
    s = np.linspace(0, 1, 2001)
    grid = np.array(sorted(grid))
    wrong = np.abs(interpolant(grid, np.minimum(curve(grid), RANGE))(s) - np.minimum(curve(s), RANGE))
    return wrong.max()


def test_the_added_points_lie_around_the_bend_and_halve_the_error_of_an_even_grid():
    ours, even = [], []
    for at in KNEES:
        curve = knee(at)
        added = refined(COARSE, curve(COARSE)[None], "fraction", 4)
        assert len(added) == 4
        assert abs(np.median(added) - at) < 0.2
        ours.append(worst({*COARSE, *added}, curve))
        even.append(worst(np.linspace(0, 1, 9), curve))
    assert np.mean(ours) < 0.6 * np.mean(even)


def test_one_grid_serves_all_members():
    curves = np.stack([knee(0.2)(COARSE), knee(0.8)(COARSE)])
    added = np.array(refined(COARSE, curves, "fraction", 6))
    assert (added < 0.5).any()
    assert (added > 0.5).any()
    assert refined(COARSE, curves[::-1], "fraction", 6) == tuple(added)


def test_a_member_without_a_whole_curve_decides_nothing():
    curve = knee(0.35)(COARSE)
    broken = np.where(COARSE == 1, np.nan, knee(0.85)(COARSE))
    both = refined(COARSE, np.stack([curve, broken]), "fraction", 3)
    assert both == refined(COARSE, curve[None], "fraction", 3)
    assert refined(COARSE, np.empty((0, 5)), "fraction", 4) == (0.125, 0.375, 0.625, 0.875)


def test_an_interval_without_change_has_no_error_and_a_step_has_one():
    step = np.array([0.0, 0.0, 0.8, 0.8, 0.8])
    found = errors(COARSE, step)
    assert found[1] > 0.05
    assert np.all(found[[0, 2, 3]] == 0)
    assert np.all(errors(COARSE, RANGE + np.arange(5.0))[1:] == 0)  # beyond the range


def test_noise_that_falls_does_not_make_the_interpolant_fall():
    curve = interpolant(COARSE, np.array([0.0, 0.3, 0.2, 0.6, 0.5]))
    assert np.all(np.diff(curve(np.linspace(0, 1, 101))) >= 0)


def test_bits_stay_whole_and_their_intervals_can_be_used_up():
    bits = [16.0, 8.0, 4.0, 3.0, 2.0]
    added = refined(bits, np.array([[0, 0.01, 0.1, 0.3, 0.9]]), "bits", 20)
    assert set(added) == set(range(2, 17)) - set(bits)
    assert halfway(8, 16, "bits") == 12
    assert halfway(0.1, 0.1003, "fraction") == 0.1002


def test_settings_may_come_in_any_order():
    curve = knee(0.35)(COARSE)
    order = [3, 0, 4, 1, 2]
    assert refined(COARSE[order], curve[order][None], "fraction", 3) == refined(
        COARSE, curve[None], "fraction", 3
    )


def test_what_cannot_be_refined_is_refused():
    for options in ({"each": "layer"}, {"recovery": Recovery(steps=(4,))}):
        with pytest.raises(ValueError, match="degradations.refine = 2"):
            Degrade(method="magnitude_weights", refine=2, **options)
    with pytest.raises(ValueError, match="degradations.refine = -1"):
        Degrade(method="magnitude_weights", refine=-1)
