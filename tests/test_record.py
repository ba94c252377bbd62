"""The curve table: schema, canonical bytes, atomic writing, merging, and reading by other programs."""

import json
import os
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wane.eval import load_curves
from wane.eval.columns import COLUMNS, COLUMNS_KEY, SCHEMA, SCHEMA_VERSION
from wane.eval.record import SORT_KEY, atomic_file, merge, read_rows, write_rows

EMPTY = {pa.string(): "x", pa.int64(): 1, pa.float64(): 0.0}


def row(**changes):
    values = {c.name: None if c.nullable else EMPTY[c.type] for c in COLUMNS}
    values |= {"pruned": "after", "setting_unit": "fraction", "status": "ok", "settings": "{}", "value": 1.5}
    return values | changes


def points(count, **changes):
    return [row(severity=i / 10, value=1.0 + i, per_sequence=[i, 0.5], **changes) for i in range(count)]


def test_same_rows_in_another_order_give_the_same_bytes(tmp_path):
    rows = points(9, draw=0) + points(9, draw=2) + points(9, layer=3) + points(9, head=1, layer=3)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    shuffled = [dict(reversed(r.items())) for r in shuffled]
    write_rows(tmp_path / "a.parquet", rows)
    write_rows(tmp_path / "b.parquet", shuffled)
    halves = [
        write_rows(tmp_path / "h.parquet", shuffled[:7]),
        write_rows(tmp_path / "h.parquet", shuffled[7:]),
    ]
    write_rows(tmp_path / "c.parquet", pa.concat_tables(halves))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()


def test_rows_are_sorted_by_the_key(tmp_path):
    rows = [row(severity=s, init_seed=i, task=t) for s in (0.5, 0.1) for i in (2, 1) for t in ("S", "K")]
    table = write_rows(tmp_path / "a.parquet", rows)
    keys = [tuple(r[n] for n in ("init_seed", "severity", "task")) for r in table.to_pylist()]
    assert keys == sorted(keys)
    assert {c.name for c in COLUMNS} >= set(SORT_KEY)


def test_metadata_carries_unit_and_meaning_of_every_column(tmp_path):
    write_rows(tmp_path / "a.parquet", points(2))
    schema = pq.read_schema(tmp_path / "a.parquet")
    expected = [{"name": c.name, "unit": c.unit, "meaning": c.meaning} for c in COLUMNS]
    assert json.loads(schema.metadata[COLUMNS_KEY]) == expected
    for column in COLUMNS:
        field = schema.field(column.name)
        assert field.metadata[b"meaning"].decode() == column.meaning != ""
        assert field.metadata[b"unit"].decode() == column.unit
        assert field.type == column.type
    assert len({c.name for c in COLUMNS}) == len(COLUMNS)


