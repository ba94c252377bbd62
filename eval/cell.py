"""One sweep cell: one degradation over one member at one training step, from parameters to rows."""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wane.eval.measure import Batches
from wane.eval.metrics import METRICS
from wane.eval.metrics.contract import Metric, Place, SequenceMetric, TokenMetric
from wane.eval.metrics.groups import GROUPS, Grouping
from wane.eval.recovery import recovery
from wane.eval.study import Degrade, Evaluation, Level
from wane.eval.sweep import Engine, Point, engine, streams, undegraded
from wane.scaling.config import canonical
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.edit import Params
from wane.scaling.identity import VERSIONS, array_digest
from wane.scaling.shape import Shape
from wane.train.data import EvalSet, Stream
from wane.train.data.task import Task


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
        self.batches = Batches.of(splits.evaluation, evaluation.batch)
        self._calibrations: dict[str, jax.Array] = {}

    def calibration(self, degrade: Degrade) -> jax.Array:
        """Tokens [N, T] on the device."""
        source = degrade.calibration
        if source not in self._calibrations:
            self._calibrations[source] = jnp.asarray(self.splits.calibrations[source])
        return self._calibrations[source]

    def recovery_batches(self, degrade: Degrade) -> jax.Array:
        """Tokens [n, B, T]: what training would have seen next."""
        stream = dataclasses.replace(self.splits.stream, batch_size=degrade.recovery.batch_size)
        steps = range(self.member.step, self.member.step + max(1, *degrade.recovery.steps))
        return jnp.asarray(np.stack([stream.batch(self.member.data_seed, step) for step in steps]))

    @functools.cached_property
    def full_x(self) -> jax.Array:
        """The undegraded residual stream behind the last block [1, n, B, S, D]."""
        return undegraded(self.member.shape, self.settings.matmul_precision)(self.params, self.batches)[None]

    @functools.cached_property
    def stream(self) -> jax.Array:
        """The residual stream before and behind every block [L + 1, n, B, S, D], for points that start there."""
        return streams(self.member.shape, self.settings.matmul_precision)(self.params, self.batches)

    def draw_key(self, degrade: Degrade, draw: int) -> jax.Array:
        member = self.member
        return draw_key(self.settings.draw_seed, member.init_seed, member.data_seed, degrade.method, draw)

    def engine(self, degrade: Degrade, points: int) -> Engine:
        shape = self.member.shape
        return engine(
            shape, degrade.built(shape), self.settings.metrics, self.settings.matmul_precision, points
        )


def sweep(
    subject: Subject, degrade: Degrade, draws: range, cell_id: str, points: int, tick: Callable[[int], None]
) -> tuple[list[dict], dict]:
    """All rows of a cell, and its timings (seconds, bytes, executables), which stay out of the rows.

    tick(n) is called after n more points.
    """
    programs, shape = subject.engine(degrade, points), subject.member.shape
    method = programs.degradation
    units = dict(zip(("setting_unit", "setting_2_unit"), degrade.units(shape), strict=True))
    rows, clock = [], {"fit_seconds": 0.0, "sweep_seconds": 0.0}
    for draw in draws:
        key = subject.draw_key(degrade, draw)
        started = time.perf_counter()
        fitted = programs.fit(subject.params, subject.calibration(degrade), key)
        jax.block_until_ready(fitted)
        clock["fit_seconds"] += time.perf_counter() - started
        started = time.perf_counter()
        key = jax.random.fold_in(key, 1)
        for layer, head, level, point in swept(subject, degrade, programs, fitted, key):
            about = level._asdict() | units | {"layer": layer, "head": head, "draw": draw}
            about |= {"draw_seed": subject.settings.draw_seed if method.random else None}
            rows += point_rows(subject, degrade, about, point, cell_id)
            tick(1)
        clock["sweep_seconds"] += time.perf_counter() - started
    memory = {"fit_memory_bytes": sum(programs.fit.memory()), "point_memory_bytes": programs.memory()}
    return rows, clock | memory | {"executables": programs.executables()}


