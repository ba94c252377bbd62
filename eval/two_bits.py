"""Tolerance to 2 bits: whether layers of high effective rank lose more when they alone are rounded, a table
of the report."""

import html

import pandas as pd

from wane.eval import summary
from wane.eval.rank_table import layer_ranks
from wane.eval.redundancy import rank_correlation
from wane.eval.tables import table

BITS = 2
FEWEST_LAYERS = 4  # of three layers, one in three orders is +1 or -1 by chance
MODEL = ("member_id", "train_step")


def layer_costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Excess loss when the weights of one layer alone have BITS bits, a mean over draws, from rows of
    `summary.prepare`: group, curve, member_id, train_step, layer, excess.  NaN where a draw has none.  Methods that
    round something else, activations or the cache, leave the weights, whose rank is asked about, as they are."""
    rows = summary.last_checkpoint(frame)
    rows = rows[(rows["metric"] == "excess_loss") & (rows["task"] == "all") & (rows["pruned"] == "after")]
    rows = rows[(rows["setting_unit"] == "bits") & (rows["setting"] == BITS)]
    alone = rows["layer"].notna() & rows[["head", "matrix", "severity_2"]].isna().all(axis=1)
    alone &= rows["relative_weight_error"] != 0
    over_draws = rows[alone].groupby(["group", "curve", *MODEL, "layer"])["value"]
    return summary.whole_mean(over_draws).rename("excess").reset_index()


def tolerance(curves: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """For each group and curve of `layer_costs`: `correlation`, Spearman's over a member's layers, of
    effective rank (over that of a random matrix, a mean over all matrices of the undegraded layer) with that
    cost, a mean over seeds; `low`, `high`, its range; `layers`, `seeds`.

    curves: the curve table; frame: of `summary.prepare`.  A member without one of the costs, or whose layers are
    alike, does not count; NaN where none counts and where layers are fewer than FEWEST_LAYERS.
    """
    ranks = layer_ranks(curves).groupby([*MODEL, "layer"])["value"].mean().rename("rank")
    both = layer_costs(frame).merge(ranks.reset_index(), on=[*MODEL, "layer"])
    rows = []
    for (group, curve, _), part in both.groupby(["group", "curve", "member_id"]):
        enough = len(part) >= FEWEST_LAYERS
        told = rank_correlation(part["rank"], part["excess"]) if enough else float("nan")
        rows.append({"group": group, "curve": curve, "layers": len(part), "value": told})
    members = pd.DataFrame(rows, columns=["group", "curve", "layers", "value"])
    found = members.groupby(["group", "curve"]).agg(
        correlation=("value", "mean"), low=("value", "min"), high=("value", "max"),
        layers=("layers", "min"), seeds=("value", "count"),
    )  # fmt: skip
    return found.reset_index()


def two_bits_section(curves: pd.DataFrame, frame: pd.DataFrame, groups: list[str]) -> str:
    """The table as HTML, groups in this order; nothing where no layer alone had 2 bits or no rank was
    measured."""
    found = tolerance(curves, frame)
    if found.empty:
        return ""
    note = (
        '<p class="note">Rank correlation, over the layers of a member, of effective rank with the excess '
        f"loss when the weights of that layer alone have {BITS} bits; mean and range over seeds. Above 0, "
        "layers of higher rank tolerate it less.</p>"
    )
    rows = [
        [html.escape(group), html.escape(row.curve), _correlation(row), str(row.layers), str(row.seeds)]
        for group in groups
        for row in found[found["group"] == group].itertuples()
    ]
    return note + table(["shape", "method", "correlation", "layers", "seeds"], rows)


def _correlation(row) -> str:
    if not row.seeds:
        return '<span class="closed">not assessable</span>'
    return f"{row.correlation:+.2f} <small>[{row.low:+.2f}, {row.high:+.2f}]</small>"
