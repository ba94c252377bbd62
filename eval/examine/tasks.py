"""What units mean to tasks: how concentrated harm is, and whether tasks can spare the same units."""

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
        meaning="Gini coefficient of the harm of removing single units: 0 all alike, 1 - 1/n one has all",
        better="neither",
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
    meaning="Jaccard index of the half of the units whose removal harms one task least and that of another",
    better="neither",
)


def concentration(rise_UJ: np.ndarray, tasks: Sequence[str], kind: str) -> Iterator[Finding]:
    """Of the harm of each task's units; nothing where no unit harms."""
    for task, rise_U in zip(tasks, rise_UJ.T, strict=True):
        finite = np.isfinite(rise_U).all()
        if finite and not (rise_U > 0).any():
            continue
        for metric, measure in zip(CONCENTRATION, (gini, effective_number), strict=True):
            value = measure(rise_U) if finite else np.nan
            yield Finding(metric.name, value, len(rise_U), Place(part=kind), task)


def overlaps(rise_UJ: np.ndarray, tasks: Sequence[str], kind: str) -> Iterator[Finding]:
    """Of every pair of single tasks, told under both names.  chance: of halves drawn independently."""
    if len(rise_UJ) < 2:
        return
    single = [j for j, task in enumerate(tasks) if task != "all"]
    for a, b in itertools.combinations(single, 2):
        found = overlap_of_least_sensitive(rise_UJ[:, a], rise_UJ[:, b])
        place, task = Place(part=kind), f"{tasks[a]} and {tasks[b]}"
        yield Finding(OVERLAP.name, found.jaccard, len(rise_UJ), place, task, found.expected)