def swept(
    subject: Subject, degrade: Degrade, programs: Engine, fitted: Any, key: jax.Array
) -> Iterator[tuple[int | None, int | None, Level, Point]]:
    """(layer, head, level, point) of every unit and level of one draw."""
    grid, shape = degrade.grid(subject.member.shape), subject.member.shape
    common = subject.params, fitted
    if degrade.recovery:
        settings, where = subject.settings, Where.everywhere(shape)
        train = degrade.recovery.train()
        tuned = recovery(shape, programs.degradation, settings.metrics, settings.matmul_precision, train)
        tokens_nBT = subject.recovery_batches(degrade)
        for severity in dict.fromkeys(level.severity for level in grid):
            levels = [level for level in grid if level.severity == severity]
            steps = [int(level.severity_2) for level in levels]
            stream = subject.stream if programs.needs_streams else subject.full_x
            after = tuned.sweep(*common, severity, where, key, subject.batches, stream, tokens_nBT, steps)
            for level, point in zip(levels, after, strict=True):
                yield None, None, level, point
        return
    severities = [(level.severity, level.severity_2) if degrade.then else level.severity for level in grid]
    for layer, head, where in selections(degrade, shape):
        starts = programs.starts(severities, layer)
        stream = subject.stream if starts or programs.needs_streams else subject.full_x
        out = programs.sweep(*common, severities, where, key, subject.batches, stream, starts)
        for level, point in zip(grid, out, strict=True):
            yield layer, head, level, point


def draw_key(draw_seed: int, init_seed: int, data_seed: int, method: str, draw: int) -> jax.Array:
    """Key of one draw: nested in the member (its seeds), different for every method, common to all
    severities and scopes."""
    path = zlib.crc32(method.encode()) & 0x7FFFFFFF
    key = jax.random.key(draw_seed)
    for number in (init_seed, data_seed, path, draw):
        key = jax.random.fold_in(key, number)
    return key


def selections(degrade: Degrade, shape: Shape) -> Iterator[tuple[int | None, int | None, Where]]:
    """(layer, head, selector) of every unit that a cell degrades: all of the scope, or one at a time."""
    if degrade.each == "whole":
        yield None, None, Where.everywhere(shape)
        return
    for layer in np.flatnonzero(degrade.scope.layer_L(shape)).tolist():
        if degrade.each == "layer":
            yield layer, None, Where.only(shape, layer)
            continue
        for head in np.flatnonzero(degrade.scope.head_LH(shape)[layer]).tolist():
            yield layer, head, Where.only(shape, layer, head)


def point_rows(subject: Subject, degrade: Degrade, about: dict, point: Point, cell_id: str) -> list[dict]:
    """The rows of one point: one per metric and task with a count."""
    cost = {name: float(value) for name, value in point.cost._asdict().items()}
    if not np.isfinite(cost["compression_ratio"]):  # nothing is left to store
        cost["compression_ratio"] = None
    common = member_columns(subject.member, subject.settings, subject.splits, cell_id)
    common |= {"pruned": when(subject.member, degraded=bool(about["severity"] or about["severity_2"]))}
    common |= about | cost | degrade_columns(degrade, subject.member.shape)
    if degrade.built(subject.member.shape).needs_calibration:
        digest = subject.splits.calibration_digest(degrade.calibration)
        common |= {"calibration": degrade.calibration, "calibration_digest": digest}
    return [common | values for values in measured(subject, point)]


def masked_rows(subject: Subject, degrade: Degrade, cell_id: str) -> list[dict]:
    """Rows of a member that was trained under a mask, measured as it is: the mask's method and severity name
    the point, so that pruning before, during and after training are curves of one table.

    degrade: the mask's method with one severity.  What the trained weights were before is not defined, so the
    weight error and the metrics that compare with the undegraded model are left out.
    """
    programs = subject.engine(degrade, 1)
    (setting,) = degrade.severities
    key = subject.draw_key(degrade, 0)
    fitted = programs.fit(subject.params, subject.calibration(degrade), key)
    where = Where.everywhere(subject.member.shape)
    (point,) = programs.sweep(
        subject.params, fitted, [0.0], where, key, subject.batches, subject.stream
    )  # severity 0: the parameters as they were trained
    matrices = [subject.params["blocks"][name] for name in subject.member.shape.matrices]
    zeros = sum(int(jnp.sum(leaf == 0)) for leaf in matrices)
    about = {
        "severity": severity_of(setting, programs.degradation.unit), "setting": setting,
        "severity_2": None, "setting_2": None, "setting_2_unit": None,
        "setting_unit": programs.degradation.unit, "layer": None, "head": None, "draw": 0,
        "draw_seed": subject.settings.draw_seed if programs.degradation.random else None,
        "removed_fraction": zeros / sum(leaf.size for leaf in matrices), "relative_weight_error": None,
        "bits_per_weight": None, "compression_ratio": None,
    }  # fmt: skip
    common = member_columns(subject.member, subject.settings, subject.splits, cell_id)
    common |= about | degrade_columns(degrade, subject.member.shape)
    return [common | values for values in measured(subject, point) if not METRICS[values["metric"]].relative]


