"""Settings of a method, read from its builder: names, allowed values, defaults."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from wane.scaling.config import close_matches, from_json
from wane.scaling.degrade.contract import Degradation
from wane.scaling.shape import Shape

Builder = Callable[..., Degradation]


class Setting(NamedTuple):
    """allowed: a type, or a Literal of the allowed values."""

    allowed: Any
    default: Any

    def __str__(self) -> str:
        if typing.get_origin(self.allowed) is Literal:
            return " | ".join(map(str, typing.get_args(self.allowed)))
        if typing.get_origin(self.allowed) is tuple:
            return "numbers"
        scalars = {bool: "True | False", int: "whole number", float: "number", str: "text"}
        return scalars.get(self.allowed, "mapping")


class Description(NamedTuple):
    """built: the method with its default settings on the smallest shape that it accepts; its severities are the
    default grid."""

    summary: str
    text: str
    settings: dict[str, Setting]
    built: Degradation


def settings_of(builder: Builder) -> dict[str, Setting]:
    """The keyword-only parameters of a builder."""
    hints = typing.get_type_hints(builder)
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: Setting(hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def checked(name: str, builder: Builder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the defaults filled in.  Raises ValueError naming the setting and what is allowed."""
    known = settings_of(builder)
    for key in settings:
        if key not in known:
            raise ValueError(
                f"{name}.{key}: not a setting{close_matches(key, known)}; {name} has {', '.join(known)}"
            )
    given = {key: from_json(known[key].allowed, value, f"{name}.{key}") for key, value in settings.items()}
    return {key: given.get(key, setting.default) for key, setting in known.items()}


SMALLEST = Shape(d_model=2, n_layers=1, n_heads=1, head_dim=2, d_ff=2, vocab=2, context=2)


def describe_builder(builder: Builder) -> Description:
    """The builder's docstring, its settings, and a method as it builds it."""
    try:
        built = builder(SMALLEST)
    except ValueError:  # a method of experts
        built = builder(dataclasses.replace(SMALLEST, n_experts=4, top_k=2))
    text = inspect.getdoc(builder)
    return Description(text.splitlines()[0], text, settings_of(builder), built)
