"""What each way of making a model smaller gives and costs: compression, what is left of tasks, measured
speed."""

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd

from wane.eval import summary, tables
from wane.scaling.degrade import GROUPS

ALWAYS, AT = ("sparsegpt", "wanda"), 0.5  # what others are compared with, measured here or not
NOT_WEIGHTS = ("activations", "kv_cache")  # of precision: they round what passes through
KINDS = ("Weights", "Width", "Depth", "Routing", "Precision")
COMPRESSING = [name for kind in KINDS for name in GROUPS[kind] if name not in NOT_WEIGHTS]
FLOOR = 0.1  # of the way from chance to ceiling: below, a ratio of two scores is noise
KEYS = ["group", "curve", "severity"]


def costs(frame: pd.DataFrame, groups: list[str], speed: Mapping) -> pd.DataFrame:
    """One row per shape, method and compression: group, curve, severity, method, setting, setting_unit,
    compression_ratio, one column `retention TASK` per task, and `forward` and `request`, the quartiles of the
    measured speed-up.  NaN or None where nothing was measured.

    frame: what `summary.prepare` returned; speed: what `wane speed` wrote, empty where it has not run.
    All methods that compress weights stand at all their severities, one after the other too; SparseGPT and
    Wanda at 50 % by name alone where they were not measured there.
    """
    rows = summary.plain(frame)
    rows = rows[(rows["status"] == "ok") & (rows["severity"] > 0)]
    compressing = [name for name in rows["method"].unique() if set(name.split("+")) <= set(COMPRESSING)]
    rows = rows[rows["method"].isin(compressing)]
    by = [*KEYS, "method", "setting_unit"]
    found = rows.groupby(by)[["setting", "compression_ratio"]].mean().reset_index()
    there = found[np.isclose(found["severity"], AT)]
    asked = {"severity": AT, "setting": AT, "setting_unit": "fraction"}
    missing = [
        {"group": group, "curve": method, "method": method} | asked
        for group in groups
        for method in ALWAYS
        if not ((there["group"] == group) & (there["method"] == method)).any()
    ]
    table = pd.DataFrame(found.to_dict("records") + missing, columns=[*found.columns])
    table = table.join(retention(frame, rows), on=KEYS)
    measured = speed_ups(speed)
    keys = zip(table["group"], table["curve"], table["severity"].round(6), strict=True)
    timed = [measured.get(key, {}) for key in keys]
    table = table.assign(**{kind: [found.get(kind) for found in timed] for kind in ("forward", "request")})
    methods = [*ALWAYS, *COMPRESSING]
    place = {"group": groups.index, "method": lambda name: methods.index(name.partition("+")[0])}
    return table.sort_values(
        ["group", "method", "curve", "severity"],
        key=lambda column: column.map(place[column.name]) if column.name in place else column,
        ignore_index=True,
    )


def retention(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """(accuracy - chance) / (ceiling - chance) over that of the same member undegraded, a mean over its
    draws, then over members: a row per group, curve and severity, a column per task.  NaN where a member
    scored below FLOOR before: it has nothing to keep."""
    rows = rows[rows["metric"] == "accuracy"]
    mine = rows.groupby([*KEYS, "member_id", "task"])["value"].mean().reset_index()
    whole = summary.undegraded(frame, "accuracy").rename(columns={"value": "whole"})
    both = mine.merge(whole, on=["group", "member_id", "task"])
    reach, before = both["ceiling"] - both["chance"], both["whole"] - both["chance"]
    both["kept"] = ((both["value"] - both["chance"]) / before).where((reach > 0) & (before >= FLOOR * reach))
    kept = both.groupby([*KEYS, "task"])["kept"].agg(
        ["sum", "count", "size"]
    )  # a sum leaves NaN out, a size not
    mean = (kept["sum"] / kept["size"]).where(kept["count"] == kept["size"])
    return mean.unstack("task").add_prefix("retention ")


def speed_ups(speed: Mapping) -> dict[tuple[str, str, float], dict[str, dict]]:
    """(group, curve, severity) -> quartiles of the speed-up: `forward` of the largest batch, `request` of the
    smallest."""
    found = {}
    for point in speed.get("points", []):
        if "forward" not in point:
            continue
        group = point["shape"] if point["arm"] == "" else f"{point['shape']} ({point['arm']})"
        curve = summary.curve_name(*(point[name] for name in ("method", "scope", "settings", "calibration")))
        scored = max(point["forward"], key=lambda timing: timing["batch"])
        answered = min(point["request"], key=lambda timing: timing["batch"])
        found[group, curve, round(point["severity"], 6)] = {
            "forward": scored["speed_up"], "request": answered["speed_up"],
        }  # fmt: skip
    return found


def cost_table(table: pd.DataFrame, gate: pd.DataFrame, speed: Mapping) -> str:
    """The table as HTML; cells that were not measured are empty.  gate: of `summary.competence`."""
    tasks = [name for name in table.columns if name.startswith("retention ")]
    passed = gate.set_index(["task", "group"])["assessable"].to_dict() if len(gate) else {}
    batches = (speed.get("timing") or {}).get("batches") or [None]
    rows = []
    for _, row in table.iterrows():
        kept = [_kept(row[name], passed.get((name.partition(" ")[2], row["group"]), False)) for name in tasks]
        timed = row["forward"] is not None
        rows.append([
            html.escape(row["group"]),
            html.escape(row["curve"]),
            _setting(row["setting"], row["setting_unit"]),
            "" if pd.isna(row["compression_ratio"]) else f"{row['compression_ratio']:.2f}",
            *kept,
            _speed_up(row["forward"]),
            _speed_up(row["request"]),
            html.escape(str(speed.get("device", ""))) if timed else "",
        ])  # fmt: skip
    names = [html.escape(name.partition(" ")[2]) for name in tasks]
    headers = ["shape", "method", "setting", "compression", *names]
    return tables.table([*headers, *_speed_headers(batches), "device"], rows)


def _setting(setting: float, unit: str) -> str:
    """What was asked for: a share removed, bits, or how many times smaller."""
    if unit == "fraction":
        return f"{100 * setting:.3g} %"
    return f"{setting:.3g} bits" if unit == "bits" else f"{setting:.3g} ×"


def _speed_headers(batches: list) -> tuple[str, str]:
    if None in batches:
        return "speed-up", "speed-up of a request"
    together = "one request" if min(batches) == 1 else f"{min(batches)} requests"
    return f"speed-up, batch {max(batches)}", f"speed-up, {together}"


def _kept(value: float, assessable: bool) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.0%}" if assessable else f'<span class="closed">{value:.0%}</span>'


def _speed_up(quartiles: Mapping | None) -> str:
    if quartiles is None:
        return ""
    return f"{quartiles['median']:.2f} <small>[{quartiles['low']:.2f}, {quartiles['high']:.2f}]</small>"
