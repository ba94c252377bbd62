"""Early exit: the last blocks are skipped and the final norm and unembedding read what is there."""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, structured_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.layers import check, edit_of
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.tuned_lens import tuned_lens
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Lens, Params
from wane.scaling.shape import Shape


def early_exit(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    lens: Literal["none", "tuned"] = "none",
    steps: int = 250,
    learning_rate: float = 0.01,
) -> Degradation:
    """Skips the last blocks: severity s leaves after L - floor(s L) of them, by the shared final norm and head.

    lens: `none`, the logit lens (nostalgebraist 2020); `tuned`, an affine translator before the final norm, one per
    exit, fitted by `steps` steps of Adam at `learning_rate` to the full model's predictions on the calibration
    tokens (Belrose et al. 2023, arXiv 2303.08112).  The translator of an exit acts only where all blocks behind it
    are selected.  Costs nothing, tuned a forward pass and L unembeddings, forward and backward, per step.
    """
    check(scope, "block", shape)
    refuse(scope, "layers", "an exit skips all blocks behind it")
    if steps < 1:
        raise ValueError(f"early_exit.steps = {steps}: must be 1 or more")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"early_exit.learning_rate = {learning_rate}: must be a positive number")
    index_L = np.arange(shape.n_layers)

    def exit_of(severity: Array) -> Array:
        return shape.n_layers - count(shape.n_layers, severity)

    def fit(params: Params, calibration_NT: Array, key: Array) -> Lens | None:
        if lens == "none":
            return None
        return tuned_lens(params, calibration_NT, shape, steps=steps, learning_rate=learning_rate)

    def apply(params: Params, fitted: Lens | None, severity: Array, where: Where, key: Array) -> Edit:
        left = exit_of(severity)
        behind_L = index_L >= left
        edit = edit_of(jnp.where(behind_L & where.layer_L, jnp.float32(0), jnp.float32(1)), "block")
        if fitted is None:
            return edit
        exit = jnp.where((where.layer_L | ~behind_L).all(), left, shape.n_layers)
        return Edit(attn_L=edit.attn_L, mlp_L=edit.mlp_L, lens=Lens(fitted.map_DD[exit], fitted.bias_D[exit]))

    return Degradation(
        name="early_exit",
        scope=scope,
        settings={"lens": lens, "steps": steps, "learning_rate": learning_rate},
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        needs_calibration=lens == "tuned",
        exit=exit_of,
        promises=Promises(nested=True, exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, structured_bits),
    )
