"""What a member's training leaves besides checkpoints: train.jsonl, TensorBoard files, status.json."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the training of one member ended.  digest: tree_digest of the final parameters."""

    status: Literal["ok", "diverged"]
    step: int  # of the end, or of the log point that found the divergence
    digest: str | None = None
    reason: str | None = None


class Journal:
    """train.jsonl and TensorBoard files of one member, appended at every log point.

    Opened at a step, it cuts what an interrupted run had written beyond that step.
    """

    def __init__(self, directory: Path, step: int):
        # Not above: it imports PyTorch where that is installed, seconds also for commands that train nothing.
        from tensorboardX import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "train.jsonl"
        _cut(path, step)
        self._lines = path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """row: step and tokens, and scalars.  JSON has no NaN: what is not finite is written as null."""
        finite = {k: v if abs(v) < float("inf") else None for k, v in row.items()}
        self._lines.write(json.dumps(finite) + "\n")
        self._lines.flush()
        for name, value in row.items():
            if name not in ("step", "tokens"):
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._lines.close()
        self._board.close()


def _cut(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the run was killed in mid-line
            break
        if row["step"] > step:
            break
        kept.append(line + "\n")
    _replace(path, "".join(kept))


def write_outcome(directory: Path, outcome: Outcome) -> None:
    """status.json, written atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    fields = {k: v for k, v in dataclasses.asdict(outcome).items() if v is not None}
    _replace(directory / "status.json", json.dumps(fields) + "\n")


def read_outcome(directory: Path) -> Outcome | None:
    """None where training has not ended."""
    path = directory / "status.json"
    return Outcome(**json.loads(path.read_text())) if path.exists() else None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
