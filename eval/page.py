"""The report page: the JSON that its script draws from, and the document that holds everything."""

import html
import json
import math
from collections.abc import Mapping
from importlib import resources

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from wane.eval import axes, summary

# In the order in which the page offers them; metrics that are not named here follow under their own names.
TITLES = {
    "excess_loss": "excess loss",
    "loss": "loss",
    "perplexity": "perplexity",
    "kl": "KL from the undegraded model",
    "top1_agreement": "top-1 agreement",
    "accuracy": "accuracy",
}
# No request may leave the page, whatever a library in it would like to load.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def data(
    frame: pd.DataFrame,
    points: pd.DataFrame,
    shapes: pd.DataFrame,
    logs: Mapping[str, pd.DataFrame],
    groups: Mapping[str, str],
) -> dict:
    """Everything that report.js draws, JSON-able: axes, logarithmic (some of them), metrics, tasks,
    shapes, panels, masked, heat, training.

    `frame` is what `summary.prepare` returned, `points` its curve points, `shapes` from `palette.shapes`,
    `logs` the training log of each member, `groups` the group of each member.
    """
    index = {group: i for i, group in enumerate(shapes["group"])}
    metrics = _metrics(frame, points)
    draws = summary.plain(frame)
    draws = draws[(draws["status"] == "ok") & (draws["task"] == "all")]
    return {
        "axes": axes.known(points),
        "logarithmic": list(axes.NOISE),
        "metrics": metrics,
        "tasks": {metric: _tasks(points, metric) for metric in metrics},
        "shapes": shapes[["group", "aspect_ratio", "light", "dark", "dash"]].to_dict("records"),
        "panels": [
            {"title": curve, "curves": _curves(part, draws[draws["curve"] == curve], index)}
            for curve, part in points.groupby("curve")
        ],
        "masked": _masked(summary.trained_under_mask(frame), index),
        "heat": _heat(summary.heat_maps(frame), index),
        "training": [
            {
                "member": member,
                "shape": index.get(groups[member]),
                "tokens": _numbers(log["tokens"]),
                "loss": _numbers(log["loss"]),
            }
            for member, log in logs.items()
        ],
    }


def document(title: str, body: str, content: Mapping) -> str:
    """One HTML document with its style, its script, plotly and its data inside."""
    files = resources.files("wane.eval")
    css, script = (files.joinpath(name).read_text() for name in ("report.css", "report.js"))
    numbers = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{css}</style></head>\n<body>\n{body}\n"
        f"<script>{get_plotlyjs()}</script>\n"
        f'<script type="application/json" id="data">{numbers}</script>\n<script>{script}</script></body></html>\n'
    )


def _metrics(frame: pd.DataFrame, points: pd.DataFrame) -> dict[str, dict]:
    present = set(points["metric"])
    names = [m for m in TITLES if m in present] + sorted(present - TITLES.keys())
    units = frame.groupby("metric")["unit"].first()
    return {m: {"title": TITLES.get(m, m.replace("_", " ")), "unit": units[m]} for m in names}


def _tasks(points: pd.DataFrame, metric: str) -> list[str]:
    return sorted(
        points.loc[points["metric"] == metric, "task"].unique(), key=lambda task: (task != "all", task)
    )


def _curves(part: pd.DataFrame, draws: pd.DataFrame, index: Mapping[str, int]) -> list[dict]:
    """One entry per shape: x on every axis, and mean, band and draws of every metric and task, all aligned."""
    curves = []
    for group, lines in part.groupby("group"):
        severities = np.sort(lines["severity"].unique())
        by_severity = lines.groupby("severity")[list(axes.AXES)[1:] + ["setting"]].mean()
        unit = lines["setting_unit"].iloc[0]
        x = {"severity": _numbers(severities)}
        x |= {axis: _numbers(by_severity[axis]) for axis in axes.AXES if axis != "severity"}
        curve = {"shape": index[group], "x": x, "series": _series(lines)}
        curve["setting"] = [f"{value:.4g} {unit}" for value in by_severity["setting"]]
        curve["ticks"] = summary.bit_ticks(lines)
        _add_draws(curve["series"], draws[draws["group"] == group], severities)
        curves.append(curve)
    return sorted(curves, key=lambda curve: curve["shape"])


def _series(lines: pd.DataFrame) -> dict[str, dict]:
    wide = lines.pivot(index="severity", columns=["metric", "task"], values=["mean", "low", "high"])
    seeds = lines.groupby(["metric", "task"])["seeds"].max()
    series: dict[str, dict] = {}
    for (metric, task), count in seeds.items():
        values = {name: _numbers(wide[name, metric, task]) for name in ("mean", "low", "high")}
        series.setdefault(metric, {})[task] = values | {"seeds": int(count)}
    return series


def _add_draws(series: dict, draws: pd.DataFrame, severities: np.ndarray) -> None:
    wide = draws.pivot_table(index="severity", columns=["metric", "member_id", "draw"], values="value")
    wide = wide.reindex(severities)
    for metric, tasks in series.items():
        if "all" in tasks and metric in wide.columns.get_level_values(0) and wide[metric].shape[1] > 1:
            tasks["all"]["draws"] = [_numbers(column) for _, column in wide[metric].items()]


def _masked(points: pd.DataFrame, index: Mapping[str, int]) -> list[dict]:
    panels = []
    for (curve, shape), part in points.groupby(["curve", "shape"]):
        lines = [
            {"mode": mode, "x": _numbers(line["severity"]), "seeds": int(line["seeds"].max())}
            | {name: _numbers(line[name]) for name in ("mean", "low", "high")}
            for mode, line in part.groupby("mode")
        ]
        panels.append({"title": curve, "group": shape, "shape": index.get(shape), "lines": lines})
    return sorted(panels, key=lambda panel: (panel["title"], panel["shape"] or 0))


def _heat(maps: list[dict], index: Mapping[str, int]) -> list[dict]:
    order = sorted(maps, key=lambda m: (m["curve"], m["kind"], index.get(m["group"], len(index))))
    return [m | {"values": [_numbers(row) for row in m["values"]]} for m in order]


def _numbers(values) -> list[float | None]:
    """Five significant digits are more than a screen shows and halve the page."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float)]
