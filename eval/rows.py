"""From what was measured to rows: the value of every metric, task and place, and the columns of the point."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from wane.eval.degrade import Degrade
from wane.eval.measure import Measured
from wane.eval.metrics import METRICS
from wane.eval.metrics.contract import (
    DrawMetric,
    Metric,
    PerToken,
    Place,
    SequenceMetric,
    SetMetric,
    Statistic,
    TokenMetric,
)
from wane.eval.metrics.groups import GROUPS
from wane.eval.study import Evaluation
from wane.eval.subject import Member, Splits, Subject
from wane.scaling.config import canonical
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Scope
from wane.scaling.identity import VERSIONS
from wane.scaling.shape import Shape
from wane.train.data import EvalSet, Stream
from wane.train.data.task import Task


def values(subject: Subject, measured: Measured, initial: np.ndarray) -> Iterator[dict]:
    """The values of a point: one dict per metric, task and place; what compares draws is in `agreements`.  initial:
    `subject.initial`.  No program runs here: on a CPU it and that of the next point would wait for each other."""
    sums, counts, tokens, others, averaged = (np.asarray(a, np.float64) for a in measured)
    shape, evaluation = subject.member.shape, subject.splits.evaluation
    N = len(evaluation.task_N)
    of_each = (of_tasks(a, evaluation) for a in (sums, counts))
    columns = zip(sums[:, :N], counts[:, :N], *of_each, strict=True)
    per_token, statistics, before, told = iter(tokens), iter(others), iter(initial), iter(averaged)
    for metric in (METRICS[name] for name in subject.settings.metrics):
        if isinstance(metric, PerToken):
            value_NS = next(per_token)[:N]
            if isinstance(metric, TokenMetric):
                for part in parts(metric.by, evaluation, subject.splits.stream):
                    yield from token_rows(metric, value_NS, part, shape)
            if isinstance(metric, SetMetric):
                yield from set_rows(metric, value_NS, shape, evaluation)
            continue
        count = averages_over(metric, next(told), evaluation) if isinstance(metric, Statistic) else None
        for place in metric.places(shape):
            if isinstance(metric, SequenceMetric):
                yield from sequence_rows(metric, place, *next(columns), evaluation, shape)
                continue
            value, unit = next(statistics), next(before) if metric.over_initial else 1.0
            if unit and not np.isnan(value):  # it is not defined
                yield value_row(metric, place, "all", value / unit, count)


def averages_over(metric: Statistic, told: float, evaluation: EvalSet) -> int:
    """How many tokens, or pairs of them, the values of a statistic average over."""
    if metric.gather is None:
        return 1
    return evaluation.scored_NS.size if np.isnan(told) else round(told)


def said(subject: Subject, measured: Measured) -> dict[DrawMetric, np.ndarray]:
    """What of a point is compared with other draws: a value per token [N, S], nan where it is not counted."""
    metrics = [METRICS[name] for name in subject.settings.metrics]
    per_token = [metric for metric in metrics if isinstance(metric, PerToken)]
    N = len(subject.splits.evaluation.task_N)
    return {
        metric: np.asarray(measured.tokens[i])[:N]
        for i, metric in enumerate(per_token)
        if isinstance(metric, DrawMetric)
    }


def agreements(subject: Subject, draws: Sequence[dict[DrawMetric, np.ndarray]]) -> Iterator[list[dict]]:
    """Of every draw of a point the values that compare what it `said` with what the others did, per task."""
    shape, evaluation = subject.member.shape, subject.splits.evaluation
    for r, mine in enumerate(draws):
        rows = []
        for metric, mine_NS in mine.items():
            others = [draw[metric] for q, draw in enumerate(draws) if q != r]
            for i, task in enumerate(evaluation.tasks if others else ()):
                counted_NS = ~np.isnan(mine_NS) & (evaluation.task_N == i)[:, None]
                if counted_NS.any():
                    compared = metric.compare(mine_NS[counted_NS], np.stack([o[counted_NS] for o in others]))
                    for place, value in zip(metric.places(shape), compared, strict=True):
                        row = value_row(metric, place, task.name, value, int(counted_NS.sum()))
                        rows.append(row | bounds(metric, task, shape))
        yield rows


@functools.lru_cache(maxsize=8)
def by_task(evaluation: EvalSet) -> tuple[np.ndarray, np.ndarray]:
    """The sequences in order of their task, and where each task begins."""
    order_N = np.argsort(evaluation.task_N, kind="stable")
    return order_N, np.searchsorted(evaluation.task_N[order_N], np.arange(len(evaluation.tasks)))


def of_tasks(value_CN: np.ndarray, evaluation: EvalSet) -> np.ndarray:
    """Sums [C, K] over the sequences of each task.  What is not a number spoils its own task alone."""
    order_N, begins = by_task(evaluation)
    return np.add.reduceat(value_CN[:, : len(order_N)][:, order_N], begins, axis=1)


def over_tasks(sum_K: np.ndarray, count_K: np.ndarray) -> tuple[float, int]:
    """(value, count) over all tasks: the mean over the tasks of their means, so that a task of which many tokens
    are scored weighs as one of which few are; (0, 0) where nothing is counted."""
    counted_K = count_K > 0
    if not counted_K.any():
        return 0.0, 0
    return float(np.mean(sum_K[counted_K] / count_K[counted_K])), round(count_K.sum())


def sequence_rows(
    metric: SequenceMetric, place: Place, sum_N: np.ndarray, count_N: np.ndarray, sum_K: np.ndarray,
    count_K: np.ndarray, evaluation: EvalSet, shape: Shape,
) -> Iterator[dict]:  # fmt: skip
    """Values over all tasks and on each task; K as `of_tasks`."""
    size_K = np.bincount(evaluation.task_N)
    # where tasks differ in it, the mean over all sequences is not that over tasks
    all_N = slice(None) if (size_K == size_K[0]).all() else None
    groups = [("all", None, *over_tasks(sum_K, count_K), all_N)]
    if len(evaluation.tasks) > 1 or metric.bounds or metric.of_task:
        for i, task in enumerate(as_asked(evaluation)):
            mean, count = over_tasks(sum_K[i : i + 1], count_K[i : i + 1])
            groups.append((task.name, task, mean, count, evaluation.task_N == i))
    for name, task, mean, count, index_N in groups:
        value = finished(metric, mean, task, shape) if count else None
        if value is None:
            continue
        row = value_row(metric, place, name, value, count)
        kept = metric.each and row["value"] is not None and index_N is not None
        if kept and (count_N[index_N] > 0).all():
            row["per_sequence"] = np.float32(sum_N[index_N] / count_N[index_N]).tolist()
        yield row | bounds(metric, task, shape) | {"floor": floors(metric, evaluation).get(name)}


def set_rows(metric: SetMetric, value_NS: np.ndarray, shape: Shape, evaluation: EvalSet) -> Iterator[dict]:
    """Values over all tasks and on each task, of every place that has any."""
    sums, counts = (of_tasks(of_each.T, evaluation) for of_each in metric.over(value_NS, evaluation))
    for place, sum_K, count_K in zip(metric.places(shape), sums, counts, strict=True):
        groups = [("all", None, slice(None))]
        groups += [(task.name, task, slice(i, i + 1)) for i, task in enumerate(evaluation.tasks)]
        for name, task, index_K in groups:
            mean, count = over_tasks(sum_K[index_K], count_K[index_K])
            if count:
                yield value_row(metric, place, name, mean, count) | bounds(metric, task, shape)


def finished(metric: SequenceMetric, mean: float, task: Task | None, shape: Shape) -> float | None:
    """What rows tell of a mean over a task, None for all of them; None where the metric tells nothing of it."""
    if metric.of_task is None:
        return metric.finish(mean)
    return None if task is None else metric.of_task(mean, task, shape)


@functools.lru_cache(maxsize=8)
def as_asked(evaluation: EvalSet) -> tuple[Task, ...]:
    """The tasks, with chance and ceiling of the levels that the evaluation asks them at."""
    level = [
        evaluation.level_NS[evaluation.scored_NS & (evaluation.task_N == i)[:, None]]
        for i in range(len(evaluation.tasks))
    ]
    return tuple(task.at(level_M) for task, level_M in zip(evaluation.tasks, level, strict=True))


class Part(NamedTuple):
    """Groups of tokens that do not overlap.  group_NS: the group of each token, -1 in none; of each group its task,
    as it is asked there, and its label, what rows tell as `at` of the axis."""

    axis: str
    group_NS: np.ndarray
    of_each: tuple[tuple[str, Task | None, float], ...]


@functools.lru_cache(maxsize=8)
def parts(by: str, evaluation: EvalSet, stream: Stream) -> tuple[Part, ...]:
    """The groups of each task and, where groups are common to tasks, those of all."""
    axis, label_NS, common = GROUPS[by](evaluation, stream)
    tasks = [(task.name, task) for task in as_asked(evaluation)]
    divisions = [([("all", None)], np.zeros_like(evaluation.task_N))] if common else []
    if len(tasks) > 1 or not divisions:
        divisions.append((tasks, evaluation.task_N))
    found = []
    for named, task_N in divisions:
        counted_NS = ~np.isnan(label_NS)
        task_NS = np.broadcast_to(task_N[:, None], label_NS.shape)
        pairs = np.stack([task_NS[counted_NS], label_NS[counted_NS]])
        known, group = np.unique(pairs, axis=1, return_inverse=True)
        group_NS = np.full(label_NS.shape, -1)
        group_NS[counted_NS] = group
        of_each = [(*named[int(task)], float(label)) for task, label in known.T]
        if axis == "level":
            original = {task.name: task for task in evaluation.tasks}
            of_each = [(name, original[name].at(np.array([label])), label) for name, _, label in of_each]
        found.append(Part(axis, group_NS, tuple(of_each)))
    return tuple(found)


def token_rows(metric: TokenMetric, value_NS: np.ndarray, part: Part, shape: Shape) -> Iterator[dict]:
    """Means over each group of tokens."""
    counted_NS = ~np.isnan(value_NS) & (part.group_NS >= 0)
    group = part.group_NS[counted_NS]
    count = np.bincount(group, minlength=len(part.of_each))
    total = np.bincount(group, value_NS[counted_NS], minlength=len(part.of_each))
    for (task, definition, label), t, c in zip(part.of_each, total, count, strict=True):
        if c:
            row = value_row(metric, Place(axis=part.axis, at=label), task, t / c, int(c))
            yield row | bounds(metric, definition, shape)


def bounds(metric: Metric, task: Task | None, shape: Shape) -> dict[str, float | None]:
    """The columns that tell between what a value of one task lies, those of them that are defined."""
    if task is None:
        return {}
    told = dict(zip(("chance", "ceiling"), metric.bounds(task), strict=True)) if metric.bounds else {}
    among = metric.among(task, shape) if metric.among else None
    return told | ({"uniform": 1 / among} if among else {})


@functools.lru_cache(maxsize=32)
def floors(metric: SequenceMetric, evaluation: EvalSet) -> dict[str, float | None]:
    """By task, and the mean of them over all; none where the metric has no floor."""
    if metric.floor is None:
        return {}
    found = {
        task.name: metric.floor(evaluation, evaluation.task_N == i) for i, task in enumerate(evaluation.tasks)
    }
    known = [value for value in found.values() if value is not None]
    return found | {"all": float(np.mean(known)) if known else None}


def value_row(metric: Metric, place: Place, task: str, value: float, count: int) -> dict:
    """The columns of one measurement."""
    finite = bool(np.isfinite(value))
    return place._asdict() | {
        "task": task, "metric": metric.name, "unit": metric.unit, "metric_version": metric.version,
        "value": float(value) if finite else None, "count": count, "per_sequence": None,
        "uniform": None, "floor": None, "chance": None, "ceiling": None, "status": "ok" if finite else "diverged",
        "reason": None if finite else f"{metric.name} is not finite under this degradation",
    }  # fmt: skip


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
        "study": member.study, "cell_id": cell_id, "member_id": member.id, "compared_with": None,
        "shape": shape.name,
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
        "matmul_precision": evaluation.matmul_precision, "answer_temperature": evaluation.temperature,
        "packing": member.packing,
    }  # fmt: skip
