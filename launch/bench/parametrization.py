"""`wane bench coordinates` and `wane bench rates`: does one learning rate serve every shape?"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from wane.eval.study import Study
from wane.launch.bench import coordinates
from wane.launch.bench.coordinates import Row
from wane.launch.environment import resolve
from wane.launch.expand import cohorts
from wane.launch.studies import load_study
from wane.scaling.shape import Parametrization
from wane.train.config import Train
from wane.train.data import Data, open_data

WIDTHS, DEPTHS, STEPS, SEEDS = (32, 64, 128, 256), (2, 4, 8, 16), 5, (0, 1)
BENCHES = ("coordinates", "rates")
OCTAVES = (-3, -2, -1, 0, 1, 2, 3)  # learning rates swept: train.lr times 2 to each


def run(what: str, study: str, overrides: Sequence[str], out: Path, console: Console) -> None:
    """Run one benchmark; `study` and `overrides` matter to `rates` only."""
    out.mkdir(parents=True, exist_ok=True)
    if what == "coordinates":
        rows = check_coordinates(console)
    else:
        rows = sweep_rates(load_study(study, overrides), console)
    draw = {"coordinates": coordinates.draw_coordinates, "rates": coordinates.draw_rates}[what]
    for kind in ("svg", "png"):
        draw(rows, out / f"{what}.{kind}")
    (out / f"{what}.json").write_text(json.dumps(rows, indent=1) + "\n")
    console.print(f"figure and numbers: {out / what}.svg, .png, .json", highlight=False)


def check_coordinates(console: Console) -> list[Row]:
    """Growth of activation sizes over widths and depths after a few updates, under both parametrisations."""
    data = open_data(Data(sources="graded", context=64), steps=STEPS, batch_size=16)
    table = Table(
        "parametrisation", "from", "to", *coordinates.SITES, title="growth after 5 steps (1 = level)"
    )
    rows: list[Row] = []
    for parametrization in (Parametrization(), Parametrization(name="standard")):
        new = coordinates.coordinate_check(
            parametrization, WIDTHS, DEPTHS, steps=STEPS, seeds=SEEDS, train=Train(), batches=data.batch,
            head_dim=16, vocab=data.vocab, context=64,
        )  # fmt: skip
        for axis, size, first, last in (
            ("width", "d_model", WIDTHS[0], WIDTHS[-1]),
            ("depth", "n_layers", DEPTHS[0], DEPTHS[-1]),
        ):
            ends = [_sizes(new, axis, size, value) for value in (first, last)]
            growth = [f"{ends[1][site] / ends[0][site]:.2f}" for site in coordinates.SITES]
            table.add_row(parametrization.name, f"{size} {first}", f"{last}", *growth)
        rows += new
    console.print(table)
    return rows


def _sizes(rows: Sequence[Row], axis: str, size: str, value: int) -> Mapping[str, float]:
    """Activation sizes after the last step, mean over seeds."""
    found = [r for r in rows if (r["axis"], r[size], r["step"]) == (axis, value, STEPS)]
    return {site: float(np.mean([r[site] for r in found])) for site in coordinates.SITES}


def sweep_rates(study: Study, console: Console) -> list[Row]:
    """Final loss of every shape of a study's family over seven learning rates, and where each is best."""
    cohort = cohorts(study)[0]
    lrs = [study.train.lr * 2.0**octave for octave in OCTAVES]
    rows = coordinates.learning_rate_sweep(
        cohort.shapes, lrs, study.seeds, cohort.stream.marked_batch, study.train, resolve(1)["packing"],
        lambda line: console.print(line, highlight=False),
    )  # fmt: skip
    table = Table("shape", *(f"{lr:.2g}" for lr in lrs), "best", title="final training loss by learning rate")
    best = []
    for shape in cohort.shapes:
        mine = [r for r in rows if (r["d_model"], r["n_layers"]) == (shape.d_model, shape.n_layers)]
        losses = [float(np.mean([r["loss"] for r in mine if r["lr"] == lr])) for lr in lrs]
        best.append(optimum(lrs, losses))
        table.add_row(shape.name, *(f"{loss:.3f}" for loss in losses), f"{best[-1]:.2g}")
    console.print(table)
    spread = max(best) / min(best)
    console.print(f"best learning rates of the shapes differ by a factor of {spread:.2f}", highlight=False)
    return rows


def optimum(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate at the vertex of the parabola, in log2, through the best rate and its neighbours;
    the best rate itself at the end of the grid.  Rates that diverged (not finite) do not count."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    i = int(np.argmin(finite))
    if i in (0, len(lrs) - 1) or math.isinf(finite[i + 1]) or math.isinf(finite[i - 1]):
        return lrs[i]
    below, at, above = finite[i - 1 : i + 2]
    return lrs[i] * 2.0 ** (0.5 * (below - above) / (below - 2 * at + above))
