"""Degradation methods: one file each, listed in METHODS, built by name with `build`.

Adding a method is adding a file and a line; tests/test_promises.py then holds it to what it promises.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from wane.scaling.config import close_matches
from wane.scaling.degrade.activations import activations
from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.gaussian_noise import gaussian_noise
from wane.scaling.degrade.given_mask import given_mask
from wane.scaling.degrade.magnitude_weights import magnitude_weights
from wane.scaling.degrade.random_heads import random_heads
from wane.scaling.degrade.random_neurons import random_neurons
from wane.scaling.degrade.random_weights import random_weights
from wane.scaling.degrade.remove_layers import remove_layers
from wane.scaling.degrade.rtn import rtn
from wane.scaling.degrade.settings import Description, checked, describe_builder
from wane.scaling.shape import Shape

GROUPS: dict[str, dict[str, Callable[..., Degradation]]] = {
    "Weights": {
        "random_weights": random_weights,
        "magnitude_weights": magnitude_weights,
        "given_mask": given_mask,
    },
    "Width": {
        "random_neurons": random_neurons,
        "random_heads": random_heads,
    },
    "Depth": {
        "remove_layers": remove_layers,
    },
    "Precision": {
        "rtn": rtn,
        "activations": activations,
    },
    "Controls": {
        "gaussian_noise": gaussian_noise,
    },
}
METHODS = {name: builder for methods in GROUPS.values() for name, builder in methods.items()}


def build(
    name: str, shape: Shape, scope: Scope = EVERYTHING, settings: Mapping[str, Any] | None = None
) -> Degradation:
    """The method of this name; equal arguments give the same object.

    Raises ValueError naming the method, the setting or the field of the scope that is not allowed.
    """
    values = checked(name, method(name), settings or {})
    return _build(name, shape, scope, tuple(sorted(values.items())))


@lru_cache(maxsize=256)
def _build(name: str, shape: Shape, scope: Scope, settings: tuple[tuple[str, Any], ...]) -> Degradation:
    return METHODS[name](shape, scope, **dict(settings))


def method(name: str) -> Callable[..., Degradation]:
    """The builder of this name; ValueError with the close matches when there is none."""
    if name not in METHODS:
        raise ValueError(
            f"method = {name!r}: not a method{close_matches(name, METHODS)}; there are {', '.join(METHODS)}"
        )
    return METHODS[name]


def describe(name: str) -> Description:
    """What `wane list methods` shows of a method."""
    return describe_builder(method(name))
