"""One colour and line style per shape: colour orders shapes by aspect ratio, dashes tell sizes and arms apart.

Viridis grows in lightness and keeps its order for colour-blind readers; both ends are cut where they would
be too faint on white or too dark on black.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

ON_WHITE, ON_BLACK = (0.0, 0.82), (0.3, 1.0)
DASHES = ("solid", "dash", "dot", "dashdot")
SAME_SIZE = 1.2  # shapes whose parameter counts differ by less belong to one size


def shapes(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per group, from deep and narrow to wide and shallow, with its dimensions, parameter counts,
    aspect_ratio, size (index of its size class), members, and the looks: light, dark (hex), dash."""
    groups = frame.groupby("group")
    table = groups[["shape", "arm", *DIMENSIONS]].first()
    table["members"] = groups["member_id"].nunique()
    table["aspect_ratio"] = table["d_model"] / table["n_layers"]
    table = table.sort_values(["arm", "non_embedding_params"])
    table["size"] = size_class(table["non_embedding_params"])
    table = table.sort_values(["arm", "size", "aspect_ratio"]).reset_index()
    ordered = "aspect_ratio" if table["aspect_ratio"].nunique() > 1 else "non_embedding_params"
    ranks = table[ordered].rank(method="dense").to_numpy() - 1
    position = ranks / max(ranks.max(), 1)
    table["light"] = [_color(p, ON_WHITE) for p in position]
    table["dark"] = [_color(p, ON_BLACK) for p in position]
    style = table.groupby(["arm", "size"], sort=False).ngroup()
    table["dash"] = [DASHES[i % len(DASHES)] for i in style]
    return table


DIMENSIONS = [
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "d_ff",
    "vocab",
    "context",
    "non_embedding_params",
    "total_params",
]


def size_class(params: pd.Series) -> np.ndarray:
    """Index of the size that each parameter count belongs to, sizes in growing order."""
    counts = np.sort(params.unique())
    starts = np.concatenate([[True], counts[1:] / counts[:-1] > SAME_SIZE])
    classes = dict(zip(counts, np.cumsum(starts) - 1, strict=True))
    return params.map(classes).to_numpy()


def _color(position: float, span: tuple[float, float]) -> str:
    low, high = span
    return to_hex(matplotlib.colormaps["viridis"](low + position * (high - low)))
