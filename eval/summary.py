"""What the report and its figures show, computed from the curve table and nothing else.

`named` adds to every row `group` (shape and arm) and `curve` (method, scope and settings in words), `prepare` the
derived metrics too; every other function takes a frame that one of them returned.
"""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from wane.eval.axes import AXES, SELECTORS, with_noise
from wane.eval.competence import WEAKEST, WEAKEST_SCORE, gate, with_parts

FEW_SEEDS = 5  # below, a t-interval is so wide that the plain range says more


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with `group`, `curve`, the axes of noise and rows of excess loss (loss(s) - loss(0)) and perplexity
    added.  Values that are of one layer, level or position are left out; what the competence gate reads of them is
    kept.  A value of a named part has the metric "metric, part": each part is a curve of its own."""
    frame = with_parts(frame, untouched(frame))
    frame = named(frame[frame["axis"].isna()])
    of_part = frame["metric"].str.cat(frame["part"], sep=", ")
    frame = with_noise(frame.assign(metric=of_part.fillna(frame["metric"])))
    loss = frame[frame["metric"] == "loss"]
    derived = [_excess_loss(loss)]
    if not (frame["metric"] == "perplexity").any():
        derived.append(loss.assign(metric="perplexity", unit="", value=np.exp(loss["value"])))
    return pd.concat([frame, *[rows for rows in derived if len(rows)]], ignore_index=True)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the curve table, those of one layer, level or position too, with `group` and `curve`."""
    keys = ["method", "scope", "settings", "calibration", "setting_2", "setting_2_unit"]
    names = frame[keys].drop_duplicates()
    names["curve"] = [curve_name(*values) for values in names.itertuples(index=False)]
    return frame.assign(group=groups(frame)).merge(names, on=keys, how="left")


def groups(frame: pd.DataFrame) -> pd.Series:
    """Shape and, where there is one, arm of every row."""
    return frame["shape"].where(frame["arm"] == "", frame["shape"] + " (" + frame["arm"] + ")")


def curve_name(
    method: str,
    scope: str,
    settings: str,
    calibration: str | None = None,
    setting_2: float | None = None,
    setting_2_unit: str | None = None,
) -> str:
    """Method, then scope, settings and calibration where they are not the defaults, then the second severity."""
    parts = [method] + ([] if scope == "all" else [scope])
    parts += [f"{key} {value}" for key, value in json.loads(settings).items()]
    if not (pd.isna(calibration) or calibration == "same"):
        parts.append(f"calibrated on {calibration}")
    if not pd.isna(setting_2):
        parts.append(f"then {setting_2:g} {setting_2_unit}")
    return " · ".join(parts)


def _excess_loss(loss: pd.DataFrame) -> pd.DataFrame:
    """Loss minus that of the undegraded model: measured in the same curve if it was, else of the same member."""
    member = ["member_id", "train_step", "evaluation_digest", "task"]
    curve = [*member, "curve", "draw"]
    undegraded = loss[untouched(loss)]
    bases = [undegraded.groupby(keys)["value"].mean() for keys in (curve, member)]
    own, shared = (
        loss[keys].join(base, on=keys)["value"] for keys, base in zip((curve, member), bases, strict=True)
    )
    excess = loss["value"] - own.fillna(shared)
    known = excess.notna() | (loss["status"] == "diverged")
    return loss.assign(metric="excess_loss", value=excess)[known]


def untouched(frame: pd.DataFrame) -> pd.Series:
    """Rows of models as they were trained: both severities 0."""
    return (frame["severity"] == 0) & (frame["severity_2"].fillna(0) == 0)


def whole_mean(grouped):
    """The mean of each group of a series or frame, NaN where one of its values is."""
    return grouped.mean().where(grouped.count().eq(grouped.size(), axis=0))


