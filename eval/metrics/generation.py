"""Answers that the degraded model gives when it hears itself: free-running, beside teacher-forced ones of the same
items.

An answer is a run of scored tokens.  Inside it the model reads what it said, greedily; before it, and again behind
it, the true tokens: errors spread within an answer and not to the next.  It goes token by token with a key-value
cache, once for the truth and once for what is said, and costs several forward passes.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.answers import certain
from wane.eval.metrics.contract import SequenceMetric, TokenMetric, per_sequence
from wane.eval.metrics.largest import choice
from wane.eval.metrics.loss import task_bounds
from wane.eval.metrics.once import once
from wane.eval.metrics.view import View
from wane.scaling.generate import empty_caches, extend
from wane.train.data import Task


@once
def said(view: View) -> Array:
    """What the model says at every position, [B, S]: behind the true tokens and, inside an answer, its own."""
    tokens_BS, scored_BS = view.batch.tokens_BT[:, :-1], view.scored_BS
    B, S = tokens_BS.shape
    inside_BS = jnp.pad(scored_BS[:, :-1], ((0, 0), (1, 0)))  # the token that is read was itself an answer

    def step(state: tuple, read: tuple) -> tuple[tuple, Array]:
        caches, last_B = state
        token_B, inside_B = read
        # The first B rows read the truth, the others what was said; outside answers these forget what they said.
        caches = jax.tree.map(lambda a: _restored(a, inside_B), caches)
        both_B = jnp.concatenate([token_B, jnp.where(inside_B, last_B, token_B)])
        logits, caches = extend(view.degraded, both_B[:, None], caches, view.shape, view.edit)
        last_B = choice(logits[B:, 0])
        return (caches, last_B), last_B

    state = empty_caches(2 * B, S, view.shape), jnp.zeros(B, tokens_BS.dtype)
    _, said_SB = lax.scan(step, state, (tokens_BS.T, inside_BS.T))
    return said_SB.T


def _restored(leaf: Array, inside_B: Array) -> Array:
    """Keys or values [L, 2 B, ...]: those of what was said are the true ones again where no answer is going on."""
    if leaf.ndim < 3:  # the length
        return leaf
    true, own = jnp.split(leaf, 2, axis=1)
    keep = inside_B.reshape(1, -1, *[1] * (leaf.ndim - 2))
    return jnp.concatenate([true, jnp.where(keep, own, true)], axis=1)


def hit(view: View) -> tuple[Array, Array]:
    return (said(view) == view.targets_BS).astype(jnp.float32), view.scored_BS


def whole_answers(right_BS: Array, scored_BS: Array) -> tuple[Array, Array]:
    """(answers that are right to the last token, answers), f32 [B]; one that the row cuts off counts as it is."""

    def step(right_B: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        hit_B, scored_B = at
        right_B = jnp.where(scored_B, right_B & hit_B, True)
        return right_B, right_B

    _, so_far_SB = lax.scan(step, jnp.ones(len(right_BS), bool), (right_BS.T, scored_BS.T))
    last_BS = scored_BS & ~jnp.pad(scored_BS[:, 1:], ((0, 0), (0, 1)))
    return (so_far_SB.T & last_BS).sum(axis=1).astype(jnp.float32), last_BS.sum(axis=1).astype(jnp.float32)


def whole_said(view: View) -> tuple[Array, Array]:
    return whole_answers(said(view) == view.targets_BS, view.scored_BS)


def whole_forced(view: View) -> tuple[Array, Array]:
    return whole_answers(choice(view.logits_BSV) == view.targets_BS, view.scored_BS)


def whole_bounds(task: Task) -> tuple[float | None, float | None]:
    """Chance of a whole answer depends on its length."""
    return None, certain(task)


METRICS = (
    SequenceMetric(
        name="accuracy_free_running",
        unit="fraction",
        better="higher",
        measure=per_sequence(hit),
        free_running=True,
        bounds=task_bounds,
        meaning="share of scored tokens that are said, greedily, behind what was said of the same answer",
    ),
    TokenMetric(
        name="accuracy_free_running_by_level",
        unit="fraction",
        better="higher",
        measure=hit,
        free_running=True,
        by="level",
        bounds=task_bounds,
        meaning="accuracy_free_running at each difficulty",
    ),
    SequenceMetric(
        name="whole_answers_free_running",
        unit="fraction",
        better="higher",
        measure=whole_said,
        free_running=True,
        bounds=whole_bounds,
        meaning="share of answers, runs of scored tokens, that are said right to the last token",
    ),
    SequenceMetric(
        name="whole_answers",
        unit="fraction",
        better="higher",
        measure=whole_forced,
        bounds=whole_bounds,
        meaning="share of answers whose every token is the most likely one behind the true tokens",
    ),
)
