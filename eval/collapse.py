"""From which severity on a model that speaks by itself has collapsed: its predictions are much less or much more
certain than the undegraded model's, or it says few different tokens."""

import numpy as np
import pandas as pd

# What tells one curve of the table from another, beside the metric.
CURVE = (
    "member_id", "train_step", "evaluation_digest", "task", "method", "scope", "settings", "calibration", "draw",
    "layer", "head", "matrix", "severity_2", "at",
)  # fmt: skip


def onset(severity_Q: np.ndarray, value_Q: np.ndarray, factor: float = 2.0) -> float | None:
    """The least severity from which on the values stay above `factor` times the undegraded one, or below it divided
    by `factor`; between two severities on a straight line.  None: never, at the largest severity it is inside.

    severity_Q: in any order, each once; value_Q: 0 or more, nan where there is none.  Raises ValueError where there
    is no value at severity 0, with which the others are compared, and for other wrong arguments.
    """
    severity_Q, value_Q = np.float64(severity_Q), np.float64(value_Q)
    if not factor > 1:
        raise ValueError(f"factor = {factor}: must be above 1")
    if (value_Q < 0).any():
        raise ValueError(f"value_Q = {value_Q.min()}: must be 0 or more to be compared by a factor")
    if len(np.unique(severity_Q)) < len(severity_Q):
        raise ValueError(f"severity_Q = {severity_Q.tolist()}: must not repeat; take one curve at a time")
    known = np.flatnonzero(np.isfinite(value_Q))
    known = known[np.argsort(severity_Q[known])]
    severity_Q, value_Q = severity_Q[known], value_Q[known]
    if not len(known) or severity_Q[0] != 0:
        raise ValueError("severity_Q: needs a finite value at severity 0, the undegraded one")
    low, high = value_Q[0] / factor, value_Q[0] * factor
    side_Q = (value_Q > high).astype(int) - (value_Q < low)
    if side_Q[-1] == 0:
        return None
    before = np.flatnonzero(side_Q != side_Q[-1])[-1]
    bound = high if side_Q[-1] > 0 else low
    share = (bound - value_Q[before]) / (value_Q[before + 1] - value_Q[before])
    return float(severity_Q[before] + share * (severity_Q[before + 1] - severity_Q[before]))


def collapses(
    frame: pd.DataFrame, *, entropy_factor: float = 2.0, distinct_factor: float = 2.0
) -> pd.DataFrame:
    """The onset of every curve of a curve table that has both metrics, at each temperature (`at`).

    Columns: CURVE, and the severities `output_entropy` and `distinct_1` at which each metric leaves the undegraded
    value by its factor, and `collapse`, the smaller of them; NA: never.  Curves without a finite undegraded value
    are left out.
    """
    factors = {"output_entropy": entropy_factor, "distinct_1": distinct_factor}
    frame = frame[frame["metric"].isin(factors)]
    rows = []
    for key, curve in frame.groupby(list(CURVE), dropna=False, sort=False):
        parts = {name: curve[curve["metric"] == name].dropna(subset="value") for name in factors}
        if all((part["severity"] == 0).any() for part in parts.values()):
            told = {n: onset(part["severity"], part["value"], factors[n]) for n, part in parts.items()}
            least = min((s for s in told.values() if s is not None), default=None)
            rows.append(dict(zip(CURVE, key, strict=True)) | told | {"collapse": least})
    found = pd.DataFrame(rows, columns=[*CURVE, *factors, "collapse"])
    return found.astype(dict.fromkeys((*factors, "collapse"), "Float64"))
