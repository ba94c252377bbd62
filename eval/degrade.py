"""One line of a study's degradations: a method, its severities, and what comes after it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from wane.eval.metrics import chosen
from wane.scaling.config import canonical, close_matches
from wane.scaling.degrade import METHODS, build
from wane.scaling.degrade.compose import compose
from wane.scaling.degrade.contract import Degradation, Scope, identity_of, severity_of
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data.calibration import check_calibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Then:
    """A second method on what the first left (pruning, then quantisation): its severities cross with the first
    one's.  Fields as in Degrade."""

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scope: Scope = Scope()
    severities: tuple[float, ...] = ()

    def __post_init__(self):
        check_method("degradations.then.method", self.method)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """A short fine-tune with the degradation in force: removed weights stay removed, rounded ones on their
    lattice.  steps: numbers of updates, the second severity (0, no recovery, is always added).  Batches are
    those that training would have seen next; lr is that of the base shape, constant."""

    steps: tuple[int, ...]
    lr: float = 2**-10
    batch_size: int = 16
    unscored_weight: float = 1.0  # as Train.unscored_weight

    def __post_init__(self):
        if not self.steps or min(self.steps) < 0:
            raise ValueError(
                f"degradations.recovery.steps = {self.steps}: must be numbers of updates, 0 or more"
            )
        for field in ("lr", "batch_size"):
            if not getattr(self, field) > 0:
                raise ValueError(f"degradations.recovery.{field} = {getattr(self, field)}: must be above 0")
        if not 0 <= self.unscored_weight <= 1:
            raise ValueError(
                f"degradations.recovery.unscored_weight = {self.unscored_weight}: must be between 0 and 1"
            )

    def train(self) -> Train:
        """The optimizer: constant learning rate from the first update, no weight decay."""
        return Train(
            lr=self.lr, batch_size=self.batch_size, schedule="wsd", warmup_fraction=0.0, decay_fraction=0.0,
            final_lr_fraction=1.0, weight_decay=0.0, unscored_weight=self.unscored_weight,
        )  # fmt: skip