def test_pandas_polars_and_duckdb_read_the_same_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, points(5, layer=3))
    expected = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert pd.read_parquet(path)["value"].tolist() == expected
    assert pl.read_parquet(path)["value"].to_list() == expected
    assert pl.read_parquet(path)["per_sequence"].to_list()[4] == [4.0, 0.5]
    assert [v for (v,) in duckdb.sql(f"select value from '{path}' order by severity").fetchall()] == expected
    types = dict(zip(SCHEMA.names, duckdb.sql(f"select * from '{path}'").types, strict=True))
    assert (str(types["layer"]), str(types["per_sequence"])) == ("BIGINT", "FLOAT[]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, r"row 0: missing columns none, unknown columns \['colour'\]"),
        ({"draw": 1.5}, "column draw: "),
        ({"draw": None}, "column draw: null in 1 rows"),
        ({"value": float("nan")}, "column value: nan or inf; write null"),
        ({"per_sequence": [1.0, float("inf")]}, "column per_sequence: nan or inf"),
        ({"pruned": "later"}, "column pruned = 'later': must be one of"),
        ({"setting_unit": "percent"}, "column setting_unit = 'percent': must be one of"),
        ({"settings": '{"b": 1, "a": 2}'}, r"""must be canonical JSON, here '{"a":2,"b":1}'"""),
        ({"settings": "group"}, "column settings = 'group': must be a JSON object"),
        ({"settings": "3"}, "column settings = '3': must be a JSON object"),
        ({"value": None}, "column value: contradicts status in 1 rows"),
        ({"reason": "because"}, "column reason: contradicts status in 1 rows"),
        ({"value": None, "status": "diverged"}, "column reason: contradicts status"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        write_rows(tmp_path / "a.parquet", [row(**changes)])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_column_is_named(tmp_path):
    rows = [{name: value for name, value in row().items() if name != "metric"}]
    with pytest.raises(ValueError, match=r"row 0: missing columns \['metric'\], unknown columns none"):
        write_rows(tmp_path / "a.parquet", rows)
    with pytest.raises(ValueError, match=r"table: missing columns \['metric'\]"):
        write_rows(tmp_path / "a.parquet", write_rows(tmp_path / "b.parquet", points(2)).drop(["metric"]))


def test_diverged_rows_are_kept(tmp_path):
    write_rows(tmp_path / "a.parquet", [row(value=None, status="diverged", reason="loss is nan at step 7")])
    frame = load_curves(tmp_path / "a.parquet")
    assert frame["reason"].tolist() == ["loss is nan at step 7"]
    assert frame["value"].isna().all()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fill_the_disk():
        with atomic_file(path) as file:
            file.write(b"half of the new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_leaves_the_old_table(tmp_path):
    code = """
import resource, signal, sys
from wane.eval.record import read_rows, write_rows
table = read_rows(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_rows(sys.argv[1], table.slice(0, 2))
except OSError:
    sys.exit(7)
"""
    path = tmp_path / "a.parquet"
    write_rows(path, points(4))
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert done.returncode == 7, done.stderr.decode()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_kill_in_mid_write_leaves_the_old_table(tmp_path):
    code = """
import os, signal, sys
from wane.eval.record import atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(b"half"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "rows.parquet"
    write_rows(path, points(4))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert done.returncode == -9
    assert len(load_curves(tmp_path)) == 4  # the leftover temporary file is not read


def test_merge_is_the_table_of_all_cells(tmp_path):
    cells = [tmp_path / "cells" / name / "rows.parquet" for name in "abc"]
    for i, cell in enumerate(cells):
        write_rows(cell, points(3, draw=2 - i, cell_id=cell.parent.name))
    table = merge(cells, tmp_path / "curves.parquet")
    assert table["draw"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    first = (tmp_path / "curves.parquet").read_bytes()
    merge(reversed(cells), tmp_path / "curves.parquet")
    assert (tmp_path / "curves.parquet").read_bytes() == first


def test_merge_refuses_a_point_that_two_cells_measured(tmp_path):
    write_rows(tmp_path / "a.parquet", points(3, cell_id="c1", member_id="m1"))
    write_rows(tmp_path / "b.parquet", points(2, cell_id="c2", member_id="m1"))
    with pytest.raises(
        ValueError, match="two rows for the same member_id m1, .* cells c1 and c2; delete"
    ) as e:
        merge([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out.parquet")
    assert "\n" not in str(e.value)
    write_rows(tmp_path / "b.parquet", points(2, cell_id="c2", member_id="m1", calibration_digest="other"))
    assert merge([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out.parquet").num_rows == 5


def test_merge_names_the_damaged_cell(tmp_path):
    write_rows(tmp_path / "a.parquet", points(3))
    good = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", good[:-20], b"PAR1 nonsense PAR1"):
        (tmp_path / "bad.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match="bad.parquet: not a readable Parquet file") as caught:
            merge([tmp_path / "a.parquet", tmp_path / "bad.parquet"], tmp_path / "out.parquet")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(
        path, [row(severity=float(i), value=v) for i, v in enumerate(np.random.default_rng(0).random(999))]
    )
    good = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.names.index("value"))
    middle = column.data_page_offset + column.total_compressed_size // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :])
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        read_rows(path)


def test_merge_without_cells_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no finished cell to merge"):
        merge([], tmp_path / "out.parquet")


def test_another_schema_version_is_refused(tmp_path):
    table = write_rows(tmp_path / "a.parquet", points(3))
    metadata = table.schema.metadata | {b"wane.schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "new.parquet")
    with pytest.raises(
        ValueError, match=f"new.parquet: schema version 99; this wane reads version {SCHEMA_VERSION}"
    ):
        load_curves(tmp_path / "new.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="foreign.parquet: no schema version"):
        load_curves(tmp_path / "foreign.parquet")


def test_load_curves_reads_a_study_a_folder_and_a_file(tmp_path):
    for i in range(2):
        write_rows(tmp_path / "s" / "cells" / str(i) / "rows.parquet", points(3, init_seed=1 - i))
    from_cells = load_curves(tmp_path / "s")
    assert from_cells["init_seed"].tolist() == [0, 0, 0, 1, 1, 1]
    merge((tmp_path / "s" / "cells").rglob("rows.parquet"), tmp_path / "s" / "curves.parquet")
    pd.testing.assert_frame_equal(load_curves(tmp_path / "s"), from_cells)  # not the cells once more
    pd.testing.assert_frame_equal(load_curves(tmp_path / "s" / "curves.parquet"), from_cells)
    write_rows(tmp_path / "t" / "cells" / "0" / "rows.parquet", points(3, study="t"))
    assert load_curves(tmp_path)["study"].tolist() == ["t"] * 3 + ["x"] * 6
    (tmp_path / "data").mkdir()
    (tmp_path / "s" / "curves.parquet").rename(tmp_path / "data" / "train.parquet")
    assert len(load_curves(tmp_path / "data")) == 6


def test_load_curves_selects_columns(tmp_path):
    write_rows(tmp_path / "a.parquet", points(3, layer=3) + points(3, layer=None))
    assert "per_sequence" not in load_curves(tmp_path / "a.parquet").columns
    frame = load_curves(tmp_path / "a.parquet", per_sequence=True)
    assert list(frame.columns) == SCHEMA.names
    assert frame["per_sequence"][2].tolist() == [2.0, 0.5]
    assert list(load_curves(tmp_path / "a.parquet", columns=["value", "layer"]).columns) == ["value", "layer"]
    assert str(load_curves(tmp_path / "a.parquet")["layer"].dtype) == "Int64"
    write_rows(tmp_path / "b.parquet", points(2, member_id="m2"))
    assert list(load_curves(tmp_path, columns=["value", "layer"]).columns) == ["value", "layer"]
    with pytest.raises(ValueError, match="'loss' is not a column"):
        load_curves(tmp_path / "a.parquet", columns=["loss"])


def test_load_curves_says_when_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file in or below it"):
        load_curves(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_curves(tmp_path / "nowhere")


def test_reading_curves_does_not_import_jax():
    code = "import sys; from wane.eval import load_curves; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
