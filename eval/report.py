"""Write report/index.html: one file that opens without a network, and its figures as SVG and PNG."""

import os
import pathlib
from collections.abc import Mapping

import pandas as pd

from wane.eval import headline, page, palette, sections, summary
from wane.eval.curves import load_curves
from wane.eval.figures import write_figures
from wane.eval.members import member_configs, member_shape, read_json, training_log
from wane.eval.record import atomic_file

TRAINING_POINTS = 400  # per member: more than a screen shows


def write_report(study: str | os.PathLike) -> pathlib.Path:
    """Write `study`/report and return the path of its index.html.

    Reads curves.parquet, study.json, speed.json, samples.json and members/*/{config.json, train.jsonl}; what is
    missing of the last five is shown as a dash or left out.  Raises FileNotFoundError without curves.parquet,
    ValueError for a damaged file.
    """
    study = pathlib.Path(study)
    curves = load_curves(study / "curves.parquet")
    frame = summary.prepare(curves)
    plain = summary.plain(frame)
    shapes = palette.shapes(plain if len(plain) else frame)
    points = summary.plain_curves(frame)
    built = {member: member_shape(config) for member, config in member_configs(study).items()}
    groups = _groups(frame, built, set(shapes["group"]))
    logs = {member: training_log(study, member, points=TRAINING_POINTS) for member in built}
    logs = {member: log for member, log in logs.items() if len(log)}

    report = study / "report"
    chosen = points[(points["metric"] == "excess_loss") & (points["task"] == "all")]
    stems = write_figures(report / "figures", chosen, shapes, _by_group(logs, groups))
    content = page.data(frame, points, shapes, logs, groups)
    config = _study(read_json(study / "study.json"))
    shape_of = {groups[member]: shape for member, shape in built.items() if shape is not None}
    speed, samples = (read_json(study / name) for name in ("speed.json", "samples.json"))
    body = sections.body(
        config, curves, frame, shapes, points, content,
        stems=stems, shape_of=shape_of, speed=speed, samples=samples,
    )  # fmt: skip
    with atomic_file(report / "index.html") as file:
        file.write(page.document(headline.name(config, frame), body, content).encode())
    return report / "index.html"


def _study(resolved: dict) -> dict:
    """The study's own fields: study.json holds them beside the environment."""
    return resolved["study"] if isinstance(resolved.get("study"), dict) else resolved


def _groups(frame: pd.DataFrame, built: Mapping, drawn: set[str]) -> dict[str, str]:
    """Member id -> the group whose looks it takes: its own, that of its shape for a member trained under a
    mask, by its own config when it has no rows, else a dash."""
    first = frame.drop_duplicates("member_id").set_index("member_id")
    groups = first["group"].where(first["group"].isin(drawn), first["shape"]).to_dict()
    return {member: shape.name if shape else "—" for member, shape in built.items()} | groups


def _by_group(logs: Mapping[str, pd.DataFrame], groups: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    by_group: dict[str, list[pd.DataFrame]] = {}
    for member, log in logs.items():
        by_group.setdefault(groups[member], []).append(log)
    return {group: pd.concat(parts) for group, parts in sorted(by_group.items())}
