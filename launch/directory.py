"""A study directory: where its files are, who may write, and what it was made with."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from wane.eval.record import atomic_file
from wane.eval.study import Study
from wane.launch.cells import Cell, Measuring, TrainCell
from wane.launch.environment import drift, resolve
from wane.launch.expand import Decided
from wane.launch.plan import Plan, make_plan
from wane.scaling.config import from_json, to_json
from wane.scaling.family import describe


class StudyDirectory:
    """Paths below runs/NAME; see the layout in the README."""

    def __init__(self, path: Path):
        self.path = path
        self.study_file = path / "study.json"
        self.curves = path / "curves.parquet"

    def member(self, cell: TrainCell, replica: int) -> Path:
        return self.path / "members" / cell.member_id(replica)

    def training(self, cell: TrainCell) -> Path:
        """Where a training cell keeps its checkpoints: its member's directory, or that of its pack."""
        packed = len(cell.init_seeds) > 1
        return self.path / "packs" / cell.id if packed else self.member(cell, 0)

    def checkpoints(self, cell: TrainCell) -> Path:
        return self.training(cell) / "checkpoints"

    def describe(self, cell: TrainCell, replica: int) -> None:
        """Write a member's config.json: how it is trained and where its checkpoints are."""
        member = self.member(cell, replica)
        shared = ("arm", "shape", "steps", "train", "data", "mask", "mask_setting")
        config = {field: getattr(cell, field) for field in shared} | {
            "id": member.name,
            "cell": cell.id,
            "shape_name": cell.shape.name,
            "init_seed": cell.init_seeds[replica],
            "data_seed": cell.data_seeds[replica],
            "checkpoints": os.path.relpath(self.checkpoints(cell), member),
            "replica": replica,
        }
        write_json(member / "config.json", config)

    def rows(self, cell: Measuring) -> Path:
        return self.path / "cells" / cell.id / "rows.parquet"

    def done(self, cell: Cell) -> bool:
        """Whether a cell has finished: its last file is there."""
        return (self._trained(cell) if isinstance(cell, TrainCell) else self.rows(cell)).exists()

    def finish(self, cell: TrainCell, outcomes: list[dict]) -> None:
        """Mark a training cell as done."""
        write_json(self._trained(cell), {"cell": cell.id, "members": outcomes})

    def forget(self, cell: TrainCell) -> None:
        """Mark a training cell as not done."""
        self._trained(cell).unlink(missing_ok=True)

    def _trained(self, cell: TrainCell) -> Path:
        return self.training(cell) / "done.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for writing.  Raises OSError when it cannot be written and ValueError when
        another process holds it; the lock goes with the process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"--out = {self.path}: cannot write there ({reason}); choose another directory"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"--out = {self.path}: another wane is working there; wait for it or choose another --out"
                ) from None
            yield

    def clean(self) -> None:
        """Remove half-written files that a kill left; only for the process that holds the lock."""
        for remains in (*self.path.glob(".*.tmp"), *self.path.glob("[cm]*/*/.*.tmp")):
            remains.unlink()

    def record(self) -> dict | None:
        """What study.json says, or None where there is none.  Raises ValueError when it is damaged."""
        if not self.study_file.exists():
            return None
        try:
            return json.loads(self.study_file.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.study_file}: cannot be read ({error}); restore it or choose another --out"
            ) from None

    def study(self) -> Study:
        """The resolved study that the directory holds."""
        record = self.record()
        if record is None:
            raise ValueError(f"{self.path}: no study.json there; give the directory that `wane run` wrote")
        return from_json(Study, record["study"], "study.json")

    def plan(self, study: Study, *, accept_drift: bool = False) -> Plan:
        """The plan of a study in this directory, under the environment that it was begun with.

        Raises ValueError when machine, devices, threads or versions differ and accept_drift is not set: rows
        would mix numbers that differ in their last bits.
        """
        now, record = resolve(len(study.seeds)), self.record()
        if record is None:
            return make_plan(study, now)
        changes = drift(record["environment"], now)
        if changes and not accept_drift:
            raise ValueError(
                f"{self.path} was begun elsewhere ({'; '.join(changes)}): continue there, choose another --out, or"
                " accept different last bits with --accept-drift"
            )
        kept = {key: record["environment"][key] for key in ("pack", "packing", "points_per_call")}
        decided = from_json(Decided | None, record.get("decided"), "study.json: decided")
        return make_plan(study, now | kept, record["packs"], decided)

    def write(self, plan: Plan) -> None:
        """Write study.json: the resolved config, the environment, the packs and the family's table."""
        record = {
            "study": to_json(plan.study),
            "environment": plan.environment,
            "packs": plan.packs,
            "decided": plan.decided,
            "name": plan.study.name,
            "note": plan.study.note,
            "gate": to_json(plan.study.gate),
            "family": [
                {"arm": arm} | row
                for arm, variant, _ in plan.study.variants()
                for row in describe(list(plan.trained(arm)), variant.family)
            ],
            "cells": [{"id": cell.id, "title": cell.title} for cell in plan.cells],
        }
        write_json(self.study_file, record)


def write_json(path: Path, value: dict) -> None:
    """A JSON file that appears whole or not at all."""
    with atomic_file(path) as file:
        file.write((json.dumps(to_json(value), indent=1) + "\n").encode())
