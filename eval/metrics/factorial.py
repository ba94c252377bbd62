"""The same items read out in every way, so that what differs is the readout alone.

| factor | levels | what it adds |
|---|---|---|
| readout | options, values, vocabulary | tokens that the answer competes with |
| reads | truth, itself | errors that are read again |
| whole | a token, the whole answer | errors that are added up; with tasks of 1 and of 3 tokens, length |

`CELLS` tells which metric is which cell.  Each token of an answer has options of its own, and what is said of one
does not change those of the next.  A study has all cells with
`Evaluation(metrics=("loss", "accuracy", "answers", "generation", "factorial"))` and tasks of `TWINS`.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.answers import READOUTS, certain, preferred
from wane.eval.metrics.contract import SequenceMetric, per_sequence
from wane.eval.metrics.generation import RESTRICTED, said, said_among
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape
from wane.train.data import Task
from wane.train.data.several import LONG

READS = ("truth", "itself")
TWINS = {"K": "K3", "R2": "R23", "M2": "M23", "T1": "T13"}  # one token to a value -> LONG
# Of every answer of a task.  Not of M2 and M23: where steps are written, several results are one answer.
TOKENS = {"K": 1, "R2": 1, "T1": 1, "K3": LONG, "R23": LONG, "T13": LONG}


class Cell(NamedTuple):
    """One way to read an answer out: readout of READOUTS, reads of READS."""

    readout: str
    reads: str
    whole: bool

    @property
    def metric(self) -> str:
        what = "whole_answers" if self.whole else "accuracy"
        among = "" if self.readout == "vocabulary" else f"_of_{self.readout}"
        return what + among + ("_free_running" if self.reads == "itself" else "")


CELLS = {Cell(*levels): Cell(*levels).metric for levels in product(READOUTS, READS, (False, True))}


def right(view: View, cell: Cell) -> tuple[Array, Array]:
    """Whether each token is the true one, and whether it is an answer, bool [B, S]."""
    if cell.reads == "truth":
        token_BS = preferred(view, cell.readout)
    else:
        token_BS = said_among(view)[cell.readout] if cell.readout in RESTRICTED else said(view)
    return token_BS == view.targets_BS, READOUTS[cell.readout].counted(view)


def whole_answers(right_BS: Array, scored_BS: Array, least_B: Array | int = 1) -> tuple[Array, Array]:
    """(answers that are right to the last token, answers), f32 [B], of at least so many tokens: one that the row
    cuts off counts as it is, unless it is shorter."""
    last_BS = scored_BS & ~jnp.pad(scored_BS[:, 1:], ((0, 0), (0, 1)))
    counted_BS = last_BS & (so_far(scored_BS, scored_BS) >= jnp.broadcast_to(least_B, len(right_BS))[:, None])
    whole_BS = counted_BS & (so_far(~right_BS, scored_BS) == 0)
    return whole_BS.sum(axis=1).astype(jnp.float32), counted_BS.sum(axis=1).astype(jnp.float32)


def so_far(true_BS: Array, scored_BS: Array) -> Array:
    """In how many tokens of an answer, up to this one, something is true [B, S]."""
    in_row_BS = jnp.cumsum(true_BS & scored_BS, axis=1)
    return in_row_BS - lax.cummax(jnp.where(scored_BS, 0, in_row_BS), axis=1)


def least(view: View) -> Array:
    """The tokens of an answer, of rows of a task whose answers have LONG, else 1, int [B]."""
    long_B = jnp.any(jnp.stack([is_task(view, name) for name in TWINS.values()]), axis=0)
    return jnp.where(long_B, LONG, 1)


def measure(cell: Cell) -> Callable[[View], tuple[Array, Array]]:
    def of_tokens(view: View) -> tuple[Array, Array]:
        right_BS, counted_BS = right(view, cell)
        return right_BS.astype(jnp.float32), counted_BS

    def of_answers(view: View) -> tuple[Array, Array]:
        return whole_answers(*right(view, cell), least(view))

    return of_answers if cell.whole else per_sequence(of_tokens)


def bounds(cell: Cell) -> Callable[[Task], tuple[float | None, float | None]]:
    """Of a whole answer chance is known where all are of one length and, of several tokens, of one chance."""

    def of_task(task: Task) -> tuple[float | None, float | None]:
        chance, ceiling = READOUTS[cell.readout].bounds(task)
        if not cell.whole:
            return chance, ceiling
        tokens = TOKENS.get(task.name)
        differs = task.chance_at is not None and cell.readout != "options"
        known = tokens == 1 or (tokens is not None and not differs)
        return chance**tokens if known else None, certain(task)

    return of_task


def among(cell: Cell) -> Callable[[Task, Shape], int | None]:
    """Of a whole answer, whose tokens are free of each other, where all are of one length."""

    def of_task(task: Task, shape: Shape) -> int | None:
        tokens, each = TOKENS.get(task.name) if cell.whole else 1, READOUTS[cell.readout].among(task, shape)
        return each**tokens if each and tokens else None

    return of_task


AMONG = {
    "options": "the most likely of the options",
    "values": "the most likely of the task's values",
    "vocabulary": "the most likely of all tokens",
}


def _metric(cell: Cell) -> SequenceMetric:
    # Whole answers once counted where the row cuts them off.
    version = 2 if cell.whole and cell.readout == "vocabulary" else 1
    what = "answers, runs of scored tokens, whose every token is" if cell.whole else "scored tokens that are"
    behind = "the true tokens" if cell.reads == "truth" else "what was said of the same answer (free-running)"
    return SequenceMetric(
        name=cell.metric,
        unit="fraction",
        meaning=f"share of {what} {AMONG[cell.readout]}, behind {behind}",
        better="higher",
        measure=measure(cell),
        bounds=bounds(cell),
        among=among(cell),
        free_running=cell.reads == "itself",
        version=version,
    )


# `answers` and `loss` hold what is teacher-forced and of single tokens.
_HERE = [cell for cell in CELLS if cell.whole or cell.reads == "itself"]
OF_VOCABULARY = tuple(_metric(cell) for cell in _HERE if cell.readout == "vocabulary")
METRICS = tuple(_metric(cell) for cell in _HERE if cell.readout in RESTRICTED)
