"""Progress of long work: bars with rate and time left on a terminal, plain lines in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[..., None]  # tick(n, text="") after n more units of a cell's work


class Report:
    """Two bars: all cells of a study, weighed by their work, and the current one.  In a log, where a bar would
    be noise, one line per finished cell.  work: FLOPs of all cells."""

    def __init__(self, console: Console, title: str, cells: int, work: float):
        self.console, self.cells, self.done_cells, self.done_work = console, cells, 0, 0.0
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.whole = self.bars.add_task(title, total=max(work, 1.0), count=f"0/{cells} cells", text="")

    def __enter__(self) -> "Report":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    @contextlib.contextmanager
    def cell(self, title: str, units: int, work: float, unit: str) -> Iterator[Tick]:
        """The bar of one cell: `units` of its own, worth `work` of the whole."""
        bar = self.bars.add_task(f"  {title}", total=units, count="", text="")
        started, done, last = time.perf_counter(), 0, ""

        def tick(n: int, text: str = "") -> None:
            nonlocal done, last
            done, last = done + n, text
            rate = done / max(time.perf_counter() - started, 1e-9)
            self.bars.update(
                bar, advance=n, count=f"{done}/{units} {unit}", text=f"{rate:.3g} {unit}/s  {text}"
            )
            self.bars.update(self.whole, advance=n * work / max(units, 1))

        yield tick
        self.bars.remove_task(bar)
        self.done_cells, self.done_work = self.done_cells + 1, self.done_work + work
        count = f"{self.done_cells}/{self.cells} cells"
        self.bars.update(self.whole, completed=self.done_work, count=count)
        if not self.console.is_terminal:
            seconds = time.perf_counter() - started
            rate = f", {done / seconds:.3g} {unit}/s" if done else ""
            line = f"[{self.done_cells}/{self.cells}] {title}: {seconds:.1f} s{rate}  {last}"
            self.console.print(line.rstrip(), highlight=False, markup=False)
