"""Layer removal by similarity: what hardly turns the residual stream goes first (ShortGPT, LLM-Drop)."""

from typing import Literal

from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.layers import Part, edit_of, in_scope, layer_remover, removal_order
from wane.scaling.degrade.similarity import block_influences, similarities
from wane.scaling.edit import Params
from wane.scaling.shape import Shape

Criterion = Literal["cosine", "block_influence"]


def drop_layers_by_similarity(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    part: Part = "block",
    criterion: Criterion = "cosine",
    layer_drop_norm: bool = True,
    iterative: bool = False,
) -> Degradation:
    """Removes the layers whose output is most similar to their input, by mean cosine over calibration tokens.

    part: blocks, attention, MLPs, or `joint`: attention and MLP sublayers in one ranking (LLM-Drop's "all", He et
    al. 2024, arXiv 2406.15786, section 3).  criterion: `cosine` removes the highest mean cosine;
    `block_influence` (part block) the lowest mean of 1 - cosine (ShortGPT, Men et al. 2024, arXiv 2403.03853,
    eq. 1), the same order unless states are zero.  layer_drop_norm (sublayers): the residual stream before and
    after the sublayer is compared, so that the norm goes with it; False compares normed input and output without
    the residual connection.  iterative: measured again after each removal, instead of once.  Costs one forward
    pass over the calibration set, n with iterative (joint twice that).
    """
    if criterion == "block_influence" and part != "block":
        raise ValueError(
            f'drop_layers_by_similarity.criterion = "block_influence": compares whole blocks, got part = "{part}"; '
            'use criterion = "cosine"'
        )
    if part == "block" and not layer_drop_norm:
        raise ValueError(
            "drop_layers_by_similarity.layer_drop_norm = False: acts on sublayers, a block has no norm of its own; "
            'leave it out or use part = "joint", "attention" or "mlp"'
        )

    def measure(params: Params, tokens_NT: Array, m_U: Array) -> Array:
        edit = edit_of(m_U, part)
        if criterion == "block_influence":
            return block_influences(params, tokens_NT, shape, edit)
        return -similarities(params, tokens_NT, shape, part, layer_drop_norm=layer_drop_norm, edit=edit)

    def score(params: Params, calibration_NT: Array, key: Array) -> Array:
        return removal_order(
            lambda m_U: measure(params, calibration_NT, m_U), in_scope(scope, part, shape), greedy=iterative
        )

    return layer_remover(
        name="drop_layers_by_similarity",
        shape=shape,
        scope=scope,
        settings={
            "part": part,
            "criterion": criterion,
            "layer_drop_norm": layer_drop_norm,
            "iterative": iterative,
        },
        part=part,
        score=score,
        needs_calibration=True,
    )
