"""`wane bench instruments`: what a sweep costs that measures an instrument too, or all of them, in sweeps of the
loss alone.

Cells of a small member of the graded language, from fit to rows, as `wane run` computes them.
"""

import functools
from typing import Any

import jax
from rich.table import Table

from wane.eval.cell import sweep
from wane.eval.metrics import INSTRUMENTS, METRICS, costly
from wane.eval.study import Degrade, Evaluation
from wane.eval.subject import Member, Splits, Subject
from wane.launch.bench.peers import Peer, Work
from wane.launch.bench.setting import Setting
from wane.launch.bench.timing import alternate, spread
from wane.launch.environment import prepare, resolve
from wane.scaling.family import exact_ladder
from wane.scaling.model import init_params
from wane.train.data import Data, open_data

Row = dict[str, Any]
LOSS = ("loss",)
ALL = "all but generation"
POINTS = 4
DEPTHS = (4, 36)  # the widest and the deepest shape of the CPU tier


def asked() -> dict[str, tuple[str, ...]]:
    """Name of a row -> what its sweep measures."""
    groups = {name: tuple(m.name for m in ms) for name, ms in INSTRUMENTS.items() if not costly(name)}
    everything = tuple(name for name in METRICS if any(name in names for names in groups.values()))
    return {"loss": LOSS} | {name: LOSS + names for name, names in groups.items()} | {ALL: everything}


def measuring(*, n_layers: int, sequences: int, rows: list[str]) -> Work:
    """A cell of POINTS severities a repetition, for each of these rows of the table.  sequences: of each task."""
    prepare()
    stream = open_data(Data(sources="graded"), steps=1, batch_size=1)
    family = exact_ladder(192, depths=(n_layers,), head_dim=16)
    (shape,) = family.shapes(vocab=stream.vocab, context=stream.config.context)
    member = Member(
        id="bench", study="bench", arm="", shape=shape, init_seed=0, data_seed=0, step=1, tokens=1, packing=1,
        checkpoint_digest="",
    )  # fmt: skip
    params, settings = init_params(jax.random.key(0), shape), Evaluation(sequences=sequences)
    calibrations = {"same": stream.calibration(settings.calibration_sequences, 0)}
    splits = Splits(evaluation=stream.evaluation(sequences, 0), calibrations=calibrations, stream=stream)
    severities = tuple(i / POINTS for i in range(1, POINTS + 1))
    degrade = Degrade(method="random_weights", severities=severities, identity=False)
    points = resolve(1)["points_per_call"]

    def run(subject: Subject, repetitions: int) -> None:
        for _ in range(repetitions):
            sweep(subject, degrade, range(1), "bench", points, lambda done: None)

    found = asked()
    subjects = {
        name: Subject(member, params, splits, Evaluation(sequences=sequences, metrics=found[name]))
        for name in rows
    }
    runs = {name: functools.partial(run, subject) for name, subject in subjects.items()}
    return Work(runs, {"shape": shape.name})


def measure(setting: Setting, sequences: int = 16) -> list[Row]:
    """A row per shape and instrument: seconds of a point of its sweep, and the ratio of each round to that of the
    loss alone."""
    rows = []
    for n_layers in DEPTHS:
        names = list(asked())
        with Peer(f"{__name__}:measuring", n_layers=n_layers, sequences=sequences, rows=names) as peer:
            shape = peer.facts["shape"]
            works = {name: peer.timed(name) for name in names}
            say = setting.progress(f"instruments, {shape}")
            found = alternate(works, setting.rounds, setting.seconds, say)
            for name in names[1:]:
                ratio = [mine / loss for mine, loss in zip(found[name], found["loss"], strict=True)]
                seconds = [cell / POINTS for cell in found[name]]
                rows.append({"shape": shape, "instrument": name, "ratio": ratio, "seconds": seconds})
    return rows


def table(rows: list[Row]) -> Table:
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    out = Table(
        "instrument", *shapes, title="a sweep that measures an instrument too, over one of the loss alone"
    )
    for name in dict.fromkeys(row["instrument"] for row in rows):
        mine = {row["shape"]: row["ratio"] for row in rows if row["instrument"] == name}
        out.add_row(name, *(str(spread(mine[shape])) if shape in mine else "" for shape in shapes))
    return out
