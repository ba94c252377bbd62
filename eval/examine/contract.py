"""The contract of an examination: a measurement of a trained member that is a cell of its own.

A metric is measured at every point of a sweep inside the jitted evaluation.  An examination takes units, weights or
subsets away one after the other and costs a forward pass for each, so a study asks for it by name and `wane plan`
states what it costs.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from wane.eval.measure import Batches
from wane.eval.metrics.contract import EVERYWHERE, Metric, Place
from wane.scaling.edit import Params
from wane.scaling.shape import Shape
from wane.train.data import EvalSet

Settings = Any  # the frozen dataclass of one examination
Tick = Callable[[int], None]  # tick(n) after n more forward passes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """A trained member as an examination sees it.  stream: the undegraded residual stream before and behind every
    block of every batch [L + 1, n, B, S, D], from which forward passes may start.  seed: numbers from which
    everything random is drawn."""

    shape: Shape
    params: Params
    batches: Batches
    stream: Array
    evaluation: EvalSet
    calibration_NT: np.ndarray
    precision: str
    seed: tuple[int, ...]


class Finding(NamedTuple):
    """One value.  metric: the name of one that the examination tells.  count: the tokens, weights or units that
    value is of.  chance: what it would be if there were nothing to find, where that is known.  A value that is not
    finite is told as diverged; one that is not defined is not told."""

    metric: str
    value: float
    count: int
    place: Place = EVERYWHERE[0]
    task: str = "all"
    chance: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """settings: a frozen dataclass whose fields have defaults.  metrics: what its rows tell.

    forwards(shape, settings): how many forward passes over the evaluation set it costs at most, 0 where this shape
    has nothing to examine; each begins at the first layer that it changes.  run(examined, settings, tick) yields
    its findings.  needs_calibration: it learns from the calibration sequences.  Raise `version` when the numbers
    change.
    """

    name: str
    meaning: str
    source: str
    settings: type
    metrics: tuple[Metric, ...]
    forwards: Callable[[Shape, Settings], int]
    run: Callable[[Examined, Settings, Tick], Iterator[Finding]]
    needs_calibration: bool = False
    version: int = 1
