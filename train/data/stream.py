"""The training stream, the evaluation set and the calibration set of one data config."""

import dataclasses
import functools
import hashlib
import math

import numpy as np

from wane.train.data import key
from wane.train.data.marks import unmarked
from wane.train.data.options import options, values_of
from wane.train.data.pattern import Pattern
from wane.train.data.source import GradedSource, TextSource, evaluation_scoring
from wane.train.data.spec import Data
from wane.train.data.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvalSet:
    """Sequences to evaluate on, the same for every shape.  T = S + 1; position s predicts token s + 1."""

    tokens_NT: np.ndarray  # int32
    task_N: np.ndarray  # int32, index into `tasks`
    scored_NS: np.ndarray  # bool: this prediction counts for accuracy
    level_NS: np.ndarray  # int32: its difficulty (Task.level), -1 where it is not scored
    foil_NS: np.ndarray  # int32: the wrong answer of a forced choice (Rows.foil_BT), -1 where there is none
    options_NSO: np.ndarray  # int32: the answer among 4 options, in no order; -1 where there is none
    values_N2: np.ndarray  # int32: (first, count) of the tokens among which answers are; (0, 0) for text
    bytes_NS: np.ndarray  # int32: UTF-8 bytes of the predicted token; 0 where there are none
    tasks: tuple[Task, ...]

    @functools.cached_property
    def entropy_NS(self) -> np.ndarray:
        """f32: nats that nobody can predict of a scored token (Task.entropy), -1 where nobody told."""
        entropy_NS = np.full(self.level_NS.shape, -1, np.float32)
        for index, task in enumerate(self.tasks):
            mine_NS = self.scored_NS & (self.task_N == index)[:, None]
            if task.entropy:
                entropy_NS[mine_NS] = task.entropy(self.level_NS[mine_NS])
        return entropy_NS

    @functools.cached_property
    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.tokens_NT, self.task_N, self.level_NS, self.foil_NS, self.bytes_NS):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def of_each_task(self, first: int, end: int | None) -> "EvalSet":
        """The sequences first, first + 1, .., end - 1 of every task; None: to the last."""
        chosen = np.concatenate([np.flatnonzero(self.task_N == t)[first:end] for t in range(len(self.tasks))])
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tasks"}
        return dataclasses.replace(self, **{name: array[chosen] for name, array in arrays.items()})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Batches as a pure function of (data seed, step), the same for every shape.

    vocab: tokens in use, before any padding.  digest: of everything the batches depend on except the code.
    """

    config: Data
    steps: int
    batch_size: int
    vocab: int
    digest: str
    sources: tuple[GradedSource | TextSource, ...]
    pattern: Pattern

    def batch(self, data_seed: int, step: int) -> np.ndarray:
        """Tokens int32 [B, T] of one training step."""
        return unmarked(self.marked_batch(data_seed, step))

    def marked_batch(self, data_seed: int, step: int) -> np.ndarray:
        """`batch` with marks (`wane.train.data.marks`) on the tokens that are not scored."""
        epoch, batch = self._place(data_seed, step)
        rows = batch * self.batch_size + np.arange(self.batch_size)
        source_B = self.pattern.sources(rows)
        tokens_BT = np.empty((self.batch_size, self.config.context + 1), np.int32)
        for index in np.unique(source_B):
            ordinals = self.pattern.ordinals(rows[source_B == index], index)
            if epoch:  # text goes on where the last epoch ended; graded rows are the same again
                ordinals = ordinals + epoch * self.pattern.ordinals(
                    self.distinct_batches * self.batch_size, index
                )
            tokens_BT[source_B == index] = self.sources[index].rows(data_seed, batch, ordinals)
        return tokens_BT

    @property
    def distinct_batches(self) -> int:
        """After how many batches the graded part of the stream repeats; without unique_fraction it does not."""
        return math.ceil(self.config.unique_fraction * self.steps)

    def _place(self, data_seed: int, step: int) -> tuple[int, int]:
        """The epoch of a step and the number of its batch: 0, 1, ... first, then permuted anew each epoch."""
        if self.config.unique_fraction == 1 or step < self.distinct_batches:
            return 0, step
        epoch, place = divmod(step, self.distinct_batches)
        return epoch, int(key.permutation(self.distinct_batches, "repeat", data_seed, epoch)[place])

    def evaluation(self, sequences: int, seed: int, scored: int | None = None) -> EvalSet:
        """`sequences` sequences of every graded task and every text source, in that order; or so many that `scored`
        tokens of each are scored.  Raises ValueError when a held-out text has fewer windows."""
        if sequences < 1:
            raise ValueError(f"evaluation sequences = {sequences}: must be at least 1")
        if scored is None:
            parts = [source.evaluation(sequences, seed) for source in self.sources]
        else:
            parts = [evaluation_scoring(source, scored, seed) for source in self.sources]
        sizes = [len(part[0]) for part in parts]
        joined = (np.concatenate(part).astype(np.int32) for part in zip(*parts, strict=True))
        tokens_NT, level_NS, foil_NS, bytes_NS = joined
        tasks = tuple(source.task for source in self.sources)
        task_N = np.repeat(np.arange(len(tasks), dtype=np.int32), sizes)
        scored_NS = level_NS >= 0
        of_each = ((task_N == index, source) for index, source in enumerate(self.sources))
        return EvalSet(
            tokens_NT=tokens_NT,
            task_N=task_N,
            scored_NS=scored_NS,
            level_NS=level_NS,
            foil_NS=foil_NS,
            options_NSO=np.concatenate(
                [
                    options(tokens_NT[n], level_NS[n], foil_NS[n], source.task, seed, source.world)
                    for n, source in of_each
                ]
            ),
            values_N2=np.array([values_of(task) for task in tasks], np.int32)[task_N],
            bytes_NS=bytes_NS,
            tasks=tasks,
        )

    def calibration(self, sequences: int, seed: int) -> np.ndarray:
        """Tokens int32 [N, T] of the training side, mixed as in training, from a stream of their own."""
        if sequences < 1:
            raise ValueError(f"calibration sequences = {sequences}: must be at least 1")
        source_N = self.pattern.sources(np.arange(sequences))
        tokens_NT = np.empty((sequences, self.config.context + 1), np.int32)
        for index in np.unique(source_N):
            chosen = source_N == index
            tokens_NT[chosen] = self.sources[index].calibration(int(chosen.sum()), seed)
        return tokens_NT

    def describe(self) -> dict[str, object]:
        """What `wane plan` shows: totals, and one entry per source."""
        period = self.pattern.counts.sum()
        return {
            "tokens": self.steps * self.batch_size * self.config.context,
            "vocabulary": self.vocab,
            "distinct graded batches": self.distinct_batches,
            "sources": [
                {**source.describe(), "share of rows": int(count) / int(period)}
                for source, count in zip(self.sources, self.pattern.counts, strict=True)
            ],
        }
