"""`wane bench methods`: what one point of every method costs, in plain forward passes of the same sequences."""

from typing import Any

from rich.table import Table

from wane.launch.bench.peers import Peer
from wane.launch.bench.setting import HERE, SHAPES, Setting
from wane.launch.bench.timing import alternate, geometric_mean, spread

Row = dict[str, Any]
EXPERTS = {"n_experts": 4, "top_k": 2}  # of the model on which routing is degraded


def measure(setting: Setting) -> list[Row]:
    """One row per shape and method: seconds of a point and of the plain evaluation that stood beside it, and their
    ratio; of a sequential method the ratio less the evaluation is in forwards of as many calibration sequences.
    memory: bytes of a point over those of the plain evaluation, in parameters of the model.  flops: of the
    evaluation; share_of_ceiling: of their rate in the time of a point, None of sequential methods: they do more."""
    return [
        row
        for shape in setting.shapes
        for experts in (False, True)
        for row in _of_model(setting, shape, experts)
    ]


def _of_model(setting: Setting, shape: str, experts: bool) -> list[Row]:
    rows = []
    dims = SHAPES[shape] | (EXPERTS if experts else {})
    common = {"sequences": setting.sequences, "batch": setting.batch, "dtype": setting.dtype}
    with Peer(f"{HERE}:points", dims=dims, experts=experts, **common) as peer:
        for name, about in peer.facts.items():
            works = {"point": peer.timed(name), "plain": peer.timed("plain")}
            found = alternate(works, setting.rounds, setting.seconds)
            ratio = [p / q for p, q in zip(found["point"], found["plain"], strict=True)]
            memory = peer.timed(f"{name} memory")(1)
            does_more = about["kind"] == "sequential"
            share = None if does_more else setting.shares(about["flops"], found["point"])
            told = {"ratio": ratio, "memory": memory, "share_of_ceiling": share}
            rows.append({"shape": shape, "method": name, **told, **found, **about})
            setting.say(f"{shape}, {name}: {spread(ratio)} plain evaluations")
    return rows


def table(rows: list[Row]) -> Table:
    """Method by method, the dearest of its kind last: the rows of all shapes and their geometric mean."""
    out = Table(
        "method", "kind", "shape", "GFLOP of an evaluation", "ms", "share of ceiling", "plain evaluations",
        "memory over plain, x parameters",
        title="one point of every method",
    )  # fmt: skip
    by_method = [
        [row for row in rows if row["method"] == name]
        for name in dict.fromkeys(row["method"] for row in rows)
    ]
    for mine in sorted(by_method, key=lambda mine: (mine[0]["kind"], _mean(mine))):
        for row in mine:
            milliseconds = 1e3 * spread(row["point"]).median
            out.add_row(
                row["method"],
                row["kind"],
                row["shape"],
                f"{row['flops'] / 1e9:.3g}",
                f"{milliseconds:.4g}",
                f"{spread(row['share_of_ceiling']).median:.3g}" if row["share_of_ceiling"] else "",
                str(spread(row["ratio"])),
                f"{row['memory']:.2f}",
            )
        if len(mine) > 1:
            out.add_row(
                mine[0]["method"], mine[0]["kind"], "geometric mean", *[""] * 3, f"{_mean(mine):.3g}", ""
            )
    return out


def _mean(rows: list[Row]) -> float:
    """Plain evaluations of a method's point, over shapes."""
    return geometric_mean([spread(row["ratio"]).median for row in rows])
