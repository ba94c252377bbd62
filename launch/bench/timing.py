"""Seconds of several pieces of work done in turns, and what one takes relative to another."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Timed = Callable[[int], float]  # repetitions -> seconds that all of them took


class Spread(NamedTuple):
    """Median, least and largest value over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def alternate(
    works: Mapping[str, Timed],
    rounds: int,
    seconds: float | None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, list[float]]:
    """Name -> seconds per repetition in each round.

    In every round each piece of work runs for about `seconds` (None: once), one after another and never at the same
    time; the order rotates, so that a machine that slows down or speeds up favours none.  Before that each runs
    once, to compile, and once more to learn how many repetitions fill a turn.
    """
    for work in works.values():
        work(1)
    times = {name: 1 if seconds is None else max(1, round(seconds / work(1))) for name, work in works.items()}
    names, found = list(works), {name: [] for name in works}
    for i in range(rounds):
        report(f"round {i + 1}/{rounds}")
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(works[name](times[name]) / times[name])
    return found


def ratios(found: Mapping[str, Sequence[float]], name: str, against: str) -> list[float]:
    """How many times as fast as `against` a piece of work is, in each round."""
    return [b / a for a, b in zip(found[name], found[against], strict=True)]


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)
