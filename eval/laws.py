"""What laws of degradation a study's curves follow: the families in print, fitted and compared."""

from pathlib import Path

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.curves import load_curves
from wane.eval.relations import RELATIONS, Comparison, compare, slice_law

FEWEST = 4  # severities strictly between 0 and 1 of a curve that is fitted
HEADERS = ("curve", "shape", "relation", "parameters", "left out", "extrapolated", "next best", "slope")


def laws_in(study: Path) -> str:
    """The table of a study directory in Markdown.  Raises ValueError where no curve is long enough,
    FileNotFoundError without curves.parquet."""
    points = summary.plain_curves(summary.prepare(load_curves(study / "curves.parquet")))
    found = laws(points)
    if found.empty:
        raise ValueError(
            f"{study}: no curve of fractions has {FEWEST} severities between 0 and 1 that cost something; give its"
            " degradations more severities"
        )
    return laws_text(found)


def fractions(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Curve points (`summary.plain_curves`) on all sequences of methods whose severity is a fraction removed."""
    chosen = (points["metric"] == metric) & (points["task"] == "all") & (points["setting_unit"] == "fraction")
    return points[chosen].sort_values("severity", kind="stable")


def laws(points: pd.DataFrame) -> pd.DataFrame:
    """For each curve and group: `relation`, the family whose fit of the mean excess loss predicts left-out
    severities best, its `parameters`, `left_out` and `extrapolated` (`relations.Comparison`), `runner_up`; and of
    the slice law, ln PPL0 / ln PPL = 1 + slope s, `slope` and `slope_error`."""
    losses = dict(list(fractions(points, "loss").groupby(["curve", "group"])))
    rows = []
    for (curve, group), part in fractions(points, "excess_loss").groupby(["curve", "group"]):
        inside = part[(part["severity"] > 0) & (part["severity"] < 1) & (part["mean"] > 0)]
        if len(inside) < FEWEST:
            continue
        best, *others = compare(inside["severity"], inside["mean"])
        line = slice_law(losses[curve, group]["severity"], losses[curve, group]["mean"], intercept=1.0)
        rows.append(
            {"curve": curve, "group": group, "relation": best.fit.relation, "parameters": _parameters(best)}
            | {"left_out": best.left_out, "extrapolated": best.extrapolated}
            | {"runner_up": others[0].fit.relation if others else None}
            | {"slope": line.slope, "slope_error": line.slope_error}
        )
    return pd.DataFrame(rows)


def _parameters(found: Comparison) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in found.fit.parameters.items())


def laws_text(found: pd.DataFrame) -> str:
    """The rows of `laws` in Markdown, and the formulas of the families that stand there."""
    lines = [HEADERS, ["---"] * 4 + ["---:"] * 2 + ["---", "---:"]]
    for row in found.itertuples():
        numbers = ["" if np.isnan(x) else f"{x:.2f}" for x in (row.left_out, row.extrapolated)]
        slope = f"{row.slope:.3f} ± {row.slope_error:.3f}"
        lines.append(
            [row.curve, row.group, row.relation, row.parameters, *numbers, row.runner_up or "", slope]
        )
    said = dict.fromkeys(found["relation"])
    formulas = [f"- {name}: {RELATIONS[name].source}" for name in RELATIONS if name in said]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *formulas])
