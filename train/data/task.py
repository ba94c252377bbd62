"""What a task of the graded language is, and the world that all of its sequences agree about."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

Role = Literal["train", "evaluation"]


class World(NamedTuple):
    """Everything that is fact and not chance: Markov tables, the map of S, names and attributes of entities
    follow from `seed`, never from a data seed."""

    seed: int
    facts: int  # entities of K


# (rng, rows, length, world, role) -> tokens_BT, level_BT: level is -1 where a token is not scored, else the
# difficulty knob (Task.level) of that scored token.  T = length, the tag included.
Generate = Callable[[np.random.Generator, int, int, World, Role], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A task: how well nobody and the best possible predictor do on its scored positions.

    chance: accuracy of a uniform guess among the tokens that the format allows there.
    ceiling: accuracy of the Bayes-optimal predictor, which knows the world and the rule.  Both are None for
    text, where nobody knows them.
    level: what the per-position difficulty in EvalSet.level_NS counts ("" when there is none).
    """

    name: str
    title: str
    chance: float | None
    ceiling: float | None
    scored: str
    knobs: str
    level: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GradedTask(Task):
    """A task of the graded language: with its generator, and names for tokens that mean something special."""

    generate: Generate
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
