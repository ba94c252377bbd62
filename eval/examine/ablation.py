"""Every unit taken out alone: what it is worth to each task, on how few units a task depends, and whether tasks
can spare the same ones."""

import dataclasses
from collections.abc import Iterator
from typing import get_args

import numpy as np

from wane.eval.examine.contract import Examination, Examined, Finding, Tick
from wane.eval.examine.losses import Losses
from wane.eval.examine.tasks import CONCENTRATION, OVERLAP, concentration, overlaps
from wane.eval.examine.units import Kind, check_groups, count, taken_out, units_of, without
from wane.eval.metrics.contract import Metric
from wane.scaling.shape import Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """units: the kinds that are taken out.  groups: of neurons, drawn in every layer; share: of the layer's neurons
    in one group."""

    units: tuple[Kind, ...] = get_args(Kind)
    groups: int = 8
    share: float = 1 / 16

    def __post_init__(self):
        check_groups("ablation", self.groups, self.share)
        if not self.units or len(set(self.units)) < len(self.units):
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"examinations.settings.units = {self.units}: must be different ones of {kinds}")


def forwards(shape: Shape, settings: Settings) -> int:
    return 1 + sum(count(kind, shape, settings.groups, settings.share) for kind in settings.units)


def run(examined: Examined, settings: Settings, tick: Tick) -> Iterator[Finding]:
    shape, rng = examined.shape, np.random.default_rng(examined.seed)
    losses = Losses(examined, taken_out, without((), shape), tick)
    for kind in settings.units:
        units = units_of(kind, shape, settings.groups, settings.share, rng)
        rise_UJ = np.stack([losses.rise(without([unit], shape), unit.layer) for unit in units])
        for unit, rise_J in zip(units, rise_UJ, strict=True):
            for task, rise, tokens in zip(losses.tasks, rise_J, losses.tokens, strict=True):
                yield Finding("ablation_effect", rise, tokens, unit.place, task)
        yield from concentration(rise_UJ, losses.tasks, kind)
        yield from overlaps(rise_UJ, losses.tasks, kind)


EXAMINATION = Examination(
    name="ablation",
    meaning="every layer, sublayer, head and sampled groups of neurons removed alone",
    source="Michel et al. 2019, arXiv 1905.10650, of heads; Hill 1973, Ecology 54, of effective numbers",
    settings=Settings,
    metrics=(
        Metric(
            name="ablation_effect",
            unit="nats/token",
            meaning="rise of the loss when one unit alone is removed; at: its layer, at_2: head or group",
            better="lower",
        ),
        *CONCENTRATION,
        OVERLAP,
    ),
    forwards=forwards,
    run=run,
)
