"""What laws of degradation a study's curves follow: the families in print, fitted and compared."""

from pathlib import Path

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.accuracy_law import accuracy_laws, accuracy_text
from wane.eval.curves import load_curves
from wane.eval.relations import SLICE_LAW, Comparison, compare, slice_law

FEWEST = 4  # severities strictly between 0 and 1 of a curve that is fitted
HEADERS = (
    "curve", "shape", "relation", "parameters", "left out", "extrapolated", "next best", "by AICc",
    f"{SLICE_LAW} misses", "slope",
)  # fmt: skip


def laws_in(study: Path) -> str:
    """The tables of a study directory in Markdown, of loss and of accuracy.  Raises ValueError where no curve of
    loss is long enough, FileNotFoundError without curves.parquet."""
    frame = summary.prepare(load_curves(study / "curves.parquet"))
    points = summary.plain_curves(frame)
    found = laws(points)
    if found.empty:
        raise ValueError(
            f"{study}: no curve of fractions has {FEWEST} severities between 0 and 1 that cost something; give its"
            " degradations more severities"
        )
    of_accuracy = accuracy_laws(points, summary.undegraded(frame, "accuracy"))
    tables = [laws_text(found)] + ([] if of_accuracy.empty else [accuracy_text(of_accuracy)])
    return "\n\n".join(tables)


def fractions(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Curve points (`summary.plain_curves`) on all sequences of methods whose severity is a fraction removed."""
    chosen = (points["metric"] == metric) & (points["task"] == "all") & (points["setting_unit"] == "fraction")
    return points[chosen].sort_values("severity", kind="stable")


def laws(points: pd.DataFrame) -> pd.DataFrame:
    """For each curve and group: `relation`, the family whose fit of the mean excess loss predicts left-out
    severities best, its `formula`, `parameters`, `left_out` and `extrapolated` (`relations.Comparison`),
    `runner_up`, and `by_aicc`, the relation of the smallest criterion (None where no fit has one).  Of the slice
    law `slice_misses`, its `left_out` with nothing fitted, and of ln PPL0 / ln PPL = 1 + slope s `slope` and
    `slope_error`."""
    losses = dict(list(fractions(points, "loss").groupby(["curve", "group"])))
    rows = []
    for (curve, group), part in fractions(points, "excess_loss").groupby(["curve", "group"]):
        inside = part[(part["severity"] > 0) & (part["severity"] < 1) & (part["mean"] > 0)]
        if len(inside) < FEWEST:
            continue
        loss = losses[curve, group]
        line = slice_law(loss["severity"], loss["mean"], intercept=1.0)
        rivals = compare(inside["severity"], inside["mean"], undegraded=loss["mean"].iloc[0])
        best, runner_up, *_ = rivals
        least = min((rival.fit for rival in rivals), key=lambda fit: fit.aicc)
        (sliced,) = (rival for rival in rivals if rival.fit.relation.name == SLICE_LAW)
        rows.append(
            {"curve": curve, "group": group, "relation": best.fit.relation.name}
            | {"formula": best.fit.relation.source, "parameters": _parameters(best)}
            | {"left_out": best.left_out, "extrapolated": best.extrapolated}
            | {"runner_up": runner_up.fit.relation.name}
            | {"by_aicc": least.relation.name if np.isfinite(least.aicc) else None}
            | {"slice_misses": sliced.left_out, "slope": line.slope, "slope_error": line.slope_error}
        )
    return pd.DataFrame(rows)


def _parameters(found: Comparison) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in found.fit.parameters.items())


def laws_text(found: pd.DataFrame) -> str:
    """The rows of `laws` in Markdown, and the formulas of the families that stand there."""
    lines = [HEADERS, ["---"] * 4 + ["---:"] * 2 + ["---"] * 2 + ["---:"] * 2]
    for row in found.itertuples():
        numbers = ["" if np.isnan(x) else f"{x:.2f}" for x in (row.left_out, row.extrapolated)]
        named = [row.curve, row.group, row.relation, row.parameters]
        slope = [f"{row.slice_misses:.2f}", f"{row.slope:.3f} ± {row.slope_error:.3f}"]
        lines.append([*named, *numbers, row.runner_up, row.by_aicc or "", *slope])
    said = dict(zip(found["relation"], found["formula"], strict=True))
    formulas = [f"- {name}: {formula}" for name, formula in said.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *formulas])
