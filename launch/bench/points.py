"""`wane bench methods`: what one point of every method costs, in plain forward passes of the same sequences."""

from typing import Any

from rich.table import Table

from wane.launch.bench.peers import Peer
from wane.launch.bench.setting import HERE, SHAPES, Setting
from wane.launch.bench.timing import alternate, spread

Row = dict[str, Any]
EXPERTS = {"n_experts": 4, "top_k": 2}  # of the model on which routing is degraded


def measure(setting: Setting, shape: str = "D128-L4") -> list[Row]:
    """One row per method: seconds of a point and of the plain evaluation that stood beside it, and their ratio; of
    a sequential method the ratio less the evaluation is in forwards of as many calibration sequences.  memory:
    bytes of a point over those of the plain evaluation, in parameters of the model.  flops: of the evaluation;
    share_of_ceiling: of their rate in the time of a point, None of sequential methods, which do more."""
    rows = []
    for experts in (False, True):
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
                rows.append({"method": name, **told, **found, **about})
                setting.say(f"{name}: {spread(ratio)} plain evaluations")
    return rows


def table(rows: list[Row]) -> Table:
    out = Table(
        "method", "kind", "GFLOP of an evaluation", "ms", "share of ceiling", "plain evaluations",
        "memory over plain, x parameters",
        title="one point of every method",
    )  # fmt: skip
    for row in sorted(rows, key=lambda row: (row["kind"], spread(row["ratio"]).median)):
        milliseconds = 1e3 * spread(row["point"]).median
        out.add_row(
            row["method"],
            row["kind"],
            f"{row['flops'] / 1e9:.3g}",
            f"{milliseconds:.4g}",
            f"{spread(row['share_of_ceiling']).median:.3g}" if row["share_of_ceiling"] else "",
            str(spread(row["ratio"])),
            f"{row['memory']:.2f}",
        )
    return out
