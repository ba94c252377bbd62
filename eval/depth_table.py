"""What one degraded sublayer does by itself in the first layer, in those between and in the last, tables of the
report: an average over layers would hide the two that most methods spare."""

import html
from collections.abc import Iterable

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.tables import NONE, table, unfolding

KL, ORTHOGONAL = "deviation_kl_by_sublayer", "deviation_orthogonal_by_sublayer"
SUBLAYERS = ("attention", "mlp")
DEPTHS = ("first", "interior", "last")
KEYS = ["group", "curve", "severity", "sublayer", "space"]
# Before and behind the unembedding, each without the final norm and with it.
SPACES = {
    "embedding": "stream",
    "normed": "stream, normed",
    "unnormed logit": "logits",
    "logit": "logits, normed",
}


def depth(rows: pd.DataFrame) -> pd.Series:
    """One of DEPTHS for rows of layers, which `at` counts; the only layer of a model is its first."""
    is_last = rows["at"] == rows["n_layers"] - 1
    return pd.Series(np.select([rows["at"] == 0, is_last], ["first", "last"], "interior"), index=rows.index)


def by_depth(curves: pd.DataFrame, metric: str, spaces: Iterable[str]) -> pd.DataFrame:
    """KEYS and a column of the metric, one of KL and ORTHOGONAL, for each of DEPTHS that a model has, at the middle
    one of each method's severities above 0: means over draws and layers, then over seeds."""
    parts = {f"{sublayer}, {space}": (sublayer, space) for sublayer in SUBLAYERS for space in spaces}
    told = curves[
        (curves["metric"] == metric) & curves["part"].isin(parts.keys()) & (curves["status"] == "ok")
    ]
    rows = summary.plain(summary.named(told[told["severity_2"].fillna(0) == 0]))
    rows = rows[rows["severity"] > 0]
    if rows.empty:
        return pd.DataFrame(columns=[*KEYS, *DEPTHS])
    middle = rows.groupby("curve")["severity"].transform(
        lambda s: np.sort(s.unique())[(s.nunique() - 1) // 2]
    )
    rows = rows[rows["severity"] == middle]
    sublayers, spaces = zip(*rows["part"].map(parts), strict=True)
    rows = rows.assign(depth=depth(rows), sublayer=sublayers, space=spaces)
    members = rows.groupby([*KEYS, "depth", "member_id"])["value"].mean()
    return members.groupby([*KEYS, "depth"]).mean().unstack().reindex(columns=DEPTHS).reset_index()


def depth_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """The tables as HTML, groups in this order; nothing where no sublayer was degraded alone."""
    kl, orthogonal = by_depth(curves, KL, ["probability"]), by_depth(curves, ORTHOGONAL, SPACES)
    return _kl(kl, groups) + _orthogonal(orthogonal, groups)


def _kl(found: pd.DataFrame, groups: list[str]) -> str:
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
            values = [_cell(cells, (group, curve, s), d) for s in SUBLAYERS for d in DEPTHS]
            rows.append([html.escape(group), html.escape(curve), f"{severity:.2f}", *values])
    headers = [f"{sublayer}, {depth}" for sublayer in SUBLAYERS for depth in DEPTHS]
    return note + table(["shape", "method", "severity", *headers], rows)


def _orthogonal(found: pd.DataFrame, groups: list[str]) -> str:
    """A table for every group and curve that unfolds: sublayers and depths down, SPACES across."""
    if found.empty:
        return ""
    note = (
        '<p class="note">Length of the change across the undegraded state, over the length of that state, of '
        "the same sublayers at the same severities: before the unembedding (stream) and behind it (logits), each "
        "without the final norm and with it.</p>"
    )
    return note + unfolding(found, groups, _spaces)


def _spaces(part: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    cells = part.set_index(["sublayer", "space"])
    told = [d for d in DEPTHS if part[d].notna().any()]
    rows = [
        [sublayer, depth, *(_cell(cells, (sublayer, space), depth) for space in SPACES)]
        for sublayer in SUBLAYERS
        for depth in told
    ]
    return ["sublayer", "layer", *SPACES.values()], rows


def _cell(cells: pd.DataFrame, place: tuple[str, ...], depth: str) -> str:
    value = cells.loc[place, depth] if place in cells.index else np.nan
    return NONE if np.isnan(value) else f"{value:.3g}"