def measured(subject: Subject, point: Point) -> Iterator[dict]:
    """The values of a point: one dict per metric, task and place."""
    sums, counts, tokens, values = (np.asarray(a, np.float64) for a in point.measured)
    shape, evaluation, N = (
        subject.member.shape,
        subject.splits.evaluation,
        len(subject.splits.evaluation.task_N),
    )
    columns, per_token, others = zip(sums, counts, strict=True), iter(tokens), iter(values)
    for metric in (METRICS[name] for name in subject.settings.metrics):
        if isinstance(metric, TokenMetric):
            grouping = GROUPS[metric.by](evaluation, subject.splits.stream)
            yield from token_rows(metric, next(per_token)[:N], grouping, evaluation)
            continue
        for place in metric.places(shape):
            if isinstance(metric, SequenceMetric):
                yield from sequence_rows(metric, place, *next(columns), evaluation)
            else:
                yield value_row(metric, place, "all", next(others), evaluation.scored_NS.size)


def sequence_rows(
    metric: SequenceMetric, place: Place, sum_N: np.ndarray, count_N: np.ndarray, evaluation: EvalSet
) -> Iterator[dict]:
    """Values on all sequences and on each task, summed in float64."""
    groups: list[tuple[str, np.ndarray, Task | None]] = [("all", np.arange(len(evaluation.task_N)), None)]
    if len(evaluation.tasks) > 1 or metric.bounds:
        groups += [
            (t.name, np.flatnonzero(evaluation.task_N == i), t) for i, t in enumerate(evaluation.tasks)
        ]
    for task, index, definition in groups:
        s, c = sum_N[index], count_N[index]
        if c.sum() == 0:
            continue
        row = value_row(metric, place, task, metric.finish(s.sum() / c.sum()), int(c.sum()))
        if metric.each and row["value"] is not None and (c > 0).all():
            row["per_sequence"] = np.float32(s / c).tolist()
        yield row | bounds(metric, definition)


def token_rows(
    metric: TokenMetric, value_NS: np.ndarray, grouping: Grouping, evaluation: EvalSet
) -> Iterator[dict]:
    """Means over each group of tokens, of each task and, where groups are common to tasks, of all."""
    counted_NS = ~np.isnan(value_NS) & ~np.isnan(grouping.label_NS)
    groups: list[tuple[str, np.ndarray, Task | None]] = []
    if grouping.common:
        groups = [("all", np.ones_like(evaluation.task_N, bool), None)]
    if len(evaluation.tasks) > 1 or not groups:
        groups += [(t.name, evaluation.task_N == i, t) for i, t in enumerate(evaluation.tasks)]
    for task, mine_N, definition in groups:
        chosen_NS = counted_NS & mine_N[:, None]
        labels, inverse = np.unique(grouping.label_NS[chosen_NS], return_inverse=True)
        total, count = np.bincount(inverse, value_NS[chosen_NS]), np.bincount(inverse)
        for label, t, c in zip(labels, total, count, strict=True):
            row = value_row(metric, Place(axis=grouping.axis, at=float(label)), task, t / c, int(c))
            yield row | bounds(metric, definition)


def bounds(metric: Metric, task: Task | None) -> dict[str, float | None]:
    """The columns that tell between what a value of one task lies; none where neither is defined."""
    if metric.bounds is None or task is None:
        return {}
    return dict(zip(("chance", "ceiling"), metric.bounds(task), strict=True))


