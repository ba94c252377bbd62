"""The shape of a given depth or aspect ratio whose size meets a budget, or the budgets nearest to it.

d_model is the coarse dial and d_ff the fine one: of all d_model that meet the budget, the one whose needed d_ff
lies nearest to d_ff_ratio * d_model is taken.  For an aspect ratio the depth is searched beside d_model, and the
squared logarithmic distances of d_ff / d_model and of d_model / n_layers from what was asked add up.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from wane.scaling.shape import Shape

D_FF_RANGE = (0.5, 2.0)  # of d_ff / (d_ff_ratio * d_model) in any shape
ASPECT_RANGE = (0.8, 1.25)  # of the realised aspect ratio / the one asked for
MAX_STEPS = 200  # of the search for the nearest budgets that all targets meet

Side = Literal["below", "above"]
SIDES: tuple[Side, ...] = ("below", "above")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What may be built, and its size: affine in d_ff, growing with every dimension."""

    build: Callable[[int, int, int], Shape]  # d_model, n_layers, d_ff
    size: Callable[[Shape], int]
    d_model_step: int
    d_ff_step: int
    d_ff_ratio: float
    max_mismatch: float


class Depth(NamedTuple):
    n_layers: int

    def depths(self, d_model: int) -> Sequence[int]:
        return (self.n_layers,)

    def distance(self, d_model: int, n_layers: int) -> float:
        return 0.0

    def __str__(self):
        return f"depth {self.n_layers}"


class AspectRatio(NamedTuple):
    ratio: float

    def depths(self, d_model: int) -> Sequence[int]:
        deepest, shallowest = (d_model / (self.ratio * edge) for edge in ASPECT_RANGE)
        return range(max(1, math.ceil(shallowest)), math.floor(deepest) + 1)

    def distance(self, d_model: int, n_layers: int) -> float:
        return math.log(d_model / n_layers / self.ratio) ** 2

    def __str__(self):
        return f"aspect ratio {self.ratio:g}"


Target = Depth | AspectRatio


class Line(NamedTuple):
    """Sizes of one (d_model, n_layers): base + slope * n at d_ff = n * d_ff_step, for n in first..last."""

    d_model: int
    n_layers: int
    base: int
    slope: int
    first: int
    last: int

    def size(self, n: int) -> int:
        return self.base + self.slope * n

    def nearest(self, budget: int) -> int:
        """The n whose size is nearest to the budget."""
        return min(max(round((budget - self.base) / self.slope), self.first), self.last)

    def below(self, budget: int) -> int | None:
        """The n of the largest size that is at most the budget."""
        n = min((budget - self.base) // self.slope, self.last)
        return n if n >= self.first else None

    def above(self, budget: int) -> int | None:
        """The n of the smallest size that is at least the budget."""
        n = max(-((self.base - budget) // self.slope), self.first)
        return n if n <= self.last else None


def matched(search: Search, targets: Sequence[Target], budget: int) -> tuple[Shape, ...]:
    """One shape per target, each within max_mismatch of the budget.

    Raises ValueError with the nearest budgets that all targets meet.
    """
    shapes = tuple(_best(search, target, budget) for target in targets)
    if None in shapes:
        raise ValueError(_explain(search, targets, budget, targets[shapes.index(None)]))
    return shapes


def _best(search: Search, target: Target, budget: int) -> Shape | None:
    best, shortest = None, math.inf
    for line in _lines(search, target, budget):
        n = line.nearest(budget)
        if abs(line.size(n) - budget) > search.max_mismatch * budget:
            continue
        d_ff = n * search.d_ff_step
        distance = math.log(d_ff / (search.d_ff_ratio * line.d_model)) ** 2
        distance += target.distance(line.d_model, line.n_layers)
        if distance < shortest:
            best, shortest = search.build(line.d_model, line.n_layers, d_ff), distance
    return best


def _lines(search: Search, target: Target, budget: int) -> list[Line]:
    """Lines of growing d_model, up to the first d_model that is too large for the budget at every depth."""
    lines, row, d_model = [], [], 0
    while not row or any(line.size(line.first) <= budget for line in row):
        d_model += search.d_model_step
        row = [_line(search, d_model, n_layers) for n_layers in target.depths(d_model)]
        row = [line for line in row if line.first <= line.last]
        lines += row
    return lines


def _line(search: Search, d_model: int, n_layers: int) -> Line:
    one, two = (search.size(search.build(d_model, n_layers, n * search.d_ff_step)) for n in (1, 2))
    target = search.d_ff_ratio * d_model / search.d_ff_step
    first, last = math.ceil(D_FF_RANGE[0] * target), math.floor(D_FF_RANGE[1] * target)
    return Line(d_model, n_layers, 2 * one - two, two - one, max(1, first), last)


def _explain(search: Search, targets: Sequence[Target], budget: int, missed: Target) -> str:
    neighbours = [n for n in (_neighbour(search, missed, budget, side) for side in SIDES) if n]
    near = [n for n in (_nearest(search, targets, budget, side) for side in SIDES) if n]
    advice = f"use {' or '.join(map(str, near))}, or change" if near else "change"
    return (
        f"family.budget = {budget}: {missed} misses it by more than {100 * search.max_mismatch:g} %"
        f" ({', '.join(_label(search, *neighbour) for neighbour in neighbours)});"
        f" {advice} head_dim, d_ff_ratio or max_mismatch"
    )


def _label(search: Search, line: Line, n: int) -> str:
    name = search.build(line.d_model, line.n_layers, n * search.d_ff_step).name
    low, high = D_FF_RANGE
    limits = {
        line.first: f" at its least d_ff, {low:g} x target",
        line.last: f" at its most d_ff, {high:g} x target",
    }
    return f"{name} has {line.size(n)}{limits.get(n, '')}"


def _neighbour(search: Search, target: Target, budget: int, side: Side) -> tuple[Line, int] | None:
    """The line and n whose size is the next below or above the budget."""
    found = [(line, getattr(line, side)(budget)) for line in _lines(search, target, budget)]
    closest = max if side == "below" else min
    reached = (pair for pair in found if pair[1] is not None)
    return closest(reached, key=lambda pair: pair[0].size(pair[1]), default=None)


def _nearest(search: Search, targets: Sequence[Target], budget: int, side: Side) -> int | None:
    """The next budget on one side that every target meets; None if there is none within MAX_STEPS.

    Steps to the next attainable size of a target that misses the budget until no target misses it, so that what
    is proposed is some target's exact size (a budget nearer by less than max_mismatch may exist).
    """
    for _ in range(MAX_STEPS):
        missed = [target for target in targets if _best(search, target, budget) is None]
        if not missed:
            return budget
        steps = [_neighbour(search, target, budget, side) for target in missed]
        if None in steps:
            return None
        sizes = [line.size(n) for line, n in steps]
        budget = min(sizes) if side == "below" else max(sizes)
    return None
