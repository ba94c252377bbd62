"""One examination of one member at one training step, from parameters to rows."""

import zlib
from collections.abc import Callable

from wane.eval.examine import EXAMINATIONS
from wane.eval.examine.contract import Examined
from wane.eval.metrics.contract import EVERYWHERE
from wane.eval.rows import member_columns, value_row
from wane.eval.study import Evaluation, Examine
from wane.eval.subject import Member, Splits, Subject
from wane.scaling.config import canonical
from wane.scaling.degrade.contract import EVERYTHING

CALIBRATION = "same"  # where the sequences come from that an examination learns from, as in Degrade


def examine(subject: Subject, asked: Examine, cell_id: str, tick: Callable[[int], None]) -> list[dict]:
    """All rows of a cell.  tick(n) is called after n more forward passes."""
    member, settings, examination = subject.member, subject.settings, EXAMINATIONS[asked.name]
    name = zlib.crc32(asked.name.encode())
    examined = Examined(
        shape=member.shape, params=subject.params, batches=subject.batches, stream=subject.stream,
        evaluation=subject.splits.evaluation, calibration_NT=subject.splits.calibrations[CALIBRATION],
        precision=settings.matmul_precision,
        seed=(settings.draw_seed, member.init_seed, member.data_seed, name),
    )  # fmt: skip
    common = _columns(member, asked, settings, subject.splits, cell_id)
    metrics = {metric.name: metric for metric in examination.metrics}
    return [
        common
        | value_row(metrics[found.metric], found.place, found.task, found.value, found.count)
        | {"chance": found.chance}
        for found in examination.run(examined, asked.resolved, tick)
    ]


def diverged_rows(
    member: Member, asked: Examine, evaluation: Evaluation, splits: Splits, cell_id: str
) -> list[dict]:
    """What the table keeps of a member whose training diverged: every metric is null, with the reason."""
    common = _columns(member, asked, evaluation, splits, cell_id)
    told = {"value": None, "status": "diverged", "reason": member.diverged}
    return [
        common | value_row(metric, EVERYWHERE[0], "all", float("nan"), 0) | told
        for metric in EXAMINATIONS[asked.name].metrics
    ]


def _columns(member: Member, asked: Examine, evaluation: Evaluation, splits: Splits, cell_id: str) -> dict:
    """Columns of the member, and of a point that nothing degrades: what was taken away is told by axis and part."""
    learns = EXAMINATIONS[asked.name].needs_calibration
    return member_columns(member, evaluation, splits, cell_id) | {
        "method": "none", "scope": str(EVERYTHING), "matrix": None, "layer": None, "head": None,
        "settings": canonical({"examination": asked.name} | asked.changed),
        "draw": 0, "draw_seed": evaluation.draw_seed,
        "severity": 0.0, "setting": 0.0, "setting_unit": "fraction",
        "severity_2": None, "setting_2": None, "setting_2_unit": None,
        "removed_fraction": None, "relative_weight_error": None, "bits_per_weight": None,
        "compression_ratio": None,
        "calibration": CALIBRATION if learns else None,
        "calibration_digest": splits.calibration_digest(CALIBRATION) if learns else None,
    }  # fmt: skip
