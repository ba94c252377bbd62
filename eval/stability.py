"""Stability of chains of steps, told by the accuracy after so many: functions for tables and reports."""

import math
from collections.abc import Mapping
from itertools import pairwise

from wane.train.data.graded_steps import MODULUS

CHAINS = ("M2", "M2l", "M3")  # tasks whose levels count steps


def chains(task: str, by_level: Mapping[float, float]) -> dict[str, dict[int, float]]:
    """Rows of accuracy_by_level of one of CHAINS as chains: name -> {steps so far: accuracy}.

    Direct answers come after so many steps at once; written ones after the true steps before, so that each
    tells of its own step.  Raises ValueError for another task: its levels count no steps.
    """
    if task not in CHAINS:
        raise ValueError(f"task = {task!r}: levels count steps in {', '.join(CHAINS)} only")
    told: dict[str, dict[int, float]] = {}
    for level in sorted(by_level):
        name, step = _chain_of(task, int(level))
        told.setdefault(name, {})[step] = by_level[level]
    return told


def _chain_of(task: str, level: int) -> tuple[str, int]:
    """Inverse of the levels of `wane.train.data.graded_steps` and `graded_state`."""
    if task != "M3":
        written, step = divmod(level, 10)
        return ("written" if written else "direct"), step
    degree, rest = divmod(level, 100)
    written, step = divmod(rest, 50)
    return f"S{degree} {'written' if written else 'direct'}", step


def chance_of_chain(task: str, name: str) -> float:
    """Accuracy of a guess among the answers of one of the `chains`: residues, or elements of its group."""
    return 1 / MODULUS if task != "M3" else 1 / math.factorial(int(name[1]))


def hazard(accuracy: Mapping[int, float], chance: float = 0.0) -> dict[int, float]:
    """Of a chain of steps the probability that a step goes wrong where all before it were right.

    accuracy: after so many steps, as `chains` tells a direct one.  Survival is the accuracy above chance,
    (accuracy - chance) / (1 - chance), and 1 before the first step; between n and m steps each one costs
    1 - (survival_m / survival_n)^(1 / (m - n)).  A constant hazard is a chain whose steps are alike and fail
    independently; one below 0 is a chain that does better with more steps.  nan where nothing survives
    before.  Raises ValueError for steps below 1 or a chance that is not below 1.
    """
    steps = sorted(accuracy)
    if not steps or steps[0] < 1:
        raise ValueError(f"accuracy after steps {steps}: must be of one step or more")
    if not 0 <= chance < 1:
        raise ValueError(f"chance = {chance}: must be at least 0 and below 1")
    alive = {0: 1.0} | {step: max(0.0, (accuracy[step] - chance) / (1 - chance)) for step in steps}
    return {m: _per_step(alive[n], alive[m], m - n) for n, m in pairwise(sorted(alive))}


def _per_step(before: float, after: float, steps: int) -> float:
    return 1 - (after / before) ** (1 / steps) if before > 0 else float("nan")
