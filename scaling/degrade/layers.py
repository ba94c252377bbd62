"""Removal of blocks or sublayers: a method supplies the order; counting and the edit are shared."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.contract import FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, structured_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import ranks
from wane.scaling.degrade.replace import multiplier
from wane.scaling.degrade.similarity import Part
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

FIELDS = {
    "block": ("attn_L", "mlp_L"),
    "attention": ("attn_L",),
    "mlp": ("mlp_L",),
    "joint": ("attn_L", "mlp_L"),
}


def layer_remover(
    *,
    name: str,
    shape: Shape,
    scope: Scope,
    settings: Mapping[str, Any],
    part: Part,
    score: Callable[[Params, Array, Array], Array],
    random: bool = False,
    needs_calibration: bool = False,
) -> Degradation:
    """Removes the layers of lowest score(params, calibration_NT, key) [U]: the residual stream passes them by.

    part: whole blocks, their attention or their MLP (U = L), or `joint`: attention and MLP sublayers in one
    ranking, all attention first (U = 2 L).  Severity s removes floor(s n) of the n in scope.
    """
    check(scope, part, shape)
    in_scope_U = in_scope(scope, part, shape)
    n = np.int32(in_scope_U.sum())

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array:
        return ranks(score(params, calibration_NT, key), in_scope_U)

    def apply(params: Params, fitted: Array, severity: Array, where: Where, key: Array) -> Edit:
        touched_U = in_scope_U & jnp.tile(where.layer_L, len(in_scope_U) // shape.n_layers)
        return edit_of(multiplier(fitted, n, severity, touched_U, "zero"), part)

    return Degradation(
        name=name,
        scope=scope,
        settings=settings,
        unit="fraction",
        severities=FRACTIONS,
        random=random,
        needs_calibration=needs_calibration,
        promises=Promises(nested=True, exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, structured_bits),
    )


def check(scope: Scope, part: Part, shape: Shape) -> None:
    """Raises ValueError where the scope means nothing to the removal of layers."""
    refuse(scope, "head", "layers are removed with all their heads")
    refuse(scope, "matrices", f'choose with part = "{part}"')
    scope.check(shape)


def in_scope(scope: Scope, part: Part, shape: Shape) -> np.ndarray:
    """bool [U]: the blocks or sublayers inside the scope."""
    return np.tile(scope.layer_L(shape), 2 if part == "joint" else 1)


def edit_of(m_U: Array, part: Part) -> Edit:
    """The edit that multiplies these blocks or sublayers by m_U."""
    m = jnp.split(m_U, 2) if part == "joint" else [m_U, m_U]
    return Edit(**dict(zip(FIELDS[part], m, strict=False)))


def removal_order(score_of: Callable[[Array], Array], in_scope_U: np.ndarray, *, greedy: bool) -> Array:
    """[U] a score whose order is the order of removal.  score_of(m_U) [U]: the scores under multipliers m_U, 0
    for what is removed already.

    greedy: the lowest goes, the others are measured again without it, and so on; else one measurement of the
    trained model decides about all.
    """
    whole_U = jnp.ones(len(in_scope_U))
    if not greedy:
        return score_of(whole_U)

    def step(m_U: Array, _: None) -> tuple[Array, Array]:
        candidates_U = jnp.where(in_scope_U & (m_U > 0), score_of(m_U), jnp.inf)
        lowest = jnp.argmin(candidates_U)
        return m_U.at[lowest].set(0), lowest

    n = int(in_scope_U.sum())
    _, order_N = lax.scan(step, whole_U, length=n)
    return jnp.zeros(len(in_scope_U)).at[order_N].set(jnp.arange(n, dtype=jnp.float32))