def value_row(metric: Metric, place: Place, task: str, value: float, count: int) -> dict:
    """The columns of one measurement."""
    finite = bool(np.isfinite(value))
    return place._asdict() | {
        "task": task, "metric": metric.name, "unit": metric.unit, "metric_version": metric.version,
        "value": float(value) if finite else None, "count": count, "per_sequence": None,
        "chance": None, "ceiling": None, "status": "ok" if finite else "diverged",
        "reason": None if finite else f"{metric.name} is not finite under this degradation",
    }  # fmt: skip


def diverged_rows(
    member: Member, degrade: Degrade, draws: range, evaluation: Evaluation, splits: Splits, cell_id: str
) -> list[dict]:
    """What the table keeps of a member whose training diverged: its loss is null at every point, with the
    reason; nothing is computed."""
    units, loss = degrade.units(member.shape), METRICS["loss"]
    common = member_columns(member, evaluation, splits, cell_id) | degrade_columns(degrade, member.shape)
    common |= dict.fromkeys(
        ("removed_fraction", "relative_weight_error", "bits_per_weight", "compression_ratio", "draw_seed",
         "per_sequence", "chance", "ceiling", "value", *Place._fields)
    )  # fmt: skip
    common |= {
        "task": "all",
        "metric": loss.name,
        "unit": loss.unit,
        "metric_version": loss.version,
        "count": 0,
    }
    common |= dict(zip(("setting_unit", "setting_2_unit"), units, strict=True))
    common |= {"status": "diverged", "reason": member.diverged}
    grid = degrade.grid(member.shape)
    if member.pruned != "never":  # trained under a mask: one point, not a curve of its own
        grid = grid[-1:]
    return [
        common
        | level._asdict()
        | {"draw": draw, "layer": layer, "head": head}
        | {"pruned": when(member, degraded=not level.undegraded)}
        for draw in draws
        for layer, head, _ in selections(degrade, member.shape)
        for level in grid
    ]


def when(member: Member, *, degraded: bool) -> str:
    """The column `pruned`: a member trained under a mask keeps its own, others are pruned after training."""
    if member.pruned != "never":
        return member.pruned
    return "after" if degraded else "never"


def degrade_columns(degrade: Degrade, shape: Shape) -> dict:
    """Columns that name the degradation; a sensitivity sweep is told by its layer and head columns."""
    # As the method tells them: of a file its name and the digest of what it holds, not its path.
    told = build(degrade.method, shape, degrade.scope, degrade.settings).settings
    settings = {name: told.get(name, value) for name, value in degrade.settings.items()}
    if then := degrade.then:
        settings |= {f"{then.method}.{name}": value for name, value in then.settings.items()}
        settings |= {} if then.scope == Scope() else {f"{then.method}.scope": str(then.scope)}
    if degrade.recovery:
        settings |= {"recovery.lr": degrade.recovery.lr, "recovery.batch_size": degrade.recovery.batch_size}
    return {
        "method": degrade.name,
        "scope": str(degrade.scope),
        "settings": canonical(settings),
        "matrix": None,
        "calibration": None,
        "calibration_digest": None,
    }


def member_columns(member: Member, evaluation: Evaluation, splits: Splits, cell_id: str) -> dict:
    """Columns that name the member, the evaluation and the code; common to all rows of a cell."""
    shape, counts = member.shape, member.shape.param_counts()
    return {
        "study": member.study, "cell_id": cell_id, "member_id": member.id, "shape": shape.name,
        "arm": member.arm, "d_model": shape.d_model, "n_layers": shape.n_layers, "n_heads": shape.n_heads,
        "n_kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "d_ff": shape.d_ff, "vocab": shape.vocab,
        "n_experts": shape.n_experts, "top_k": None if shape.n_experts is None else shape.top_k,
        "context": shape.context, "non_embedding_params": counts["non_embedding"],
        "active_params": counts["active"], "total_params": counts["total"],
        "init_seed": member.init_seed, "data_seed": member.data_seed,
        "train_step": member.step, "train_tokens": member.tokens, "pruned": member.pruned,
        "pruned_at_step": member.pruned_at_step, "checkpoint_digest": member.checkpoint_digest,
        "evaluation_digest": splits.evaluation.digest,
        "code_version": "-".join(f"{stage}{version}" for stage, version in VERSIONS.items()),
        "jax_version": jax.__version__, "device_kind": jax.devices()[0].device_kind, "dtype": shape.dtype,
        "matmul_precision": evaluation.matmul_precision, "packing": member.packing,
    }  # fmt: skip
