"""`wane bench compile`: the seconds that a study spends compiling, in its first run and in its second."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from wane.launch.bench.peers import Peer, Work
from wane.launch.bench.setting import Setting
from wane.launch.environment import resolve
from wane.launch.run import run_study
from wane.launch.studies import load_study
from wane.scaling import executables

Row = dict[str, Any]
STAGES = ("train", "sweep")
EVENTS = {  # of jax.monitoring; durations in seconds
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
    executables.READING: "keeping",
    executables.KEEPING: "keeping",
}


def studying(*, study: str, overrides: list[str], cache: str, out: str) -> Work:
    """A study from the beginning with caches in a folder of their own; facts: what it took."""
    executables.keep_in(Path(cache) / "executables")
    jax.config.update("jax_compilation_cache_dir", f"{cache}/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    seconds = dict.fromkeys(EVENTS.values(), 0.0) | {"programs": 0}

    def listen(event: str, duration: float, **_: Any) -> None:
        if event in EVENTS:
            seconds[EVENTS[event]] += duration
            seconds["programs"] += EVENTS[event] == "compiling"  # by XLA, or found by jax

    jax.monitoring.register_event_duration_secs_listener(listen)
    started = time.perf_counter()
    with open(Path(out).with_suffix(".log"), "w") as log:
        run_study(load_study(study, overrides), Path(out), STAGES, Console(file=log), accept_drift=False)
    return Work({}, seconds | {"all": time.perf_counter() - started, "environment": resolve(1)})


def measure(setting: Setting, study: str, overrides: tuple[str, ...]) -> list[Row]:
    """Two rows: with an empty cache on disk, and with the one that this run left."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for run in ("first", "second"):
            setting.say(f"{study}: {run} run")
            arguments = {"study": study, "overrides": list(overrides)}
            with Peer(
                f"{__name__}:studying", cache=f"{folder}/cache", out=f"{folder}/{run}", **arguments
            ) as peer:
                rows.append({"study": study, "run": run, **peer.facts})
    return rows


def table(rows: list[Row]) -> Table:
    """compiling: XLA, or what jax keeps of it; keeping: reading and writing of whole executables."""
    columns = ("tracing", "lowering", "compiling", "keeping")
    out = Table("run", "programs", *columns, "all compilation", "whole run", title="seconds spent compiling")
    for row in rows:
        parts = [row[name] for name in columns]
        values = (*parts, sum(parts), row["all"])
        out.add_row(row["run"], str(row["programs"]), *(f"{value:.1f}" for value in values))
    return out
