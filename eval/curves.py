"""Read the curve table of a study, a folder or a file into a data frame in one line."""

import os
import pathlib
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa

from wane.eval.columns import COLUMNS, SCHEMA
from wane.eval.record import canonical, read_rows


def load_curves(
    path: str | os.PathLike, *, columns: Sequence[str] | None = None, per_sequence: bool = False
) -> pd.DataFrame:
    """The curve table at `path` as a data frame, one row per metric of a point, in canonical order.

    `path` is a Parquet file, a study directory (its curves.parquet) or a folder: every curves.parquet below
    it, rows.parquet where a study is not merged yet, or else every Parquet file.  `columns` selects
    columns; `per_sequence` adds the column of that name, a list per row and most of the bytes.
    Raises FileNotFoundError when there is no table, ValueError for an unknown column, a damaged file,
    another schema version, or two rows for the same point.
    """
    names = _column_names(columns, per_sequence)
    files = curve_files(pathlib.Path(path))
    if len(files) == 1:  # written in canonical order by one writer
        table = read_rows(files[0], names)
    else:
        everything = [c for c in SCHEMA.names if c != "per_sequence" or c in names]
        table = canonical(pa.concat_tables(read_rows(file, everything) for file in files)).select(names)
    frame = table.to_pandas()
    for column in COLUMNS:  # numpy integers have no null: pandas would show layer 3 as 3.0
        if column.nullable and column.type == pa.int64() and column.name in names:
            frame[column.name] = frame[column.name].astype("Int64")
    return frame


def curve_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the table at `path`, sorted; FileNotFoundError when there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder; give a study directory or a Parquet file")
    files = []
    for folder, inner, names in os.walk(path):
        if "curves.parquet" in names:
            inner.clear()  # the cells below are already in it
            files.append(pathlib.Path(folder, "curves.parquet"))
        elif "rows.parquet" in names:
            files.append(pathlib.Path(folder, "rows.parquet"))
    files = files or [file for file in path.rglob("*.parquet") if not file.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"{path}: no Parquet file in or below it; has the study finished a cell?")
    return sorted(files)


def _column_names(columns: Sequence[str] | None, per_sequence: bool) -> list[str]:
    if columns is None:
        return [name for name in SCHEMA.names if per_sequence or name != "per_sequence"]
    for name in columns:
        if name not in SCHEMA.names:
            raise ValueError(f"columns: {name!r} is not a column; `wane list columns` prints them")
    extra = ["per_sequence"] if per_sequence and "per_sequence" not in columns else []
    return [*columns, *extra]
