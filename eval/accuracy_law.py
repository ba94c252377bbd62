"""How the accuracy of a task falls with the fraction removed: ln accuracy along 1 - s, as in print, and a rival.

The law says that ln accuracy goes with 1 - s as ln PPL0 / ln PPL does, and can be read in two ways: ln(acc / acc0)
= -s, or ln acc / ln acc0 = 1 - s.  Both are the same straight line of ln acc in s and differ in what its slope is
called, so one line is fitted, its slope is told in both readings, and a line of accuracy itself is the rival.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from wane.eval.cost_table import FLOOR
from wane.eval.relations import Line, line
from wane.eval.selection import MILD, STRONG

FEWEST = 4  # severities above 0 of a curve that is fitted
PERCENT = 100  # ln acc / ln acc0 falls with harm only where accuracy is above 1
NOTE = (
    "- in print ln(acc/acc0) has slope -1 and intercept 0, or ln acc/ln acc0, in percent, slope -1; "
    "left out: error of accuracy at severities not fitted, of this line and of accuracy itself as a line; "
    f"extrapolated: the same from {STRONG['fraction']:g} on, fitted up to {MILD['fraction']:g}"
)
HEADERS = (
    "curve", "shape", "task", "severities", "ln(acc/acc0) slope", "intercept", "R²", "ln acc/ln acc0 slope",
    "left out", "linear left out", "extrapolated", "linear extrapolated",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyLaw:
    """difference: ln(acc / acc0) = intercept + slope s, in print 0 and -1; along 1 - s the slope is the negative.
    ratio: ln acc / ln acc0 of accuracies in percent, in print 1 and -1.  r2: of both, NaN where the accuracy does
    not change.  left_out: root mean square of predicted - measured accuracy (a fraction) at severities that the
    line had not seen, one at a time; extrapolated: at severities from STRONG on, fitted up to MILD, NaN where the
    curve has fewer than two severities there or none here; linear_left_out, linear_extrapolated: the same of
    accuracy as a line in s.  severities: how many were fitted, 0 among them."""

    difference: Line
    ratio: Line
    r2: float
    left_out: float
    linear_left_out: float
    extrapolated: float
    linear_extrapolated: float
    severities: int


def accuracy_law(severity: Sequence[float], accuracy: Sequence[float]) -> AccuracyLaw:
    """The law of one curve, accuracies as fractions; where it comes close to chance is for the caller to leave out.
    Raises ValueError where the first severity is not 0 or an accuracy not positive."""
    s, accuracy = np.asarray(severity, float), np.asarray(accuracy, float)
    if s[0] != 0:
        raise ValueError(f"severity[0] = {s[0]}: the first point must be the undegraded model")
    if not (accuracy > 0).all():
        raise ValueError("accuracy: 0 or less has no logarithm; leave out what is not above chance")
    logs = np.log(accuracy)
    difference = line(s, logs - logs[0])
    residual = logs - logs[0] - difference.intercept - difference.slope * s
    spread = np.sum((logs - logs.mean()) ** 2)
    return AccuracyLaw(
        difference=difference,
        ratio=line(s, np.log(PERCENT * accuracy) / np.log(PERCENT * accuracy[0])),
        r2=float(1 - np.sum(residual**2) / spread) if spread else float("nan"),
        left_out=_left_out(s, accuracy, np.log, np.exp),
        linear_left_out=_left_out(s, accuracy, np.positive, np.positive),
        extrapolated=_extrapolated(s, accuracy, np.log, np.exp),
        linear_extrapolated=_extrapolated(s, accuracy, np.positive, np.positive),
        severities=len(s),
    )


def _left_out(s: np.ndarray, accuracy: np.ndarray, there: Callable, back: Callable) -> float:
    """Of a line in s of `there(accuracy)`, whose inverse is `back`."""
    return _root_mean_square([_missed(s, accuracy, s != one, s == one, there, back) for one in s])


def _extrapolated(s: np.ndarray, accuracy: np.ndarray, there: Callable, back: Callable) -> float:
    seen, asked = s <= MILD["fraction"], s >= STRONG["fraction"]
    if seen.sum() < 2 or not asked.any():
        return float("nan")
    return _root_mean_square(_missed(s, accuracy, seen, asked, there, back))


def _missed(s, accuracy, seen, asked, there: Callable, back: Callable) -> np.ndarray:
    """Predicted - measured accuracy of the points asked, by a line through those seen."""
    fitted = line(s[seen], there(accuracy[seen]))
    return back(fitted.intercept + fitted.slope * s[asked]) - accuracy[asked]


def _root_mean_square(missed: Sequence[float] | np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(missed))))


def accuracy_laws(points: pd.DataFrame, undegraded: pd.DataFrame) -> pd.DataFrame:
    """For each curve of a fraction removed, group and task whose chance and ceiling are known: curve, group, task
    and `law`, an `AccuracyLaw` of the mean accuracy.

    points: of `summary.plain_curves`; undegraded: of `summary.undegraded`, of accuracy.  A curve ends at the first
    severity that leaves less than FLOOR of the way from chance to ceiling: accuracy stops at chance, where no line
    of its logarithm goes on.  Curves with fewer than FEWEST severities before that are left out.
    """
    known = undegraded.groupby(["group", "task"])[["chance", "ceiling"]].mean().dropna()
    known = known[known["ceiling"] > known["chance"]]
    floor = (known["chance"] + FLOOR * (known["ceiling"] - known["chance"])).rename("floor")
    chosen = points[(points["metric"] == "accuracy") & (points["setting_unit"] == "fraction")]
    chosen = chosen.merge(floor.reset_index(), on=["group", "task"]).sort_values("severity", kind="stable")
    rows = []
    for (curve, group, task), part in chosen.groupby(["curve", "group", "task"]):
        part = part[(part["mean"] >= part["floor"]).cummin()]
        if (part["severity"] > 0).sum() < FEWEST:
            continue
        law = accuracy_law(part["severity"], part["mean"])
        rows.append({"curve": curve, "group": group, "task": task, "law": law})
    return pd.DataFrame(rows, columns=["curve", "group", "task", "law"])


def accuracy_text(found: pd.DataFrame) -> str:
    """The rows of `accuracy_laws` in Markdown, and what is in print."""
    lines = [HEADERS, ["---"] * 3 + ["---:"] * 9]
    for row in found.itertuples():
        law = row.law
        slope, intercept, ratio = (
            f"{value:.3f} ± {error:.3f}"
            for value, error in (
                (law.difference.slope, law.difference.slope_error),
                (law.difference.intercept, law.difference.intercept_error),
                (law.ratio.slope, law.ratio.slope_error),
            )
        )
        fitted = ["" if np.isnan(law.r2) else f"{law.r2:.2f}", ratio]
        errors = (law.left_out, law.linear_left_out, law.extrapolated, law.linear_extrapolated)
        missed = ["" if np.isnan(error) else f"{error:.3f}" for error in errors]
        named = [row.curve, row.group, row.task, str(law.severities)]
        lines.append([*named, slope, intercept, *fitted, *missed])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", NOTE])
