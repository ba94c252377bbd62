"""What units mean to tasks: how concentrated harm is, and whether tasks depend little on the same units."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from wane.eval.examine.contract import Finding
from wane.eval.metrics.concentration import effective_number, gini
from wane.eval.metrics.contract import Metric, Place
from wane.eval.redundancy import overlap_of_least_sensitive

CONCENTRATION = (
    Metric(
        name="ablation_gini",
        unit="",
        meaning="Gini coefficient of the harm of removing single units, times n / (n - 1) for n units: 0 all "
        "alike, 1 one has all",
        better="neither",
        version=2,
    ),
    Metric(
        name="effective_units",
        unit="units",
        meaning="exp of the entropy of the shares of all harm of removing single units (Hill 1973)",
        better="neither",
    ),
)
OVERLAP = Metric(
    name="least_sensitive_overlap",
    unit="fraction",
    meaning="Jaccard index of the half of the units whose removal changes the loss of one task least, up or down, "
    "and that of another",
    better="neither",
    version=2,
)


def concentration(rise_UJ: np.ndarray, tasks: Sequence[str], kind: str) -> Iterator[Finding]:
    """Of the harm of each task's units; nothing where it is not defined: no unit harms, or the Gini coefficient of
    one."""
    for task, rise_U in zip(tasks, rise_UJ.T, strict=True):
        finite = np.isfinite(rise_U).all()
        for metric, measure in zip(CONCENTRATION, (gini, effective_number), strict=True):
            value = measure(rise_U) if finite else np.inf
            if not np.isnan(value):
                yield Finding(metric.name, value, len(rise_U), Place(part=kind), task)


def overlaps(rise_UJ: np.ndarray, tasks: Sequence[str], kind: str) -> Iterator[Finding]:
    """Of every pair of single tasks, told under both names.  Sensitivity is the size of the change: a unit whose
    removal helps a task is not one that the task is indifferent to.  chance: of halves drawn independently."""
    if len(rise_UJ) < 2:
        return
    change_UJ = np.abs(rise_UJ)
    single = [j for j, task in enumerate(tasks) if task != "all"]
    for a, b in itertools.combinations(single, 2):
        found = overlap_of_least_sensitive(change_UJ[:, a], change_UJ[:, b])
        place, task = Place(part=kind), f"{tasks[a]} and {tasks[b]}"
        yield Finding(OVERLAP.name, found.jaccard, len(rise_UJ), place, task, found.expected)