class Level(NamedTuple):
    """Severity and the setting that the user wrote, of the method and of what follows it (a second method, or
    updates of recovery), if anything does."""

    severity: float
    setting: float
    severity_2: float | None = None
    setting_2: float | None = None

    @property
    def undegraded(self) -> bool:
        return self.severity == 0 and not self.severity_2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degrade:
    """One method swept over severities.  `settings` go to the method's builder; `severities` are in the
    method's unit (fractions, bits, sigma, compression ratio), () = its default grid; the identity is always
    added.

    metrics: what is measured in place of the evaluation's metrics, so that a costly one can be had at few
    severities: names of metrics and of instruments.

    each: "whole" degrades all of the scope at once; "layer" and "head" one layer or one head at a time
    (sensitivity).  draws: realisations of a random method, nested in a member.  calibration: where the
    sequences that a method learns from come from: same (as in training), random (tokens), task:NAME,
    tasks:NAME=SHARE,..., or a text source.

    refine: how many severities are added where the curves of the members compared leave most open
    (`wane.eval.refine`), the same for all; `severities` is then the coarse grid.  identity: whether the
    identity is measured; a refinement leaves it to the coarse grid.
    """

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scope: Scope = Scope()
    severities: tuple[float, ...] = ()
    draws: int = 1
    each: Literal["whole", "layer", "head"] = "whole"
    calibration: str = "same"
    metrics: tuple[str, ...] | None = None
    then: Then | None = None
    recovery: Recovery | None = None
    refine: int = 0
    identity: bool = True

    def __post_init__(self):
        check_method("degradations.method", self.method)
        check_calibration(self.calibration)
        if self.metrics is not None:
            object.__setattr__(self, "metrics", metric_names("degradations.metrics", self.metrics))
        if self.refine and not self.tells_loss:
            raise ValueError(
                f"degradations.refine = {self.refine}: refines the loss; add 'loss' to degradations.metrics"
            )
        if self.refine < 0:
            raise ValueError(f"degradations.refine = {self.refine}: must be 0 or a number of severities")
        if self.refine and (self.each != "whole" or self.then or self.recovery):
            raise ValueError(
                f"degradations.refine = {self.refine}: is of the whole model under one method; leave out each, then"
                " and recovery"
            )
        if self.draws < 1:
            raise ValueError(f"degradations.draws = {self.draws}: must be at least 1")
        if self.then and self.recovery:
            raise ValueError(
                "degradations.recovery: a composition has its second severity already; leave one out"
            )
        if self.recovery and self.each != "whole":
            raise ValueError(
                f"degradations.each = {self.each!r}: recovery is of the whole model; use 'whole'"
            )

    @property
    def name(self) -> str:
        """The method, and what follows it."""
        after = self.then.method if self.then else "recovery" if self.recovery else ""
        return f"{self.method}+{after}" if after else self.method

    @property
    def piloted(self) -> bool:
        """Whether a pilot may decide from it how many sequences a study needs."""
        return self.each == "whole" and not self.recovery and self.tells_loss

    @property
    def tells_loss(self) -> bool:
        return self.metrics is None or "loss" in self.metrics

    def meets(self, other: "Degrade") -> bool:
        """Whether both have points in common."""
        free = {"metrics": None, "severities": (), "draws": 1, "refine": 0, "identity": True}
        if canonical(dataclasses.replace(self, **free)) != canonical(dataclasses.replace(other, **free)):
            return False
        whole_grid = not self.severities or not other.severities
        return (
            (self.identity and other.identity) or whole_grid or bool({*self.severities} & {*other.severities})
        )

    @property
    def coarse(self) -> "Degrade":
        """What is measured before anything is refined."""
        return dataclasses.replace(self, refine=0)

    def refinement(self, settings: Sequence[float]) -> "Degrade":
        """The severities that refinement adds, as a degradation of its own."""
        return dataclasses.replace(self, refine=0, severities=tuple(settings), identity=False)

    def built(self, shape: Shape) -> Degradation:
        """Equal degradations of a shape are the same object.  Raises ValueError for what cannot be."""
        method = first = build(self.method, shape, self.scope, self.settings)
        if self.then:
            method = compose(first, self._second(shape), shape)
        if self.each != "whole" and not method.local:
            raise ValueError(
                f"degradations.each = {self.each!r}: {self.name} changes the input of every layer; use 'whole'"
            )
        if self.calibration != "same" and not method.needs_calibration:
            raise ValueError(
                f"degradations.calibration = {self.calibration!r}: {self.name} with these settings learns from no "
                "sequences; leave it out"
            )
        return method

    def _second(self, shape: Shape) -> Degradation:
        return build(self.then.method, shape, self.then.scope, self.then.settings)

    def units(self, shape: Shape) -> tuple[str, str | None]:
        """Units of both settings."""
        second = "steps" if self.recovery else self._second(shape).unit if self.then else None
        return self.built(shape).unit, second

    def grid(self, shape: Shape) -> tuple[Level, ...]:
        """The levels in order of harm, the identity first.

        Raises ValueError when a severity is outside what the method's unit allows.
        """
        firsts = _severities(self.built(shape), self.severities, self.identity)
        if self.recovery:
            counts = sorted({0, *self.recovery.steps})
            return tuple(Level(*first, float(n), float(n)) for first in firsts for n in counts)
        if self.then:
            seconds = _severities(self._second(shape), self.then.severities)
            return tuple(Level(*first, *second) for first in firsts for second in seconds)
        return tuple(Level(*first) for first in firsts)

    def at(self, level: Level) -> float | tuple[float, float]:
        """The severity that the method is given at a level: of a composition one of each method."""
        return (level.severity, level.severity_2) if self.then else level.severity


def check_method(field: str, name: str) -> None:
    """Raises ValueError with the close matches when there is no method of this name."""
    if name not in METHODS:
        raise ValueError(
            f"{field} = {name!r}: not a method{close_matches(name, METHODS)}; `wane list methods` shows them all"
        )


def metric_names(field: str, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        names = chosen(names)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
    if not names:
        raise ValueError(f"{field} = (): must name at least one; `wane list metrics` shows them all")
    return names


def _severities(
    method: Degradation, asked: tuple[float, ...], identity: bool = True
) -> list[tuple[float, float]]:
    """(severity, setting) pairs, the identity among them where it is wanted."""
    settings = {*((identity_of(method.unit),) if identity else ()), *(asked or method.severities)}
    try:
        return sorted((severity_of(setting, method.unit), setting) for setting in settings)
    except ValueError as error:
        raise ValueError(f"degradations.severities of {method.name}: {error}") from None
