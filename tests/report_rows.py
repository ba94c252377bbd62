"""Made-up rows of the curve table as the report reads them."""

import pathlib

import pandas as pd
from test_report import member_row

from wane.eval.curves import load_curves
from wane.eval.record import write_rows


def curves_of(folder: pathlib.Path, rows: list[dict]) -> pd.DataFrame:
    """The rows as they come back from a file."""
    write_rows(folder / "curves.parquet", rows)
    return load_curves(folder)


def point(shape, seed, severity, *, draw=0, method="m", **more):
    """A row of a member's point; pruned and setting follow from its severity."""
    about = {"method": method, "severity": severity, "setting": severity, "draw": draw}
    about |= {"pruned": "after" if severity else "never"}
    return member_row(shape, seed, **(about | more))
