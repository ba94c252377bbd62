"""The training loop: the only stateful code of training.  Interrupted at any moment and started again, it ends
with the same bits."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from wane.scaling.identity import tree_digest
from wane.train import checkpoint
from wane.train.data.marks import unmarked
from wane.train.journal import Outcome, read_outcome, write_outcome
from wane.train.logbook import Logbook, Point
from wane.train.placement import Placement
from wane.train.prefetch import prefetched
from wane.train.run import Run
from wane.train.step import State

# (data seed, step) -> int32 [B, T], tokens with marks (wane.train.data.marks) or without; pure
Batches = Callable[[int, int], np.ndarray]
DEPTH = 2  # batches made ahead of the device


def train(
    run: Run,
    batches: Batches,
    directory: Path,
    members: Sequence[Path | None],
    report: Callable[[Point], None],
    mesh: Mesh | None = None,
) -> tuple[Outcome | None, ...]:
    """Trains a pack to its last step and returns how each member ended; goes on where an earlier call stopped,
    and returns at once when there is nothing left to do.

    directory: of the pack; its checkpoints/ holds the states.  members: directory of each replica's journal
    (the same one for a pack of one); None for a replica that only fills the pack.  Raises ValueError when
    batches do not fit the shape, OSError when the disk is full.
    """
    if len(members) != run.replicas:
        raise ValueError(f"members has {len(members)} directories: needs one per replica, {run.replicas}")
    checkpoints = directory / "checkpoints"
    if ended := _ended(run, members, checkpoints):
        return ended
    placement = Placement(run, mesh)
    step, state_R = _begin(placement, checkpoints)
    with Logbook(run, members, step, report) as logbook:
        state_R = _advance(placement, state_R, batches, checkpoints, logbook)
    return _finish(run, state_R, members, logbook.diverged)


def _begin(placement: Placement, checkpoints: Path) -> tuple[int, State]:
    """The newest whole checkpoint, or the start."""
    run = placement.run
    if found := checkpoint.restore_newest(checkpoints, placement.abstract):
        return found
    state_R = placement.start()
    if run.first_step in run.kept:
        checkpoint.save(checkpoints, run.first_step, state_R, run.kept)
    return run.first_step, state_R


def _advance(
    placement: Placement, state_R: State, batches: Batches, checkpoints: Path, logbook: Logbook
) -> State:
    """Updates until the last step, or until every member has diverged."""
    run, rates_R, update = placement.run, placement.rates(), None

    def batch(step: int) -> jax.Array:
        return placement.batch(_pack_batch(run, batches, step))

    with closing(prefetched(batch, logbook.step, run.steps, DEPTH)) as ahead:
        for step, marked_RBT in ahead:
            if run.masks(step + 1) and state_R.mask is None:
                state_R, update = placement.mask(state_R), None
            update = update or placement.update(state_R, marked_RBT, rates_R)
            state_R, metrics_R = update(state_R, marked_RBT, rates_R)
            logbook.add(metrics_R)
            if run.logs(step + 1):
                logbook.write()
            if logbook.all_diverged:
                break
            if step + 1 in run.saved:
                checkpoint.save(checkpoints, step + 1, state_R, run.kept)
    return state_R


def _pack_batch(run: Run, batches: Batches, step: int) -> np.ndarray:
    """marked_RBT of one step; replicas with the same data seed share one draw."""
    drawn = {seed: batches(seed, step) for seed in dict.fromkeys(run.data_seeds)}
    marked_RBT = np.stack([drawn[seed] for seed in run.data_seeds])
    expected = (run.replicas, run.train.batch_size, run.shape.context + 1)
    if marked_RBT.shape != expected:
        raise ValueError(
            f"batches of step {step} have shape {marked_RBT.shape}: must be {expected}, "
            "replicas, train.batch_size, shape.context + 1"
        )
    if (largest := unmarked(marked_RBT).max()) >= run.shape.vocab:
        raise ValueError(
            f"batches of step {step} have tokens up to {largest}: "
            f"must be below shape.vocab = {run.shape.vocab}"
        )
    return marked_RBT


def _ended(run: Run, members: Sequence[Path | None], checkpoints: Path) -> tuple[Outcome | None, ...] | None:
    """The outcomes of a run that has nothing left to do, else None."""
    outcomes = tuple(member and read_outcome(member) for member in members)
    real = [outcome for outcome, member in zip(outcomes, members, strict=True) if member]
    if not all(real):
        return None
    if all(o.status == "diverged" for o in real) or run.steps in checkpoint.steps(checkpoints):
        return outcomes
    return None


def _finish(
    run: Run, state_R: State, members: Sequence[Path | None], diverged: dict[int, Outcome]
) -> tuple[Outcome | None, ...]:
    """Records how each member ended."""
    params_R = jax.device_get(state_R.params)
    outcomes: list[Outcome | None] = [None] * run.replicas
    for r, member in enumerate(members):
        if member:
            digest = tree_digest(jax.tree.map(lambda leaf, r=r: leaf[r], params_R))
            outcomes[r] = diverged.get(r) or Outcome(status="ok", step=run.steps, digest=digest)
            write_outcome(member, outcomes[r])
    return tuple(outcomes)
