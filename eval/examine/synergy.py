"""Pairs of units taken out together: whether one stands in for the other."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from wane.eval.examine.contract import Examination, Examined, Finding, Tick
from wane.eval.examine.losses import Losses
from wane.eval.examine.units import Kind, Unit, check_groups, count, taken_out, units_of, without
from wane.eval.metrics.contract import Metric, Place
from wane.scaling.shape import Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """unit: of what pairs are made.  pairs: the most that are taken, drawn at random where there are more.
    groups: of neurons, drawn in every layer; share: of the layer's neurons in one group."""

    unit: Kind = "layer"
    pairs: int = 64
    groups: int = 4
    share: float = 1 / 8

    def __post_init__(self):
        check_groups("synergy", self.groups, self.share)
        if self.pairs < 1:
            raise ValueError(f"examinations.settings.pairs = {self.pairs}: must be at least 1")


def forwards(shape: Shape, settings: Settings) -> int:
    units = count(settings.unit, shape, settings.groups, settings.share)
    pairs = min(math.comb(units, 2), settings.pairs)
    return 1 + min(units, 2 * pairs) + pairs if pairs else 0


def pairs_of(units: list[Unit], most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of indices in order; `most` of them drawn at random where there are more."""
    first, second = np.triu_indices(len(units), 1)
    taken = np.arange(len(first))
    if len(taken) > most:
        taken = np.sort(rng.choice(taken, most, replace=False))
    return list(zip(first[taken].tolist(), second[taken].tolist(), strict=True))


def run(examined: Examined, settings: Settings, tick: Tick) -> Iterator[Finding]:
    shape, rng = examined.shape, np.random.default_rng(examined.seed)
    losses = Losses(examined, taken_out, without((), shape), tick)
    units = units_of(settings.unit, shape, settings.groups, settings.share, rng)
    pairs = pairs_of(units, settings.pairs, rng)
    alone = {
        i: losses.rise(without([units[i]], shape), units[i].layer)
        for i in sorted({i for p in pairs for i in p})
    }
    for a, b in pairs:
        both = (units[a], units[b])
        rise_J = losses.rise(without(both, shape), min(unit.layer for unit in both))
        place = _place(*both)
        for j, (task, tokens) in enumerate(zip(losses.tasks, losses.tokens, strict=True)):
            yield Finding("pair_ablation_effect", rise_J[j], tokens, place, task)
            yield Finding("synergy", rise_J[j] - alone[a][j] - alone[b][j], tokens, place, task)


def _place(a: Unit, b: Unit) -> Place:
    part = a.label if a.label == b.label and a.index is None else f"{a.label} + {b.label}"
    return Place(axis="layer", at=float(a.layer), at_2=float(b.layer), part=part)


EXAMINATION = Examination(
    name="synergy",
    meaning="pairs of layers, sublayers, heads or groups of neurons removed together, against each alone",
    source="the interaction of two removals; positive where one stands in for the other",
    settings=Settings,
    metrics=(
        Metric(
            name="pair_ablation_effect",
            unit="nats/token",
            meaning="rise of the loss when two units are removed together; at, at_2: their layers",
            better="lower",
        ),
        Metric(
            name="synergy",
            unit="nats/token",
            meaning="rise of the loss when two units are removed, minus the sum of the rises of each alone",
            better="neither",
        ),
    ),
    forwards=forwards,
    run=run,
)
