"""Training under a fixed mask: from step 0 or from a later step, made by any pruning method or given."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import Degradation, Where
from wane.scaling.edit import Params, fold
from wane.scaling.shape import Shape

Mask = dict[str, Array]  # block matrix -> bool [L, I, O], True = kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskPlan:
    """Mask that acts from update `at_step` on (0: from the start).

    mask: (params of one replica as they are then, replica index) -> Mask; pure and deterministic, because a
    resumed run that has not reached at_step computes it again.
    """

    at_step: int
    mask: Callable[[Params, Array], Mask]


def masked(params: Params, mask: Mask | None) -> Params:
    """The parameter tree with removed weights 0; other leaves as they are.  mask None: unchanged."""
    if mask is None:
        return params
    blocks = {name: jnp.where(keep_LIO, params["blocks"][name], 0) for name, keep_LIO in mask.items()}
    return {**params, "blocks": {**params["blocks"], **blocks}}


def masks_of_pack(plan: MaskPlan, params_R: Params) -> Mask:
    """The plan's mask of every replica of a pack, leaves [R, L, I, O]."""
    replicas = len(jax.tree.leaves(params_R)[0])
    return lax.map(lambda replica: plan.mask(*replica), (params_R, jnp.arange(replicas)))


def degradation_mask(
    method: Degradation, shape: Shape, calibration_NT: Array, severity: float, keys_R: Array
) -> Callable[[Params, Array], Mask]:
    """The mask that a pruning method makes of the parameters at one severity, with a key per replica.

    What counts is which weights it removes, those of removed neurons, heads and layers included.
    """

    def mask(params: Params, replica: Array) -> Mask:
        key = keys_R[replica]
        fitted = method.fit(params, calibration_NT, key)
        where = Where.everywhere(shape)
        edit = method.apply(params, fitted, jnp.float32(severity), where, jax.random.fold_in(key, 1))
        return {name: w_LIO != 0 for name, w_LIO in fold(params, edit, shape).items()}

    return mask


def given_mask(mask_R: Mask) -> Callable[[Params, Array], Mask]:
    """A constant mask per replica (of finished members, say), leaves [R, L, I, O]."""
    return lambda params, replica: {name: leaf[replica] for name, leaf in mask_R.items()}
