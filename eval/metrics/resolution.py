"""Low-resolution inference: how much of a degraded model's KL a coarser version of the full model explains, and how
well its confidence is calibrated.

Five families make the full model's p coarser, each with one parameter that is the same for all tokens: temperature,
p^(1/T); a mixture with the uniform distribution, with the full model's own unigram or with its own bigram;
truncation, which keeps the k most likely tokens and shares the rest evenly.  Explained is
1 - min KL(coarser || degraded) / KL(p || degraded), the minimum over a grid that holds p itself: never below 0.

The unigram is the mean of the full model's predictions over all tokens of the evaluation set, the bigram their mean
behind the same token.  Frequencies that the tokens themselves have would give most pairs no probability at all.

Every STRIDE-th token is read: 32 distributions of every token would cost more than the model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.answers import has_values
from wane.eval.metrics.contract import SequenceMetric, Statistic, Weights, per_sequence
from wane.eval.metrics.largest import is_largest
from wane.eval.metrics.view import View
from wane.scaling.model import unembed

STRIDE = 29  # prime: does not fall in step with items of a task, which are all of one length
CURRENT = 512  # rows of the bigram: of a larger vocabulary, tokens that leave the same remainder share one
TEMPERATURES = tuple(2 ** (3 * i / 8) for i in range(9))  # 1..8
SHARES = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the mixture's second part
KEPT = (1, 2, 4, 8, 16, 64)
FAMILIES = ("temperature", "uniform", "unigram", "bigram", "truncation")
ROUNDING = 1e-6  # nats per token: a smaller KL is that of f32 sums, and nothing is left to explain
BINS = 15  # of confidence, equally wide (Guo et al. 2017)


def every_so_often(tokens_BT: Array) -> Array:
    """Places [B, S / STRIDE], at least one.  They begin where the sequence's tokens say, so that every place is
    measured in some sequences whatever batch they are in."""
    S = tokens_BT.shape[1] - 1
    step = STRIDE * jnp.arange(max(S // STRIDE, 1))
    return (tokens_BT.sum(axis=1, keepdims=True) + step) % S


class Ngrams(NamedTuple):
    """Sums over tokens of the full model's predictions behind each current token [C, V], and how many [C]."""

    total_CV: Array
    count_C: Array


def current(tokens: Array, V: int) -> Array:
    """The row of the bigram."""
    return tokens % min(V, CURRENT)


def own_ngrams(view: View) -> Ngrams:
    V = view.shape.vocab
    row_BS = current(view.batch.tokens_BT[:, :-1], V)
    p_BSV = jax.nn.softmax(view.full_BSV, axis=-1) * view.weight_BS[..., None]
    none_C = jnp.zeros(min(V, CURRENT))
    total_CV = jnp.zeros((len(none_C), V)).at[row_BS].add(p_BSV)
    return Ngrams(total_CV, none_C.at[row_BS].add(view.weight_BS))


def coarsened(view: View) -> dict[str, Array]:
    """Sums over tokens: their number, KL(p || degraded), and for each family KL(q || degraded) of each q."""
    place_Bs = every_so_often(view.batch.tokens_BT)
    # `logits_BSV` is there for the loss; the full model's are computed only where they are read.
    full_BsV = unembed(
        view.params, jnp.take_along_axis(view.full_x_BSD, place_Bs[..., None], axis=1), view.shape
    )
    degraded_BsV = jnp.take_along_axis(view.logits_BSV, place_Bs[..., None], axis=1)
    log_d, log_p = (jax.nn.log_softmax(logits, axis=-1) for logits in (degraded_BsV, full_BsV))
    p, ngrams = jnp.exp(log_p), view.known[own_ngrams]
    row_Bs = current(jnp.take_along_axis(view.batch.tokens_BT, place_Bs, axis=1), p.shape[-1])
    by_family = {
        "temperature": jnp.stack([of_temperature(log_p, log_d, T) for T in TEMPERATURES[1:]]),
        "uniform": of_mixtures(p, jnp.full_like(p[:1, :1], 1 / p.shape[-1]), log_d),
        "unigram": of_mixtures(p, ngrams.total_CV.sum(axis=0) / ngrams.count_C.sum(), log_d),
        "bigram": of_mixtures(p, ngrams.total_CV[row_Bs] / ngrams.count_C[row_Bs][..., None], log_d),
        "truncation": of_truncation(log_p, log_d),
    }
    weight_B1 = view.batch.counted_B[:, None]
    sums = {family: (kl * weight_B1).sum(axis=(1, 2)) for family, kl in by_family.items()}
    kl_Bs = (p * (log_p - log_d)).sum(axis=-1)
    return sums | {"kl": (kl_Bs * weight_B1).sum(), "count": kl_Bs.shape[1] * weight_B1.sum()}


def of_temperature(log_p_BsV: Array, log_d_BsV: Array, T: float) -> Array:
    """KL(q || d) of q = p^(1/T) / Z [B, s].  Z >= 1 for T >= 1, so nothing overflows."""
    power = jnp.exp(log_p_BsV / T)
    Z = power.sum(axis=-1)
    return (power * (log_p_BsV / T - log_d_BsV)).sum(axis=-1) / Z - jnp.log(Z)


def of_mixtures(p_BsV: Array, other: Array, log_d_BsV: Array) -> Array:
    """KL(q || d) of q = (1 - a) p + a other for every share a [SHARES, B, s]."""

    def one(a: float) -> Array:
        q = (1 - a) * p_BsV + a * other
        return (q * (jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny)) - log_d_BsV)).sum(axis=-1)

    return jnp.stack([one(a) for a in SHARES])


