"""What a task of the graded language is, and the world that all of its sequences agree about."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Role = Literal["train", "evaluation"]
SUCCESSOR_P = (0.5, 0.25, 0.15, 0.1)  # 1.208 nats
# Levels of tokens that no task scores; what is TOLD is there to be learnt all the same.
UNSCORED, TOLD = -1, -2


class World(NamedTuple):
    """Everything that is fact and not chance: Markov tables, the map of S, names and attributes of entities
    follow from `seed`, never from a data seed."""

    seed: int
    facts: int  # entities of K, T1 and T2
    successors: tuple[float, ...] = SUCCESSOR_P  # of a context of L1 and L1o2, the most probable first
    exceptions: float = 0.2  # share of the entities of T1 and T13 that are exceptions


def nats(p: Sequence[float]) -> float:
    """Entropy of a distribution."""
    return -sum(share * math.log(share) for share in p if share > 0)


class Rows(NamedTuple):
    """Sequences of one task, int [B, T], the tag included.

    level_BT: UNSCORED or TOLD where a token is not scored, else its difficulty (Task.level).  foil_BT: the one
    wrong answer that a predictor without the skill would take for a scored token, -1 where there is none:
    two-alternative forced choice (2AFC) is between the two.
    """

    tokens_BT: np.ndarray
    level_BT: np.ndarray
    foil_BT: np.ndarray

    @staticmethod
    def without_foil(tokens_BT: np.ndarray, level_BT: np.ndarray) -> "Rows":
        return Rows(tokens_BT, level_BT, np.full_like(level_BT, -1))


OfLevel = Callable[[np.ndarray], np.ndarray]
# (rng, rows, length, world, role) -> Rows of T = length
Generate = Callable[[np.random.Generator, int, int, World, Role], Rows]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A task: how well nobody and the best possible predictor do on its scored positions.

    chance: accuracy of a uniform guess among the tokens that the format allows there.
    ceiling: accuracy of the Bayes-optimal predictor, which knows the world and the rule.  Both are None for
    text, where nobody knows them.
    level: what the per-position difficulty in EvalSet.level_NS counts ("" when there is none).
    chance_at, ceiling_at: the same by levels [M], where they differ: chance_at may be better than a uniform guess,
    that of who knows the level and what the task says of it, and has not its skill.  nan: nobody told.
    part: which part of the task an answer of a level is of.  The competence gate asks for each: who lacks one could
    be right nearly everywhere, and have no skill that makes the task the task.  None: the task is one.
    entropy: nats of an answer to the Bayes-optimal predictor, by levels [M]; -1 or None: nobody told.
    stored: tokens of facts that the world holds and training tells, each of 1 / chance values alike.
    """

    name: str
    title: str
    chance: float | None
    ceiling: float | None
    scored: str
    knobs: str
    level: str
    chance_at: OfLevel | None = None
    ceiling_at: OfLevel | None = None
    part: Callable[[int], str] | None = None
    entropy: OfLevel | None = None
    stored: int = 0

    def at(self, level_M: np.ndarray) -> "Task":
        """The task with chance and ceiling of M answers of these levels, the mean over them; None where that of
        none is known."""
        if not (self.chance_at or self.ceiling_at):
            return self
        chance = _mean(self.chance_at, level_M, self.chance)
        return dataclasses.replace(self, chance=chance, ceiling=_mean(self.ceiling_at, level_M, self.ceiling))


def _mean(at: OfLevel | None, level_M: np.ndarray, usual: float | None) -> float | None:
    told_M = at(level_M) if at and len(level_M) else np.full(1, usual)
    if np.isnan(told_M).any():
        return None if np.isnan(told_M).all() else usual
    return float(told_M.mean())


# (rng, world, items [M, W], levels [M]) -> wrong options [M, 3]
Beside = Callable[[np.random.Generator, World, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GradedTask(Task):
    """A task of the graded language.

    answers: (first, count) of the tokens among which every answer is: the value set of a restricted choice.
    types: the kinds of tokens among `answers`, of which the format of an item allows only one: wrong options
    are of the kind of the answer, as its foil must be.  () where all answers are of one kind.
    item: (level, tokens of a row) -> tokens of an item with answers of that level, where answers stand in the item
    before they are asked for: wrong options then stand there too, or whatever has been seen would be right.
    beside: which wrong options an item has, where any others would tell the answer: 3 tokens each [M, 3], from the
    tokens [M, W] of items before their answers, of levels [M].  Those that are no other answers are left out.
    mixed: whether it is in the mixture where data.task_shares names none.  names: of tokens that mean something
    special.
    follows: which fields follow from a world, and how; as written they are those of its defaults.
    """

    generate: Generate
    answers: tuple[int, int]
    types: tuple[Sequence[int], ...] = ()
    item: Callable[[np.ndarray, int], np.ndarray] | None = None
    beside: Beside | None = None
    mixed: bool = True
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    follows: Callable[[World], Mapping[str, Any]] | None = None

    def in_world(self, world: World) -> "GradedTask":
        """This task as it is in a world."""
        return dataclasses.replace(self, **self.follows(world)) if self.follows else self
