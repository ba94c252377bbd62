"""Layer removal by measured harm: what the model misses least when it alone is taken out goes first."""

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.ablation import Criterion, ablation_effects
from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.layers import edit_of, in_scope, layer_remover, removal_order
from wane.scaling.degrade.similarity import Part
from wane.scaling.edit import Params
from wane.scaling.shape import Shape


def drop_layers_by_ablation(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    part: Part = "block",
    criterion: Criterion = "loss",
    greedy: bool = False,
) -> Degradation:
    """Removes the layers whose removal alone does the least harm on the calibration tokens.

    part: blocks, attention, MLPs, or `joint`: attention and MLP sublayers in one ranking.  criterion: `loss`, the
    rise of the mean loss when the layer is skipped (Kim et al. 2024, arXiv 2402.02834; greedy: Song et al. 2024,
    arXiv 2402.09025, and of sublayers Zhong et al. 2024, arXiv 2406.10594); `final_state`, 1 - cosine between the
    final residual streams with and without the layer.  greedy: after each removal all others are measured again
    without it; masks stay nested.  The calibration tokens decide for which task layers are spared.  Costs n + 1
    forward passes over the calibration set for n layers, about n^2 with greedy.
    """
    scope_U = in_scope(scope, part, shape)

    def score(params: Params, calibration_NT: Array, key: Array) -> Array:
        def effects(m_U: Array) -> Array:
            return ablation_effects(
                params, calibration_NT, shape, lambda u: edit_of(m_U.at[u].set(0), part),
                jnp.arange(len(scope_U)), criterion,
            )  # fmt: skip

        return removal_order(effects, scope_U, greedy=greedy)

    return layer_remover(
        name="drop_layers_by_ablation",
        shape=shape,
        scope=scope,
        settings={"part": part, "criterion": criterion, "greedy": greedy},
        part=part,
        score=score,
        needs_calibration=True,
    )
