"""What is measured: shapes, batch, dtype, turns; and the ceilings of the machine."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rich.console import Console

from wane.launch.bench.peers import Peer
from wane.launch.bench.timing import alternate, spread

HERE, PEER = "wane.launch.bench.wane_work", "wane.launch.bench.torch_work"
SIDE = 2048  # of the square product whose rate is the ceiling; 2 x 16 MB operands leave every cache


def dims(d_model: int, n_layers: int) -> dict[str, int]:
    """A SwiGLU transformer over bytes: heads of 32, d_ff = 2 d_model, 128 bytes of context."""
    return {
        "d_model": d_model, "n_layers": n_layers, "n_heads": d_model // 32, "head_dim": 32,
        "d_ff": 2 * d_model, "vocab": 256, "context": 128,
    }  # fmt: skip


# Three shapes of about .7 million block parameters and one of 5
SHAPES = {"D128-L4": dims(128, 4), "D64-L16": dims(64, 16), "D256-L1": dims(256, 1), "D256-L8": dims(256, 8)}
DEFAULT = tuple(SHAPES)
SHAPES |= {"D1024-L10": dims(1024, 10)}  # 105 million, for accelerators


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """rounds: how often pieces of work take turns; seconds: how long each runs in a turn.  against: whether
    PyTorch runs beside.  pack: members that train as one program beside the one that trains alone."""

    console: Console
    against: Literal["torch"] | None = None
    shapes: Sequence[str] = DEFAULT
    batch: int = 16
    pack: int = 1
    sequences: int = 128  # of an evaluation
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 5
    seconds: float = 1.0
    ceiling: float | None = None  # FLOP/s in products of matrices, once measured

    def __post_init__(self):
        unknown = [name for name in self.shapes if name not in SHAPES]
        if unknown:
            raise ValueError(f"bench --shapes {unknown[0]}: must be some of {', '.join(SHAPES)}")
        if self.pack < 1 or self.batch < 1:
            raise ValueError(f"bench --pack {self.pack} --batch {self.batch}: must be at least 1")
        if self.rounds < 1 or self.seconds < 0:
            raise ValueError(
                f"bench --rounds {self.rounds} --seconds {self.seconds}: must be at least 1 and at least 0"
            )

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def shares(self, flops: float, seconds: Sequence[float]) -> list[float] | None:
        """Of the ceiling, when so many FLOPs take so long; None while it is not measured."""
        return [flops / s / self.ceiling for s in seconds] if self.ceiling else None

    def check_peer(self) -> None:
        """Raises ValueError when PyTorch is not installed."""
        if importlib.util.find_spec("torch") is None:
            raise ValueError("bench --against torch: PyTorch is not installed; pip install 'wane[bench]'")

    def progress(self, what: str) -> Callable[[str], None]:
        return lambda line: self.say(f"{what}: {line}")


class Ceilings:
    """What this machine can do at most, measured in the same rounds as the work: processes that multiply matrices
    and copy memory."""

    def __init__(self, setting: Setting):
        self.peers = {"wane": Peer(f"{HERE}:machine", size=SIDE, dtype=setting.dtype)}
        if setting.against:
            self.peers["torch"] = Peer(f"{PEER}:products", size=SIDE, dtype=setting.dtype)

    def works(self) -> dict[str, Callable[[int], float]]:
        return {f"product by {name}": peer.timed("product") for name, peer in self.peers.items()}

    def rate(self, found: dict[str, list[float]]) -> list[float]:
        """FLOPs per second of each round, of the library that multiplies faster."""
        flops = self.peers["wane"].facts["flops"]
        return [flops / min(seconds) for seconds in zip(*(found[name] for name in self.works()), strict=True)]

    def about(self, setting: Setting) -> dict[str, Any]:
        """Where this is, what it can do at most, and how it is measured; rates as a Spread."""
        facts, copy = self.peers["wane"].facts, self.peers["wane"].timed("copy")
        products = alternate(self.works(), setting.rounds, setting.seconds)
        copies = alternate({"copy": copy}, setting.rounds, setting.seconds)["copy"]
        return {
            "environment": facts["environment"], "dtype": setting.dtype, "batch": setting.batch,
            "against": self.peers["torch"].facts["is"] if setting.against else None,
            "sequences": setting.sequences, "rounds": setting.rounds,
            "product_flops_per_second": spread(self.rate(products)),
            "copy_bytes_per_second": spread([facts["bytes"] / seconds for seconds in copies]),
        }  # fmt: skip

    def __enter__(self) -> "Ceilings":
        return self

    def __exit__(self, *exception: Any) -> None:
        for peer in self.peers.values():
            peer.__exit__(*exception)
