"""Unstructured pruning: a method supplies a score per weight; score -> rank -> mask -> edit is shared."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.calibrate import input_statistics, site_of
from wane.scaling.degrade.contract import FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import cost_of, masked_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import ranks
from wane.scaling.degrade.replace import Replace, mean_output, multiplier
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Group = Literal["row", "layer", "global"]
Weights = dict[str, Array]  # matrix name -> [L, I, O]


def weight_pruner(
    *,
    name: str,
    shape: Shape,
    scope: Scope,
    settings: Mapping[str, Any],
    score: Callable[[Weights, Array], Weights],
    group: Group,
    replace: Replace,
    random: bool,
) -> Degradation:
    """Removes the weights of lowest score(weights in scope, key) in each ranking group.

    group: `row` ranks the inputs of each output, `layer` the weights of each matrix of each layer, `global`
    all weights in scope together.
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    n = group_sizes(in_scope, group, shape)

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Weights]:
        trained = {name: params["blocks"][name] for name in in_scope}
        fitted = {"rank": rank_weights(score(trained, key), in_scope, group)}
        if replace == "mean":
            inputs = input_statistics(params, calibration_NT, shape)
            fitted["mean_LI"] = {name: inputs[site_of(name)].mean_LI for name in in_scope}
        return fitted

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        trained = {name: params["blocks"][name] for name in in_scope}
        degraded = {}
        for name, w_LIO in trained.items():
            touched = in_scope[name] & where.entries(name, shape)
            degraded[name] = w_LIO * multiplier(fitted["rank"][name], n[name], severity, touched, replace)
        bias = None
        if replace == "mean":
            means = fitted["mean_LI"]
            bias = {name: mean_output(means[name], trained[name], degraded[name]) for name in trained}
        return Edit(params={"blocks": degraded}, bias=bias)

    def cost(params, edit, severity):
        return cost_of(params, edit, shape, functools.partial(masked_bits, in_scope=in_scope, shape=shape))

    return Degradation(
        name=name,
        scope=scope,
        settings=settings,
        unit="fraction",
        severities=FRACTIONS,
        random=random,
        needs_calibration=replace == "mean",
        promises=Promises(nested=True, exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=cost,
    )


def group_sizes(in_scope: dict[str, np.ndarray], group: Group, shape: Shape) -> dict[str, np.ndarray]:
    """Matrix name -> int32, broadcastable to [L, I, O]: weights in scope of each entry's ranking group."""
    full = {
        name: np.broadcast_to(mask, (shape.n_layers, *shape.matrices[name]))
        for name, mask in in_scope.items()
    }
    if group == "global":
        total = np.int32(sum(mask.sum() for mask in full.values()))
        return dict.fromkeys(full, total)
    axis = {"row": 1, "layer": (1, 2)}[group]
    return {name: mask.sum(axis, keepdims=True, dtype=np.int32) for name, mask in full.items()}


def rank_weights(score: Weights, in_scope: dict[str, np.ndarray], group: Group) -> Weights:
    """int32 ranks of the shape of the scores: 0 is removed first, out of scope comes last."""
    if group == "row":
        return {name: ranks(s_LIO, in_scope[name], axis=1) for name, s_LIO in score.items()}
    inside = {name: jnp.broadcast_to(in_scope[name], s_LIO.shape) for name, s_LIO in score.items()}
    if group == "layer":
        return {
            name: ranks(s.reshape(len(s), -1), inside[name].reshape(len(s), -1)).reshape(s.shape)
            for name, s in score.items()
        }
    joined = (jnp.concatenate([x[name].ravel() for name in score]) for x in (score, inside))
    return split(ranks(*joined), {name: s.shape for name, s in score.items()})


def split(flat_N: Array, shapes: dict[str, tuple[int, ...]]) -> Weights:
    """A vector cut into arrays of these shapes, in their order."""
    ends = np.cumsum([math.prod(s) for s in shapes.values()])[:-1]
    parts = jnp.split(flat_N, ends)
    return {name: part.reshape(s) for part, (name, s) in zip(parts, shapes.items(), strict=True)}


def draw(sample: Callable[[Array, tuple[int]], Array], key: Array, shape: Shape) -> Weights:
    """sample(key, (N,)) as the block matrices.  All matrices are drawn, so that a scope does not change the
    draw, and at once, because each call of a generator costs a third of a second of compilation."""
    sizes = {name: (shape.n_layers, *size) for name, size in shape.matrices.items()}
    return split(sample(key, (shape.param_counts()["blocks"],)), sizes)
