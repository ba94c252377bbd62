"""Masks fitted on one task and evaluated on all, matrices of the report."""

import html

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.tables import NONE, table

TASK = "task:"  # what the calibration of a mask fitted on one task begins with
USUAL = "same"  # calibration on the training distribution


def transfer(frame: pd.DataFrame) -> pd.DataFrame:
    """What a mask costs because it was fitted on one task, from rows of `summary.prepare`.

    A row per group, curve (told without calibration), severity, task that it is `fitted_on` and `task` of
    evaluation (all: every sequence): `setting`, `setting_unit`, `change`, the excess loss minus that of the same
    member under `reference`, a mean over draws, then seeds, and `seeds`.  The reference is calibration "same";
    where a group, curve and severity has none, "diagonal", the mask fitted on the task of evaluation.
    """
    rows = summary.plain(frame)
    rows = rows[(rows["metric"] == "excess_loss") & (rows["status"] == "ok") & ~summary.untouched(rows)]
    source = rows["calibration"].fillna("")
    rows = rows[(source == USUAL) | source.str.startswith(TASK)]
    rows = rows.assign(
        fitted_on=rows["calibration"].where(rows["calibration"] != USUAL).str.removeprefix(TASK)
    )
    rows = summary.named(rows.assign(calibration=None).drop(columns="curve"))
    place, about = ["group", "curve", "severity"], ["setting", "setting_unit"]
    each = [*place, "member_id", "task"]
    cells = rows.groupby([*each, *about, "fitted_on"], dropna=False)["value"].mean().reset_index()
    usual, fitted = cells[cells["fitted_on"].isna()], cells[cells["fitted_on"].notna()]
    has_usual = fitted.set_index(place).index.isin(usual.set_index(place).index)
    diagonal = fitted[fitted["fitted_on"] == fitted["task"]]
    compared = ((USUAL, fitted[has_usual], usual), ("diagonal", fitted[~has_usual], diagonal))
    both = pd.concat(
        part.merge(base[[*each, "value"]], on=each, suffixes=("", "_reference")).assign(reference=name)
        for name, part, base in compared
    )
    both["change"] = both["value"] - both["value_reference"]
    found = both.groupby([*place, *about, "reference", "fitted_on", "task"])["change"]
    return found.agg(change="mean", seeds="size").reset_index()


def transfer_section(frame: pd.DataFrame, groups: list[str]) -> str:
    """A matrix for every group, curve and severity, groups in this order; nothing where no mask was fitted
    on a task."""
    found = transfer(frame)
    if found.empty:
        return ""
    note = (
        '<p class="note">Excess loss on the task of the column under what was fitted on the task of the '
        "row, minus that under the reference, a mean over seeds: above 0 it costs more. "
        "The reference is what was fitted on the training distribution (same) or, where "
        "that was not swept, on the task of the column (diagonal).</p>"
    )
    matrices = "".join(
        _matrix(part)
        for group in groups
        for _, part in found[found["group"] == group].groupby(["curve", "severity"])
    )
    return f'{note}<div class="panels">{matrices}</div>'


def _matrix(part: pd.DataFrame) -> str:
    about = part.iloc[0]
    at = f"{about['setting']:g} {about['setting_unit']}, reference: {about['reference']}"
    heading = f"<h3>{html.escape(about['group'])} <small>{html.escape(about['curve'])} · {at}</small></h3>"
    cells = part.pivot_table(index="fitted_on", columns="task", values="change", aggfunc="mean")
    rows = [
        [html.escape(name), *(NONE if np.isnan(value) else f"{value:+.3f}" for value in line)]
        for name, line in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    return f"<figure>{heading}{table(['fitted on', *map(html.escape, cells.columns)], rows)}</figure>"
