"""Groups of tokens over which a token metric is averaged: what the data, not the model, says about each token."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wane.train.data import EvalSet, Stream


class Grouping(NamedTuple):
    """label_NS: the group of each predicted token, what rows tell as `at`; nan: in none.  axis: what it counts.
    common: a label means the same in every task, so that all of them together are a group too."""

    axis: str
    label_NS: np.ndarray
    common: bool


def level(evaluation: EvalSet, stream: Stream) -> Grouping:
    """The difficulty of each scored token of a graded task (Task.level)."""
    known = (
        evaluation.scored_NS & np.array([bool(t.level) for t in evaluation.tasks])[evaluation.task_N, None]
    )
    return Grouping("level", np.where(known, evaluation.level_NS, np.nan), common=False)


def position(evaluation: EvalSet, stream: Stream) -> Grouping:
    """How many tokens stand before, in octaves: 1, 2 to 3, 4 to 7, ..., told by the smallest."""
    before_S = 1 + np.arange(evaluation.scored_NS.shape[1])
    octave_S = 2.0 ** np.floor(np.log2(before_S))
    return Grouping("position", np.broadcast_to(octave_S, evaluation.scored_NS.shape), common=True)


GROUPS: dict[str, Callable[[EvalSet, Stream], Grouping]] = {"level": level, "position": position}