def last_checkpoint(frame: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each member's last measured training step."""
    return frame[frame["train_step"] == frame.groupby("member_id")["train_step"].transform("max")]


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of finished models degraded after training in all of their scope: what the curves show."""
    rows = last_checkpoint(frame)
    return rows[rows[SELECTORS].isna().all(axis=1) & rows["pruned"].isin(["never", "after"])]


def curve_points(frame: pd.DataFrame, keys: Sequence[str] = ("curve", "group")) -> pd.DataFrame:
    """Mean and band over seeds per severity, for each of `keys`, metric and task.

    Draws are averaged within a seed (member) first.  Bands: minimum and maximum below 5 seeds, else the 95 %
    t-interval of the mean.  A severity that some seed of the curve lacks is left out: a mean over
    changing sets of seeds would jump.  Columns: keys, metric, task, severity, the axes, setting,
    setting_unit, mean, low, high, seeds.
    """
    by = [*keys, "metric", "task", "severity"]
    others = [axis for axis in AXES if axis != "severity"] + ["setting"]
    frame = frame[frame["status"] == "ok"]
    seeds = whole_mean(frame.groupby([*by, "setting_unit", "member_id"])[["value", *others]]).reset_index()
    grouped = seeds.groupby([*by, "setting_unit"])
    points = whole_mean(grouped[others])
    points[["mean", "low", "high", "sd", "seeds"]] = grouped["value"].agg(
        ["mean", "min", "max", "std", "count"]
    )
    points = points.reset_index()
    many = points["seeds"] >= FEW_SEEDS
    half = interval_factor(points["seeds"].clip(lower=2)) * points["sd"]
    points["low"] = points["low"].where(~many, points["mean"] - half)
    points["high"] = points["high"].where(~many, points["mean"] + half)
    complete = points.groupby([*keys, "metric", "task"])["seeds"].transform("max") == points["seeds"]
    return points[complete].drop(columns="sd")


def bit_ticks(points: pd.DataFrame) -> dict[float, str]:
    """severity -> bits, where a curve was set in bits: severity 1 - bits/16 crowds what matters, 8 bits and
    below, at the right end of its axis, so there the axis starts and bits are its labels.  Else empty."""
    rows = points[(points["setting_unit"] == "bits") & (points["setting"] <= 8)]
    return {float(s): f"{bits:.2g}" for s, bits in zip(rows["severity"], rows["setting"], strict=True)}


def plain_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of `plain` rows that form a curve: at least two severities."""
    points = curve_points(plain(frame))
    return points[points.groupby(["curve", "group", "metric", "task"])["severity"].transform("nunique") > 1]


def member_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of `plain` rows, a mean over the draws of each member: `curve_points` by member_id."""
    rows = plain(frame)
    return curve_points(rows.assign(seed=rows["member_id"]), keys=("curve", "group", "seed")).rename(
        columns={"seed": "member_id"}
    )


def interval_factor(seeds):
    """Half width of the 95 % t-interval of a mean over `seeds` values, in standard deviations."""
    return stats.t.ppf(0.975, seeds - 1) / np.sqrt(seeds)


def undegraded(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per finished member and task at severity 0: group, member_id, task, value, chance, ceiling, and the
    columns of `with_parts`."""
    rows = plain(frame)
    rows = rows[(rows["metric"] == metric) & untouched(rows) & (rows["status"] == "ok")]
    columns = dict.fromkeys(["value", "chance", "ceiling", WEAKEST_SCORE], "mean") | {WEAKEST: "first"}
    return rows.groupby(["group", "member_id", "task"]).agg(columns).reset_index()


def competence(frame: pd.DataFrame, *, score: float, share: float) -> pd.DataFrame:
    """The competence gate of finished models, per task and group; columns of `gate`."""
    return gate(undegraded(frame, "accuracy"), ["task", "group"], score=score, share=share)


def diverged(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per member and reason of rows without a value: group, member_id, seeds, reason, rows, all_rows."""
    keys = ["group", "member_id", "init_seed", "data_seed"]
    measured = frame[~frame["metric"].isin(["excess_loss"])]
    total = measured.groupby("member_id").size().rename("all_rows")
    rows = measured[measured["status"] == "diverged"].groupby([*keys, "reason"]).size().rename("rows")
    return rows.reset_index().join(total, on="member_id")


def heat_maps(frame: pd.DataFrame) -> list[dict]:
    """Excess loss when one layer, head or matrix alone is degraded, a mean over draws and seeds.

    Each map: curve, group, kind, rows, columns, values [rows][columns] (None where not measured), severity
    (None when it is the columns).  Heads and matrices are shown at the largest severity.
    """
    rows = last_checkpoint(frame)
    rows = rows[
        rows[SELECTORS].notna().any(axis=1) & (rows["metric"] == "excess_loss") & (rows["task"] == "all")
    ]
    maps = []
    for (curve, group), part in rows[rows["status"] == "ok"].groupby(["curve", "group"]):
        by_head = part["head"].notna()
        by_matrix = part["matrix"].notna() & ~by_head
        by_layer = ~by_head & ~by_matrix
        top = part["severity"] == part["severity"].max()
        for kind, chosen, down, across in (
            ("layer × severity", by_layer, "layer", "severity"),
            ("head × layer", by_head & top, "head", "layer"),
            ("matrix × layer", by_matrix & top, "matrix", "layer"),
        ):
            table = part[chosen].pivot_table(index=down, columns=across, values="value", aggfunc="mean")
            if table.size:
                severity = None if across == "severity" else float(part["severity"].max())
                maps.append(
                    {"curve": curve, "group": group, "kind": kind, "severity": severity} | _matrix(table)
                )
    return maps


def _matrix(table: pd.DataFrame) -> dict:
    values = table.to_numpy(dtype=float)
    return {"rows": table.index.tolist(), "columns": table.columns.tolist(), "values": values.tolist()}


def trained_under_mask(frame: pd.DataFrame) -> pd.DataFrame:
    """Points of loss for the methods that were also applied before or during training: one line per `mode`.

    Here a shape is compared with itself, so the arms of one shape stand together; keys curve, shape, mode.
    """
    rows = last_checkpoint(frame)
    rows = rows[rows[SELECTORS].isna().all(axis=1) & (rows["metric"] == "loss") & (rows["task"] == "all")]
    masked = rows["pruned"].isin(["during", "before"])
    rows = rows[rows["curve"].isin(rows.loc[masked, "curve"].unique()) & (masked | (rows["arm"] == ""))]
    step = rows["pruned_at_step"].astype("string").fillna("?")
    mode = rows["pruned"].map(
        {"never": "after training", "after": "after training", "before": "before training"}
    )
    mode = mode.fillna("at step " + step)
    mode = mode.where(rows["arm"] == "", mode + " (" + rows["arm"] + ")")
    return curve_points(rows.assign(mode=mode), keys=("curve", "shape", "mode"))
