"""Write and merge the curve table: one tidy row per metric of a point; the same rows give the same bytes."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from wane.eval.columns import COLUMNS, SCHEMA_VERSION, VERSION_KEY
from wane.eval.validate import refuse_duplicates, to_table, validate

# No two rows of a table agree in all of these, so sorting by them is a total order.
SORT_KEY = (
    "study",
    "arm",
    "n_layers",
    "d_model",
    "shape",
    "init_seed",
    "data_seed",
    "member_id",
    "compared_with",
    "train_step",
    "pruned",
    "pruned_at_step",
    "method",
    "scope",
    "settings",
    "calibration_digest",
    "matrix",
    "layer",
    "head",
    "draw",
    "severity",
    "severity_2",
    "evaluation_digest",
    "task",
    "metric",
    "axis",
    "part",
    "at",
    "at_2",
)
ROW_GROUP = 1 << 16


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping] | pa.Table) -> pa.Table:
    """Validate, sort canonically and write `rows`; returns the table as written.

    The file appears whole or not at all, and its bytes depend on the set of rows only.  Raises ValueError
    for an unknown or missing column, a wrong type, a null or non-finite number where none may be, a
    value outside a column's list, and two rows for the same point, metric and task.
    """
    table = rows if isinstance(rows, pa.Table) else to_table(rows)
    table = canonical(validate(table))
    with atomic_file(path) as file:
        # Every choice of encoding is written down, so that the bytes do not depend on defaults of a library.
        repeated = [c.name for c in COLUMNS if c.type in (pa.string(), pa.int64())]
        pq.write_table(
            table,
            file,
            row_group_size=ROW_GROUP,
            compression="zstd",
            compression_level=3,
            use_dictionary=repeated,
            version="2.6",
            data_page_version="1.0",
            write_page_checksum=True,
        )
    return table


def read_rows(path: str | os.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file of the curve table; ValueError in one line when it is damaged or of another version."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            version = (file.schema_arrow.metadata or {}).get(VERSION_KEY)
            if version == str(SCHEMA_VERSION).encode():
                return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable Parquet file ({first}); delete it and run again") from error
    found = "no schema version" if version is None else f"schema version {version.decode()}"
    raise ValueError(
        f"{path}: {found}; this wane reads version {SCHEMA_VERSION}: use the wane that wrote the file"
    )


def merge(cells: Iterable[str | os.PathLike], out: str | os.PathLike) -> pa.Table:
    """Write the rows of all `cells` (paths of rows.parquet) to `out` in canonical order, and return them.

    Raises ValueError naming the file that is damaged, or the two cells that measured the same point.
    """
    tables = [read_rows(path) for path in cells]
    if not tables:
        raise ValueError(f"{out}: no finished cell to merge; run the study first")
    return write_rows(out, pa.concat_tables(tables))


def canonical(table: pa.Table) -> pa.Table:
    """Sort by SORT_KEY; ValueError when two rows have the same key."""
    table = table.sort_by([(name, "ascending") for name in SORT_KEY]).combine_chunks()
    refuse_duplicates(table, SORT_KEY)
    return table


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends well; otherwise `path` stays as it was."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # a rename is on the disk only when its directory is
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
