"""Run a study: every cell that is not done, in order, then the table and the report."""

import dataclasses
import functools
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from wane.eval import pairs
from wane.eval.cell import diverged_rows, masked_rows, sweep
from wane.eval.examine import cell as examination
from wane.eval.record import merge, write_rows
from wane.eval.report import write_report
from wane.eval.study import Evaluation, Study
from wane.eval.subject import Member, Splits, Subject, draw_key
from wane.launch.cells import Cell, ExamineCell, Measuring, PairCell, SweepCell, TrainCell
from wane.launch.decide import decide
from wane.launch.directory import StudyDirectory, write_json
from wane.launch.expand import mask_step
from wane.launch.plan import Plan, clock, expected_seconds, make_plan, matmul_rate
from wane.launch.progress import Report, Tick
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import severity_of
from wane.scaling.edit import Params
from wane.scaling.identity import tree_digest
from wane.train import checkpoint
from wane.train.journal import Outcome, read_outcome, write_outcome
from wane.train.loop import train
from wane.train.mask import MaskPlan, degradation_mask, given_mask
from wane.train.mesh import make_mesh
from wane.train.run import Run, Start

log = logging.getLogger(__name__)


def run_study(
    study: Study, out: Path, stages: Sequence[str], console: Console, *, accept_drift: bool = False
) -> None:
    """Bring a study directory to its end.  Raises ValueError or OSError in one line before compute where it
    can; interrupted at any moment, the next call continues and ends with the same curves.parquet."""
    directory = StudyDirectory(out)
    with directory.locked():
        plan = directory.plan(study, accept_drift=accept_drift)
        directory.clean()
        say = functools.partial(console.print, highlight=False)
        while True:
            directory.write(plan)
            _execute_all(plan, directory, stages, console)
            decided = decide(plan, directory, say)
            if decided == plan.decided:
                break
            plan = make_plan(study, plan.environment, plan.packs, decided, plan.cohorts)
        if "sweep" in stages:
            table = merge(
                [directory.rows(c) for c in plan.cells if isinstance(c, Measuring)], directory.curves
            )
            console.print(f"{table.num_rows:,} rows in {directory.curves}", highlight=False)
        if "report" in stages:
            console.print(f"report: {write_report(out)}", highlight=False)


def _execute_all(plan: Plan, directory: StudyDirectory, stages: Sequence[str], console: Console) -> None:
    """Every cell of these stages that is not done, but for those that wait for a decision; while any does, what is
    costly waits too: the curves of the loss come first."""
    kinds = {"train": TrainCell, "sweep": Measuring}
    wanted = tuple(kinds[stage] for stage in stages if stage in kinds)
    todo = [c for c in plan.cells if isinstance(c, wanted) and not directory.done(c) and not waiting(c)]
    if any(map(waiting, plan.cells)):
        todo = [c for c in todo if not (isinstance(c, SweepCell) and c.costly)]
    _announce(plan, todo, directory, console)
    with Report(console, plan.study.name, len(todo), sum(map(plan.flops, todo))) as report:
        for cell in todo:
            execute(cell, plan, directory, report)


def waiting(cell: Cell) -> bool:
    """Whether something that a cell depends on is not decided yet."""
    return isinstance(cell, Measuring) and cell.tentative


def needs(cell: Cell) -> tuple[TrainCell, ...]:
    """The trainings that must have finished before a cell can start."""
    if isinstance(cell, TrainCell):
        return (cell.finished,) if cell.finished else ()
    return (cell.trained, cell.other) if isinstance(cell, PairCell) else (cell.trained,)


def run_cell(out: Path, cell_id: str, console: Console, *, accept_drift: bool = False) -> None:
    """Compute one cell of a study directory.  Raises ValueError when the id is not one of its cells or a cell
    that it needs has not finished."""
    directory = StudyDirectory(out)
    plan = directory.plan(directory.study(), accept_drift=accept_drift)
    found = [cell for cell in plan.cells if cell.id == cell_id]
    if not found:
        raise ValueError(f"cell {cell_id}: not a cell of {out}; study.json lists {len(plan.cells)} ids")
    if waiting(found[0]):
        raise ValueError(
            f"cell {cell_id}: waits for cells that decide its severities or sequences; run those first"
        )
    for needed in needs(found[0]):
        if not directory.done(needed):
            raise ValueError(
                f"cell {cell_id}: needs cell {needed.id} ({needed.title}), which has not finished"
            )
    if not directory.done(found[0]):
        with Report(console, found[0].title, 1, plan.flops(found[0])) as report:
            execute(found[0], plan, directory, report)


