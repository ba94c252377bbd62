"""What one degraded sublayer does by itself in the first layer, in those between and in the last, a table of the
report: an average over layers would hide the two that most methods spare."""

import html

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.tables import NONE, table

METRIC = "deviation_kl_by_sublayer"
PARTS = {"attention, probability": "attention", "mlp, probability": "mlp"}
DEPTHS = ("first", "interior", "last")
KEYS = ["group", "curve", "severity", "sublayer"]


def depth(rows: pd.DataFrame) -> pd.Series:
    """One of DEPTHS for rows of layers, which `at` counts; the only layer of a model is its first."""
    is_last = rows["at"] == rows["n_layers"] - 1
    return pd.Series(np.select([rows["at"] == 0, is_last], ["first", "last"], "interior"), index=rows.index)


def by_depth(curves: pd.DataFrame) -> pd.DataFrame:
    """KEYS and a column of KL for each of DEPTHS that a model has, at the middle one of each method's severities
    above 0: means over draws and layers, then over seeds."""
    told = curves[
        (curves["metric"] == METRIC) & curves["part"].isin(PARTS.keys()) & (curves["status"] == "ok")
    ]
    rows = summary.plain(summary.named(told[told["severity_2"].fillna(0) == 0]))
    rows = rows[rows["severity"] > 0]
    if rows.empty:
        return pd.DataFrame(columns=[*KEYS, *DEPTHS])
    middle = rows.groupby("curve")["severity"].transform(
        lambda s: np.sort(s.unique())[(s.nunique() - 1) // 2]
    )
    rows = rows[rows["severity"] == middle]
    rows = rows.assign(depth=depth(rows), sublayer=rows["part"].map(PARTS))
    members = rows.groupby([*KEYS, "depth", "member_id"])["value"].mean()
    return members.groupby([*KEYS, "depth"]).mean().unstack().reindex(columns=DEPTHS).reset_index()


def depth_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """The table as HTML, groups in this order; nothing where no sublayer was degraded alone."""
    found = by_depth(curves)
    if found.empty:
        return ""
    note = (
        '<p class="note">KL of the next token when one sublayer alone is degraded and what stands behind it is '
        "read as the final state, in nats per token: in the first layer, as a mean over those between, and in the "
        "last; means over seeds, at the middle one of the severities of each method.</p>"
    )
    cells = found.set_index(["group", "curve", "sublayer"])
    rows = []
    for group in groups:
        mine = found[found["group"] == group]
        for curve, severity in mine[["curve", "severity"]].drop_duplicates().itertuples(index=False):
            values = [_cell(cells, (group, curve, s), d) for s in PARTS.values() for d in DEPTHS]
            rows.append([html.escape(group), html.escape(curve), f"{severity:.2f}", *values])
    headers = [f"{sublayer}, {depth}" for sublayer in PARTS.values() for depth in DEPTHS]
    return note + table(["shape", "method", "severity", *headers], rows)


def _cell(cells: pd.DataFrame, place: tuple[str, str, str], depth: str) -> str:
    value = cells.loc[place, depth] if place in cells.index else np.nan
    return NONE if np.isnan(value) else f"{value:.3g}"