def of_truncation(log_p_BsV: Array, log_d_BsV: Array) -> Array:
    """KL(q || d) of what keeps the k most likely tokens, the rest shared evenly [KEPT below V, B, s]: sums over
    the kept tokens and one over all others, no distribution is written out."""
    V = log_p_BsV.shape[-1]
    kept = np.array([k for k in KEPT if k < V])
    top, index = lax.top_k(log_p_BsV, int(kept[-1]))
    top_d = jnp.take_along_axis(log_d_BsV, index, axis=-1)
    inside = jnp.cumsum(jnp.exp(top) * (top - top_d), axis=-1)[..., kept - 1]
    rest = jnp.maximum(1 - jnp.cumsum(jnp.exp(top), axis=-1)[..., kept - 1], 0)
    mean_d = (log_d_BsV.sum(axis=-1, keepdims=True) - jnp.cumsum(top_d, axis=-1)[..., kept - 1]) / (V - kept)
    outside = jnp.where(rest > 0, rest * (jnp.log(jnp.where(rest > 0, rest / (V - kept), 1)) - mean_d), 0)
    return jnp.moveaxis(inside + outside, -1, 0)


def explained_by(*families: str) -> Callable[[dict, Weights], Array]:
    """The share of KL that the best of all coarsenings of these families removes; 0 where there is no KL."""

    def values(sums: dict, weights: Weights) -> Array:
        best = jnp.minimum(sums["kl"], jnp.concatenate([sums[family] for family in families]).min())
        # a KL that is not finite must stay so: it is not below the bound
        return jnp.where(sums["kl"] <= ROUNDING * sums["count"], 0.0, 1 - best / sums["kl"])

    return values


def best_temperature(sums: dict, weights: Weights) -> Array:
    kl = jnp.concatenate([sums["kl"][None], sums["temperature"]])
    best = jnp.asarray(TEMPERATURES)[jnp.argmin(kl)]
    return jnp.where(sums["kl"] <= ROUNDING * sums["count"], 1.0, best + 0 * sums["kl"])


def confidence(view: View) -> tuple[Array, Array]:
    largest_BS = view.logits_BSV.max(axis=-1)
    return jnp.exp(largest_BS - jax.nn.logsumexp(view.logits_BSV, axis=-1)), view.scored_BS


def calibration(view: View) -> Array:
    """Number of scored tokens, hits and confidence of each bin [3, BINS]."""
    confidence_BS, scored_BS = confidence(view)
    hit_BS = is_largest(view.logits_BSV, view.targets_BS)
    weight_BS = jnp.where(scored_BS, view.weight_BS, 0)
    parts = jnp.stack([jnp.ones_like(confidence_BS), hit_BS.astype(jnp.float32), confidence_BS])
    # a bin holds its upper end, as in Guo et al.
    bin_BS = jnp.clip(jnp.ceil(confidence_BS * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    chosen_BSN = bin_BS[..., None] == jnp.arange(BINS)
    return jnp.einsum("pbs,bs,bsn->pn", parts, weight_BS, chosen_BSN.astype(jnp.float32))


def calibration_error(sums: Array, weights: Weights) -> Array:
    count, hits, confident = sums
    return jnp.abs(hits - confident).sum() / count.sum()


def above_floor(view: View) -> tuple[Array, Array]:
    floor_B1 = 1 / jnp.maximum(view.batch.values_B2[:, 1:], 1)
    return (jnp.exp(-view.nll_BS) > floor_B1).astype(jnp.float32), has_values(view)


def _explained(name: str, by: str, *families: str) -> Statistic:
    return Statistic(
        name=name,
        unit="fraction",
        meaning=f"share of KL(undegraded || degraded) removed by coarsening the undegraded model: {by}",
        better="neither",
        relative=True,
        gather=coarsened,
        known=own_ngrams,
        values=explained_by(*families),
        version=3,
    )


METRICS = (
    _explained("explained_by_temperature", "the best temperature from 1 to 8", "temperature"),
    _explained("explained_by_uniform", "the best mixture with a uniform distribution", "uniform"),
    _explained("explained_by_unigram", "the best mixture with its own unigram", "unigram"),
    _explained("explained_by_bigram", "the best mixture with its own bigram", "bigram"),
    _explained("explained_by_truncation", "the best k of k tokens kept", "truncation"),
    _explained("explained_by_coarsening", "the best of temperature, mixtures and truncation", *FAMILIES),
    Statistic(
        name="resolution_temperature",
        unit="",
        meaning="the temperature, of 9 from 1 to 8, at which the undegraded model is closest to the degraded one",
        better="lower",
        relative=True,
        gather=coarsened,
        known=own_ngrams,
        values=best_temperature,
        version=3,
    ),
    Statistic(
        name="calibration_error",
        unit="fraction",
        meaning="expected calibration error, 15 bins: mean of |accuracy - confidence| over scored tokens",
        better="lower",
        gather=calibration,
        values=calibration_error,
    ),
    SequenceMetric(
        name="confidence",
        unit="fraction",
        meaning="probability of the most likely token, on scored tokens",
        better="neither",
        measure=per_sequence(confidence),
    ),
    SequenceMetric(
        name="coverage",
        unit="fraction",
        meaning="share of answers whose probability is above that of a guess among the task's values",
        better="higher",
        measure=per_sequence(above_floor),
    ),
)