def execute(cell: Cell, plan: Plan, directory: StudyDirectory, report: Report) -> None:
    """Compute one cell and leave its last file, by which it counts as done."""
    if isinstance(cell, TrainCell):
        steps = cell.steps * len(cell.init_seeds)
        with report.cell(cell.title, steps, plan.flops(cell), "steps") as tick:
            execute_train(cell, plan, directory, tick)
    else:
        unit = "forward passes" if isinstance(cell, ExamineCell) else "points"
        with report.cell(cell.title, cell.points(), plan.flops(cell), unit) as tick:
            execute_measuring(cell, plan, directory, tick)


def execute_train(cell: TrainCell, plan: Plan, directory: StudyDirectory, tick: Tick) -> None:
    """Train a pack of members; done.json is its last file."""
    members = [directory.member(cell, r) if r < cell.real else None for r in range(len(cell.init_seeds))]
    for replica in range(cell.real):
        directory.describe(cell, replica)
    if lost := _finished_diverged(cell, directory):
        for member in members[: cell.real]:
            write_outcome(member, lost)
        directory.finish(cell, [dataclasses.asdict(lost)] * cell.real)
        return
    last = 0

    def report(point) -> None:
        nonlocal last
        tick((point.step - last) * len(cell.init_seeds), point.text())
        last = point.step

    outcomes = train(
        _training_run(cell, plan, directory),
        cell.stream.marked_batch,
        directory.training(cell),
        members,
        report,
        _mesh(len(cell.init_seeds), cell.train.batch_size),
    )
    ended = [{"status": o.status, "step": o.step, "digest": o.digest} for o in outcomes if o is not None]
    directory.finish(cell, ended)


def _finished_diverged(cell: TrainCell, directory: StudyDirectory) -> Outcome | None:
    """The outcome of a pack whose mask or weights come from members of which one has diverged."""
    for replica in range(cell.finished.real if cell.finished else 0):
        outcome = read_outcome(directory.member(cell.finished, replica))
        if outcome is not None and outcome.status == "diverged":
            name = cell.finished.member_id(replica)
            return Outcome(status="diverged", step=0, reason=f"member {name}, which gives its mask, diverged")
    return None


def _training_run(cell: TrainCell, plan: Plan, directory: StudyDirectory) -> Run:
    start = None
    if cell.mask is not None and cell.mask.weights == "rewound":
        step = mask_step(cell.mask, cell.steps)
        source = directory.checkpoints(cell.finished)
        start = tuple(
            Start(checkpoints=source, step=step, replica=replica) for replica in range(len(cell.init_seeds))
        )
    return Run(
        shape=cell.shape,
        train=cell.train,
        steps=cell.steps,
        init_seeds=cell.init_seeds,
        data_seeds=cell.data_seeds,
        lrs=None,
        keep_steps=tuple(s for s in cell.keep_steps if start is None or s >= start[0].step),
        packing=plan.environment["packing"],
        mask_from=_mask_plan(cell, plan, directory) if cell.mask else None,
        start_from=start,
    )


