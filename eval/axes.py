"""What curves are drawn against: what was asked for, what it came to, and how much noise it was."""

import pandas as pd

AXES = {
    "severity": "severity",
    "removed_fraction": "removed fraction",
    "relative_weight_error": "relative weight error",
    "bits_per_weight": "effective bits per weight",
    "stream_noise_to_signal": "noise to signal of the stream",
    "block_noise_to_signal": "noise to signal of the blocks",
}
# Axis -> the metric that tells it, as `summary.prepare` names it: one axis for whatever is degraded.  It spans
# decades and is drawn in logarithms.
NOISE = {
    "stream_noise_to_signal": "stream_noise_to_signal",
    "block_noise_to_signal": "block_noise_to_signal, block",  # a mean over layers
}
SELECTORS = ["layer", "head", "matrix"]
POINT = ["member_id", "train_step", "pruned", "curve", "draw", "severity", *SELECTORS]


def with_noise(frame: pd.DataFrame) -> pd.DataFrame:
    """Every row with the noise to signal that was measured at its point, a column for each of NOISE; nan where none
    was."""
    for axis, metric in NOISE.items():
        measured = frame[(frame["metric"] == metric) & (frame["task"] == "all")]
        # what is measured of the trained model itself is rounding
        noise = measured["value"].where(measured["pruned"] != "never", 0.0)
        at_point = measured.assign(**{axis: noise}).groupby(POINT, dropna=False)[axis].mean()
        # not `join`, which finds no key with a null in it where others have none
        frame = frame.merge(at_point.reset_index(), on=POINT, how="left")
    return frame


def known(points: pd.DataFrame) -> dict[str, str]:
    """The axes along which some point has a place, and their titles."""
    return {axis: title for axis, title in AXES.items() if points[axis].notna().any()}
