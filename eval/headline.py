"""The head of the report: what the study is, how large it is, and what its number of seeds cannot show."""

import html
from collections.abc import Mapping

import pandas as pd

from wane.eval import summary
from wane.eval.axes import POINT
from wane.eval.summary import FEW_SEEDS
from wane.eval.tables import NONE


def name(config: Mapping, frame: pd.DataFrame) -> str:
    """The study's name, from study.json or from the table."""
    return str(config.get("name") or (frame["study"].iloc[0] if len(frame) else NONE))


def headline(config: Mapping, frame: pd.DataFrame, shapes: pd.DataFrame) -> str:
    """Name, note, the numbers of the study and the caution, as HTML."""
    degraded = frame[~summary.untouched(frame)]
    numbers = {
        "shapes": shapes["shape"].nunique(),
        "trained members": frame["member_id"].nunique(),
        "methods": degraded["method"].nunique(),
        "degraded models measured": len(degraded[POINT].drop_duplicates()),
    }
    tiles = "".join(f"<div><dt>{label}</dt><dd>{count:,}</dd></div>" for label, count in numbers.items())
    description = html.escape(str(config.get("note") or NONE))
    return (
        f"<h1>{html.escape(name(config, frame))}</h1><p>{description}</p>"
        f'<dl class="numbers">{tiles}</dl><p class="caution">{caution(frame)}</p>'
    )


def caution(frame: pd.DataFrame) -> str:
    """What this number of seeds cannot show, in words computed from the table."""
    rows = summary.plain(frame)
    finished = rows[rows["status"] == "ok"].groupby("group")["member_id"].nunique()
    if finished.empty:
        return "No member finished: there is nothing to compare."
    few, most = int(finished.min()), int(finished.max())
    if few == 1:
        return (
            "At least one shape has a single finished seed. How much a curve changes when the same shape is "
            "trained again cannot be seen from it, so no difference that involves this shape can be told from luck."
        )
    seeds = f"{few} seeds" if few == most else f"{few} to {most} seeds"
    width = summary.interval_factor(few)
    text = f"Each shape was trained with {seeds}. "
    if few < FEW_SEEDS:
        return text + (
            "Bands show the range of the seeds, not an interval: with so few, the true mean is often outside "
            f"it, and a 95 % t-interval would reach {width:.1f} standard deviations to each side. Differences "
            "between shapes that are not clearly larger than the bands cannot be told from luck."
        )
    return text + (
        f"Bands are 95 % t-intervals of the mean, {width:.1f} standard deviations to each side. They cover "
        "another initialisation and order of data; they do not cover another corpus, learning rate or size."
    )