def _mesh(replicas: int, batch_size: int) -> Mesh | None:
    """All devices: replicas first, then the batch, then the matrices.  None where there is one device."""
    devices = jax.device_count()
    seed = math.gcd(replicas, devices)
    data = math.gcd(batch_size, devices // seed)
    return None if devices == 1 else make_mesh(seed, data, devices // seed // data)


def _mask_plan(cell: TrainCell, plan: Plan, directory: StudyDirectory) -> MaskPlan:
    """When and how the mask of a masked member is made: from the parameters of that moment, or from the
    finished member's, with the draw key that a sweep of this method would use."""
    mask, evaluation = cell.mask, plan.study.evaluation
    method = build(mask.method, cell.shape, settings=mask.settings)
    keys = jnp.stack([
        draw_key(evaluation.draw_seed, init, data, mask.method, 0)
        for init, data in zip(cell.init_seeds, cell.data_seeds, strict=True)
    ])  # fmt: skip
    severity = severity_of(cell.mask_setting, method.unit)
    calibration = jnp.asarray(plan.splits.calibrations["same"])
    make = degradation_mask(method, cell.shape, calibration, severity, keys)
    if mask.scores == "finished":
        finished = [
            load_params(cell.finished, plan, directory, r, cell.steps) for r in range(len(cell.init_seeds))
        ]
        masks = [jax.jit(make)(params, jnp.int32(r)) for r, params in enumerate(finished)]
        make = given_mask(jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks))
    return MaskPlan(at_step=mask_step(mask, cell.steps), mask=make)


def execute_measuring(cell: Measuring, plan: Plan, directory: StudyDirectory, tick: Tick) -> None:
    """Sweep one degradation over one member, examine it, or compare two; rows.parquet is the cell's last file."""
    members = [_subject_of(cell, cell.trained, cell.replica, plan, directory, _kept_subject)]
    if isinstance(cell, PairCell):
        members.append(_subject_of(cell, cell.other, cell.other_replica, plan, directory, _subject))
    if any(isinstance(member, Member) for member in members):
        rows, timing = _lost(cell, [m if isinstance(m, Member) else m.member for m in members]), {}
    else:
        rows, timing = MEASURE[type(cell)](cell, members, plan, tick)
    path = directory.rows(cell)
    write_json(path.parent / "timing.json", timing | {"peak_memory_bytes": _peak_memory()})
    write_rows(path, rows)


def _subject_of(
    cell: Measuring, trained: TrainCell, replica: int, plan: Plan, directory: StudyDirectory,
    load: Callable[..., Subject],
) -> Subject | Member:  # fmt: skip
    """A member on the device, or what is known of one whose training has diverged."""
    outcome = read_outcome(directory.member(trained, replica))
    if outcome is not None and outcome.status == "diverged":
        reason = f"training diverged at step {outcome.step}: {outcome.reason}"
        return _member(trained, replica, cell.step, plan, digest="", reason=reason)
    return load(trained, replica, cell.step, cell.splits, cell.evaluation, plan, directory)


def _lost(cell: Measuring, members: Sequence[Member]) -> list[dict]:
    """The rows of a cell of which a member's training has diverged."""
    common = cell.evaluation, cell.splits, cell.id
    if isinstance(cell, ExamineCell):
        return examination.diverged_rows(*members, cell.examine, *common)
    lost = pairs.diverged_rows if isinstance(cell, PairCell) else diverged_rows
    return lost(*members, cell.degrade, cell.draws, *common)


def _swept(cell: SweepCell, subjects: list[Subject], plan: Plan, tick: Tick) -> tuple[list[dict], dict]:
    if cell.trained.mask is not None:
        return masked_rows(*subjects, cell.degrade, cell.id), {}
    points = plan.environment["points_per_call"]
    return sweep(*subjects, cell.degrade, cell.draws, cell.id, points, tick)


def _examined(cell: ExamineCell, subjects: list[Subject], plan: Plan, tick: Tick) -> tuple[list[dict], dict]:
    started = time.perf_counter()
    rows = examination.examine(*subjects, cell.examine, cell.id, tick)
    return rows, {"examine_seconds": time.perf_counter() - started}


def _paired(cell: PairCell, subjects: list[Subject], plan: Plan, tick: Tick) -> tuple[list[dict], dict]:
    return pairs.sweep_pair(*subjects, cell.degrade, cell.draws, cell.id, tick)


MEASURE = {SweepCell: _swept, ExamineCell: _examined, PairCell: _paired}


def _subject(
    trained: TrainCell, replica: int, step: int, splits: Splits, evaluation: Evaluation, plan: Plan,
    directory: StudyDirectory,
) -> Subject:  # fmt: skip
    """A member at a step, on the device."""
    params = load_params(trained, plan, directory, replica, step)
    member = _member(trained, replica, step, plan, digest=tree_digest(params), reason=None)
    return Subject(member, params, splits, evaluation)


_kept_subject = functools.lru_cache(maxsize=1)(_subject)  # until another member is asked for


def load_params(trained: TrainCell, plan: Plan, directory: StudyDirectory, replica: int, step: int) -> Params:
    """Parameters of one member at a step.  A damaged checkpoint is refused and computed again from the next
    older one that is whole: training is deterministic, so the numbers are the same."""
    path = directory.checkpoints(trained)
    try:
        return checkpoint.load_params(path, step, replica)
    except (ValueError, FileNotFoundError) as error:
        log.warning("%s; training %s again from the next older checkpoint", error, trained.title)
        checkpoint.discard_from(path, step)
        directory.forget(trained)
        execute_train(trained, plan, directory, tick=lambda *_: None)
        return checkpoint.load_params(path, step, replica)


def _member(trained: TrainCell, replica: int, step: int, plan: Plan, digest: str, reason: str | None):
    at = None if trained.mask is None else mask_step(trained.mask, trained.steps)
    return Member(
        id=trained.member_id(replica),
        study=plan.study.name,
        arm=trained.arm,
        shape=trained.shape,
        init_seed=trained.init_seeds[replica],
        data_seed=trained.data_seeds[replica],
        step=step,
        tokens=step * trained.train.batch_size * trained.data.context,
        packing=len(trained.init_seeds),
        checkpoint_digest=digest,
        diverged=reason,
        pruned="never" if at is None else "during" if at else "before",
        pruned_at_step=at,
    )


def _announce(plan: Plan, todo: Sequence[Cell], directory: StudyDirectory, console: Console) -> None:
    done, out = sum(map(directory.done, plan.cells)), directory.path
    if not todo:
        console.print(f"{plan.study.name}: all {done} cells are done in {out}", highlight=False)
        return
    forecast = clock(expected_seconds(plan, todo, matmul_rate()))
    kept = f", {done} done before" if done else ""
    console.print(f"{plan.study.name}: {len(todo)} cells{kept}, about {forecast}, in {out}", highlight=False)


def _peak_memory() -> int:
    """Bytes: the device allocator's peak, or the process's largest resident set on CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
