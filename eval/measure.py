"""Metrics of a degraded model: each turns one batch under one edit into sums and counts per sequence.

Adding a metric is one function and one line of METRICS.  Sums stay per sequence until the host adds them in
float64, so every mean is exact to the last token and comparisons stay paired.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class View(NamedTuple):
    """What a metric sees: one batch of B windows under one edit, S predicted tokens each.

    full_BSV: logits of the undegraded model on the same tokens.  scored_BS: the tokens that count for
    accuracy.  bytes_BS: UTF-8 bytes of each predicted token (0 where there are none).
    """

    logits_BSV: Array
    nll_BS: Array
    full_BSV: Array
    targets_BS: Array
    scored_BS: Array
    bytes_BS: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """measure(view) -> (sum, count), both f32 [B]; the value of a set of sequences is
    finish(sum of sums / sum of counts).  each: rows keep the value of every evaluation sequence, for paired
    comparisons.  relative: compares with the undegraded model, so it means nothing for one that was trained
    under a mask.  Raise `version` when the numbers change."""

    name: str
    unit: str
    meaning: str
    better: Literal["lower", "higher"]
    measure: Callable[[View], tuple[Array, Array]]
    finish: Callable[[float], float] = float
    each: bool = False
    relative: bool = False
    version: int = 1


def _tokens(view: View) -> Array:
    return jnp.full(view.nll_BS.shape[0], view.nll_BS.shape[1], jnp.float32)


def loss(view: View) -> tuple[Array, Array]:
    return view.nll_BS.sum(axis=1), _tokens(view)


def loss_per_byte(view: View) -> tuple[Array, Array]:
    has_bytes = jnp.any(view.bytes_BS > 0, axis=1)
    return jnp.where(has_bytes, view.nll_BS.sum(axis=1), 0.0), view.bytes_BS.sum(axis=1).astype(jnp.float32)


def top1_agreement(view: View) -> tuple[Array, Array]:
    same = jnp.argmax(view.logits_BSV, axis=-1) == jnp.argmax(view.full_BSV, axis=-1)
    return same.sum(axis=1).astype(jnp.float32), _tokens(view)


def kl(view: View) -> tuple[Array, Array]:
    log_full = jax.nn.log_softmax(view.full_BSV, axis=-1)
    log_degraded = jax.nn.log_softmax(view.logits_BSV, axis=-1)
    return jnp.sum(jnp.exp(log_full) * (log_full - log_degraded), axis=(1, 2)), _tokens(view)


def accuracy(view: View) -> tuple[Array, Array]:
    hit = (jnp.argmax(view.logits_BSV, axis=-1) == view.targets_BS) & view.scored_BS
    return hit.sum(axis=1).astype(jnp.float32), view.scored_BS.sum(axis=1).astype(jnp.float32)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="loss",
            unit="nats/token",
            meaning="mean negative log-likelihood of the next token",
            better="lower",
            measure=loss,
            each=True,
        ),
        Metric(
            name="loss_per_byte",
            unit="nats/byte",
            meaning="negative log-likelihood of the text divided by its UTF-8 bytes; text sources only",
            better="lower",
            measure=loss_per_byte,
            each=True,
        ),
        Metric(
            name="perplexity",
            unit="tokens",
            meaning="exp(loss)",
            better="lower",
            measure=loss,
            finish=lambda mean: math.exp(min(mean, 700.0)),
        ),
        Metric(
            name="top1_agreement",
            unit="fraction",
            meaning="share of tokens whose most likely prediction is that of the undegraded model",
            better="higher",
            measure=top1_agreement,
            relative=True,
        ),
        Metric(
            name="kl",
            unit="nats/token",
            meaning="KL(undegraded || degraded) of the next-token distribution",
            better="lower",
            measure=kl,
            relative=True,
        ),
        Metric(
            name="accuracy",
            unit="fraction",
            meaning="share of scored tokens that are predicted: answers of a graded task, every token of text",
            better="higher",
            measure=accuracy,
        ),
    )
}
