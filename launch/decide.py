"""What a study decides between its training and its curves, from finished cells and for all members alike: how many
evaluation sequences the asked precision takes, and which severities refinement adds."""

import dataclasses
from collections.abc import Callable

import pandas as pd

from wane.eval.degrade import Degrade
from wane.eval.precision import half_width, largest_variance, sequences_for
from wane.eval.record import read_rows
from wane.eval.refine import refined
from wane.launch.cells import SweepCell
from wane.launch.directory import StudyDirectory
from wane.launch.expand import Decided, grid_name
from wane.launch.plan import Plan

COLUMNS = ("member_id", "metric", "task", "status", "draw", "severity", "setting", "value", "per_sequence")


def decide(plan: Plan, directory: StudyDirectory, say: Callable[[str], None]) -> Decided:
    """What the finished cells allow by now; what was decided before stays.  `say` gets a line for each decision."""
    pilots = [cell for cell in plan.cells if isinstance(cell, SweepCell) and cell.pilot]
    if pilots and all(map(directory.done, pilots)):
        return _count(plan, [_frame(directory, cell) for cell in pilots], say)
    grids = dict(plan.decided.grids)
    for degrade in plan.study.degradations:
        name, coarse = grid_name(degrade), _coarse(plan, degrade)
        if degrade.refine and name not in grids and coarse and all(map(directory.done, coarse)):
            frame = pd.concat([_frame(directory, cell) for cell in coarse])
            grids[name] = _grid(degrade, coarse[0], frame)
            say(f"{degrade.name}: refined at {', '.join(f'{s:g}' for s in grids[name]) or 'no severity'}")
    return dataclasses.replace(plan.decided, grids=grids)


def _count(plan: Plan, pilots: list[pd.DataFrame], say: Callable[[str], None]) -> Decided:
    asked = plan.study.evaluation
    variance = largest_variance(pilots)
    needed = sequences_for(asked.precision, variance)
    count = min(needed, asked.sequences)
    say(f"precision {asked.precision:g} nats takes {needed} sequences per task, by the pilot")
    if needed > count:
        reached = half_width(count, variance)
        say(f"evaluation.sequences = {count} is the most allowed: about {reached:.2g} nats will be reached")
    return dataclasses.replace(plan.decided, sequences=count, variance=variance)


def _coarse(plan: Plan, degrade: Degrade) -> list[SweepCell]:
    """The cells of a degradation's coarse grid on all finished members that were not trained under a mask."""
    return [
        cell
        for cell in plan.cells
        if isinstance(cell, SweepCell)
        and cell.degrade == degrade.coarse
        and cell.step == cell.trained.steps
        and cell.trained.mask is None
        and not (cell.pilot or cell.tentative or cell.costly)
    ]


def _grid(degrade: Degrade, cell: SweepCell, frame: pd.DataFrame) -> tuple[float, ...]:
    loss = frame[(frame["metric"] == "loss") & (frame["task"] == "all")]
    mean = loss.pivot_table(index="member_id", columns="setting", values="value", dropna=False)
    excess = mean.sub(mean[cell.degrade.grid(cell.trained.shape)[0].setting], axis=0)
    return refined(list(excess.columns), excess.to_numpy(), cell.method.unit, degrade.refine)


def _frame(directory: StudyDirectory, cell: SweepCell) -> pd.DataFrame:
    return read_rows(directory.rows(cell), COLUMNS).to_pandas()
