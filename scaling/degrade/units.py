"""Structured pruning of neurons and heads: a method supplies a score per unit; the rest is shared."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.calibrate import input_statistics, site_of
from wane.scaling.degrade.contract import FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, structured_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import ranks
from wane.scaling.degrade.replace import Replace, mean_output, multiplier
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Group = Literal["layer", "global"]
HeadUnit = Literal["head", "kv_group"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units:
    """One kind of unit (U per layer), made of neurons or heads (N per layer): which are in scope, which a point
    selects, who reads them."""

    in_scope_LN: np.ndarray
    selected: Callable[[Where], Array]  # bool, broadcastable to [L, N]
    reader: str  # the matrix whose input rows belong to the units
    field: str  # of Edit
    size: tuple[int, ...]  # of that field
    per_unit: int = 1  # consecutive neurons or heads that go together

    @property
    def in_scope_LU(self) -> np.ndarray:
        return self.in_scope_LN.reshape(len(self.in_scope_LN), -1, self.per_unit).any(axis=2)


def neurons(shape: Shape, scope: Scope) -> Units:
    """MLP hidden units, of all experts of a layer in one row; no head and no matrix can be in scope.  Raises
    ValueError."""
    refuse(scope, "head", "neurons belong to no head")
    refuse(scope, "matrices", "a neuron is removed from all matrices of its MLP")
    scope.check(shape)
    size = (*shape.lead("down"), shape.d_ff)
    in_scope_LN = np.broadcast_to(scope.layer_L(shape)[:, None], (shape.n_layers, math.prod(size[1:])))
    return Units(
        in_scope_LN=in_scope_LN,
        selected=lambda w: w.layer_L[:, None],
        reader="down",
        field="neuron_LF",
        size=size,
    )


def heads(shape: Shape, scope: Scope, unit: HeadUnit = "head") -> Units:
    """Query heads, or key-value groups: the query heads that share a key-value head go together.  No matrix can be
    in scope.  Raises ValueError."""
    refuse(scope, "matrices", "a head is removed from all matrices of its attention")
    scope.check(shape)
    size = (shape.n_layers, shape.n_heads)
    return Units(
        in_scope_LN=scope.head_LH(shape),
        selected=lambda w: w.head_LH,
        reader="o",
        field="head_LH",
        size=size,
        per_unit=shape.n_heads // shape.kv_heads if unit == "kv_group" else 1,
    )


def refuse(scope: Scope, field: str, reason: str) -> None:
    """Raises ValueError where the scope sets a field that means nothing to the method."""
    if getattr(scope, field) is not None:
        raise ValueError(f"scope.{field} = {getattr(scope, field)}: {reason}; leave it out")


def unit_pruner(
    *,
    name: str,
    shape: Shape,
    scope: Scope,
    settings: Mapping[str, Any],
    units: Units,
    score: Callable[[Params, Array, Array], Array],
    group: Group,
    replace: Replace = "zero",
    random: bool = False,
    needs_calibration: bool = False,
) -> Degradation:
    """Removes the units of lowest score(params, calibration_NT, key) [L, U], ranked per layer or over all layers
    together."""
    in_scope_LU = units.in_scope_LU
    n = in_scope_LU.sum(axis=-1 if group == "layer" else None, keepdims=True, dtype=np.int32)

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Array]:
        fitted = {"rank_LU": rank_units(score(params, calibration_NT, key), in_scope_LU, group)}
        if replace == "mean":
            inputs = input_statistics(params, calibration_NT, shape)
            fitted["mean"] = inputs[site_of(units.reader)].mean
        return fitted

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        touched = units.in_scope_LN & units.selected(where)
        rank_LN = jnp.repeat(fitted["rank_LU"], units.per_unit, axis=1)
        m = multiplier(rank_LN, n, severity, touched, replace).reshape(units.size)
        bias = None
        if replace == "mean":
            w = params["blocks"][units.reader]
            rows = jnp.repeat(m, w.shape[-2] // m.shape[-1], axis=-1)[..., None]
            bias = {units.reader: mean_output(fitted["mean"], w, w * rows)}
        return Edit(**{units.field: m}, bias=bias)

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
        cost=CostOf(shape, structured_bits),
    )


def rank_units(score_LU: Array, in_scope_LU: np.ndarray, group: Group) -> Array:
    """int32 [L, U]: 0 is removed first, out of scope comes last."""
    if group == "layer":
        return ranks(score_LU, in_scope_LU)
    return ranks(score_LU.ravel(), in_scope_LU.ravel()).reshape(score_LU.shape)
