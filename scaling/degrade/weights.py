"""Unstructured pruning: a method supplies a score per weight; score -> rank -> mask -> edit is shared."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.calibrate import input_statistics, site_of
from wane.scaling.degrade.contract import FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, MaskedBits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import Convention, ranks
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
    tile: tuple[int, int] = (1, 1),
    convention: Convention = "floor",
) -> Degradation:
    """Removes the weights of lowest score(params, calibration_NT, key) in each ranking group.

    group: `row` ranks the inputs of each output, `layer` the weights of each matrix of each layer, `global` all
    weights in scope together, `n:4` and `n:8` each aligned group of 4 or 8 consecutive inputs of an output, so
    that severity .5 of n:4 is 2:4 sparsity.  tile: (inputs, outputs) that go together, by the mean of their scores;
    0: all.  convention: see rank.count_as; `keep_one` also removes the higher of two equal scores first.
    """
    scope.check(shape)
    check_pattern(group, scope, shape)
    in_scope = scope.weights(shape)
    coarse, fine = tiles(tile, group, scope, shape)
    units = coarse({name: np.broadcast_to(mask, shape.full(name)) for name, mask in in_scope.items()})
    units = {name: share == 1 for name, share in units.items()}
    n = fine(group_sizes(units, group))

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Weights]:
        scores = score(params, calibration_NT, key)
        scores = coarse({name: scores[name] for name in in_scope})
        fitted = {"rank": fine(rank_weights(scores, units, group, lower_first=convention != "keep_one"))}
        if replace == "mean":
            inputs = input_statistics(params, calibration_NT, shape)
            fitted["mean"] = {name: inputs[site_of(name)].mean for name in in_scope}
        return fitted

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        trained = {name: params["blocks"][name] for name in in_scope}
        degraded = {}
        for name, w_LIO in trained.items():
            touched = in_scope[name] & where.entries(name, shape)
            rank = fitted["rank"][name]
            degraded[name] = w_LIO * multiplier(rank, n[name], severity, touched, replace, convention)
        bias = None
        if replace == "mean":
            means = fitted["mean"]
            bias = {name: mean_output(means[name], trained[name], degraded[name]) for name in trained}
        return Edit(params={"blocks": degraded}, bias=bias)

    return Degradation(
        name=name,
        scope=scope,
        settings=settings,
        unit="fraction",
        severities=FRACTIONS,
        random=random,
        needs_calibration=needs_calibration or replace == "mean",
        promises=Promises(nested=True, exact_count=tile == (1, 1) and convention == "floor"),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, MaskedBits(shape, scope)),
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


def tiles(
    tile: tuple[int, int], group: Group, scope: Scope, shape: Shape
) -> tuple[Callable[[Weights], Weights], Callable[[Weights], Weights]]:
    """(means over tiles of every matrix, the reverse: every entry of a tile has its value).

    Raises ValueError where tiles would be ragged or cut by the scope.
    """
    if tile == (1, 1):
        return dict, dict
    if scope.head is not None or pattern(group):
        raise ValueError(f'tile = {tile}: acts on whole matrices, without scope.head and group = "{group}"')
    sizes = {}
    for name in scope.weights(shape):
        sizes[name] = tuple(t or extent for t, extent in zip(tile, shape.matrices[name], strict=True))
        if min(tile) < 0 or any(e % t for t, e in zip(sizes[name], shape.matrices[name], strict=True)):
            raise ValueError(
                f"tile = {tile}: must divide the {shape.matrices[name]} inputs and outputs of matrix {name} of "
                f"{shape.name}; 0 takes all of them"
            )

    def coarse(weights: Weights) -> Weights:
        out = {}
        for name, w in weights.items():
            (a, b), (I, O) = sizes[name], w.shape[-2:]
            out[name] = w.reshape(*w.shape[:-2], I // a, a, O // b, b).mean((-3, -1))
        return out

    def fine(weights: Weights) -> Weights:
        out = dict(weights)
        for name, axis in itertools.product(out, (-2, -1)):
            if np.ndim(out[name]) and out[name].shape[axis] > 1:  # one value is broadcast
                out[name] = out[name].repeat(sizes[name][axis], axis=axis)
        return out

    return coarse, fine


def group_sizes(inside: dict[str, np.ndarray], group: Group) -> dict[str, np.ndarray]:
    """Matrix name -> int32, broadcastable to the matrix: entries inside of each entry's ranking group."""
    if group == "global":
        return dict.fromkeys(inside, np.int32(sum(mask.sum() for mask in inside.values())))
    if size := pattern(group):
        return {
            name: grouped(mask, size).sum(-2, dtype=np.int32).repeat(size, axis=-2)
            for name, mask in inside.items()
        }
    axis = {"row": -2, "layer": (-2, -1)}[group]
    return {name: mask.sum(axis, keepdims=True, dtype=np.int32) for name, mask in inside.items()}


def grouped(x: Array, size: int) -> Array:
    """[.., I, O] as [.., I / size, size, O]."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def rank_weights(
    score: Weights, in_scope: dict[str, np.ndarray], group: Group, *, lower_first: bool = True
) -> Weights:
    """int32 ranks of the shape of the scores: 0 is removed first, out of scope comes last.  Of equal scores the
    lower index is removed first, or the higher one."""
    if not lower_first:
        inside = {name: np.broadcast_to(in_scope[name], s.shape) for name, s in score.items()}
        turned = rank_weights(_turned(score), _turned(inside), group)
        return {name: turned[name][(slice(None, None, -1),) * s.ndim] for name, s in score.items()}
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


def _turned(weights: Weights) -> Weights:
    """All entries in reverse order, the matrices too."""
    return {name: w[(slice(None, None, -1),) * w.ndim] for name, w in reversed(weights.items())}


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
