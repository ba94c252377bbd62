"""Training under a fixed mask: from step 0 or from a later step, random or taken from elsewhere."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import Degradation, Where
from wane.scaling.degrade.rank import keep, ranks
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
    """The mask that a pruning method makes of the parameters at one severity; keys_R: key data per replica.

    What counts is which weights it removes, those of removed neurons, heads and layers included.
    """

    def mask(params: Params, replica: Array) -> Mask:
        key = jax.random.wrap_key_data(keys_R[replica])
        fitted = method.fit(params, calibration_NT, key)
        where = Where.everywhere(shape)
        edit = method.apply(params, fitted, jnp.float32(severity), where, jax.random.fold_in(key, 1))
        return {name: w_LIO != 0 for name, w_LIO in fold(params, edit, shape.kv_heads).items()}

    return mask


def given_mask(mask_R: Mask) -> Callable[[Params, Array], Mask]:
    """A constant mask per replica (of finished members, say), leaves [R, L, I, O]."""
    return lambda params, replica: {name: leaf[replica] for name, leaf in mask_R.items()}


def random_mask(shape: Shape, fraction: float, seeds: tuple[int, ...]) -> Callable[[Params, Array], Mask]:
    """Uniformly random weights of every matrix removed, the exact count per matrix and layer; one seed per
    replica.  Raises ValueError for a fraction outside [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"mask.fraction = {fraction}: must be between 0 and 1")
    seeds_R = jnp.array(seeds, jnp.uint32)

    def mask(params: Params, replica: Array) -> Mask:
        keys = jax.random.split(jax.random.key(seeds_R[replica]), len(shape.matrices))
        return {
            name: _random_keep(key, (shape.n_layers, *size), fraction)
            for key, (name, size) in zip(keys, shape.matrices.items(), strict=True)
        }

    return mask


def _random_keep(key: Array, size: tuple[int, int, int], fraction: float) -> Array:
    score = jax.random.uniform(key, (size[0], size[1] * size[2]))
    kept = keep(ranks(score, jnp.bool_(True)), score.shape[1], jnp.float32(fraction))
    return kept.reshape(size)
