"""Frozen dataclasses to plain JSON values and back, and dotted overrides, with one-line errors.

Every config of the project is a frozen keyword-only dataclass beside the code that it configures; this file is
the only one that reads or writes them as data.
"""

import ast
import collections.abc
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin


def to_json(value: Any) -> Any:
    """Plain dicts, lists and scalars that `from_json` reads back to an equal value."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def canonical(value: Any) -> str:
    """One text per value: JSON with sorted keys and no spaces; what digests and settings columns are made of."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(kind: Any, value: Any, path: str) -> Any:
    """`value` as `kind` (a dataclass, scalar, Literal, union, tuple or Mapping type).

    path names the field in errors.  Raises ValueError in one line: field, value, what is allowed.
    """
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _from_fields(kind, value, path)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{path} = {value!r}: must be {_choices(args)}{close_matches(value, args)}")
    if origin in (Union, types.UnionType):
        return _from_union(args, value, path)
    if origin is tuple:
        return _from_sequence(args, value, path)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} = {value!r}: must be a mapping such as {{'name': value}}")
        return {str(k): from_json(args[1], v, f"{path}.{k}") for k, v in value.items()}
    return _from_scalar(kind, value, path)


def _from_fields(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} = {value!r}: must hold the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    for name in value:
        if name not in names:
            raise ValueError(_unknown_field(name, names, path))
    built = {n: from_json(hints[n], v, f"{path}.{n}" if path else n) for n, v in value.items()}
    try:
        return kind(**built)
    except TypeError as error:
        raise ValueError(f"{path}: {str(error).split('() ')[-1]}") from None


def _from_union(args: tuple, value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for kind in args:
        if kind is not type(None):
            try:
                return from_json(kind, value, path)
            except ValueError as error:
                errors.append(str(error))
    raise ValueError(errors[0])


def _from_sequence(args: tuple, value: Any, path: str) -> tuple:
    if isinstance(value, (str, Mapping)) or not isinstance(value, collections.abc.Sequence):
        value = (value,)  # one value stands for a sequence of one
    if args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise ValueError(f"{path} = {list(value)}: must have {len(args)} entries")
        return tuple(from_json(k, v, f"{path}.{i}") for i, (k, v) in enumerate(zip(args, value, strict=True)))
    return tuple(from_json(args[0], v, f"{path}.{i}") for i, v in enumerate(value))


def _from_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Any or (type(value) is kind):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    raise ValueError(f"{path} = {value!r}: must be {getattr(kind, '__name__', kind)}")


def override(config: Any, assignments: Mapping[str, Any]) -> Any:
    """A copy of a config dataclass with dotted fields replaced: {"train.lr": 0.01, "data.sources": "python"}.

    Values are Python objects or the text of a command line.  An index selects an entry of a sequence
    ("degradations.0.draws").  Raises ValueError naming the unknown field and its close matches.
    """
    tree = to_json(config)
    for dotted, value in assignments.items():
        parts = dotted.split(".")
        _assign(tree, parts, parse(value) if isinstance(value, str) else to_json(value), dotted)
    return from_json(type(config), tree, "")


def parse(text: str) -> Any:
    """A command line's text as a value: JSON, a Python literal, true/false/none, else the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    is_list = "," in text and not set(":/*") & set(text)  # a path may hold a comma
    return [parse(part) for part in text.split(",")] if is_list else text


def _assign(tree: Any, parts: list[str], value: Any, dotted: str) -> None:
    head, rest = parts[0], parts[1:]
    if isinstance(tree, list):
        if not head.isdigit() or int(head) >= len(tree):
            raise ValueError(f"{dotted}: {head!r} must be an index below {len(tree)}")
        head = int(head)
    elif not isinstance(tree, dict):
        raise ValueError(f"{dotted}: nothing below {tree!r} can be set")
    elif rest and head not in tree:
        raise ValueError(_unknown_field(dotted, list(tree), "", head))
    if rest and tree[head] is not None:
        _assign(tree[head], rest, value, dotted)
    elif rest:
        tree[head] = {rest[0]: value} if len(rest) == 1 else {}
        if len(rest) > 1:
            _assign(tree[head], rest, value, dotted)
    elif isinstance(tree, dict) and head not in tree and dotted == head:
        raise ValueError(_unknown_field(dotted, list(tree), "", head))
    else:
        tree[head] = value


def _unknown_field(shown: str, names: list[str], path: str, name: str | None = None) -> str:
    where = f"{path}.{shown}" if path else shown
    close = difflib.get_close_matches(name or shown, names, n=3, cutoff=0.5)
    if close:
        return f"unknown field {where}: did you mean {' or '.join(close)}?"
    return f"unknown field {where}: the fields are {', '.join(sorted(names))}"


def close_matches(value: Any, known: collections.abc.Iterable[Any]) -> str:
    """ "; did you mean …?" for an error line, or nothing."""
    close = difflib.get_close_matches(str(value), [str(k) for k in known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _choices(args: tuple) -> str:
    return " or ".join(repr(a) for a in args)
