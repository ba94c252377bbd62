"""The kinds of cells: the units of work and of resume, each named by the hash of everything that it depends on."""

import dataclasses

from wane.eval.degrade import Degrade
from wane.eval.examine import EXAMINATIONS
from wane.eval.metrics import costly, instruments_of
from wane.eval.study import Evaluation, Examine, FixedMask
from wane.eval.subject import Splits
from wane.scaling.degrade.contract import Degradation
from wane.scaling.identity import digest_of
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data import Data, Stream


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainCell:
    """Train one pack of members: one shape, one arm, several seeds as one program (one seed on CPU).

    init_seeds and data_seeds are padded to the width of the pack by repeating the last; `real` of them count.
    finished: the cell whose member gives the mask its scores or the weights, if any.
    """

    id: str
    arm: str
    shape: Shape
    train: Train
    data: Data
    steps: int
    keep_steps: tuple[int, ...]
    init_seeds: tuple[int, ...]
    data_seeds: tuple[int, ...]
    real: int
    mask: FixedMask | None = None
    mask_setting: float | None = None
    finished: "TrainCell | None" = None
    stream: Stream

    def member_id(self, replica: int) -> str:
        """Names one trained model: shape, seeds and a hash; the cell's own when it holds one member."""
        hashed = self.id if len(self.init_seeds) == 1 else digest_of([self.id, replica])
        arm = f"{self.arm}-" if self.arm else ""
        return f"{arm}{self.shape.name}-s{self.init_seeds[replica]}-{hashed[:10]}"

    @property
    def label(self) -> str:
        """Arm, where there is one, and shape, as titles tell them."""
        return f"{self.arm} {self.shape.name}".strip()

    @property
    def title(self) -> str:
        at = "" if self.mask_setting is None else f" {self.mask.method} {self.mask_setting:g}"
        seeds = ",".join(map(str, self.init_seeds[: self.real]))
        return f"train {self.label}{at} seed {seeds}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SweepCell:
    """Sweep one degradation over one member at one training step, for the metrics of `evaluation`: those of costly
    instruments, or the others.  For a member that was trained under a mask, `degrade` is the mask's method at its
    one severity and the member is measured as it is.

    pilot: on the pilot's sequences, to decide how many a curve takes; its rows are not part of the table.
    tentative: waits for something that is not decided yet; what stands here is the most that it may become.
    """

    id: str
    trained: TrainCell
    replica: int
    step: int
    degrade: Degrade
    draws: range
    splits: Splits
    evaluation: Evaluation
    pilot: bool = False
    tentative: bool = False

    @property
    def kind(self) -> str:
        """pilot, sweep (the coarse grid) or refine."""
        return "pilot" if self.pilot else "sweep" if self.degrade.identity else "refine"

    @property
    def costly(self) -> tuple[str, ...]:
        """The instruments that it measures where they are costly: then it measures no others."""
        return tuple(filter(costly, instruments_of(self.evaluation.metrics)))

    @property
    def what(self) -> str:
        """The degradation, and what of it makes a cell of its own."""
        where = "" if self.degrade.each == "whole" else f" per {self.degrade.each}"
        return f"{self.degrade.name}{where}{': ' if self.costly else ''}{', '.join(self.costly)}"

    @property
    def title(self) -> str:
        member = self.trained
        at = "" if self.step == member.steps else f" step {self.step}"
        return f"{self.kind} {member.label} seed {member.init_seeds[self.replica]}{at} {self.what}"

    @property
    def method(self) -> Degradation:
        return self.degrade.built(self.trained.shape)

    def points(self) -> int:
        """Curve points that the cell computes."""
        if self.trained.mask is not None:
            return 1
        shape, degrade = self.trained.shape, self.degrade
        units = {
            "whole": 1,
            "layer": int(degrade.scope.layer_L(shape).sum()),
            "head": int(degrade.scope.head_LH(shape).sum()),
        }[degrade.each]
        return len(self.draws) * units * len(degrade.grid(shape))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExamineCell:
    """One examination of one member at its last training step.  tentative: as of a sweep."""

    id: str
    trained: TrainCell
    replica: int
    step: int
    examine: Examine
    splits: Splits
    evaluation: Evaluation
    tentative: bool = False
    kind = "examine"

    @property
    def what(self) -> str:
        return self.examine.name

    @property
    def title(self) -> str:
        member = self.trained
        return f"{self.kind} {member.label} seed {member.init_seeds[self.replica]} {self.what}"

    def points(self) -> int:
        """Forward passes over the evaluation set, at most."""
        return EXAMINATIONS[self.examine.name].forwards(self.trained.shape, self.examine.resolved)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairCell:
    """Compare a member with one of another seed along one degradation, at their last training step.  other,
    other_replica: the latter.  tentative: as of a sweep."""

    id: str
    trained: TrainCell
    replica: int
    other: TrainCell
    other_replica: int
    step: int
    degrade: Degrade
    draws: range
    splits: Splits
    evaluation: Evaluation
    tentative: bool = False
    kind = "pair"

    @property
    def what(self) -> str:
        return self.degrade.name

    @property
    def title(self) -> str:
        seeds = f"{self.trained.init_seeds[self.replica]} and {self.other.init_seeds[self.other_replica]}"
        return f"{self.kind} {self.trained.label} seeds {seeds} {self.what}"

    @property
    def method(self) -> Degradation:
        return self.degrade.built(self.trained.shape)

    def points(self) -> int:
        """Points at which the two are compared."""
        return len(self.draws) * len(self.degrade.grid(self.trained.shape))


Measuring = SweepCell | ExamineCell | PairCell  # what measures trained members and leaves rows
Cell = TrainCell | Measuring
