"""Run: one training cell, everything that the loop needs to know."""

import dataclasses
from pathlib import Path

from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.mask import MaskPlan
from wane.train.step import Packing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """A state to start from instead of initialisation (rewinding): a step of a checkpoint directory, and which
    member of the pack that is stored there."""

    checkpoints: Path
    step: int
    replica: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One pack of R replicas of one shape (R = 1: one member), trained together.

    Raises ValueError naming the field when the per-replica fields differ in length.
    """

    shape: Shape
    train: Train
    steps: int
    init_seeds: tuple[int, ...]
    data_seeds: tuple[int, ...]
    lrs: tuple[float, ...] | None  # None: train.lr for all
    keep_steps: tuple[int, ...]  # checkpoints that must stay, 0 = initialisation; the final step always stays
    packing: Packing
    mask_from: MaskPlan | None = None
    start_from: tuple[Start, ...] | None = None

    def __post_init__(self):
        for field in ("data_seeds", "lrs", "start_from"):
            value = getattr(self, field)
            if value is not None and len(value) != self.replicas:
                raise ValueError(
                    f"run.{field} has {len(value)} entries: needs one per init seed, {self.replicas}"
                )
        if self.steps < 1 or self.replicas < 1:
            raise ValueError(f"run.steps = {self.steps}, {self.replicas} init seeds: both must be at least 1")
        if wrong := [step for step in self.keep_steps if not self.first_step <= step <= self.steps]:
            raise ValueError(
                f"run.keep_steps has {wrong[0]}: must be between {self.first_step} and steps = {self.steps}"
            )
        if self.start_from and len({start.step for start in self.start_from}) > 1:
            raise ValueError("run.start_from: all replicas of a pack must start from the same step")

    @property
    def replicas(self) -> int:
        return len(self.init_seeds)

    @property
    def first_step(self) -> int:
        return self.start_from[0].step if self.start_from else 0

    @property
    def rates(self) -> tuple[float, ...]:
        """Peak learning rate of each replica."""
        return self.lrs or (self.train.lr,) * self.replicas

    @property
    def kept(self) -> frozenset[int]:
        """Steps whose checkpoints stay."""
        return frozenset({*self.keep_steps, self.steps})

    @property
    def saved(self) -> frozenset[int]:
        """Steps at which a checkpoint is written: those that stay and train.checkpoints evenly spaced ones."""
        n = self.train.checkpoints
        return self.kept | {max(1, round(self.steps * i / n)) for i in range(1, n + 1)}

    def logs(self, step: int) -> bool:
        """Whether `step` is a log point.  Every checkpoint is one, so that no window of the log is cut in two
        by an interruption."""
        return step % self.train.log_every == 0 or step in self.saved

    def masks(self, step: int) -> bool:
        """Whether the state after `step` updates carries the mask."""
        return self.mask_from is not None and step > max(self.mask_from.at_step, self.first_step)
