"""Where rows come from: one source per graded task and one per text corpus.  Both have the same methods:
rows (training), evaluation, calibration, describe."""

import dataclasses
import functools
import math

import numpy as np

from wane.train.data import key
from wane.train.data.marks import marked
from wane.train.data.packed import Packed
from wane.train.data.task import UNSCORED, GradedTask, Task, World
from wane.train.data.tokenizer import Tokenizer

DENSITY_ROWS = 4096  # answers of R1 come in 6 to 30 a row: their mean is then known to 1 %


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GradedSource:
    """Rows of one graded task, generated when they are asked for.  T = length."""

    task: GradedTask
    world: World
    length: int

    def rows(self, seed: int, batch: int, ordinals: np.ndarray) -> np.ndarray:
        """Training rows [len(ordinals), T] of batch number `batch`, tokens that nobody can predict marked."""
        rng = key.generator("train", seed, batch, self.task.name)
        tokens_BT, level_BT, _ = self.task.generate(rng, len(ordinals), self.length, self.world, "train")
        return marked(tokens_BT, level_BT != UNSCORED)

    def calibration(self, rows: int, seed: int) -> np.ndarray:
        """Rows as in training, from a stream of their own."""
        rng = key.generator("calibration", seed, self.task.name)
        return self.task.generate(rng, rows, self.length, self.world, "train").tokens_BT

    def evaluation(self, rows: int, seed: int) -> tuple[np.ndarray, ...]:
        """tokens_NT, and level_NS, foil_NS and bytes_NS of the targets."""
        rng = key.generator("evaluation", seed, self.task.name)
        tokens_NT, level_NT, foil_NT = self.task.generate(rng, rows, self.length, self.world, "evaluation")
        return tokens_NT, level_NT[:, 1:], foil_NT[:, 1:], np.zeros((rows, self.length - 1), np.int32)

    @functools.cached_property
    def scored_per_row(self) -> float:
        """Scored tokens of a training row: the mean over rows that every machine draws alike."""
        rng = key.generator("density", self.task.name)
        rows = self.task.generate(rng, DENSITY_ROWS, self.length, self.world, "train")
        return float((rows.level_BT >= 0).sum() / DENSITY_ROWS)

    def describe(self) -> dict[str, int | float | str]:
        """What `wane plan` shows of this source."""
        return {"task": self.task.name, "scored tokens per row": self.scored_per_row}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextSource:
    """Windows of T = length tokens of a packed corpus, `offset` added to every token.

    Windows start S = T - 1 tokens apart, so that every token is a target once per epoch; where the first one
    starts changes from epoch to epoch, and their order is a permutation of its own.
    """

    task: Task
    packed: Packed
    tokenizer: Tokenizer
    length: int
    offset: int

    @property
    def world(self) -> None:
        """Text has none."""

    @property
    def stride(self) -> int:
        return self.length - 1

    @property
    def shifts(self) -> int:
        """In how many places the first window can start."""
        return min(self.stride, len(self.packed.train) - self.length + 1)

    @property
    def windows(self) -> int:
        """Windows per epoch, the same for every start."""
        return (len(self.packed.train) - self.shifts) // self.stride

    def rows(self, seed: int, batch: int, ordinals: np.ndarray) -> np.ndarray:
        """The training rows with these ordinals: 0, 1, ... over all rows that this source ever gives.  Every token
        of text is scored."""
        starts = np.empty(len(ordinals), np.int64)
        epochs, places = np.divmod(ordinals, self.windows)
        for epoch in np.unique(epochs):
            path = self.packed.digest, seed, int(epoch)
            first = int(key.generator("shift", *path).integers(self.shifts))
            order = key.permutation(self.windows, *path)
            starts[epochs == epoch] = first + order[places[epochs == epoch]] * self.stride
        return self._windows(self.packed.train, starts)

    def calibration(self, rows: int, seed: int) -> np.ndarray:
        """Windows anywhere in the training part."""
        rng = key.generator("calibration", self.packed.digest, seed)
        last = len(self.packed.train) - self.length
        return self._windows(self.packed.train, rng.integers(last + 1, size=rows))

    def evaluation(self, rows: int, seed: int) -> tuple[np.ndarray, ...]:
        """tokens_NT, and level_NS, foil_NS and bytes_NS of the targets: different windows of the held-out part.
        Raises ValueError when it has fewer than `rows`."""
        windows = (len(self.packed.held_out) - 1) // self.stride
        if windows < rows:
            raise ValueError(
                f"evaluation sequences = {rows}: the held-out part of {self.task.name} has {windows} windows; "
                "ask for fewer, raise data.held_out or give more text"
            )
        chosen = key.permutation(windows, "evaluation", self.packed.digest, seed)[:rows]
        tokens_NT = self._windows(self.packed.held_out, chosen * self.stride)
        level_NS = np.zeros((rows, self.stride), np.int64)
        return (
            tokens_NT,
            level_NS,
            np.full_like(level_NS, -1),
            self.tokenizer.bytes_V[tokens_NT[:, 1:] - self.offset],
        )

    def describe(self) -> dict[str, int | float | str]:
        """What `wane plan` shows of this source."""
        return {
            "task": self.task.name,
            **{f"{part} documents": count for part, count in self.packed.documents.items()},
            "training tokens": len(self.packed.train),
            "held-out tokens": len(self.packed.held_out),
            "windows per epoch": self.windows,
        }

    def _windows(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return tokens[starts[:, None] + np.arange(self.length)].astype(np.int32) + self.offset


def evaluation_scoring(source: GradedSource | TextSource, scored: int, seed: int) -> tuple[np.ndarray, ...]:
    """`source.evaluation`, as many rows as hold `scored` scored tokens; of the last one no more are scored than it
    takes.  Raises ValueError where held-out text is too short."""
    rows, found = math.ceil(scored / (source.length - 1)), 0
    while found < scored:  # rows differ in how many they hold
        part = source.evaluation(rows, seed)
        found = int((part[1] >= 0).sum())
        rows = math.ceil(1.05 * rows * max(1.0, scored / max(found, 1)))
    tokens_NT, level_NS, foil_NS, bytes_NS = part
    number_NS = np.cumsum(level_NS >= 0).reshape(level_NS.shape)  # of every scored token, 1, 2, ..
    rows = 1 + int(np.searchsorted(number_NS[:, -1], scored))
    beyond_NS = number_NS[:rows] > scored
    level_NS, foil_NS = (np.where(beyond_NS, -1, each[:rows]) for each in (level_NS, foil_NS))
    return tokens_NT[:rows], level_NS, foil_NS, bytes_NS[:rows]
