"""Two methods one after the other: the second is fitted on what the first left."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import Cost, Degradation, Promises, Where
from wane.scaling.degrade.cost import FULL_BITS, compared
from wane.scaling.edit import Edit, Params, fold, merge
from wane.scaling.shape import Shape

BY_NAME = ("activation_bits", "activation_absmax", "cache_bits", "cache_range")
FOLDED = ("params", "head_LH", "neuron_LF")  # of the first method: in the weights that the second changes
JOIN = {"attn_L": jnp.multiply, "mlp_L": jnp.multiply, "residual_XD": jnp.multiply}
JOIN |= {"expert_LE": jnp.logical_and, "active_L": jnp.minimum, "residual_map": jnp.matmul}


@functools.lru_cache(maxsize=256)
def compose(first: Degradation, second: Degradation, shape: Shape) -> Degradation:
    """`second` on the result of `first`, its fit inside the graph; equal arguments give the same object.

    Severity is a vector (severity of first, severity of second); at (s, 0) stands the first method alone.
    Multipliers of the first are folded into its weights before the second sees them, and what the first removed
    stays removed (its `hold`), however the second changes weights.  Bits per weight: values as the quantiser
    stores them, for the share of weights that the pruner left, plus the pruner's indices.
    """

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict:
        key, later = jax.random.split(key)
        return {"first": first.fit(params, calibration_NT, key), "calibration": calibration_NT, "key": later}

    def apply(params: Params, fitted: dict, severity: Array, where: Where, key: Array) -> Edit:
        key, later = jax.random.split(key)
        before = first.apply(params, fitted["first"], severity[0], where, key)
        folded = folded_in(params, before, shape)
        again = second.fit(folded, fitted["calibration"], fitted["key"])
        after = second.apply(folded, again, severity[1], where, later)
        return joined(before, after, first.hold(merge(folded, after), before))

    def hold(params: Params, edit: Edit) -> Params:
        return second.hold(first.hold(params, edit.before), edit)

    def cost(params: Params, edit: Edit, severity: Array) -> Cost:
        one = first.cost(params, edit.before, severity[0])
        two = second.cost(params, edit, severity[1])
        pruner, quantiser = (two, one) if edit.before.weight_bits is not None else (one, two)
        left = 1 - pruner.removed_fraction
        indices = pruner.bits_per_weight - FULL_BITS * left
        return compared(params, edit, shape, lambda removed: indices + left * quantiser.bits_per_weight)

    return Degradation(
        name=f"{first.name}+{second.name}",
        scope=first.scope,
        settings={first.name: dict(first.settings), second.name: dict(second.settings)},
        unit=first.unit,
        severities=first.severities,
        random=first.random or second.random,
        sequential=first.sequential or second.sequential,
        needs_calibration=first.needs_calibration or second.needs_calibration,
        local=first.local and second.local,
        promises=Promises(identity=first.promises.identity + second.promises.identity),
        fit=fit,
        apply=apply,
        hold=hold,
        cost=cost,
    )


def folded_in(params: Params, edit: Edit, shape: Shape) -> Params:
    """The parameters that the second method sees: the first one's, its multipliers folded into them."""
    merged = merge(params, edit)
    return {**merged, "blocks": {**merged["blocks"], **fold(params, edit, shape)}}


def joined(before: Edit, after: Edit, held: Params) -> Edit:
    """Both edits as one, over the parameters `held`.

    Raises ValueError where both act on the same thing in a way that cannot be joined.
    """
    fields: dict[str, Any] = {"params": held, "before": before}
    for field in (f.name for f in dataclasses.fields(Edit) if f.name not in fields):
        one = None if field in FOLDED else getattr(before, field)
        two = getattr(after, field)
        if one is None or two is None or field in ("weight_bits", "weight_grid"):
            fields[field] = one if two is None else two
        elif field in BY_NAME and not set(one) & set(two):
            fields[field] = {**one, **two}
        elif field == "bias":
            fields[field] = {n: one.get(n, 0) + two.get(n, 0) for n in {**one, **two}}
        elif field in JOIN:
            fields[field] = JOIN[field](one, two)
        else:
            raise ValueError(
                f"then: both methods act on {field}; combine methods that act on different things"
            )
    return Edit(**fields)
