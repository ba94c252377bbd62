"""`wane bench sweep`: a whole sweep against the usual loop over degraded copies, and what points cost that start in
mid-model, over their floor."""

from contextlib import ExitStack
from typing import Any

from rich.table import Table

from wane.launch.bench.peers import Peer
from wane.launch.bench.setting import HERE, PEER, SHAPES, Setting
from wane.launch.bench.timing import alternate, geometric_mean, ratios, spread

Row = dict[str, Any]
METHODS = ("random_weights", "random_neurons", "random_heads", "gaussian_noise", "rtn")
SEVERITIES = tuple(i / 16 for i in range(16))
DRAWS = 4


def against_loop(setting: Setting) -> list[Row]:
    """One row per shape and method: seconds of each of DRAWS draws, 16 points a draw; of the loop too where there
    is one.  flops: of the evaluation of a point; share_of_ceiling: of its rate, fits included."""
    rows = []
    for shape in setting.shapes:
        common = {
            "dims": SHAPES[shape], "sequences": setting.sequences, "batch": setting.batch, "dtype": setting.dtype,
            "methods": list(METHODS), "severities": list(SEVERITIES),
        }  # fmt: skip
        with ExitStack() as stack:
            peers = {"wane": stack.enter_context(Peer(f"{HERE}:sweeping", **common))}
            if setting.against:
                peers["loop"] = stack.enter_context(Peer(f"{PEER}:sweeping", **common))
            for method in METHODS:
                setting.say(f"sweep, {shape}: {method}")
                works = {name: peer.timed(method) for name, peer in peers.items()}
                found = alternate(works, DRAWS, seconds=None)
                row = {"shape": shape, "method": method, "points": len(SEVERITIES) * DRAWS, "seconds": found}
                row["flops"] = flops = peers["wane"].facts["flops"]
                row["share_of_ceiling"] = setting.shares(len(SEVERITIES) * flops, found["wane"])
                if setting.against:
                    row["wane_is_faster_by"] = ratios(found, "wane", "loop")
                rows.append(row)
    return rows


def loop_table(rows: list[Row]) -> Table:
    points = f"{len(METHODS)} methods x {len(SEVERITIES)} severities x {DRAWS} draws"
    table = Table(
        "shape", "method", "GFLOP a point", "ms a point", "share of ceiling", "faster than the loop by",
        title=f"a whole sweep: {points}",
    )  # fmt: skip
    faster = []
    for row in rows:
        point = 1e3 * spread(row["seconds"]["wane"]).median / len(SEVERITIES)
        ratio = row.get("wane_is_faster_by")
        share = row["share_of_ceiling"]
        table.add_row(
            row["shape"], row["method"], f"{row['flops'] / 1e9:.3g}", f"{point:.4g}",
            str(spread(share)) if share else "", str(spread(ratio)) if ratio else "",
        )  # fmt: skip
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [row for row in rows if row["shape"] == shape and "wane_is_faster_by" in row]
        if mine:  # of the time that all methods take together
            loop, wane = (sum(sum(row["seconds"][name]) for row in mine) for name in ("loop", "wane"))
            faster.append(loop / wane)
            table.add_row(shape, "all", "", "", "", f"{loop / wane:.3g}")
    if faster:
        table.add_row("geometric mean", "all", "", "", "", f"{geometric_mean(faster):.3g}")
    return table


def over_floors(setting: Setting) -> list[Row]:
    """One row per shape: a point of a per-layer sensitivity sweep, and all early exits, over the forward passes
    that they cannot do without."""
    rows = []
    for shape in setting.shapes:
        L = SHAPES[shape]["n_layers"]
        common = {"sequences": setting.sequences, "batch": setting.batch, "dtype": setting.dtype}
        with Peer(f"{HERE}:partial", dims=SHAPES[shape], **common) as peer:
            names = ("plain", "head", "sensitivity", "exits")
            found = alternate({name: peer.timed(name) for name in names}, setting.rounds, setting.seconds)
            setting.say(f"partial forwards, {shape}")
        sensitivity, exits = [], []
        for plain, head, layers, all_exits in zip(*(found[name] for name in names), strict=True):
            floor = (L + 1) / (2 * L) * (plain - head) + head
            sensitivity.append(layers / L / floor)
            exits.append(all_exits / (plain + L * head))
        rows.append({"shape": shape, "seconds": found, "sensitivity": sensitivity, "exits": exits})
    return rows


def floor_table(rows: list[Row]) -> Table:
    title = "points that start in mid-model, over the least that they must cost"
    table = Table("shape", "head and loss, share of a forward", "sensitivity", "all early exits", title=title)
    for row in rows:
        seconds = row["seconds"]
        share = spread([h / p for h, p in zip(seconds["head"], seconds["plain"], strict=True)])
        table.add_row(row["shape"], str(share), str(spread(row["sensitivity"])), str(spread(row["exits"])))
    return table
