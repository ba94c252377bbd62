"""The same items read out in every way (`wane.eval.metrics.factorial`), side by side, tables of the report."""

from itertools import product

import pandas as pd

from wane.eval import summary
from wane.eval.metrics.answers import READOUTS
from wane.eval.metrics.factorial import CELLS, READS, TWINS, Cell
from wane.eval.tables import NONE, unfolding

KEYS = ["group", "curve", "task", "severity", "setting", "setting_unit"]
ITEMS = (*TWINS, *TWINS.values())
HEADERS = {
    "options": "4 options", "values": "value set", "vocabulary": "vocabulary",
    "truth": "teacher-forced", "itself": "free-running",
}  # fmt: skip
UNITS = {False: "tokens", True: "whole answers"}


def readouts(curves: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each cell of the factorial for each group, curve, severity and task of ITEMS, of finished
    members degraded in all of their scope: KEYS, metric, `value`, a mean over draws, then members, NaN where one
    of them has none, and `chance`, that of a guess, NaN where it is not known.  A task of which one cell alone was
    measured is left out."""
    rows = curves[curves["metric"].isin(list(CELLS.values())) & curves["task"].isin(ITEMS)]
    rows = summary.plain(summary.named(rows))
    keys = [*KEYS, "metric"]
    members = summary.whole_mean(rows.groupby([*keys, "member_id"])["value"])
    found = pd.DataFrame(
        {"value": summary.whole_mean(members.groupby(keys)), "chance": rows.groupby(keys)["chance"].mean()}
    ).reset_index()
    return found[found.groupby(["group", "curve", "task"])["metric"].transform("nunique") > 1]


def factorial_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """A table for every group and curve that unfolds, groups in this order; nothing without such rows."""
    found = readouts(curves)
    if found.empty:
        return ""
    note = (
        '<p class="note">Accuracy on the same items, and, small, that of a guess. From left to right an answer '
        "competes with more tokens; free-running, it is said behind what the model itself said of it; of whole "
        "answers all tokens must be right. Of a task whose name ends in 3 an answer has three tokens, its twin "
        "has one. What differs between two cells of a row is the readout alone.</p>"
    )
    return note + unfolding(found, groups, _lines)


def _lines(part: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    columns = [
        (readout, reads)
        for reads, readout in product(READS, READOUTS)
        if {CELLS[Cell(readout, reads, whole)] for whole in UNITS} & set(part["metric"])
    ]
    rows = []
    for (_, task), of_task in part.groupby([part["task"].map(ITEMS.index), "task"]):
        for whole, unit in UNITS.items():
            for _, line in of_task.groupby("severity"):
                told = line.set_index("metric")[["value", "chance"]]
                cells = [_cell(told, CELLS[Cell(*column, whole)]) for column in columns]
                if any(cells):
                    setting = f"{line['setting'].iloc[0]:g} {line['setting_unit'].iloc[0]}"
                    rows.append([f"{task} {unit}", setting, *cells])
    headers = ["items", "setting", *(f"{HEADERS[readout]}, {HEADERS[reads]}" for readout, reads in columns)]
    return headers, rows


def _cell(told: pd.DataFrame, metric: str) -> str:
    """Empty where nobody measured it."""
    if metric not in told.index:
        return ""
    value, chance = told.loc[metric]
    if pd.isna(value):
        return NONE
    return f"{value:.3f}" + ("" if pd.isna(chance) else f" <small>{chance:.3g}</small>")
