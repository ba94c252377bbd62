"""What a sweep measures: a trained member, the sequences, and the work that all its sweeps share."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wane.eval.degrade import Degrade
from wane.eval.measure import Batches, OfTrained, gathers, reads_of_full
from wane.eval.metrics import METRICS, compares, reads_streams
from wane.eval.study import Evaluation
from wane.eval.sweep import Engine, Start, engine, of_initial, streams, summing, undegraded
from wane.scaling.edit import Params
from wane.scaling.identity import array_digest
from wane.scaling.shape import Shape
from wane.train.data import EvalSet, Stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A trained model as a sweep sees it.  pruned, method, settings, severity: the mask that it was trained
    under, or "never" and nothing."""

    id: str
    study: str
    arm: str
    shape: Shape
    init_seed: int
    data_seed: int
    step: int
    tokens: int
    packing: int
    checkpoint_digest: str
    diverged: str | None = None  # reason
    pruned: str = "never"
    pruned_at_step: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """The sequences that every member of a study is measured and calibrated on, the latter by source, and the
    training stream, from which recovery goes on."""

    evaluation: EvalSet
    calibrations: Mapping[str, np.ndarray]
    stream: Stream

    def calibration_digest(self, source: str) -> str:
        return array_digest(self.calibrations[source])


class Subject:
    """A member on the device with the work that all its sweeps share: batches and one undegraded forward."""

    def __init__(self, member: Member, params: Params, splits: Splits, evaluation: Evaluation):
        self.member, self.params, self.splits, self.settings = member, params, splits, evaluation
        self.batches = Batches.of(splits.evaluation, evaluation.batch, evaluation.temperature)
        self._calibrations: dict[str, jax.Array] = {}

    def calibration(self, degrade: Degrade) -> jax.Array:
        """Tokens [N, T] on the device."""
        source = degrade.calibration
        if source not in self._calibrations:
            self._calibrations[source] = jnp.asarray(self.splits.calibrations[source])
        return self._calibrations[source]

    def recovery_batches(self, degrade: Degrade) -> jax.Array:
        """Marked tokens [n, B, T]: what training would have seen next."""
        stream = dataclasses.replace(self.splits.stream, batch_size=degrade.recovery.batch_size)
        steps = range(self.member.step, self.member.step + max(1, *degrade.recovery.steps))
        return jnp.asarray(np.stack([stream.marked_batch(self.member.data_seed, step) for step in steps]))

    @functools.cached_property
    def full_x(self) -> jax.Array:
        """The undegraded residual stream behind the last block [1, n, B, S, D]."""
        return undegraded(self.member.shape, self.settings.matmul_precision)(self.params, self.batches)[None]

    @functools.cached_property
    def stream(self) -> jax.Array:
        """The residual stream before and behind every block [L + 1, n, B, S, D], for points that start there."""
        return streams(self.member.shape, self.settings.matmul_precision)(self.params, self.batches)

    @functools.cached_property
    def of_trained(self) -> OfTrained:
        """What metrics read of the trained model, for all points."""
        metrics = self.settings.metrics
        if not gathers(metrics, of_trained=True) and not reads_of_full(metrics):
            return OfTrained()
        program = summing(self.member.shape, metrics, self.settings.matmul_precision)
        stream = self.stream if reads_streams(metrics) else self.full_x if compares(metrics) else None
        return program(self.params, self.batches, stream)

    @functools.cached_property
    def initial(self) -> np.ndarray:
        """Of the metrics that are told over it (`Statistic.over_initial`): the values that the parameters had
        before training, f64, one metric after the other."""
        told = tuple(name for name in self.settings.metrics if getattr(METRICS[name], "over_initial", False))
        if not told:
            return np.zeros(0)
        program = of_initial(self.member.shape, told, self.settings.matmul_precision)
        return np.asarray(program(np.int32(self.member.init_seed)), np.float64)

    def undegraded(self, programs: Engine, starts: Sequence[Start] = ()) -> jax.Array | None:
        """What of the undegraded forward pass these programs read: every block's stream, only the last, or none."""
        if starts or programs.needs_streams:
            return self.stream
        return self.full_x if programs.compares else None

    def draw_key(self, degrade: Degrade, draw: int) -> jax.Array:
        member = self.member
        return draw_key(self.settings.draw_seed, member.init_seed, member.data_seed, degrade.method, draw)

    def engine(self, degrade: Degrade, points: int) -> Engine:
        shape = self.member.shape
        return engine(
            shape, degrade.built(shape), self.settings.metrics, self.settings.matmul_precision, points
        )


def draw_key(draw_seed: int, init_seed: int, data_seed: int, method: str, draw: int) -> jax.Array:
    """Key of one draw: nested in the member (its seeds), different for every method, common to all
    severities and scopes."""
    path = zlib.crc32(method.encode()) & 0x7FFFFFFF
    key = jax.random.key(draw_seed)
    for number in (init_seed, data_seed, path, draw):
        key = jax.random.fold_in(key, number)
    return key
