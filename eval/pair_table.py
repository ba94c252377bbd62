"""How much members of different seeds still represent alike at every severity, a table of the report."""

import html

import pandas as pd

from wane.eval import summary
from wane.eval.pairs import PARTS
from wane.eval.tables import NONE, table

METRIC = "seed_cka_unbiased"
KEYS = ["group", "curve", "severity", "setting", "setting_unit"]


def overlaps(curves: pd.DataFrame) -> pd.DataFrame:
    """Unbiased CKA between seeds of each group, curve and severity: a column for each of PARTS, a mean over levels
    and draws, then `pairs` of members.  Of a composition, where the second method does nothing."""
    rows = curves[(curves["metric"] == METRIC) & (curves["status"] == "ok")]
    rows = summary.named(rows[rows["severity_2"].fillna(0) == 0])
    pairs = rows.groupby([*KEYS, "part", "member_id"])["value"].mean().groupby([*KEYS, "part"])
    found = pairs.mean().unstack("part").reindex(columns=list(PARTS))
    return found.assign(pairs=pairs.size().groupby(KEYS).max()).reset_index()


def pair_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """A table for every curve, groups in this order; nothing where no members were compared."""
    found = overlaps(curves)
    if found.empty:
        return ""
    note = (
        '<p class="note">Unbiased linear CKA of the residual stream between members of different seeds, both '
        "degraded at the severity of the column and, small, one of them with the other as it was trained; means "
        "over levels, draws and pairs. 1: the same up to rotation and scale.</p>"
    )
    return note + "".join(
        _of_curve(curve, part, groups) for curve, part in found.groupby("curve", sort=False)
    )


def _of_curve(curve: str, part: pd.DataFrame, groups: list[str]) -> str:
    columns = part.sort_values("severity").drop_duplicates("severity")
    headers = [f"{c.setting:g} {c.setting_unit}" for c in columns.itertuples()]
    cells = part.set_index(["group", "severity"])[list(PARTS)]
    rows = [
        [html.escape(group), *(_cell(cells, (group, severity)) for severity in columns["severity"])]
        for group in groups
        if group in set(part["group"])
    ]
    return f"<h3>{html.escape(curve)}</h3>{table(['shape', *headers], rows)}"


def _cell(cells: pd.DataFrame, place: tuple[str, float]) -> str:
    if place not in cells.index:
        return NONE
    both, one = cells.loc[place]
    return f"{both:.3f} <small>{one:.3f}</small>"
