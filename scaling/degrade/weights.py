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

Group = Literal["row", "layer", "global", "n:4", "n:8"]
Weights = dict[str, Array]  # matrix name -> [.., I, O], leading axes as in Shape.lead
Score = Callable[[Params, Array, Array], Weights]  # (params, calibration_NT, key), of every matrix in scope


def weight_pruner(
    *,
    name: str,
    shape: Shape,
    scope: Scope,
    settings: Mapping[str, Any],
    score: Score,
    group: Group,
    replace: Replace = "zero",
    random: bool = False,
    needs_calibration: bool = False,
) -> Degradation:
    """Removes the weights of lowest score(params, calibration_NT, key) in each ranking group.

    group: `row` ranks the inputs of each output, `layer` the weights of each matrix of each layer, `global` all
    weights in scope together, `n:4` and `n:8` each aligned group of 4 or 8 consecutive inputs of an output, so
    that severity .5 of n:4 is 2:4 sparsity.
    """
    scope.check(shape)
    check_pattern(group, scope, shape)
    in_scope = scope.weights(shape)
    n = group_sizes(in_scope, group, shape)

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Weights]:
        scores = score(params, calibration_NT, key)
        fitted = {"rank": rank_weights({name: scores[name] for name in in_scope}, in_scope, group)}
        if replace == "mean":
            inputs = input_statistics(params, calibration_NT, shape)
            fitted["mean"] = {name: inputs[site_of(name)].mean for name in in_scope}
        return fitted

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        trained = {name: params["blocks"][name] for name in in_scope}
        degraded = {}
        for name, w_LIO in trained.items():
            touched = in_scope[name] & where.entries(name, shape)
            degraded[name] = w_LIO * multiplier(fitted["rank"][name], n[name], severity, touched, replace)
        bias = None
        if replace == "mean":
            means = fitted["mean"]
            bias = {name: mean_output(means[name], trained[name], degraded[name]) for name in trained}
        return Edit(params={"blocks": degraded}, bias=bias)

    def cost(params, edit, severity):
        index = functools.partial(masked_bits, in_scope=in_scope, shape=shape)
        return cost_of(params, edit, shape, index)

    return Degradation(
        name=name,
        scope=scope,
        settings=settings,
        unit="fraction",
        severities=FRACTIONS,
        random=random,
        needs_calibration=needs_calibration or replace == "mean",
        promises=Promises(nested=True, exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=cost,
    )


def pattern(group: Group) -> int:
    """M of an N:M pattern, 0 for the others."""
    return {"n:4": 4, "n:8": 8}.get(group, 0)


def check_pattern(group: Group, scope: Scope, shape: Shape) -> None:
    """Raises ValueError where N:M groups would be ragged or cut by the scope."""
    size = pattern(group)
    for name in scope.weights(shape) if size else ():
        fan_in = shape.matrices[name][0]
        if fan_in % size:
            raise ValueError(
                f'group = "{group}": {size} must divide the {fan_in} inputs of matrix {name} of {shape.name}; '
                "change the shape or leave the matrix out of scope.matrices"
            )


def group_sizes(in_scope: dict[str, np.ndarray], group: Group, shape: Shape) -> dict[str, np.ndarray]:
    """Matrix name -> int32, broadcastable to the matrix: weights in scope of each entry's ranking group."""
    full = {name: np.broadcast_to(mask, shape.full(name)) for name, mask in in_scope.items()}
    if group == "global":
        total = np.int32(sum(mask.sum() for mask in full.values()))
        return dict.fromkeys(full, total)
    if size := pattern(group):
        return {
            name: grouped(mask, size).sum(-2, dtype=np.int32).repeat(size, axis=-2)
            for name, mask in full.items()
        }
    axis = {"row": -2, "layer": (-2, -1)}[group]
    return {name: mask.sum(axis, keepdims=True, dtype=np.int32) for name, mask in full.items()}


def grouped(x: Array, size: int) -> Array:
    """[.., I, O] as [.., I / size, size, O]."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def rank_weights(score: Weights, in_scope: dict[str, np.ndarray], group: Group) -> Weights:
    """int32 ranks of the shape of the scores: 0 is removed first, out of scope comes last."""
    if group == "row":
        return {name: ranks(s, in_scope[name], axis=-2) for name, s in score.items()}
    inside = {name: jnp.broadcast_to(in_scope[name], s.shape) for name, s in score.items()}
    if size := pattern(group):
        return {
            name: ranks(grouped(s, size), grouped(inside[name], size), axis=-2).reshape(s.shape)
            for name, s in score.items()
        }
    if group == "layer":
        flat = {name: (*s.shape[:-2], -1) for name, s in score.items()}
        return {
            name: ranks(s.reshape(flat[name]), inside[name].reshape(flat[name])).reshape(s.shape)
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
    sizes = {name: shape.full(name) for name in shape.matrices}
    return split(sample(key, (shape.param_counts()["blocks"],)), sizes)
