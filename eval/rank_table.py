"""Effective rank of trained matrices beside that of random and of the initial ones, a table of the report."""

import html

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.tables import NONE, table
from wane.scaling.shape import MLP

METRIC, OF_INITIAL = "relative_effective_rank", "effective_rank_of_initial"
MATRICES = ("q", "k", "v", "o", *MLP)


def layer_ranks(curves: pd.DataFrame, metric: str = METRIC) -> pd.DataFrame:
    """Effective rank of every matrix of every undegraded member over that of a random one of its size, or another
    such metric, as the curve table tells it: group, member_id, train_step, matrix, layer, value.  A layer without
    a value is left out."""
    rows = curves[(curves["metric"] == metric) & (curves["status"] == "ok") & (curves["pruned"] == "never")]
    keys = ["group", "member_id", "train_step", "matrix", "layer"]
    rows = rows.assign(group=summary.groups(rows), matrix=rows["part"], layer=rows["at"].astype(int))
    return rows.groupby(keys)["value"].mean().reset_index()


def ranks(curves: pd.DataFrame) -> pd.DataFrame:
    """For each group and matrix: `of_random`, effective rank of the finished members over that of a random
    matrix of the same size, and `of_initial`, over that of the same layer of the same member before training;
    means over layers, then `seeds`.  NaN where the initial rank is 0."""
    place = ["group", "member_id", "matrix", "layer"]
    last = {}
    for name, metric in (("of_random", METRIC), ("of_initial", OF_INITIAL)):
        rows = summary.last_checkpoint(layer_ranks(curves, metric))
        last[name] = rows[rows["train_step"] > 0].set_index(place)["value"]
    both = pd.concat(last, axis=1)
    members = both.groupby(["group", "matrix", "member_id"])[list(last)].mean()
    found = members.groupby(["group", "matrix"]).mean()
    return found.assign(seeds=members.groupby(["group", "matrix"]).size()).reset_index()


def rank_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """The table as HTML, groups in this order; nothing where nobody asked for it."""
    found = ranks(curves)
    if found.empty:
        return ""
    note = (
        '<p class="note">Effective rank of each finished matrix over that of a random one of its size, '
        "and, small, over that of the same matrix before training; means over layers and "
        "seeds. Below 1, training has concentrated the matrix in fewer directions.</p>"
    )
    matrices = [name for name in MATRICES if name in set(found["matrix"])]
    cells = found.set_index(["group", "matrix"])
    rows = [
        [html.escape(group), *(_cell(cells, (group, name)) for name in matrices)]
        for group in groups
        if group in set(found["group"])
    ]
    return note + table(["shape", *matrices], rows)


def _cell(cells: pd.DataFrame, place: tuple[str, str]) -> str:
    if place not in cells.index:
        return NONE
    random, initial = cells.loc[place, ["of_random", "of_initial"]]
    return f"{random:.3f} <small>{NONE if np.isnan(initial) else f'{initial:.3f}'}</small>"
