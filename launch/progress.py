"""Progress of long work: bars with rate and time left on a terminal, plain lines in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Report:
    """Two bars: the cells of a study and the work inside the current one.  total: work units of all cells."""

    def __init__(self, console: Console, title: str, cells: int, total: float):
        self.console, self.cells, self.done_cells, self.done_work = console, cells, 0, 0.0
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self.whole = self.bars.add_task(title, total=max(total, 1), rate="")

    def __enter__(self) -> "Report":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    @contextlib.contextmanager
    def cell(self, title: str, steps: int, work: float, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar of `steps` units for one cell, worth `work` of the whole; yields tick(n)."""
        task = self.bars.add_task(f"  {title}", total=steps, rate="")
        started, done = time.perf_counter(), 0

        def tick(n: int) -> None:
            nonlocal done
            done += n
            seconds = max(time.perf_counter() - started, 1e-9)
            self.bars.update(task, advance=n, rate=f"{done / seconds:.3g} {unit}/s")
            self.bars.update(self.whole, advance=n * work / max(steps, 1))

        yield tick
        self.bars.remove_task(task)
        self.done_cells += 1
        self.done_work += work
        self.bars.update(self.whole, completed=self.done_work)
        if not self.console.is_terminal:
            seconds = time.perf_counter() - started
            rate = f", {done / seconds:.3g} {unit}/s" if done else ""
            self.console.print(
                f"[{self.done_cells}/{self.cells}] {title}: {seconds:.1f} s{rate}", highlight=False, markup=False
            )
