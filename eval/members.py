"""Read what training left for the report: config.json and train.jsonl of every member; missing parts are fine."""

import dataclasses
import json
import math
import pathlib

import pandas as pd

from wane.scaling.shape import Parametrization, Shape


def member_configs(study: pathlib.Path) -> dict[str, dict]:
    """Member id -> its config.json, empty where there is none."""
    folders = sorted(p for p in study.glob("members/*") if p.is_dir())
    return {folder.name: read_json(folder / "config.json") for folder in folders}


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file; empty when the file is missing; ValueError naming a damaged one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); write it anew with `wane run`") from error


def member_shape(config: dict) -> Shape | None:
    """The shape in a member's config, None when it holds none that this version understands."""
    fields = config.get("shape")
    if not isinstance(fields, dict):
        return None
    names = {field.name for field in dataclasses.fields(Shape)}
    fields = {name: value for name, value in fields.items() if name in names}
    try:
        if isinstance(fields.get("parametrization"), dict):
            fields["parametrization"] = Parametrization(**fields["parametrization"])
        return Shape(**fields)
    except (TypeError, ValueError):
        return None


def training_log(study: pathlib.Path, member: str, *, points: int) -> pd.DataFrame:
    """step, tokens and loss of one member, thinned to at most `points` rows; empty without a log.

    A line that a kill cut short is skipped; losses that are not finite become NaN.
    """
    path = study / "members" / member / "train.jsonl"
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
                rows.append({name: _finite(entry.get(name)) for name in ("step", "tokens", "loss")})
            except (ValueError, AttributeError):
                continue
    log = pd.DataFrame(rows, columns=["step", "tokens", "loss"]).dropna(subset=["tokens"])
    log = log.drop_duplicates("step", keep="last").sort_values("step")  # a resumed run repeats steps
    return log.iloc[:: max(1, math.ceil(len(log) / points))].assign(member=member)


def _finite(value) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
