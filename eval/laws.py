"""What laws of degradation a study's curves follow: the families in print, fitted and compared."""

from pathlib import Path

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.accuracy_law import accuracy_laws, accuracy_text
from wane.eval.curves import load_curves
from wane.eval.relations import SLICE_LAW, slice_law, slice_law_misses
from wane.eval.selection import Comparison, Points, best_by, compare

FEWEST = 4  # severities strictly between 0 and 1 of a curve that is fitted
UNITS = ("fraction", "bits")
NOISE = {"stream noise power": "stream_noise_to_signal", "block noise power": "block_noise_to_signal"}
HEADERS = (
    "curve", "shape", "relation", "parameters", "left out", "extrapolated", "next best", "by AICc", "by seed",
    "seed left out", f"{SLICE_LAW} misses", "slope", "free slope", "intercept", "ratio left out", "stream NSR^b",
    "block NSR^b",
)  # fmt: skip
SLICES = (
    "slice_misses", "slope", "slope_error", "free_slope", "free_slope_error", "intercept", "intercept_error",
    "ratio_misses", "line_misses", "free_misses",
)  # fmt: skip
NOTE = (
    "- left out, extrapolated, seed left out, misses: root mean square of ln(predicted / measured) at severities, "
    "or of whole seeds, that the fit had not seen; slope: of ln PPL0 / ln PPL below s = 1, through 1 at s = 0; "
    f"free slope, intercept: both fitted, -1 and 1 in print; ratio left out: root mean square of what {SLICE_LAW}, "
    "the line through 1 and the free line miss of ln PPL0 / ln PPL at left-out severities; NSR^b: exponent and, in "
    "brackets, what a power of the measured noise to signal misses at left-out severities"
)


def laws_in(study: Path) -> str:
    """The tables of a study directory in Markdown, of loss and of accuracy.  Raises ValueError where no curve of
    loss is long enough, FileNotFoundError without curves.parquet."""
    frame = summary.prepare(load_curves(study / "curves.parquet"))
    points = summary.plain_curves(frame)
    found = laws(points, summary.member_curves(frame))
    if found.empty:
        raise ValueError(
            f"{study}: no curve of fractions or bits has {FEWEST} severities between 0 and 1 that cost something;"
            " give its degradations more severities"
        )
    of_accuracy = accuracy_laws(points, summary.undegraded(frame, "accuracy"))
    tables = [laws_text(found)] + ([] if of_accuracy.empty else [accuracy_text(of_accuracy)])
    return "\n\n".join(tables)


