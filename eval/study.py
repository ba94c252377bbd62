"""A study: family x seeds x degradations x metrics, as one frozen value.  `wane.configs` only instantiates it."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from wane.eval.examine import settings_of
from wane.eval.metrics import METRICS, USUAL, chosen
from wane.scaling.config import canonical, close_matches, override
from wane.scaling.degrade import GROUPS, METHODS, build
from wane.scaling.degrade.compose import compose
from wane.scaling.degrade.contract import Degradation, Scope, identity_of, severity_of
from wane.scaling.family import Family
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data import Data
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

    def __post_init__(self):
        if not self.steps or min(self.steps) < 0:
            raise ValueError(
                f"degradations.recovery.steps = {self.steps}: must be numbers of updates, 0 or more"
            )
        for field in ("lr", "batch_size"):
            if not getattr(self, field) > 0:
                raise ValueError(f"degradations.recovery.{field} = {getattr(self, field)}: must be above 0")

    def train(self) -> Train:
        """The optimizer: constant learning rate from the first update, no weight decay."""
        return Train(
            lr=self.lr, batch_size=self.batch_size, schedule="wsd", warmup_fraction=0.0, decay_fraction=0.0,
            final_lr_fraction=1.0, weight_decay=0.0,
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
            object.__setattr__(self, "metrics", _metrics("degradations.metrics", self.metrics))
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


def check_method(field: str, name: str) -> None:
    """Raises ValueError with the close matches when there is no method of this name."""
    if name not in METHODS:
        raise ValueError(
            f"{field} = {name!r}: not a method{close_matches(name, METHODS)}; `wane list methods` shows them all"
        )


def _metrics(field: str, names: tuple[str, ...]) -> tuple[str, ...]:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedMask:
    """Train under a mask that never changes.  One member per severity (and per seed and shape).

    at: fraction of training at which the mask is fixed (0: before the first step).  scores: the parameters
    that the mask is fitted on, "current" ones or those of the "finished" member of the same shape and seed.
    weights: where training starts, at the "initial" weights (the finished member's too: they follow from the
    seed) or "rewound" to the finished member's checkpoint at `at` (Frankle et al. 2020, arXiv 1912.05671).
    """

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    severities: tuple[float, ...] = (0.5,)
    at: float = 0.0
    scores: Literal["current", "finished"] = "current"
    weights: Literal["initial", "rewound"] = "initial"

    def __post_init__(self):
        if not 0 <= self.at < 1:
            raise ValueError(f"arms.mask.at = {self.at}: must be a fraction of training, 0 <= at < 1")
        if self.scores == "current" and self.weights == "rewound":
            raise ValueError(
                "arms.mask.weights = 'rewound': needs scores = 'finished', whose checkpoint it takes"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A variant that a study trains beside its primary members: overrides of dotted study fields
    ({"data.unique_fraction": 0.1}), a mask to train under, or both."""

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mask: FixedMask | None = None

    def __post_init__(self):
        for field in self.overrides:
            if field.split(".")[0] not in ("family", "data", "train"):
                raise ValueError(f"arms.overrides.{field}: an arm changes family.*, data.* or train.* only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What every point is measured on.  All members of a study see the same sequences.

    precision: half the width of the 95 % interval, over evaluation sequences, that a member's excess loss must
    have at every point that costs at most `wane.eval.precision.RANGE` nats.  Before the first sweep a pilot on
    other sequences decides how many that takes, for all members alike; `sequences` is then the most that may be
    used.  None: `sequences` are used.
    """

    sequences: int = 64  # per graded task, and per text source
    precision: float | None = None  # nats per token
    pilot_sequences: int = 16  # per graded task, and per text source; read with precision
    batch: int = 16  # sequences per step of the loop inside the executable
    seed: int = 0
    draw_seed: int = 0
    calibration_sequences: int = 32
    calibration_seed: int = 0
    metrics: tuple[str, ...] = USUAL  # names of metrics and of instruments (`wane list metrics`)
    matmul_precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self):
        for field in ("sequences", "batch", "calibration_sequences"):
            if getattr(self, field) < 1:
                raise ValueError(f"evaluation.{field} = {getattr(self, field)}: must be at least 1")
        if self.precision is not None and not 0 < self.precision < float("inf"):
            raise ValueError(
                f"evaluation.precision = {self.precision}: must be a positive number of nats, or None"
            )
        if self.pilot_sequences < 2:
            raise ValueError(f"evaluation.pilot_sequences = {self.pilot_sequences}: must be at least 2")
        object.__setattr__(self, "metrics", _metrics("evaluation.metrics", self.metrics))

    def of(self, degrade: Degrade) -> "Evaluation":
        """The same with the metrics of a degradation that has its own."""
        return dataclasses.replace(self, metrics=degrade.metrics or self.metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examine:
    """One examination (`wane list examinations`) of every member that was not trained under a mask, at its last
    step: a cell of its own.  settings: those of the examination.  sequences: per task, the first of the
    evaluation's; None: as many as the curves have."""

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sequences: int | None = None

    def __post_init__(self):
        settings_of(self.name, self.settings)
        if self.sequences is not None and self.sequences < 1:
            raise ValueError(f"examinations.sequences = {self.sequences}: must be at least 1, or None")

    @property
    def resolved(self) -> Any:
        """All settings, as the examination's own dataclass."""
        return settings_of(self.name, self.settings)

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        resolved, default = self.resolved, settings_of(self.name, {})
        fields = (field.name for field in dataclasses.fields(resolved))
        return {f: getattr(resolved, f) for f in fields if getattr(resolved, f) != getattr(default, f)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Competence gate: a task is assessable for a shape when its normalised score,
    (accuracy - chance) / (ceiling - chance), reaches `score` in at least `seeds` of the seeds."""

    score: float = 0.9
    seeds: float = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that `wane run` needs.  note: what the study measures and what it cannot show; `seeds` name
    both initialisation and data order (in separate streams); `data_seeds`, if given, pairs with `seeds`.
    sweep_steps: training steps, besides the last, at which every degradation is swept."""

    name: str
    note: str = ""
    family: Family
    data: Data = Data()
    train: Train = Train()
    seeds: tuple[int, ...] = (0, 1, 2)
    data_seeds: tuple[int, ...] | None = None
    arms: tuple[Arm, ...] = ()
    degradations: tuple[Degrade, ...]
    examinations: tuple[Examine, ...] = ()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    sweep_steps: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.name or any(c in self.name for c in "/\\ \t\n"):
            raise ValueError(f"name = {self.name!r}: must be one word without slashes (it names a directory)")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds = {self.seeds}: must be different non-negative integers, at least one")
        if self.data_seeds is not None and len(self.data_seeds) != len(self.seeds):
            raise ValueError(f"data_seeds = {self.data_seeds}: must pair with the {len(self.seeds)} seeds")
        names = [arm.name for arm in self.arms]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"arms = {names}: names must be different and not empty")
        if len({canonical(d) for d in self.degradations}) < len(self.degradations):
            raise ValueError("degradations: the same method, settings and scope stand there twice")
        if "loss" not in self.evaluation.metrics:
            raise ValueError("evaluation.metrics: must contain 'loss', from which divergence is read")
        self._check_examinations()
        self._check_points()
        for degrade in self.degradations:
            said = [name for name in self.evaluation.of(degrade).metrics if METRICS[name].free_running]
            corrupts = {degrade.method, degrade.then and degrade.then.method} & GROUPS["Input"].keys()
            if said and corrupts:
                raise ValueError(
                    f"evaluation.metrics: {', '.join(said)}: goes token by token, and"
                    f" {', '.join(corrupts)} is of whole sequences; measure them in studies of their own"
                )
        if self.evaluation.precision and not any(degrade.piloted for degrade in self.degradations):
            raise ValueError(
                f"evaluation.precision = {self.evaluation.precision}: a pilot needs a degradation of the whole"
                " model without recovery; add one or give evaluation.sequences alone"
            )

    def _check_examinations(self) -> None:
        asked = [canonical([e.name, e.resolved, e.sequences]) for e in self.examinations]
        if len(set(asked)) < len(asked):
            raise ValueError("examinations: the same name, settings and sequences stand there twice")
        for examine in self.examinations:
            if (examine.sequences or 0) > self.evaluation.sequences:
                raise ValueError(
                    f"examinations.sequences = {examine.sequences}: must be at most evaluation.sequences ="
                    f" {self.evaluation.sequences}"
                )

    def _check_points(self) -> None:
        for a, b in itertools.combinations(self.degradations, 2):
            shared = set(self.evaluation.of(a).metrics) & set(self.evaluation.of(b).metrics)
            if shared and a.meets(b):
                raise ValueError(
                    f"degradations: {a.name} measures {', '.join(sorted(shared))} twice at the same severities;"
                    " give one of them metrics that the other has not, or all severities to one"
                )

    def variants(self) -> Iterator[tuple[str, "Study", FixedMask | None]]:
        """(arm name, study with the arm's overrides applied, mask): the primary one first, named ""."""
        yield "", self, None
        for arm in self.arms:
            yield arm.name, override(self, arm.overrides), arm.mask
