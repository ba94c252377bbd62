"""One sweep cell: one degradation over one member at one training step, from parameters to rows."""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wane.eval.degrade import Degrade, Level
from wane.eval.metrics import METRICS
from wane.eval.metrics.contract import Metric, Place
from wane.eval.recovery import recovery
from wane.eval.rows import agreements, degrade_columns, member_columns, said, values, when
from wane.eval.study import Evaluation
from wane.eval.subject import Member, Splits, Subject
from wane.eval.sweep import Engine, Point
from wane.scaling.degrade.contract import Cost, Where, severity_of
from wane.scaling.shape import Shape

Swept = tuple[int | None, int | None, Level, Point]  # layer, head, level


def sweep(
    subject: Subject, degrade: Degrade, draws: range, cell_id: str, points: int, tick: Callable[[int], None]
) -> tuple[list[dict], dict]:
    """All rows of a cell, and its timings (seconds, bytes, executables), which stay out of the rows.

    tick(n) is called after n more points.
    """
    programs, initial = subject.engine(degrade, points), subject.initial
    rows, clock = [], {"fit_seconds": 0.0, "sweep_seconds": 0.0}
    of_draws: dict[tuple, list[tuple[dict, dict]]] = {}  # point -> of each draw its columns, and what it said

    def tell(draw: int, layer: int | None, head: int | None, level: Level, point: Point) -> None:
        about = about_of(degrade, subject, level, draw) | {"layer": layer, "head": head}
        common = point_columns(subject, degrade, about, point.cost, cell_id)
        rows.extend(common | row for row in values(subject, point.measured, initial))
        of_draws.setdefault((layer, head, level), []).append((common, said(subject, point.measured)))
        tick(1)

    for draw in draws:
        key = subject.draw_key(degrade, draw)
        started = time.perf_counter()
        fitted = programs.fit(subject.params, subject.calibration(degrade), key)
        jax.block_until_ready(fitted)
        clock["fit_seconds"] += time.perf_counter() - started
        started = time.perf_counter()
        key = jax.random.fold_in(key, 1)
        beside(functools.partial(tell, draw), swept(subject, degrade, programs, fitted, key))
        clock["sweep_seconds"] += time.perf_counter() - started
    for columns, told in (zip(*point, strict=True) for point in of_draws.values()):
        for common, compared in zip(columns, agreements(subject, told), strict=True):
            rows += [common | row for row in compared]
    memory = {"fit_memory_bytes": programs.fit_memory(), "point_memory_bytes": programs.memory()}
    return rows, clock | memory | {"executables": programs.executables()}


def beside(tell: Callable, points: Iterator[Swept]) -> None:
    """tell(*point) of one point after the other, each while the next one is computed.  That one is begun when the
    point is there, since two at once would need the memory of two."""
    with ThreadPoolExecutor(1) as teller:
        last = None
        for point in points:
            jax.block_until_ready(point[-1])
            if last:
                last.result()
            last = teller.submit(tell, *point)
        if last:
            last.result()


def swept(
    subject: Subject, degrade: Degrade, programs: Engine, fitted: Any, key: jax.Array
) -> Iterator[Swept]:
    """(layer, head, level, point) of every unit and level of one draw."""
    grid, shape = degrade.grid(subject.member.shape), subject.member.shape
    common = subject.params, fitted
    if degrade.recovery:
        settings, where = subject.settings, Where.everywhere(shape)
        train = degrade.recovery.train()
        tuned = recovery(shape, programs.degradation, settings.metrics, settings.matmul_precision, train)
        marked_nBT = subject.recovery_batches(degrade)
        for severity in dict.fromkeys(level.severity for level in grid):
            levels = [level for level in grid if level.severity == severity]
            steps = [int(level.severity_2) for level in levels]
            full = subject.undegraded(programs)
            after = tuned.sweep(
                *common, severity, where, key, subject.batches, full, subject.of_trained, marked_nBT, steps
            )
            for level, point in zip(levels, after, strict=True):
                yield None, None, level, point
        return
    batches = programs.known(*common, subject.batches)
    severities = [degrade.at(level) for level in grid]
    for layer, head, where in selections(degrade, shape):
        starts = programs.starts(severities, layer)
        full = subject.undegraded(programs, starts)
        out = programs.sweep(*common, severities, where, key, batches, full, starts, subject.of_trained)
        for level, point in zip(grid, out, strict=True):
            yield layer, head, level, point


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


def about_of(degrade: Degrade, subject: Subject, level: Level, draw: int) -> dict:
    """The columns that say which point of a curve one is, of all that is in scope."""
    shape = subject.member.shape
    units = dict(zip(("setting_unit", "setting_2_unit"), degrade.units(shape), strict=True))
    draw_seed = subject.settings.draw_seed if degrade.built(shape).random else None
    return level._asdict() | units | {"layer": None, "head": None, "draw": draw, "draw_seed": draw_seed}


def point_columns(subject: Subject, degrade: Degrade, about: dict, cost: Cost, cell_id: str) -> dict:
    """What all rows of one point have in common."""
    cost = {name: float(value) for name, value in cost._asdict().items()}
    if not np.isfinite(cost["compression_ratio"]):  # nothing is left to store
        cost["compression_ratio"] = None
    common = member_columns(subject.member, subject.settings, subject.splits, cell_id)
    common |= {"pruned": when(subject.member, degraded=bool(about["severity"] or about["severity_2"]))}
    common |= about | cost | degrade_columns(degrade, subject.member.shape)
    if degrade.built(subject.member.shape).needs_calibration:
        digest = subject.splits.calibration_digest(degrade.calibration)
        common |= {"calibration": degrade.calibration, "calibration_digest": digest}
    return common


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
        subject.params,
        fitted,
        [0.0],
        where,
        key,
        subject.batches,
        subject.undegraded(programs),
        trained=subject.of_trained,
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
    told = values(subject, point.measured, subject.initial)
    return [common | row for row in told if not METRICS[row["metric"]].relative]


def diverged_rows(
    member: Member, degrade: Degrade, draws: range, evaluation: Evaluation, splits: Splits, cell_id: str
) -> list[dict]:
    """What the table keeps of a member whose training diverged: its loss (the first metric, where a degradation
    measures no loss) is null at every point, with the reason; nothing is computed."""
    told = METRICS["loss" if "loss" in evaluation.metrics else evaluation.metrics[0]]
    return lost_rows(member, degrade, draws, evaluation, splits, cell_id, told)


def lost_rows(
    member: Member, degrade: Degrade, draws: range, evaluation: Evaluation, splits: Splits, cell_id: str,
    told: Metric,
) -> list[dict]:  # fmt: skip
    """One metric that is null at every point, as member.diverged says why."""
    units = degrade.units(member.shape)
    common = member_columns(member, evaluation, splits, cell_id) | degrade_columns(degrade, member.shape)
    common |= dict.fromkeys(
        ("removed_fraction", "relative_weight_error", "bits_per_weight", "compression_ratio", "draw_seed",
         "per_sequence", "uniform", "floor", "chance", "ceiling", "value", *Place._fields)
    )  # fmt: skip
    common |= {
        "task": "all",
        "metric": told.name,
        "unit": told.unit,
        "metric_version": told.version,
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
