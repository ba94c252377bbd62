"""Degradation methods: one file each, listed in METHODS, built by name with `build`.

Adding a method is adding a file and a line; tests/test_promises.py then holds it to what it promises.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from wane.scaling.config import canonical, close_matches
from wane.scaling.degrade.activations import activations
from wane.scaling.degrade.awq import awq
from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.drop_consecutive_layers import drop_consecutive_layers
from wane.scaling.degrade.drop_layers_by_ablation import drop_layers_by_ablation
from wane.scaling.degrade.drop_layers_by_similarity import drop_layers_by_similarity
from wane.scaling.degrade.early_exit import early_exit
from wane.scaling.degrade.fewer_experts import fewer_experts
from wane.scaling.degrade.fisher_weights import fisher_weights
from wane.scaling.degrade.gaussian_noise import gaussian_noise
from wane.scaling.degrade.given_mask import given_mask
from wane.scaling.degrade.glu_importance import glu_importance
from wane.scaling.degrade.gptq import gptq
from wane.scaling.degrade.input_corruption import (
    delete_tokens,
    embedding_attack,
    embedding_noise,
    substitute_tokens,
)
from wane.scaling.degrade.kv_cache import kv_cache
from wane.scaling.degrade.magnitude_weights import magnitude_weights
from wane.scaling.degrade.minifloat import minifloat
from wane.scaling.degrade.mixed_precision import mixed_precision
from wane.scaling.degrade.normal_float import normal_float
from wane.scaling.degrade.pca_dimensions import pca_dimensions
from wane.scaling.degrade.random_dimensions import random_dimensions
from wane.scaling.degrade.random_heads import random_heads
from wane.scaling.degrade.random_neurons import random_neurons
from wane.scaling.degrade.random_weights import random_weights
from wane.scaling.degrade.remove_experts import remove_experts
from wane.scaling.degrade.remove_layers import remove_layers
from wane.scaling.degrade.rtn import rtn
from wane.scaling.degrade.scored_heads import scored_heads
from wane.scaling.degrade.settings import Description, checked, describe_builder
from wane.scaling.degrade.shuffle_weights import shuffle_weights
from wane.scaling.degrade.slicegpt import slicegpt
from wane.scaling.degrade.sparsegpt import sparsegpt
from wane.scaling.degrade.taylor_weights import taylor_weights
from wane.scaling.degrade.wanda import wanda
from wane.scaling.degrade.zero_sensitivity import zero_sensitivity
from wane.scaling.shape import Shape

GROUPS: dict[str, dict[str, Callable[..., Degradation]]] = {
    "Weights": {
        "random_weights": random_weights,
        "magnitude_weights": magnitude_weights,
        "wanda": wanda,
        "sparsegpt": sparsegpt,
        "taylor_weights": taylor_weights,
        "fisher_weights": fisher_weights,
        "zero_sensitivity": zero_sensitivity,
        "given_mask": given_mask,
    },
    "Width": {
        "random_neurons": random_neurons,
        "glu_importance": glu_importance,
        "random_heads": random_heads,
        "scored_heads": scored_heads,
        "slicegpt": slicegpt,
        "random_dimensions": random_dimensions,
        "pca_dimensions": pca_dimensions,
    },
    "Depth": {
        "remove_layers": remove_layers,
        "drop_layers_by_similarity": drop_layers_by_similarity,
        "drop_layers_by_ablation": drop_layers_by_ablation,
        "drop_consecutive_layers": drop_consecutive_layers,
        "early_exit": early_exit,
    },
    "Precision": {
        "rtn": rtn,
        "normal_float": normal_float,
        "minifloat": minifloat,
        "gptq": gptq,
        "awq": awq,
        "mixed_precision": mixed_precision,
        "activations": activations,
        "kv_cache": kv_cache,
    },
    "Routing": {
        "remove_experts": remove_experts,
        "fewer_experts": fewer_experts,
    },
    "Controls": {
        "gaussian_noise": gaussian_noise,
        "shuffle_weights": shuffle_weights,
    },
    "Input": {
        "substitute_tokens": substitute_tokens,
        "delete_tokens": delete_tokens,
        "embedding_noise": embedding_noise,
        "embedding_attack": embedding_attack,
    },
}
METHODS = {name: builder for methods in GROUPS.values() for name, builder in methods.items()}
OURS = dict(METHODS)  # what a name of theirs means follows from the code of this package


def build(
    name: str, shape: Shape, scope: Scope = EVERYTHING, settings: Mapping[str, Any] | None = None
) -> Degradation:
    """The method of this name; equal arguments give the same object.

    Raises ValueError naming the method, the setting or the field of the scope that is not allowed.
    """
    values = checked(name, method(name), settings or {})
    key = name, shape, scope, canonical(values)
    if key not in _BUILT:
        made = METHODS[name](shape, scope, **values)
        # a path does not say what the file holds
        if METHODS[name] is OURS.get(name) and not values.get("file"):
            words = f"{name} of {shape}, {scope}, {canonical(values)}"
            made = dataclasses.replace(made, computes=words)
        _BUILT[key] = made
    return _BUILT[key]


_BUILT: dict[tuple, Degradation] = {}


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
