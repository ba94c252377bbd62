"""What each command does, once heavy imports are paid for."""

import importlib
import os
from pathlib import Path

import jax
from rich.console import Console

from wane.launch import cli, studies
from wane.launch.run import run_cell, run_study

OUT = Path("runs")


def execute(command: "cli.Command") -> None:
    """Run one parsed command.  Raises ValueError or OSError in one line for bad input."""
    _configure_jax()
    # A log has no width: lines stay whole there.
    console = Console() if Console().is_terminal else Console(width=200)
    match command:
        case cli.Run():  # train and sweep are runs that stop earlier
            study = studies.load_study(command.study, command.overrides)
            out = command.out or OUT / study.name
            run_study(study, out, command.stages, console, accept_drift=command.accept_drift)
        case cli.Plan():
            from wane.launch.environment import resolve
            from wane.launch.plan import make_plan, show_plan

            study = studies.load_study(command.study, command.overrides)
            show_plan(make_plan(study, resolve(len(study.seeds))), console)
        case cli.Report():
            from wane.eval.report import write_report

            console.print(f"report: {write_report(command.directory)}", highlight=False)
        case cli.Cell():
            run_cell(command.study, command.id, console, accept_drift=command.accept_drift)
        case cli.Bench():
            bench = importlib.import_module("wane.launch.bench")
            bench.run(command.what, command.study, command.overrides, command.out, console)
        case cli.List():
            listing = importlib.import_module("wane.launch.listing")
            listing.show(command.what, command.show, console)


def _configure_jax() -> None:
    """Compiled programs are kept on disk, however short their compilation was: the default of one second would
    skip every evaluation program."""
    cache = Path(
        os.environ.get("WANE_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wane"
    )
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
