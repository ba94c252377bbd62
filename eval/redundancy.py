"""Redundancy told by losses: how much can be taken away at little cost, and whether two measures, or two
seeds, agree on what is not needed.  Functions of numpy arrays, for tables and reports."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from wane.eval.refine import interpolant


class Removable(NamedTuple):
    """fraction: the largest that costs no more than the tolerance; bounded: it is the largest measured, and
    only a lower bound."""

    fraction: float
    bounded: bool


class Overlap(NamedTuple):
    """Jaccard index of two sets of equal size, and its expected value for sets drawn independently."""

    jaccard: float
    expected: float


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; ties share their mean rank; nan where one of them is constant.  Raises ValueError where the
    lists are of different units."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values: must be of the same units")
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def overlap_of_least_sensitive(a: Sequence[float], b: Sequence[float], share: float = 0.5) -> Overlap:
    """Of the round(share * n) units that are least sensitive by a, and by b.

    Ties are broken by independent draws of a fixed seed: broken by place they would look like agreement.
    Raises ValueError where the lists are of different units or the share is not in (0, 1].
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} sensitivities: must be of the same units")
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: must be above 0 and at most 1")
    n, k = len(a), max(1, round(share * len(a)))
    rng = np.random.default_rng(0)
    first, second = (set(np.lexsort((rng.random(n), np.asarray(values)))[:k]) for values in (a, b))
    common = np.arange(max(0, 2 * k - n), k + 1)  # Jaccard is i / (2 k - i), i is hypergeometric
    expected = np.sum(stats.hypergeom(n, k, k).pmf(common) * common / (2 * k - common))
    return Overlap(len(first & second) / len(first | second), float(expected))


def behavioural_redundancy(
    severities: Sequence[float], excess: Sequence[float], tolerance: float = 0.02
) -> Removable:
    """The largest severity, a fraction removed, that costs no more than `tolerance`, by the monotone
    interpolant of the curve (`wane.eval.refine`).

    severities: ascending, from 0.  excess: loss above that of the undegraded model, in the tolerance's unit
    (nats, or shares of the way to the floor).  Points from the first that is not finite on are left out.
    Raises ValueError where fewer than two are left.
    """
    finite = np.logical_and.accumulate(np.isfinite(excess))
    severity, cost = np.asarray(severities, np.float64)[finite], np.asarray(excess, np.float64)[finite]
    if len(severity) < 2:
        raise ValueError(f"{len(severity)} finite points at the start of the curve: at least 2 are needed")
    curve = interpolant(severity, cost)
    if curve(severity[-1]) <= tolerance:
        return Removable(float(severity[-1]), bounded=True)
    if curve(severity[0]) > tolerance:
        return Removable(float(severity[0]), bounded=False)
    crossings = curve.solve(tolerance, extrapolate=False)
    return Removable(float(np.nanmax(crossings)), bounded=False)
