"""`wane bench sweep`: how many forward tokens a critical severity takes, with and without common sequences, a pilot
and refined severities.

One small member is trained on the graded language.  With: a study that asks for a precision.  Without: an even
grid, each point on sequences of its own, as when every point is a run by itself.  Both bracket the severity at
which a degradation costs THRESHOLD nats by a bootstrap over sequences.  The width of an interval falls as the
square root of the tokens, so the second's tokens are carried to the first's width; so are those of the even grid on
common sequences, which tells what the pilot and the refinement save by themselves.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from wane.eval import load_curves
from wane.eval.degrade import Degrade
from wane.eval.refine import crossing
from wane.eval.study import Evaluation, Study
from wane.launch.run import run_study
from wane.scaling.family import exact_ladder
from wane.train.config import Train
from wane.train.data import Data

Row = dict[str, Any]
METHODS = ("random_weights", "random_neurons", "gaussian_noise")
THRESHOLD = 0.1  # nats of excess loss that make a severity critical
EVEN = tuple(i / 16 for i in range(1, 17))
COARSE, REFINED = (0.1, 0.3, 0.6, 1.0), 3
RESAMPLES = 400
MEMBER = Study(
    name="fewer",
    family=exact_ladder(256, depths=(4,), head_dim=32),
    data=Data(sources="graded", context=128),
    train=Train(tokens=800_000, tokens_per_param=None, batch_size=16),
    seeds=(0,),
    degradations=tuple(Degrade(method=method, severities=EVEN) for method in METHODS),
    evaluation=Evaluation(sequences=64, batch=16, metrics=("loss",)),
)


def measure(say: Callable[[str], None], study: Study | None = None, precision: float = 0.02) -> list[Row]:
    """One row per method: critical severities, the 95 % intervals of both ways, and forward tokens."""
    study = study or MEMBER
    fewer = dataclasses.replace(
        study,
        degradations=tuple(
            Degrade(method=d.method, severities=COARSE, refine=REFINED) for d in study.degradations
        ),
        evaluation=dataclasses.replace(study.evaluation, sequences=2000, precision=precision),
    )
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        out, tables = Path(folder) / "study", []
        for name, each in (("an even grid", study), ("a pilot and refinement", fewer)):
            say(f"fewer passes: {name}")
            run_study(each, out, ("train", "sweep"), Console(file=log))
            tables.append(load_curves(out, per_sequence=True))
        decided = json.loads((out / "study.json").read_text())["decided"]
    tasks, context = len(tables[0]["task"].unique()) - 1, study.data.context
    pilot = len({0.0, *COARSE}) * fewer.evaluation.pilot_sequences * max(tasks, 1) * context
    rows = []
    for method in [degrade.method for degrade in study.degradations]:
        ways = {}
        for name, table, common in (
            ("without", tables[0], False), ("common", tables[0], True), ("with", tables[1], True),
        ):  # fmt: skip
            curve = table[
                (table["method"] == method) & (table["metric"] == "loss") & (table["task"] == "all")
            ]
            curve = curve.sort_values("severity")
            losses_QN = np.stack(curve["per_sequence"])
            ways[name] = bracket(curve["severity"].to_numpy(), losses_QN, max(tasks, 1), common=common)
            ways[name] |= {"points": len(curve), "tokens": losses_QN.size * context}
        ways["with"]["tokens"] += pilot
        widths = {name: way["high"] - way["low"] for name, way in ways.items()}
        carried, common = (
            ways[name]["tokens"] * (widths[name] / widths["with"]) ** 2 for name in ("without", "common")
        )
        rows.append(
            {"method": method, "sequences": decided["sequences"] * max(tasks, 1), **ways,
             "tokens_to_the_same_width": carried, "times_fewer": carried / ways["with"]["tokens"],
             "times_fewer_than_common": common / ways["with"]["tokens"]}
        )  # fmt: skip
    return rows


def bracket(severity_Q: np.ndarray, losses_QN: np.ndarray, tasks: int, *, common: bool) -> Row:
    """Critical severity and its 95 % bootstrap interval over sequences, drawn anew within each task.

    losses_QN: per sequence, tasks in blocks of equal size; the first row that of the identity.  common: the same
    sequences at every severity; else every point draws its own, as if no two had been measured on the same.
    """
    rng = np.random.default_rng(0)
    Q, N = losses_QN.shape
    by_task = losses_QN.reshape(Q, tasks, N // tasks)

    def critical(index_QtN: np.ndarray) -> float:
        mean_Q = np.take_along_axis(by_task, index_QtN, axis=2).mean(axis=(1, 2))
        return crossing(severity_Q, mean_Q - mean_Q[0], THRESHOLD)

    everything = np.broadcast_to(np.arange(N // tasks), by_task.shape)
    size = (1 if common else Q, tasks, N // tasks)
    drawn = [
        critical(np.broadcast_to(rng.integers(0, N // tasks, size), by_task.shape)) for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"critical": critical(everything), "low": float(low), "high": float(high)}


def table(rows: list[Row]) -> Table:
    out = Table(
        "method", "without: critical severity", "tokens", "to the same width", "with: critical severity", "tokens",
        "times fewer", "than on common sequences",
        title=f"forward tokens to the severity that costs {THRESHOLD} nats (95 % intervals)",
    )  # fmt: skip
    for row in rows:
        told = {
            name: f"{row[name]['critical']:.4f} [{row[name]['low']:.4f}, {row[name]['high']:.4f}]"
            for name in ("without", "with")
        }
        out.add_row(
            row["method"], told["without"], f"{row['without']['tokens']:,}",
            f"{row['tokens_to_the_same_width']:,.0f}", told["with"], f"{row['with']['tokens']:,}",
            f"{row['times_fewer']:.3g}", f"{row['times_fewer_than_common']:.3g}",
        )  # fmt: skip
    return out
