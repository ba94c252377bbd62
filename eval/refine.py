"""Severities placed where curves bend: a coarse grid first, then points where a monotone interpolant of it is least
sure, the same for all members compared."""

import heapq
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from wane.eval.precision import RANGE
from wane.scaling.degrade.contract import Unit, severity_of

INSIDE = np.linspace(0, 1, 9)[1:-1]  # where in an interval its error is looked for


def interpolant(severity: np.ndarray, excess: np.ndarray) -> PchipInterpolator:
    """The monotone cubic through the isotonic regression of a curve (Fritsch & Carlson 1980, SIAM J. Numer. Anal.
    17, 238).  severity: ascending, at least 2."""
    return PchipInterpolator(severity, isotonic_regression(excess).x)


def crossing(severity: np.ndarray, excess: np.ndarray, threshold: float) -> float:
    """The least severity at which the interpolant reaches `threshold` nats; NaN where it does not."""
    found = interpolant(severity, excess).solve(threshold, extrapolate=False)
    return float(found[0]) if len(found) else float("nan")


def errors(severity: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """How far the interpolant and the chord part in each interval, in nats: two monotone curves through the same
    points.  Beyond RANGE a curve counts as flat."""
    clipped = np.minimum(excess, RANGE)
    curve = interpolant(severity, clipped)
    level = curve(severity)
    inside = severity[:-1, None] + INSIDE * np.diff(severity)[:, None]
    chord = level[:-1, None] + INSIDE * np.diff(level)[:, None]
    return np.max(np.abs(curve(inside) - chord), axis=1)


def refined(settings: Sequence[float], excess_MQ: np.ndarray, unit: Unit, points: int) -> tuple[float, ...]:
    """At most `points` settings to add to the Q coarse ones, given the excess loss of M curves at those.

    Halves the interval with the largest error of any curve, again and again; half an interval counts as a quarter
    of its error, which is how the error of a chord falls.  Without a whole curve the widest intervals are halved.
    Bits are whole, so that their intervals may be used up.
    """
    at = {severity_of(setting, unit): i for i, setting in enumerate(settings)}
    severity_Q = np.array(sorted(at))
    setting_Q = [float(settings[at[s]]) for s in severity_Q]
    error_I = np.zeros(len(severity_Q) - 1)
    for curve in np.asarray(excess_MQ)[:, [at[s] for s in severity_Q]]:
        if np.isfinite(curve).all():
            error_I = np.maximum(error_I, errors(severity_Q, curve))
    queue = list(zip(-error_I, -np.diff(severity_Q), setting_Q, setting_Q[1:], strict=False))
    heapq.heapify(queue)
    added: list[float] = []
    while queue and len(added) < points:
        error, width, a, b = heapq.heappop(queue)
        middle = halfway(a, b, unit)
        if middle in (a, b):
            continue
        added.append(middle)
        for ends in ((a, middle), (middle, b)):
            heapq.heappush(queue, (error / 4, width / 2, *ends))
    return tuple(sorted(added))


def halfway(a: float, b: float, unit: Unit) -> float:
    """Between two settings: a whole number of bits, else to four places, on which counts are exact."""
    return float(round((a + b) / 2, None if unit == "bits" else 4))
