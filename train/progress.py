"""Progress of a training run: a bar on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Point(NamedTuple):
    """One log point.  losses: mean since the last one, per replica; tokens_per_s: of all replicas together."""

    step: int
    steps: int
    losses: tuple[float, ...]
    tokens_per_s: float

    def text(self) -> str:
        losses = " ".join(f"{loss:.3f}" for loss in self.losses)
        return f"loss {losses}  {self.tokens_per_s:,.0f} tok/s"


@contextmanager
def progress(title: str, console: Console, seconds_between_lines: float = 10.0) -> Iterator[Callable]:
    """Yields a callback for `train`'s `report`: a bar with rate and time left when the console is a terminal,
    else at most one line per `seconds_between_lines` and one at the end."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[text]}"), console=console) as bar:
            task = bar.add_task(title, total=None, text="")
            yield lambda p: bar.update(task, completed=p.step, total=p.steps, text=p.text())
    else:
        yield _lines(title, console, seconds_between_lines)


def _lines(title: str, console: Console, seconds: float) -> Callable[[Point], None]:
    started, first_step, last = time.monotonic(), None, float("-inf")

    def report(point: Point) -> None:
        nonlocal first_step, last
        now = time.monotonic()
        if first_step is None:
            first_step = point.step
        if now - last < seconds and point.step < point.steps:
            return
        last = now
        done = point.step - first_step
        left = f"{(now - started) / done * (point.steps - point.step):.0f} s left" if done else ""
        console.print(f"{title}: step {point.step}/{point.steps}  {point.text()}  {left}", highlight=False)

    return report
