"""How far down an answer and its options stand among all tokens, and how often the most likely token stays the same
behind the true tokens: what `agreement_by_step` would be if no error were read again."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.answers import has_values
from wane.eval.metrics.continuation import OCTAVES, by_octave, halves
from wane.eval.metrics.contract import Place, SequenceMetric, TokenMetric, per_sequence
from wane.eval.metrics.loss import full_choice, same_choice
from wane.eval.metrics.view import View, full_logits
from wane.scaling.shape import Shape

SOME = 4


def rank(logits_BSV: Array, token_BS: Array) -> Array:
    """1 for the most likely token, V for the least, f32 [B, S]; of equal logits the first stands before.  Nothing
    stands behind a logit that is not a number."""
    token_BS1 = token_BS[..., None]
    mine_BS1 = jnp.take_along_axis(logits_BSV, token_BS1, axis=-1)
    later = jnp.arange(logits_BSV.shape[-1]) > token_BS1
    behind_BSV = (logits_BSV < mine_BS1) | ((logits_BSV == mine_BS1) & later)
    return logits_BSV.shape[-1] - behind_BSV.sum(axis=-1, dtype=jnp.float32)  # floats are summed faster


def rank_of_answer(view: View) -> tuple[Array, Array]:
    return rank(view.logits_BSV, view.targets_BS), view.scored_BS


def rank_of_options(view: View) -> tuple[Array, Array]:
    """Mean over the options that there are, in one sequence of SOME: each option is a pass over all logits."""
    options_ObS = jnp.moveaxis(view.batch.options_BSO[::SOME], -1, 0)
    real_ObS, logits_bSV = options_ObS >= 0, view.logits_BSV[::SOME]
    rank_ObS = lax.map(lambda token_bS: rank(logits_bSV, jnp.maximum(token_bS, 0)), options_ObS)
    mean_bS = jnp.where(real_ObS, rank_ObS, 0).sum(axis=0) / jnp.maximum(real_ObS.sum(axis=0), 1)
    mean_BS = jnp.zeros(view.scored_BS.shape).at[::SOME].set(mean_bS)
    looked_at_B = np.arange(len(mean_BS)) % SOME == 0
    return mean_BS, has_values(view) & looked_at_B[:, None]


def argmax_kept(view: View) -> tuple[Array, Array]:
    P, C = halves(view.targets_BS.shape[1])
    # the last token of the prompt predicts the first step
    return by_octave(same_choice(view)[:, None, P - 1 : P - 1 + C])


def steps(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place("step", float(step)) for step in OCTAVES)


METRICS = (
    SequenceMetric(
        name="rank_of_answer",
        unit="rank",
        meaning="place of a scored token among all tokens, the most likely being 1",
        better="lower",
        measure=per_sequence(rank_of_answer),
    ),
    TokenMetric(
        name="rank_of_answer_by_level",
        unit="rank",
        meaning="rank_of_answer at each difficulty of a graded task",
        better="lower",
        measure=rank_of_answer,
        by="level",
    ),
    SequenceMetric(
        name="rank_of_options",
        version=5,
        unit="rank",
        meaning="mean place of the 4 options of an answer, its own among them, among all tokens; 2.5 where nothing"
        " but options is likely; one sequence of four",
        better="neither",
        measure=per_sequence(rank_of_options),
    ),
    SequenceMetric(
        name="argmax_kept",
        unit="fraction",
        meaning="share of tokens whose most likely prediction is that of the undegraded model, both behind the true"
        " tokens, by decoding step of the second half, in octaves",
        better="higher",
        measure=argmax_kept,
        places=steps,
        relative=True,
        full=(full_logits, full_choice),
    ),
)
