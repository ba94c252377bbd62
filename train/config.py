"""Train: how a member is trained, as a value."""

import dataclasses
import math
from typing import Literal

from wane.scaling.shape import Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Budget, optimizer and learning-rate schedule.  Hashable: a static argument of jitted code.

    Exactly one of `tokens` and `tokens_per_param` is given.  `lr`, `eps` and `weight_decay` are those of the
    base shape (Parametrization.base_d_model, base_n_layers); `optimizer.groups` carries them to other shapes.
    Raises ValueError naming the field.
    """

    tokens: int | None = None
    tokens_per_param: float | None = 20.0  # per non-embedding parameter, of experts all
    batch_size: int = 16  # sequences
    lr: float = 2**-7  # peak of the schedule
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_fraction: float = 0.05  # of the steps, linear from 0
    decay_fraction: float = 0.2  # of the steps, linear at the end; read by "wsd" only
    final_lr_fraction: float = 0.1  # learning rate of the last step, relative to lr
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1  # decoupled: multiplied by the learning rate; matrices and embeddings only
    clip: float = 1.0  # largest global gradient norm
    unscored_weight: float = (
        1.0  # in the loss, of graded tokens that no task scores; T2's rumours count in full
    )
    load_balance: float = 0.01  # coefficient of the load-balancing loss; read with experts only
    log_every: int = 10  # steps
    checkpoints: int = 4  # evenly spaced, to resume from; the newest two stay

    def __post_init__(self):
        if (self.tokens is None) == (self.tokens_per_param is None):
            raise ValueError(
                f"train.tokens = {self.tokens}, train.tokens_per_param = {self.tokens_per_param}: "
                "give exactly one and set the other to None"
            )
        for field in ("tokens", "tokens_per_param", "lr", "eps", "clip"):
            value = getattr(self, field)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"train.{field} = {value}: must be a positive number")
        for field in ("batch_size", "log_every", "checkpoints"):
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field} = {getattr(self, field)}: must be at least 1")
        for field in ("warmup_fraction", "decay_fraction", "final_lr_fraction", "unscored_weight"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"train.{field} = {getattr(self, field)}: must be between 0 and 1")
        if self.schedule not in ("cosine", "wsd"):
            raise ValueError(f"train.schedule = {self.schedule!r}: must be 'cosine' or 'wsd'")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"train.decay_fraction = {self.decay_fraction}: must be at most "
                f"1 - warmup_fraction = {1 - self.warmup_fraction}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas = {self.betas}: must be two numbers in [0, 1)")
        for field in ("weight_decay", "load_balance"):
            if not (getattr(self, field) >= 0 and math.isfinite(getattr(self, field))):
                raise ValueError(f"train.{field} = {getattr(self, field)}: must be 0 or a positive number")

    def steps(self, shape: Shape, context: int) -> int:
        """Optimizer steps that spend the budget at batch_size * context target tokens per step, rounded up."""
        tokens = self.tokens or self.tokens_per_param * shape.param_counts()["non_embedding"]
        return math.ceil(tokens / (self.batch_size * context))
