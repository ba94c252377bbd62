"""The rules that every row of the curve table keeps, checked before anything is written."""

import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from wane.eval.columns import COLUMNS, SCHEMA, Column


def to_table(rows: Sequence[Mapping]) -> pa.Table:
    """Rows as one table of the schema; ValueError for an unknown or missing column or a wrong type."""
    names = {c.name for c in COLUMNS}
    for i, row in enumerate(rows):
        if row.keys() != names:
            _refuse_names(f"row {i}", row.keys())
    return pa.table({c.name: _array(c, [row[c.name] for row in rows]) for c in COLUMNS})


def _array(column: Column, values: list) -> pa.Array:
    try:
        if column.type == pa.int64():  # with the type given, pyarrow silently turns 1.5 into 1
            return pa.array(values).cast(column.type)
        return pa.array(values, type=column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"column {column.name}: {error}; it holds {column.type}") from error


def _refuse_names(where: str, names: Iterable[str]) -> None:
    known, given = {c.name for c in COLUMNS}, set(names)
    raise ValueError(
        f"{where}: missing columns {sorted(known - given) or 'none'}, unknown columns "
        f"{sorted(given - known) or 'none'}; `wane list columns` prints the {len(known)} columns of a row"
    )


def validate(table: pa.Table) -> pa.Table:
    """The table with columns in order and of exact types; ValueError when a rule of a column is broken."""
    if sorted(table.column_names) != sorted(SCHEMA.names):
        _refuse_names("table", table.column_names)
    for column in COLUMNS:
        if not column.nullable and (nulls := table[column.name].null_count):
            raise ValueError(f"column {column.name}: null in {nulls} rows; every row needs a value")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"table does not fit the columns of a row: {error}") from error
    for column in COLUMNS:
        _check_column(column, table[column.name])
    _check_divergence(table)
    return table


def _check_column(column: Column, values: pa.ChunkedArray) -> None:
    numbers = pc.list_flatten(values) if pa.types.is_list(column.type) else values
    if pa.types.is_floating(numbers.type) and not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise ValueError(f"column {column.name}: nan or inf; write null where a number is not defined")
    if column.allowed:
        for value in values.unique().to_pylist():
            if value is not None and value not in column.allowed:
                raise ValueError(f"column {column.name} = {value!r}: must be one of {list(column.allowed)}")
    if column.name == "settings":
        for value in values.unique().to_pylist():
            _check_settings(value)


def _check_settings(text: str) -> None:
    try:
        settings = json.loads(text)
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(
            f"column settings = {text!r}: must be a JSON object of settings, {{}} for the defaults"
        )
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    if text != canonical:
        raise ValueError(f"column settings = {text!r}: must be canonical JSON, here {canonical!r}")


def _check_divergence(table: pa.Table) -> None:
    diverged = pc.equal(table["status"], "diverged")
    for name, empty in (("value", diverged), ("reason", pc.invert(diverged))):
        wrong = pc.sum(pc.not_equal(pc.is_null(table[name]), empty), min_count=0).as_py()
        if wrong:
            raise ValueError(
                f"column {name}: contradicts status in {wrong} rows; "
                "status ok has a value and no reason, status diverged a reason and no value"
            )


def refuse_duplicates(table: pa.Table, key: Sequence[str]) -> None:
    """ValueError naming the two cells when neighbours in a table sorted by `key` agree in all of it."""
    if table.num_rows < 2:
        return
    same = None
    for name in key:
        column = table[name]
        if pa.types.is_string(column.type):  # compare small integers, not text
            column = column.combine_chunks().dictionary_encode()
            column = column.indices if isinstance(column, pa.DictionaryArray) else column.chunk(0).indices
        before, after = column.slice(0, table.num_rows - 1), column.slice(1)
        equal = pc.fill_null(pc.equal(before, after), False)
        equal = pc.or_(equal, pc.and_(pc.is_null(before), pc.is_null(after)))
        same = equal if same is None else pc.and_(same, equal)
    if not pc.any(same).as_py():
        return
    i = pc.index(same, True).as_py()
    first, second = table.slice(i, 1).to_pylist()[0], table.slice(i + 1, 1).to_pylist()[0]
    point = ", ".join(f"{name} {first[name]}" for name in ("member_id", "method", "severity", "draw", "task"))
    raise ValueError(
        f"two rows for the same {point}, metric {first['metric']}: cells {first['cell_id']} and "
        f"{second['cell_id']}; delete one of the two cells"
    )
