"""How well the next token is predicted, and how far the prediction is from the undegraded model's."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics import deviation
from wane.eval.metrics.contract import SequenceMetric, per_sequence
from wane.eval.metrics.floor import most_frequent, unigram_loss
from wane.eval.metrics.largest import choice, is_largest
from wane.eval.metrics.once import once
from wane.eval.metrics.view import View, full_logits
from wane.scaling.shape import Shape
from wane.train.data import Task


def _tokens(view: View) -> Array:
    return jnp.full(view.nll_BS.shape[0], view.nll_BS.shape[1], jnp.float32)


def loss(view: View) -> tuple[Array, Array]:
    return view.nll_BS.sum(axis=1), _tokens(view)


def loss_per_byte(view: View) -> tuple[Array, Array]:
    has_bytes = jnp.any(view.bytes_BS > 0, axis=1)
    return jnp.where(has_bytes, view.nll_BS.sum(axis=1), 0.0), view.bytes_BS.sum(axis=1).astype(jnp.float32)


def full_choice(view: View) -> Array:
    """The undegraded model's most likely prediction, [B, S]."""
    return choice(view.full_BSV)


def full_norm(view: View) -> Array:
    """The logarithm of what the undegraded model's probabilities are divided by, [B, S]."""
    return jax.nn.logsumexp(view.full_BSV, axis=-1)


def same_choice(view: View) -> Array:
    """Whether a token's most likely prediction is that of the undegraded model, bool [B, S]."""
    return is_largest(view.logits_BSV, view.of_full(full_choice))


def top1_agreement(view: View) -> tuple[Array, Array]:
    return same_choice(view).sum(axis=1).astype(jnp.float32), _tokens(view)


@once
def divergence(view: View) -> Array:
    """KL(undegraded || degraded) of every token's prediction in nats [B, S]."""
    # One sum over the vocabulary and the sequence would run at half the speed on a CPU.
    return lax.optimization_barrier(
        deviation.kl_of_known(view.full_BSV, view.logits_BSV, view.of_full(full_norm))
    )


def kl(view: View) -> tuple[Array, Array]:
    return divergence(view).sum(axis=1), _tokens(view)


def task_bounds(task: Task) -> tuple[float | None, float | None]:
    return task.chance, task.ceiling


def all_tokens(task: Task, shape: Shape) -> int:
    return shape.vocab


def hit(view: View) -> tuple[Array, Array]:
    return is_largest(view.logits_BSV, view.targets_BS).astype(jnp.float32), view.scored_BS


METRICS = (
    SequenceMetric(
        usual=True,
        name="loss",
        unit="nats/token",
        meaning="mean negative log-likelihood of the next token",
        better="lower",
        measure=loss,
        floor=unigram_loss,
        each=True,
    ),
    SequenceMetric(
        usual=True,
        name="loss_per_byte",
        unit="nats/byte",
        meaning="negative log-likelihood of the text divided by its UTF-8 bytes; text sources only",
        better="lower",
        measure=loss_per_byte,
        each=True,
    ),
    SequenceMetric(
        usual=True,
        name="perplexity",
        unit="tokens",
        meaning="exp(loss)",
        better="lower",
        measure=loss,
        finish=lambda mean: math.exp(min(mean, 700.0)),
    ),
    SequenceMetric(
        usual=True,
        name="top1_agreement",
        unit="fraction",
        meaning="share of tokens whose most likely prediction is that of the undegraded model",
        better="higher",
        measure=top1_agreement,
        relative=True,
        full=(full_logits, full_choice),
    ),
    SequenceMetric(
        usual=True,
        name="kl",
        unit="nats/token",
        meaning="KL(undegraded || degraded) of the next-token distribution",
        better="lower",
        measure=kl,
        relative=True,
        full=(full_logits, full_norm),
    ),
    SequenceMetric(
        usual=True,
        name="accuracy",
        unit="fraction",
        meaning="share of scored tokens that are predicted: answers of a graded task, every token of text",
        better="higher",
        measure=per_sequence(hit),
        bounds=task_bounds,
        among=all_tokens,
        floor=most_frequent,
    ),
)
