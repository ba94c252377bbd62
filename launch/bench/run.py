"""`wane bench WHAT`: runs benchmarks, prints their tables, leaves their numbers."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from wane.launch.bench import compiling, fewer, instruments, parametrization, points, speed, sweeping
from wane.launch.bench.setting import Ceilings, Setting
from wane.launch.bench.timing import Spread

Rows = list[dict[str, Any]]
Shown = tuple[str, Rows, Table]  # name of the numbers, the numbers, their table


def train(setting: Setting) -> list[Shown]:
    rows = speed.measure(setting, "training")
    return [("training", rows, speed.table(rows))]


def sweep(setting: Setting) -> list[Shown]:
    forward, whole = speed.measure(setting, "forward"), sweeping.against_loop(setting)
    floors, passes = sweeping.over_floors(setting), fewer.measure(setting.say)
    return [
        ("forward", forward, speed.table(forward)),
        ("sweep", whole, sweeping.loop_table(whole)),
        ("floors", floors, sweeping.floor_table(floors)),
        ("fewer_passes", passes, fewer.table(passes)),
    ]


def methods(setting: Setting) -> list[Shown]:
    rows = points.measure(setting)
    return [("methods", rows, points.table(rows))]


def instrumented(setting: Setting) -> list[Shown]:
    rows = instruments.measure(setting)
    return [("instruments", rows, instruments.table(rows))]


def compilation(setting: Setting) -> list[Shown]:
    rows = compiling.measure(setting, "quickstart", ())
    return [("compilation", rows, compiling.table(rows))]


MEASURED: Mapping[str, Callable[[Setting], list[Shown]]] = {
    "train": train,
    "sweep": sweep,
    "methods": methods,
    "instruments": instrumented,
    "compile": compilation,
}


def run(
    what: str, setting: Setting, study: str, overrides: Sequence[str], out: Path, numbers: Path | None
) -> None:
    """One benchmark or all that measure speed.  study, overrides and out are read by `coordinates` and `rates`,
    numbers by the others: the JSON file that all figures go to.

    Raises ValueError when PyTorch is asked for and missing.
    """
    if what in parametrization.BENCHES:
        parametrization.run(what, study, overrides, out, setting.console)
        return
    if setting.against:
        setting.check_peer()
    with Ceilings(setting) as ceilings:
        about = ceilings.about(setting)
    setting.say(describe(about))
    setting = dataclasses.replace(setting, ceiling=about["product_flops_per_second"].median)
    record: dict[str, Any] = {"about": about}
    for name in MEASURED if what == "all" else (what,):
        for part, rows, table in MEASURED[name](setting):
            setting.console.print(table)
            record[part] = rows
        if numbers:  # after each, as all of them take long
            numbers.parent.mkdir(parents=True, exist_ok=True)
            numbers.write_text(json.dumps(record, indent=1) + "\n")
    setting.say("median [least, largest] of the rounds; a share of the ceiling counts model FLOPs, all keys")
    if numbers:
        setting.say(f"numbers: {numbers}")


def describe(about: dict[str, Any]) -> str:
    """Where this is and what it can do at most."""
    environment = about["environment"]
    device = environment["device_kind"]
    if environment["platform"] == "cpu":
        device = f"{environment['processor']}, {environment['threads']} threads"
    product, copy = Spread(*about["product_flops_per_second"]), Spread(*about["copy_bytes_per_second"])
    against = f"against: {about['against']}\n" if about["against"] else ""
    return (
        f"{device}; jax {environment['jax_version']}; {about['dtype']}; batch {about['batch']} x 128 bytes, "
        f"{about['sequences']} sequences of evaluation\n{against}"
        f"ceilings: {product.median / 1e9:.4g} GFLOP/s in products of matrices, "
        f"{copy.median / 1e9:.3g} GB/s read and written"
    )
