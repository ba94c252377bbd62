"""Behavioural redundancy: how much of each shape can go at almost no cost, a table of the report."""

import html

import numpy as np
import pandas as pd

from wane.eval.laws import fractions
from wane.eval.redundancy import behavioural_redundancy
from wane.eval.tables import table

TOLERANCE = 0.02  # nats per token


def removable(points: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """For each group the method that removes the largest share of all weights for at most `tolerance` in loss:
    `curve`, `removed` (that share), `fraction` (the severity) and `bounded` (only a lower bound)."""
    rows = []
    for (group, curve), part in fractions(points, "excess_loss").groupby(["group", "curve"], sort=False):
        if len(part) < 2 or part["severity"].iloc[0] > 0:
            continue
        found = behavioural_redundancy(part["severity"], part["mean"], tolerance)
        share = float(np.interp(found.fraction, part["severity"], part["removed_fraction"]))
        rows.append({"group": group, "curve": curve, "removed": share, **found._asdict()})
    every = pd.DataFrame(rows, columns=["group", "curve", "removed", "fraction", "bounded"])
    return every.sort_values("removed", ascending=False, kind="stable").drop_duplicates("group")


def removable_section(points: pd.DataFrame, groups: list[str]) -> str:
    """The table as HTML, groups in this order; nothing where no curve starts at the undegraded model."""
    most = removable(points).set_index("group")
    if most.empty:
        return ""
    note = (
        f'<p class="note">The largest share of the block weights that can go for at most {TOLERANCE} nats per '
        "token, by the monotone interpolant of the mean curve, under the method of this study that allows most.</p>"
    )
    rows = [[html.escape(group), *_cells(most.loc[group])] for group in groups if group in most.index]
    return note + table(["shape", "removable", "method", "at severity"], rows)


def _cells(row: pd.Series) -> list[str]:
    more = "≥ " if row["bounded"] else ""
    return [f"{more}{row['removed']:.1%}", html.escape(row["curve"]), f"{row['fraction']:.3f}"]
