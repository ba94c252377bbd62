"""How likely each step of a chain (tasks M2, M2l and M3) goes wrong at every severity, tables of the report."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from wane.eval import summary
from wane.eval.stability import CHAINS, chains, chance_of_chain, hazard
from wane.eval.tables import NONE, unfolding

KEYS = ["group", "curve", "task", "severity", "setting", "setting_unit"]


def hazards(curves: pd.DataFrame) -> pd.DataFrame:
    """The hazard per step (`stability.hazard`, above the chance of a guess) of each group, curve, severity,
    task and `chain` (`stability.chains`) of the curve table, of finished members degraded in all of their
    scope.

    Columns: KEYS, chain, `step`, `hazard`, a mean over draws, then members, and `members`.  Where one of them has
    nothing left before a step the mean is NaN: the others would be the better ones.
    """
    of_chains = (curves["metric"] == "accuracy_by_level") & curves["task"].isin(CHAINS)
    rows = summary.plain(summary.named(curves[of_chains & (curves["status"] == "ok")]))
    told = []
    for place, part in rows.groupby([*KEYS, "member_id", "draw"], sort=False):
        about = dict(zip([*KEYS, "member_id", "draw"], place, strict=True))
        for chain, accuracy in chains(
            about["task"], dict(zip(part["at"], part["value"], strict=True))
        ).items():
            lost = of_steps(chain, accuracy, chance_of_chain(about["task"], chain))
            told += [about | {"chain": chain, "step": step, "hazard": value} for step, value in lost.items()]
    keys = [*KEYS, "chain", "step"]
    found = pd.DataFrame(told, columns=[*keys, "member_id", "draw", "hazard"])
    members = found.groupby([*keys, "member_id"])["hazard"]
    over_members = summary.whole_mean(members).groupby(keys)
    return pd.DataFrame(
        {"hazard": summary.whole_mean(over_members), "members": over_members.size()}
    ).reset_index()


def of_steps(chain: str, accuracy: Mapping[int, float], chance: float) -> dict[int, float]:
    """Step -> hazard.  A written step stands behind the true ones before it, so it is a chain of its own."""
    if not chain.endswith("written"):
        return hazard(accuracy, chance)
    return {step: hazard({1: value}, chance)[1] for step, value in accuracy.items()}


def hazard_section(curves: pd.DataFrame, groups: list[str]) -> str:
    """A table for every group and curve that unfolds, groups in this order; nothing without rows of a
    chain."""
    found = hazards(curves)
    if found.empty:
        return ""
    note = (
        '<p class="note">The probability that a step of M2, M2l or M3 goes wrong where all before it were '
        "right, by the number of steps: equal numbers in a row are steps that fail "
        "independently. A dash is a step before which nothing was left above chance; of a "
        "chain that the undegraded model has not learnt it says nothing.</p>"
    )
    return note + unfolding(found, groups, _lines)


def _lines(part: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    steps, rows = sorted(part["step"].unique()), []
    for (task, chain, _), line in part.groupby(["task", "chain", "severity"]):
        told = dict(zip(line["step"], line["hazard"], strict=True))
        setting = f"{line['setting'].iloc[0]:g} {line['setting_unit'].iloc[0]}"
        rows.append([f"{task} {chain}", setting, *(_cell(told.get(step)) for step in steps)])
    headers = ["chain", "setting", *(f"step {step}" for step in steps)]
    return headers, rows


def _cell(value: float | None) -> str:
    """Empty for a step that the chain has not."""
    if value is None:
        return ""
    return NONE if np.isnan(value) else f"{value:.2f}"
