"""What each command does, once heavy imports are paid for."""

from pathlib import Path

import jax
from rich.console import Console

from wane.eval.laws import laws_in
from wane.eval.learning import learned_in
from wane.eval.report import write_report
from wane.eval.speed import Timing
from wane.launch import cli, listing, studies
from wane.launch.bench import run as bench
from wane.launch.bench import setting as bench_setting
from wane.launch.environment import prepare, resolve
from wane.launch.masks import export_mask
from wane.launch.plan import make_plan, show_plan
from wane.launch.run import run_cell, run_study
from wane.launch.samples import samples_in
from wane.launch.speed import time_study
from wane.scaling import executables
from wane.train.data.cache import cache_dir

OUT = Path("runs")


def execute(command: "cli.Command") -> None:
    """Run one parsed command.  Raises ValueError or OSError in one line for bad input."""
    prepare()
    _configure_jax()
    # A log has no width: lines stay whole there.
    console = Console() if Console().is_terminal else Console(width=200)
    match command:
        case cli.Run():  # train and sweep are runs that stop earlier
            study = studies.load_study(command.study, command.overrides)
            out = command.out or OUT / study.name
            run_study(study, out, command.stages, console, accept_drift=command.accept_drift)
        case cli.Plan():
            study = studies.load_study(command.study, command.overrides)
            show_plan(make_plan(study, resolve(len(study.seeds))), console)
        case cli.Report():
            console.print(f"report: {write_report(command.directory)}", highlight=False)
        case cli.Learned():
            text = learned_in(command.directory, command.score, command.seeds, command.csv)
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        case cli.Laws():
            console.print(laws_in(command.directory), highlight=False, markup=False, soft_wrap=True)
        case cli.Cell():
            run_cell(command.study, command.id, console, accept_drift=command.accept_drift)
        case cli.Bench():
            setting = bench_setting.Setting(
                console=console, against=command.against, shapes=command.shapes or bench_setting.DEFAULT,
                dtype=command.dtype, batch=command.batch, pack=command.pack, rounds=command.rounds,
                seconds=command.seconds,
            )  # fmt: skip
            bench.run(command.what, setting, command.study, command.overrides, command.out, command.json)
        case cli.Speed():
            timing = Timing(batches=command.batches, rounds=command.rounds, seconds=command.seconds)
            time_study(command.directory, command.methods, command.severities, timing, console)
        case cli.Mask():
            degrade = studies.degrade_of(
                command.method, command.settings, command.severity, command.calibration
            )
            export_mask(command.directory, command.member, degrade, command.draw, command.out, console)
        case cli.Samples():
            asked = [
                studies.degrade_of(command.method, command.settings, severity, command.calibration)
                for severity in command.severities
            ]
            text = samples_in(
                command.directory, command.member, asked, command.draw, command.task, command.prompts,
                command.temperature,
            )  # fmt: skip
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        case cli.List():
            if command.verbose:
                listing.show_methods(command.what, command.show)
            else:
                listing.show(command.what, command.show, console)


def _configure_jax() -> None:
    """Compiled programs are kept on disk, however short their compilation was: the default of one second would
    skip every evaluation program."""
    executables.keep_in(cache_dir() / "executables")
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
