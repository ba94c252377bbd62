"""Metrics of a pack: kept on the device between log points, written per member, watched for divergence."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from wane.train.journal import Journal, Outcome, read_outcome, write_outcome
from wane.train.run import Run


class Point(NamedTuple):
    """One log point.  losses: mean since the last one, per replica; tokens_per_s: of all replicas together."""

    step: int
    steps: int
    losses: tuple[float, ...]
    tokens_per_s: float

    def text(self) -> str:
        losses = " ".join(f"{loss:.3f}" for loss in self.losses)
        return f"loss {losses}  {self.tokens_per_s:,.0f} tok/s"


class Logbook(ExitStack):
    """Opened at the step from which training goes on.  members: directory per replica, None = not logged.

    `diverged`: replica -> Outcome of those whose loss or gradient was not finite at a log point.
    """

    def __init__(self, run: Run, members: Sequence[Path | None], step: int, report: Callable[[Point], None]):
        super().__init__()
        self.run, self.step, self.report = run, step, report
        self.members = {r: member for r, member in enumerate(members) if member}
        self.journals = {r: self.enter_context(closing(Journal(m, step))) for r, m in self.members.items()}
        earlier = {r: read_outcome(m) for r, m in self.members.items()}
        self.diverged = {r: o for r, o in earlier.items() if o and o.status == "diverged" and o.step <= step}
        self._window: list[dict[str, jax.Array]] = []
        self._since: tuple[float, int] | None = None  # (time, step) from which the rate counts

    @property
    def all_diverged(self) -> bool:
        return self.members.keys() == self.diverged.keys()

    def add(self, metrics_R: dict[str, jax.Array]) -> None:
        """Metrics of one step, not fetched yet: reading them every step would make the device wait."""
        self._window.append(metrics_R)
        self.step += 1
        if self._since is None:
            jax.block_until_ready(metrics_R)  # the first step compiles: it is not part of the rate
            self._since = (time.perf_counter(), self.step)

    def write(self) -> None:
        """A log point: one row per member (loss and imbalance: means since the last one), divergence, progress."""
        host = jax.device_get(self._window)
        losses_R = _mean(host, "loss")
        imbalance_R = _mean(host, "imbalance") if "imbalance" in host[0] else None
        tokens_per_step = self.run.train.batch_size * self.run.shape.context
        rate = self._rate(tokens_per_step)
        for r, journal in self.journals.items():
            row = {
                "step": self.step,
                "tokens": self.step * tokens_per_step,
                "loss": losses_R[r],
                "grad_norm": float(host[-1]["grad_norm"][r]),
                "lr": float(host[-1]["lr"][r]),
                "tokens_per_s": rate,
            }
            if imbalance_R is not None:
                row["imbalance"] = imbalance_R[r]
            journal.write(row)
            self._watch(r, row)
        self._window = []
        self.report(Point(self.step, self.run.steps, tuple(losses_R), rate * self.run.replicas))

    def _rate(self, tokens_per_step: int) -> float:
        """Tokens per second of one member since the last log point; NaN for a window of the first step only."""
        now, (before, since) = time.perf_counter(), self._since
        self._since = (now, self.step)
        return (self.step - since) * tokens_per_step / (now - before) if self.step > since else math.nan

    def _watch(self, r: int, row: dict[str, float]) -> None:
        if r in self.diverged or math.isfinite(row["loss"] + row["grad_norm"]):
            return
        reason = f"loss {row['loss']:g}, gradient norm {row['grad_norm']:g} at learning rate {row['lr']:g}"
        self.diverged[r] = Outcome(status="diverged", step=row["step"], reason=reason)
        write_outcome(self.members[r], self.diverged[r])


def _mean(window: list[dict[str, np.ndarray]], name: str) -> list[float]:
    """A metric's mean over steps, per replica."""
    return np.mean([metrics[name] for metrics in window], axis=0, dtype=np.float64).tolist()
