"""A study: family x seeds x degradations x metrics, as one frozen value.  `wane.configs` only instantiates it."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from wane.eval.degrade import Degrade, Recovery, Then, metric_names
from wane.eval.examine import settings_of
from wane.eval.metrics import METRICS, USUAL, costly_apart
from wane.scaling.config import canonical, override
from wane.scaling.degrade import GROUPS
from wane.scaling.family import Family
from wane.train.config import Train
from wane.train.data import Data

__all__ = ["Arm", "Degrade", "Evaluation", "Examine", "FixedMask", "Gate", "Recovery", "Study", "Then"]


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

    scored_tokens: of each task exactly so many tokens are scored, in as many sequences as that takes, in place of
    `sequences`: tasks differ up to tenfold in how many of a sequence's tokens they score.

    temperature: of free-running answers; 0: the most likely token.  Continuations have temperatures of their own
    (`wane.eval.metrics.continuation`).
    """

    sequences: int = 64  # per graded task, and per text source
    scored_tokens: int | None = None  # per graded task, and per text source
    precision: float | None = None  # nats per token
    pilot_sequences: int = 16  # per graded task, and per text source; read with precision
    batch: int = 16  # sequences per step of the loop inside the executable
    seed: int = 0
    draw_seed: int = 0
    calibration_sequences: int = 32
    calibration_seed: int = 0
    metrics: tuple[str, ...] = USUAL  # names of metrics and of instruments (`wane list metrics`)
    temperature: float = 0.0
    matmul_precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self):
        for field in ("sequences", "batch", "calibration_sequences"):
            if getattr(self, field) < 1:
                raise ValueError(f"evaluation.{field} = {getattr(self, field)}: must be at least 1")
        if self.scored_tokens is not None and self.scored_tokens < 1:
            raise ValueError(
                f"evaluation.scored_tokens = {self.scored_tokens}: must be at least 1, or None for equal numbers of"
                " sequences"
            )
        if self.scored_tokens and self.precision:
            raise ValueError(
                f"evaluation.scored_tokens = {self.scored_tokens}: evaluation.precision = {self.precision:g}"
                " decides how much is read; give one of them"
            )
        if self.precision is not None and not 0 < self.precision < float("inf"):
            raise ValueError(
                f"evaluation.precision = {self.precision}: must be a positive number of nats, or None"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"evaluation.temperature = {self.temperature}: must be 0 or more")
        if self.pilot_sequences < 2:
            raise ValueError(f"evaluation.pilot_sequences = {self.pilot_sequences}: must be at least 2")
        object.__setattr__(self, "metrics", metric_names("evaluation.metrics", self.metrics))

    def of(self, degrade: Degrade) -> "Evaluation":
        """The same with the metrics of a degradation that has its own."""
        return self._measuring(degrade.metrics or self.metrics)

    def of_cells(self, degrade: Degrade) -> tuple["Evaluation", ...]:
        """`of` a degradation, one for each of its cells: what is costly (`wane.eval.metrics.costly`) comes last and
        alone, so that no other curve waits for it, is lost with it or is another cell because of it."""
        parts = costly_apart(degrade.metrics or self.metrics)
        return tuple(self._measuring(metrics) for metrics in parts if metrics)

    def _measuring(self, metrics: tuple[str, ...]) -> "Evaluation":
        """Without a temperature where nothing is said, so that another one makes no other cell."""
        says = any(METRICS[name].free_running for name in metrics)
        return dataclasses.replace(self, metrics=metrics, temperature=self.temperature if says else 0.0)


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
    """Competence gate: a task is assessable for a shape when its normalised score, (accuracy - chance) /
    (ceiling - chance) of its weakest part (`wane.eval.competence`), reaches `score` in at least `seeds` of the
    seeds."""

    score: float = 0.9
    seeds: float = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that `wane run` needs.  note: what the study measures and what it cannot show; `seeds` name
    both initialisation and data order (in separate streams); `data_seeds`, if given, pairs with `seeds`.
    sweep_steps: training steps, besides the last, at which every degradation is swept.  pairs: degradations along
    which residual streams of members of different seeds are compared (`wane.eval.pairs`), each seed's with that of
    the one before it, in cells of their own."""

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
    pairs: tuple[Degrade, ...] = ()
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
        self._check_pairs()
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
            most = self.evaluation.sequences if self.evaluation.scored_tokens is None else math.inf
            if (examine.sequences or 0) > most:
                raise ValueError(
                    f"examinations.sequences = {examine.sequences}: must be at most evaluation.sequences ="
                    f" {self.evaluation.sequences}"
                )

    def _check_pairs(self) -> None:
        if self.pairs and len(self.seeds) < 2:
            raise ValueError(f"pairs: compares members of different seeds; seeds = {self.seeds} is one")
        for degrade in self.pairs:
            inputs = {degrade.method, degrade.then and degrade.then.method} & GROUPS["Input"].keys()
            takes = {"each": degrade.each != "whole", "recovery": degrade.recovery, "refine": degrade.refine,
                     "metrics": degrade.metrics is not None, f"method {', '.join(inputs)}": inputs}  # fmt: skip
            if wrong := [name for name, given in takes.items() if given]:
                raise ValueError(
                    f"pairs: {degrade.name}: {wrong[0]}: compares whole models on the same tokens; leave it out"
                )
        if any(a.meets(b) for a, b in itertools.combinations(self.pairs, 2)):
            raise ValueError("pairs: the same degradation stands there twice; give all severities to one")

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
