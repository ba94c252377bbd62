"""The mask that a method makes of a trained member, as a file."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from wane.eval.study import Degrade
from wane.eval.subject import draw_key
from wane.launch.cells import TrainCell
from wane.launch.directory import StudyDirectory
from wane.launch.run import load_params
from wane.scaling.degrade.contract import severity_of
from wane.scaling.degrade.given_mask import write_mask
from wane.train.data.calibration import calibration
from wane.train.mask import degradation_mask


def export_mask(
    directory: Path, member: str, degrade: Degrade, draw: int, out: Path, console: Console
) -> None:
    """Write what `degrade` at its one severity keeps of the trained weights of a member.

    member: its id, or the beginning of it.  Raises ValueError when no member or several begin so, or when the
    method rounds instead of removing.
    """
    study = StudyDirectory(directory)
    plan = study.plan(study.study(), accept_drift=True)
    cell, replica = _find(member, plan.cells, directory)
    if not study.done(cell):
        raise ValueError(f"--member = {member}: has not been trained to its end; `wane train` it first")
    method, evaluation = degrade.built(cell.shape), plan.study.evaluation
    if method.unit != "fraction":
        raise ValueError(f"--method = {degrade.method}: must be a method that removes weights")
    params = load_params(cell, plan, study, replica, cell.steps)
    sequences = calibration(
        degrade.calibration, plan.splits.stream, evaluation.calibration_sequences, evaluation.calibration_seed
    )
    seeds = cell.init_seeds[replica], cell.data_seeds[replica]
    keys_R = draw_key(evaluation.draw_seed, *seeds, degrade.method, draw)[None]
    (setting,) = degrade.severities
    make = degradation_mask(
        method, cell.shape, jnp.asarray(sequences), severity_of(setting, method.unit), keys_R
    )
    mask = jax.tree.map(np.asarray, jax.jit(make)(params, jnp.int32(0)))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mask(out, mask)
    kept, total = (sum(f(keep) for keep in mask.values()) for f in (np.sum, np.size))
    console.print(f"{out}: keeps {kept:,} of {total:,} weights of {cell.member_id(replica)}", highlight=False)


def _find(member: str, cells: list, directory: Path) -> tuple[TrainCell, int]:
    trained = [(c, r) for c in cells if isinstance(c, TrainCell) for r in range(c.real)]
    found = [(c, r) for c, r in trained if c.member_id(r).startswith(member)]
    if len(found) != 1:
        ids = ", ".join(c.member_id(r) for c, r in (found or trained)[:8])
        how = "several begin so" if found else "no such member"
        raise ValueError(f"--member = {member}: {how} in {directory}; choose one of {ids}")
    return found[0]
