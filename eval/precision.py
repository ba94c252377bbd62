"""How many evaluation sequences a study needs for the precision that it asks for, from a pilot on other sequences.

Points are compared on common sequences, so what counts is the spread of the change that a degradation makes to each
sequence's loss, which is far smaller than the spread of the losses.
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

RANGE = 1.0  # nats: points of larger excess loss lie beyond every endpoint and do not count
FACTOR = float(stats.norm.ppf(0.975))  # half the width of a 95 % interval, in standard errors


def unit_variances(rows: pd.DataFrame) -> pd.DataFrame:
    """excess: nats over the undegraded member; variance: of the mean excess with one sequence of every task.  One
    row per point of one member's curve, the undegraded one left out.

    Tasks have equal numbers of sequences, so the variance of the mean over K tasks with n sequences each is
    sum_t var_t / (n K^2): what differs between tasks is not noise.
    """
    loss = rows[(rows["metric"] == "loss") & (rows["status"] == "ok")]
    if loss["task"].nunique() > 1:  # with one task, "all" is that task
        loss = loss[loss["task"] != "all"]
    found = []
    for _, draw in loss.groupby("draw"):
        trained = draw[draw["severity"] == 0].set_index("task")["per_sequence"]
        for severity, point in draw[draw["severity"] > 0].groupby("severity"):
            changes = [
                np.subtract(each, trained[task]) for task, each in point[["task", "per_sequence"]].values
            ]
            variance = sum(np.var(change, ddof=1) for change in changes) / len(changes) ** 2
            excess = np.mean([np.mean(change) for change in changes])
            found.append({"severity": severity, "excess": excess, "variance": variance})
    return pd.DataFrame(found, columns=["severity", "excess", "variance"])


def largest_variance(pilots: Iterable[pd.DataFrame]) -> float:
    """Over all points of all curves that cost at most RANGE; 0 where there is none."""
    points = pd.concat([unit_variances(rows) for rows in pilots])
    counted = points.loc[points["excess"] <= RANGE, "variance"]
    return float(counted.max()) if len(counted) else 0.0


def sequences_for(precision: float, variance: float) -> int:
    """Sequences per task whose interval is at most `precision` nats to either side."""
    return max(2, math.ceil(variance * (FACTOR / precision) ** 2))


def half_width(sequences: int, variance: float) -> float:
    """What so many sequences per task reach, nats."""
    return FACTOR * math.sqrt(variance / sequences)
