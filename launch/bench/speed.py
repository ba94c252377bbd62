"""Tokens per second of training steps and of forward passes: against PyTorch, and as a share of the rate at which
the machine multiplies matrices."""

from contextlib import ExitStack
from typing import Any, Literal

from rich.table import Table

from wane.launch.bench.peers import Peer
from wane.launch.bench.setting import HERE, PEER, SHAPES, Ceilings, Setting
from wane.launch.bench.timing import alternate, geometric_mean, ratios, spread

Row = dict[str, Any]
WAITING_STEPS = 20


def measure(setting: Setting, work: Literal["training", "forward"]) -> list[Row]:
    """One row per shape and peer; each list has one entry per round."""
    rows = []
    for shape in setting.shapes:
        common = {"dims": SHAPES[shape], "batch": setting.batch, "dtype": setting.dtype}
        if work == "forward":
            common["sequences"] = setting.sequences
        with ExitStack() as stack:
            ceilings = stack.enter_context(Ceilings(setting))
            peers = {"wane": stack.enter_context(Peer(f"{HERE}:{work}", **common))}
            if setting.against:
                for name, compiled in (("PyTorch eager", False), ("PyTorch compiled", True)):
                    peers[name] = stack.enter_context(Peer(f"{PEER}:{work}", compiled=compiled, **common))
            if work == "training" and setting.pack > 1:
                packed = Peer(f"{HERE}:training", replicas=setting.pack, packing="vmap", **common)
                peers[f"wane, {setting.pack} packed"] = stack.enter_context(packed)
            works = {name: peer.timed(work) for name, peer in peers.items()} | ceilings.works()
            if work == "training":
                waited = peers["wane"].timed("waiting")(WAITING_STEPS) / WAITING_STEPS
            found = alternate(works, setting.rounds, setting.seconds, setting.progress(f"{work}, {shape}"))
            rate = ceilings.rate(found)
            does = {name: peer.facts or peers["wane"].facts for name, peer in peers.items()}
        per_token = {name: [s / does[name]["tokens"] for s in found[name]] for name in peers}
        rows += [
            {
                "work": work, "shape": shape, "peer": name, "seconds": found[name], "flops": about["flops"],
                "tokens_per_second": [1 / s for s in per_token[name]],
                "wane_is_faster_by": ratios(per_token, *_faster(name)),
                "share_of_ceiling": [about["flops"] / s / top for s, top in zip(found[name], rate, strict=True)],
                "ceiling_flops_per_second": rate,
            }
            for name, about in does.items()
        ]  # fmt: skip
        if work == "training":
            rows[-len(peers)]["waiting_for_data"] = [waited / s for s in found["wane"]]
    return rows


def _faster(peer: str) -> tuple[str, str]:
    """What is measured against what in a peer's row: wane against PyTorch, packed members against one at a time."""
    return (peer, "wane") if peer.startswith("wane") else ("wane", peer)


def table(rows: list[Row]) -> Table:
    """The rows, and the geometric mean over shapes of each peer: medians and [least, largest] of the rounds."""
    out = Table(
        "shape",
        "peer",
        "GFLOP",
        "ms",
        "tokens/s",
        "wane is faster by",
        "share of ceiling",
        *(["waiting for data"] if "waiting_for_data" in rows[0] else []),
        title=rows[0]["work"],
    )
    for row in rows:
        measured = (row[key] for key in ("tokens_per_second", "wane_is_faster_by", "share_of_ceiling"))
        milliseconds = spread([1e3 * s for s in row["seconds"]])
        gflop = f"{row['flops'] / 1e9:.3g}"
        out.add_row(
            row["shape"],
            row["peer"],
            gflop,
            f"{milliseconds.median:.4g}",
            *(str(spread(v)) for v in measured),
            *([f"{spread(row['waiting_for_data']).median:.2%}"] if "waiting_for_data" in row else []),
        )
    for peer in dict.fromkeys(row["peer"] for row in rows):
        mine = [row for row in rows if row["peer"] == peer]
        means = (
            geometric_mean([spread(row[key]).median for row in mine])
            for key in ("wane_is_faster_by", "share_of_ceiling")
        )
        out.add_row("geometric mean", peer, "", "", "", *(f"{mean:.3g}" for mean in means))
    return out
