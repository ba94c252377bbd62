"""From which severity on the models of each shape collapse under each method, a table of the report."""

import html

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.collapse import collapses
from wane.eval.tables import NONE, table

METRICS = ("output_entropy", "distinct_1")
KEYS = ["group", "curve", "temperature"]


def onsets(curves: pd.DataFrame) -> pd.DataFrame:
    """For each group, curve and temperature of the curve table, on all sequences and without a second
    degradation or recovery: `severity`, the onset of `collapses` as a median over draws, then members;
    `collapsed` of `members` have one; `up_to`, the largest severity at which all were measured.

    What never collapses counts as later than everything else, so that the median is infinite where half of the
    members or more never do.
    """
    told = curves[curves["metric"].isin(METRICS) & (curves["task"] == "all")]
    rows = summary.plain(summary.named(told[told["severity_2"].fillna(0) == 0]))
    parts = [
        collapses(part).assign(group=group, curve=curve) for (group, curve), part in rows.groupby(KEYS[:2])
    ]
    found = pd.concat([pd.DataFrame(columns=[*KEYS[:2], "at", "member_id", "collapse"]), *parts])
    found["severity"] = found["collapse"].to_numpy(float, na_value=np.inf)
    members = found.rename(columns={"at": "temperature"}).groupby([*KEYS, "member_id"])["severity"].median()
    known = rows.dropna(subset="value").rename(columns={"at": "temperature"})
    reached = known.groupby([*KEYS, "member_id", "draw", "metric"])["severity"].max().groupby(KEYS).min()
    over_members = members.groupby(KEYS)
    table = over_members.agg(severity="median", collapsed=lambda s: np.isfinite(s).sum(), members="size")
    return table.join(reached.rename("up_to")).reset_index()


def collapse_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """The table as HTML, groups in this order; nothing where no model spoke by itself."""
    found = onsets(curves)
    if found.empty:
        return ""
    note = (
        '<p class="note">The severity from which on the entropy, or the share of different tokens, of a '
        "model that speaks by itself is more than twice or less than half the undegraded "
        "one's; a median over members, and how many of them collapse.</p>"
    )
    temperatures = sorted(found["temperature"].unique())
    cells = {(row.group, row.curve, row.temperature): _cell(row) for row in found.itertuples()}
    rows = [
        [html.escape(group), html.escape(curve), *(cells.get((group, curve, t), NONE) for t in temperatures)]
        for group in groups
        for curve in found.loc[found["group"] == group, "curve"].unique()
    ]
    return note + table(["shape", "method", *(f"temperature {t:g}" for t in temperatures)], rows)


def _cell(row) -> str:
    if np.isfinite(row.severity):
        told = f"{row.severity:.2f}"
    else:
        told = f"{'&gt;' if row.collapsed else 'none up to'} {row.up_to:.2f}"
    return f"{told} <small>{row.collapsed}/{row.members}</small>"
