"""Members of a study directory by name, and what a degradation makes of them."""

import dataclasses
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from wane.eval.degrade import Degrade
from wane.eval.subject import draw_key
from wane.launch.cells import TrainCell
from wane.launch.directory import StudyDirectory
from wane.launch.plan import Plan
from wane.launch.run import load_params
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape
from wane.train.data import Stream
from wane.train.data.calibration import calibration


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedMember:
    """One trained model of a study directory."""

    cell: TrainCell
    replica: int
    plan: Plan
    directory: StudyDirectory

    @property
    def id(self) -> str:
        return self.cell.member_id(self.replica)

    @property
    def shape(self) -> Shape:
        return self.cell.shape

    @property
    def stream(self) -> Stream:
        return self.cell.stream

    @cached_property
    def params(self) -> Params:
        """Of its last training step."""
        return load_params(self.cell, self.plan, self.directory, self.replica, self.cell.steps)

    def key(self, degrade: Degrade, draw: int) -> jax.Array:
        """The key that a sweep of this degradation uses in this draw."""
        seeds = self.cell.init_seeds[self.replica], self.cell.data_seeds[self.replica]
        return draw_key(self.plan.study.evaluation.draw_seed, *seeds, degrade.method, draw)

    def calibration(self, degrade: Degrade) -> np.ndarray:
        """The sequences that a sweep of this degradation calibrates on."""
        settings, stream = self.plan.study.evaluation, self.plan.splits.stream
        count, seed = settings.calibration_sequences, settings.calibration_seed
        return calibration(degrade.calibration, stream, count, seed)

    def edit(self, degrade: Degrade, draw: int) -> Edit:
        """The edit that a sweep makes of `degrade` in this draw at its severity (of several the most harmful)."""
        method, key, where = degrade.built(self.shape), self.key(degrade, draw), Where.everywhere(self.shape)
        *_, level = dataclasses.replace(degrade, identity=False).grid(self.shape)
        severity = jnp.asarray(degrade.at(level), jnp.float32)
        fitted = jax.jit(method.fit)(self.params, jnp.asarray(self.calibration(degrade)), key)
        return jax.jit(method.apply)(self.params, fitted, severity, where, jax.random.fold_in(key, 1))


def trained_member(directory: Path, member: str) -> TrainedMember:
    """member: an id, or the beginning of one.  Raises ValueError when no member or several begin so, or when it has
    not been trained to its end."""
    study = StudyDirectory(directory)
    plan = study.plan(study.study(), accept_drift=True)
    trained = [(c, r) for c in plan.cells if isinstance(c, TrainCell) for r in range(c.real)]
    found = [(c, r) for c, r in trained if c.member_id(r).startswith(member)]
    if len(found) != 1:
        ids = ", ".join(c.member_id(r) for c, r in (found or trained)[:8])
        how = "several begin so" if found else "no such member"
        raise ValueError(f"--member = {member}: {how} in {directory}; choose one of {ids}")
    cell, replica = found[0]
    if not study.done(cell):
        raise ValueError(f"--member = {member}: has not been trained to its end; `wane train` it first")
    return TrainedMember(cell=cell, replica=replica, plan=plan, directory=study)
