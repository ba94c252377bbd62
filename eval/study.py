"""A study: family x seeds x degradations x metrics, as one frozen value.  `wane.configs` only instantiates it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from wane.eval.measure import METRICS
from wane.scaling.config import canonical, close_matches, override
from wane.scaling.degrade import METHODS, build
from wane.scaling.degrade.contract import Degradation, Scope, identity_of, severity_of
from wane.scaling.family import Family
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data import Data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degrade:
    """One method swept over severities.  `settings` go to the method's builder; `severities` are in the
    method's unit (fractions, bits, sigma), () = its default grid; the identity is always added.

    each: "whole" degrades all of the scope at once; "layer" and "head" one layer or one head at a time
    (sensitivity).  draws: realisations of a random method, nested in a member.
    """

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scope: Scope = Scope()
    severities: tuple[float, ...] = ()
    draws: int = 1
    each: Literal["whole", "layer", "head"] = "whole"

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"degradations.method = {self.method!r}: not a method{close_matches(self.method, METHODS)};"
                " `wane list methods` shows them all"
            )
        if self.draws < 1:
            raise ValueError(f"degradations.draws = {self.draws}: must be at least 1")

    def built(self, shape: Shape) -> Degradation:
        return build(self.method, shape, self.scope, self.settings)

    def grid(self, shape: Shape) -> tuple[tuple[float, float], ...]:
        """(severity, setting) pairs in order of harm, the identity first.

        Raises ValueError when a severity is outside what the method's unit allows.
        """
        method = self.built(shape)
        settings = {identity_of(method.unit), *(self.severities or method.severities)}
        try:
            return tuple(sorted((severity_of(setting, method.unit), setting) for setting in settings))
        except ValueError as error:
            raise ValueError(f"degradations.severities of {self.method}: {error}") from None


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
    """What every point is measured on.  All members of a study see the same sequences."""

    sequences: int = 64  # per graded task, and per text source
    batch: int = 16  # sequences per step of the loop inside the executable
    seed: int = 0
    draw_seed: int = 0
    calibration_sequences: int = 32
    metrics: tuple[str, ...] = tuple(METRICS)
    matmul_precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self):
        for field in ("sequences", "batch", "calibration_sequences"):
            if getattr(self, field) < 1:
                raise ValueError(f"evaluation.{field} = {getattr(self, field)}: must be at least 1")
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(
                    f"evaluation.metrics: {name!r} is not a metric{close_matches(name, METRICS)};"
                    " `wane list metrics` shows them all"
                )
        if "loss" not in self.metrics:
            raise ValueError("evaluation.metrics: must contain 'loss', from which divergence is read")


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

    def variants(self) -> Iterator[tuple[str, "Study", FixedMask | None]]:
        """(arm name, study with the arm's overrides applied, mask): the primary one first, named ""."""
        yield "", self, None
        for arm in self.arms:
            yield arm.name, override(self, arm.overrides), arm.mask