def fractions(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Curve points (`summary.plain_curves`) on all sequences of methods whose severity is a fraction removed."""
    return _of_unit(points, metric, ("fraction",))


def _of_unit(points: pd.DataFrame, metric: str, units: tuple[str, ...]) -> pd.DataFrame:
    chosen = (points["metric"] == metric) & (points["task"] == "all") & points["setting_unit"].isin(units)
    return points[chosen].sort_values("severity", kind="stable")


def laws(points: pd.DataFrame, members: pd.DataFrame | None = None) -> pd.DataFrame:
    """For each curve and group: `relation`, the family to believe from what fits of the mean excess loss predict of
    left-out severities (`selection.best_by`), its `formula`, `parameters`, `left_out` and `extrapolated`
    (`selection.Comparison`), `runner_up`; `by_aicc`, the relation of the smallest criterion; `by_seed`, that to
    believe from left-out members, and its `seed_left_out` (None and nan where there is none).  Of the slice law,
    for fractions, `slice_misses`, its `left_out` with nothing fitted; of ln PPL0 / ln PPL = 1 + slope s `slope` and
    `slope_error`; of its rival with both fitted `free_slope`, `intercept` and their errors; what the three miss of
    that ratio (`relations.slice_law_misses`), `ratio_misses`, `line_misses`, `free_misses`.  Of a power of noise to
    signal, where it was measured, its exponent by the names of NOISE, and its `left_out` as `.. misses`.

    points: of `summary.plain_curves`; members: of `summary.member_curves`.
    """
    keys = ["curve", "group"]
    by_curve = dict(list(points[points["task"] == "all"].groupby(keys)))
    by_member = {} if members is None else dict(list(members[members["task"] == "all"].groupby(keys)))
    rows = []
    for (curve, group), part in by_curve.items():
        mean = points_of(part)
        if mean is None or len(mean.usable().severity) < FEWEST:
            continue
        alone = by_member[curve, group].groupby("member_id") if by_member else ()
        single = [points_of(one) for _, one in alone]
        told = _told(mean, [one for one in single if one is not None])
        rows.append({"curve": curve, "group": group} | told)
    return pd.DataFrame(rows)


def points_of(part: pd.DataFrame) -> Points | None:
    """One curve of a table of curve points; None where it is of another unit or has no excess loss."""
    excess = _of_unit(part, "excess_loss", UNITS)
    if excess.empty:
        return None
    severity = excess["severity"].to_numpy()
    noise = {axis: None if excess[axis].isna().any() else excess[axis].to_numpy() for axis in NOISE.values()}
    loss = _of_unit(part, "loss", UNITS)
    return Points(
        severity=severity, excess=excess["mean"].to_numpy(), unit=excess["setting_unit"].iloc[0],
        undegraded=loss["mean"].iloc[0] if len(loss) and loss["severity"].iloc[0] == 0 else None,
        stream_noise=noise["stream_noise_to_signal"], block_noise=noise["block_noise_to_signal"],
    )  # fmt: skip


def _told(mean: Points, single: list[Points]) -> dict:
    found = compare(mean, single)
    by_name = {c.fit.relation.name: c for c in found}
    rivals = [c for c in found if c.fit.relation.name not in NOISE]
    best, by_aicc, by_seed = (best_by(rivals, score) for score in ("misses", "aicc", "seed_misses"))
    runner_up = next(c for c in rivals if c is not best)
    row = {
        "relation": best.fit.relation.name, "formula": best.fit.relation.source, "parameters": _parameters(best),
        "left_out": best.left_out, "extrapolated": best.extrapolated, "runner_up": runner_up.fit.relation.name,
        "by_aicc": by_aicc and by_aicc.fit.relation.name, "by_seed": by_seed and by_seed.fit.relation.name,
        "seed_left_out": by_seed.seed_left_out if by_seed else np.nan,
    }  # fmt: skip
    for name in NOISE:
        there = by_name.get(name)
        row |= {name: there.fit.parameters["b"] if there else np.nan}
        row |= {f"{name} misses": there.left_out if there else np.nan}
    return row | _of_slices(mean, by_name.get(SLICE_LAW))


def _of_slices(mean: Points, law: Comparison | None) -> dict[str, float]:
    if law is None:
        return dict.fromkeys(SLICES, np.nan)
    below = mean.severity < 1  # where nothing is left the law says an infinite loss
    s, loss = mean.severity[below], mean.undegraded + mean.excess[below]
    through, free = slice_law(s, loss, intercept=1.0), slice_law(s, loss)
    off = 1 - s - loss[0] / loss
    told = (
        law.left_out, through.slope, through.slope_error, free.slope, free.slope_error, free.intercept,
        free.intercept_error, float(np.sqrt(np.mean(off[1:] ** 2))), slice_law_misses(s, loss, intercept=1.0),
        slice_law_misses(s, loss),
    )  # fmt: skip
    return dict(zip(SLICES, told, strict=True))


def _parameters(found: Comparison) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in found.fit.parameters.items())


def laws_text(found: pd.DataFrame) -> str:
    """The rows of `laws` in Markdown, and the formulas of the families that stand there."""
    lines = [HEADERS, ["---"] * 4 + ["---:"] * 2 + ["---"] * 3 + ["---:"] * 8]
    for row in found.to_dict("records"):
        named = [row["curve"], row["group"], row["relation"], row["parameters"]]
        others = [row["runner_up"], row["by_aicc"] or "", row["by_seed"] or "", _number(row["seed_left_out"])]
        fitted = [_measured(row[name], row[f"{name}_error"]) for name in ("slope", "free_slope", "intercept")]
        ratio = [row[name] for name in ("ratio_misses", "line_misses", "free_misses")]
        ratio = "" if np.isnan(ratio).any() else " / ".join(f"{missed:.3f}" for missed in ratio)
        noise = [
            "" if np.isnan(row[name]) else f"{row[name]:.2f} ({row[f'{name} misses']:.2f})" for name in NOISE
        ]
        missed = [_number(row["left_out"]), _number(row["extrapolated"])]
        lines.append([*named, *missed, *others, _number(row["slice_misses"]), *fitted, ratio, *noise])
    said = dict(zip(found["relation"], found["formula"], strict=True))
    formulas = [f"- {name}: {formula}" for name, formula in said.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", NOTE, *formulas])


def _measured(x: float, error: float) -> str:
    return "" if np.isnan(x) else f"{x:.3f} ± {error:.3f}"


def _number(x: float) -> str:
    return "" if np.isnan(x) else f"{x:.2f}"
