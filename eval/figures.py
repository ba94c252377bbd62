"""The report's pictures as SVG and PNG, the same bytes for the same table."""

import pathlib
import re
from collections.abc import Callable, Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from wane.eval.axes import AXES, NOISE
from wane.eval.record import atomic_file
from wane.eval.summary import FEW_SEEDS, bit_ticks

STYLE = {
    "svg.hashsalt": "wane",  # ids inside an SVG are random without it
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}
LINES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2))}
PANEL = (2.35, 1.95)  # inches
COLUMNS = 4
LABEL_GAP = 0.085  # least distance of two labels, in panel heights


def write_figures(
    folder: pathlib.Path, points: pd.DataFrame, shapes: pd.DataFrame, training: Mapping[str, pd.DataFrame]
) -> dict[str, str]:
    """Write curves_<method>, overview and training into `folder`; returns curve -> file stem.

    `points` are the excess-loss rows of `curve_points` on task all, `shapes` the table of `palette.shapes`,
    `training` maps a group to its rows (member, tokens, loss).
    """
    stems = {curve: f"curves_{stem}" for curve, stem in _stems(points["curve"].unique()).items()}
    for curve, stem in stems.items():
        part = points[points["curve"] == curve]
        _save(folder / stem, lambda part=part, curve=curve: _curve_figure(curve, part, shapes))
    if stems:
        _save(folder / "overview", lambda: _overview(points, shapes))
    if training:
        _save(folder / "training", lambda: _training(training, shapes))
    return stems


def _stems(curves) -> dict[str, str]:
    """Curve names as file names, with a number where two would collide."""
    stems: dict[str, str] = {}
    for curve in sorted(curves):
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", curve).strip("-.").lower()
        taken = sum(other == stem or other.startswith(f"{stem}~") for other in stems.values())
        stems[curve] = f"{stem}~{taken + 1}" if taken else stem
    return stems


def _save(path: pathlib.Path, draw: Callable[[], Figure]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = draw()
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            with atomic_file(path.with_name(f"{path.name}.{kind}")) as file:
                figure.savefig(file, format=kind, metadata=metadata)


def _draw(axes: Axes, part: pd.DataFrame, shapes: pd.DataFrame, axis: str) -> None:
    for shape in shapes.itertuples():
        line = part[part["group"] == shape.group].sort_values("severity")
        line = line[line[axis] > 0 if axis in NOISE else line[axis].notna()]
        if len(line):
            axes.fill_between(
                line[axis], line["low"], line["high"], color=shape.light, alpha=0.18, linewidth=0
            )
            axes.plot(
                line[axis], line["mean"], color=shape.light, linestyle=LINES[shape.dash], label=shape.group
            )
    if axis == "severity" and (ticks := bit_ticks(part)):
        names = [text if text.isdigit() else f"\n{text}" for text in ticks.values()]  # 1.6 stands close to 2
        axes.set_xticks(list(ticks), names)
        axes.set_xlim(min(ticks) - 0.02, max(ticks) + 0.02)
    elif axis == "severity":
        axes.set_xlim(left=0)
    if axis in NOISE:
        axes.set_xscale("log")
    if axis == "bits_per_weight" and not axes.xaxis_inverted():
        axes.invert_xaxis()  # harm grows to the right on every axis


def _curve_figure(curve: str, part: pd.DataFrame, shapes: pd.DataFrame) -> Figure:
    axes_shown = [axis for axis in AXES if part[axis].nunique() > 1]
    figure = Figure(figsize=(PANEL[0] * len(axes_shown) * 1.15, PANEL[1] * 1.45))
    panels = figure.subplots(1, len(axes_shown), sharey=True, squeeze=False)[0]
    for axes, axis in zip(panels, axes_shown, strict=True):
        _draw(axes, part, shapes, axis)
        axes.set_xlabel("bits" if axis == "severity" and bit_ticks(part) else AXES[axis])
    panels[0].set_ylabel("excess loss (nats/token)")
    _legend(figure, panels[0], f"{curve}: {_band_words(part)}")
    return figure


def _overview(points: pd.DataFrame, shapes: pd.DataFrame) -> Figure:
    curves = sorted(points["curve"].unique())
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(PANEL[0] * max(columns, 2), PANEL[1] * rows + 0.75))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, curve in zip(panels, curves, strict=False):
        part = points[points["curve"] == curve]
        _draw(axes, part, shapes, "severity")
        axes.set_title(_wrapped(curve))
        axes.set_xlabel("bits" if bit_ticks(part) else "")
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    panels[0].set_ylim(*_limits(points))
    for i, curve in enumerate(curves):
        if (
            i % columns == columns - 1 or i == len(curves) - 1
        ):  # the same order of lines is read along the row
            _label_ends(panels[i], points[points["curve"] == curve], shapes)
    figure.supxlabel("severity", fontsize=9, color="#333333")
    figure.supylabel("excess loss (nats/token)", fontsize=9, color="#333333")
    figure.suptitle(_band_words(points), x=0.01, ha="left", fontsize=9, color="#333333")
    return figure


def _limits(points: pd.DataFrame) -> tuple[float, float]:
    low, high = min(0.0, points["low"].min()), points["high"].max()
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _label_ends(axes: Axes, part: pd.DataFrame, shapes: pd.DataFrame) -> None:
    """Name every line at its right end; names that would overlap are pushed apart."""
    last = part[part["severity"] == part.groupby("group")["severity"].transform("max")].set_index("group")
    colors = shapes.set_index("group")["light"]
    low, high = axes.get_ylim()
    gap = LABEL_GAP * (high - low)
    floor = -np.inf
    for group, y in last["mean"].sort_values().items():
        floor = max(y, floor + gap)
        at = (last.loc[group, "severity"], floor)
        label = axes.annotate(
            group, at, (5, 0), textcoords="offset points", va="center", fontsize=7.5, color=colors[group]
        )
        label.set_in_layout(axes.get_subplotspec().is_last_col())  # inside a row they stand in free space


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(len(labels), 6) or 1,
        title=title,
        alignment="left",
        title_fontsize=9,
    )


def _band_words(points: pd.DataFrame) -> str:
    few, most = int(points["seeds"].min()), int(points["seeds"].max())
    if most == 1:
        return "one seed per shape: no band"
    seeds = f"{few} seeds" if few == most else f"{few} to {most} seeds"
    kinds = ["min–max"] * (few < FEW_SEEDS) + ["95 % t-interval"] * (most >= FEW_SEEDS)
    return f"mean over {seeds}, band: {' or '.join(kinds)}"


def _wrapped(curve: str) -> str:
    head, _, rest = curve.partition(" · ")
    return f"{head}\n{rest}" if rest else head


def _training(training: Mapping[str, pd.DataFrame], shapes: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(5.2, 3.4))
    axes = figure.subplots()
    looks = shapes.set_index("group")
    for group, rows in training.items():
        color = looks["light"].get(group, "#999999")
        for i, (_, line) in enumerate(rows.groupby("member")):
            label = None if i else group
            axes.plot(line["tokens"], line["loss"], color=color, linewidth=1.0, alpha=0.8, label=label)
    losses = np.concatenate([rows["loss"].dropna().to_numpy() for rows in training.values()])
    if len(losses) and losses.max() > 2 * losses.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.grid(which="both")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens")
    axes.set_ylabel("training loss (nats/token)")
    _legend(figure, axes, "one line per member")
    return figure
