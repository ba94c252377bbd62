"""`wane speed`: what a study's structured degradations leave, cut to size and timed beside the trained
model."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from wane.eval.degrade import Degrade
from wane.eval.energy import meter
from wane.eval.rows import degrade_columns
from wane.eval.smaller import smaller
from wane.eval.speed import Clock, Timing
from wane.eval.study import Study
from wane.launch.cells import TrainCell
from wane.launch.directory import StudyDirectory, write_json
from wane.launch.environment import resolve
from wane.launch.members import TrainedMember
from wane.launch.plan import Plan
from wane.scaling.degrade import GROUPS
from wane.train.journal import read_outcome

STRUCTURED = GROUPS["Width"] | GROUPS["Depth"] | GROUPS["Routing"]
TOLD = ("platform", "device_kind", "threads", "jax_version")  # of the environment
USUAL = (0.25, 0.5)  # where a degradation names no severities


def time_study(
    directory: Path, methods: Sequence[str], severities: Sequence[float], timing: Timing, console: Console
) -> None:
    """Write speed.json of a study directory: one point per shape, structured degradation and severity, of the
    shape's first seed and the first draw.

    methods: of these only; severities: these instead of the study's.  A point whose model does not shrink has
    the reason instead of numbers; severities that leave models of one size share their timing.  Raises
    ValueError when the study has no such degradation, or no member is trained.
    """
    study = StudyDirectory(directory)
    plan = study.plan(study.study(), accept_drift=True)
    degradations, members = chosen(plan.study, methods, severities), list(first_members(plan, study))
    if not members:
        raise ValueError(f"{directory}: no member is trained to its end; `wane train` it first")
    energy, total, points = meter(jax.devices()[0].platform), len(members) * len(degradations), []
    for member in members:
        clock = Clock(member.params, member.shape, timing, energy)
        for degrade in degradations:
            points.append(about(member, degrade) | measured(member, degrade, clock))
            console.print(f"{len(points)}/{total} {member.shape.name} {told(points[-1])}", highlight=False)
    environment = resolve(1)
    record = {
        "device": device_name(environment),
        "environment": {name: environment[name] for name in TOLD},
        "energy": energy and energy.name,
        "timing": timing,
        "points": points,
    }  # fmt: skip
    write_json(directory / "speed.json", record)
    console.print(f"{len(points)} points in {directory / 'speed.json'}", highlight=False)


def chosen(study: Study, methods: Sequence[str], severities: Sequence[float]) -> list[Degrade]:
    """The study's degradations that take whole units from the whole model, one severity each."""
    found = [
        d for d in study.degradations
        if d.method in STRUCTURED and d.each == "whole" and not d.then and not d.recovery
    ]  # fmt: skip
    names = list(dict.fromkeys(d.method for d in found))
    for name in methods:
        if name not in names:
            have = ", ".join(names) or "none"
            raise ValueError(
                f"--method = {name}: not a structured degradation of study {study.name}, which has {have}"
            )
    if not found:
        raise ValueError(
            f"study {study.name}: no degradation takes whole neurons, heads, layers or dimensions, so no "
            "model gets smaller; add one such as random_neurons"
        )
    for severity in severities:
        if not 0 < severity < 1:
            raise ValueError(f"--severity = {severity}: must be between 0 and 1")
    return [
        dataclasses.replace(degrade, severities=(severity,), draws=1, refine=0)
        for degrade in found
        if not methods or degrade.method in methods
        for severity in sorted(severities or degrade.severities or USUAL)
        if 0 < severity < 1
    ]


def first_members(plan: Plan, directory: StudyDirectory) -> Iterator[TrainedMember]:
    """Of every shape of the primary arm the first seed that is trained to its end and has not diverged."""
    seen = set()
    for cell in plan.cells:
        if not isinstance(cell, TrainCell) or cell.arm or cell.shape in seen or not directory.done(cell):
            continue
        for replica in range(cell.real):
            outcome = read_outcome(directory.member(cell, replica))
            if outcome is None or outcome.status != "diverged":
                seen.add(cell.shape)
                yield TrainedMember(cell=cell, replica=replica, plan=plan, directory=directory)
                break


def about(member: TrainedMember, degrade: Degrade) -> dict[str, Any]:
    """The columns by which a point is found in the curve table."""
    method, columns = degrade.built(member.shape), degrade_columns(degrade, member.shape)
    (level,) = (level for level in degrade.grid(member.shape) if not level.undegraded)
    return {
        "member_id": member.id, "shape": member.shape.name, "arm": member.cell.arm,
        "dtype": member.shape.dtype,
        **{name: columns[name] for name in ("method", "scope", "settings")},
        "calibration": degrade.calibration if method.needs_calibration else None,
        "severity": level.severity, "setting": level.setting, "setting_unit": method.unit,
    }  # fmt: skip


def measured(member: TrainedMember, degrade: Degrade, clock: Clock) -> dict[str, Any]:
    """Sizes and timings of one point, or the reason why there are none."""
    precision = member.plan.study.evaluation.matmul_precision
    with jax.default_matmul_precision(precision):  # what is taken is what the sweep took
        edit = member.edit(degrade, draw=0)
    try:
        model, dimensions = smaller(member.params, edit, member.shape)
        difference = clock.difference(model, edit)
    except ValueError as error:
        return {"reason": str(error)}
    sizes = {"parameters": model.parameters, "dense_parameters": clock.dense.parameters}
    return {"dimensions": dimensions, **sizes, "logit_difference": difference} | clock.time(model)


def device_name(environment: dict) -> str:
    if environment["platform"] == "cpu":
        return f"{environment['processor']}, {environment['threads']} threads"
    return environment["device_kind"]


def told(point: dict) -> str:
    """One point in one line."""
    name = f"{point['method']} {point['setting']:g}"
    if "reason" in point:
        return f"{name}: {point['reason']}"
    left = point["parameters"] / point["dense_parameters"]
    parts = [
        f"{kind} of {timing['batch']}: {timing['speed_up']['median']:.2f} x"
        for kind in ("forward", "request")
        for timing in point[kind]
    ]
    return f"{name}: {left:.0%} of the parameters; {', '.join(parts)}"
