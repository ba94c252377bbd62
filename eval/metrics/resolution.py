"""Low-resolution inference: how much of a degraded model's KL a coarser version of the full model explains, and how
well its confidence is calibrated.

Five families make the full model's p coarser, each with one parameter that is the same for all tokens: temperature,
p^(1/T); a mixture with the uniform distribution, with the full model's own unigram or with its own bigram;
truncation, which keeps the k most likely tokens and shares the rest evenly.  Explained is
1 - min KL(coarser || degraded) / KL(p || degraded), the minimum over a grid that holds p itself: never below 0.

The grid is fine, in equal ratios of T - 1 and of the share, since most of

    KL(q || degraded) = KL(q || p) - sum_v q_v delta_v,    delta = log degraded - log p

is known before anything is degraded: the first term is the full model's, found once for all points.  The second is
linear in the share of a mixture, so p and what it is mixed with tell it for all shares.  In temperature it is read
at NODES and drawn straight between them over the mean of log p under q: exact where delta is linear in log p, which
is what a temperature makes of it.

The unigram is the mean of the full model's predictions over all tokens of the evaluation set, the bigram their mean
behind the same token.  Frequencies that the tokens themselves have would give most pairs no probability at all.

Every STRIDE-th token is read: this many distributions of every token would cost more than the model.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics import deviation
from wane.eval.metrics.answers import has_values
from wane.eval.metrics.contract import SequenceMetric, Statistic, Weights, per_sequence
from wane.eval.metrics.largest import is_largest
from wane.eval.metrics.view import View
from wane.scaling.model import unembed

STRIDE = 29  # prime: does not fall in step with items of a task, which are all of one length
CURRENT = 512  # rows of the bigram: of a larger vocabulary, tokens that leave the same remainder share one
# Half a step from the best of the grid, what is left of a KL that one of the family made is below .5 % of it.
TEMPERATURES = 1 + 7 * 1.1 ** np.arange(-93, 1)  # 1.001 .. 8
SHARES = 1.2 ** np.arange(-50, 1)  # of the mixture's second part, .0001 .. 1
NODES = np.array([*range(4, 32, 2), 31])  # 32 / T: powers of one exponential, the last near p itself
KEPT = 64  # 1, 2, .. of the most likely tokens
MIXTURES = ("uniform", "unigram", "bigram")
FAMILIES = ("temperature", *MIXTURES, "truncation")
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


class Read(NamedTuple):
    """What is read of the full model, at `place_Bs`: its logits [B, s, V], what each of MIXTURES adds [.., V], and
    the most likely tokens [B, s, KEPT or V - 1]."""

    place_Bs: Array
    full_BsV: Array
    others: tuple[Array, Array, Array]
    top_BsK: Array


def read(view: View) -> Read:
    place_Bs = every_so_often(view.batch.tokens_BT)
    # the full model's logits are computed only where they are read
    full_x_BsD = jnp.take_along_axis(view.full_x_BSD, place_Bs[..., None], axis=1)
    full_BsV, ngrams = unembed(view.params, full_x_BsD, view.shape), view.known[own_ngrams]
    V = full_BsV.shape[-1]
    row_Bs = current(jnp.take_along_axis(view.batch.tokens_BT, place_Bs, axis=1), V)
    unigram_V = ngrams.total_CV.sum(axis=0) / ngrams.count_C.sum()
    bigram_BsV = ngrams.total_CV[row_Bs] / ngrams.count_C[row_Bs][..., None]
    others = jnp.full(V, 1 / V), unigram_V, bigram_BsV
    return Read(place_Bs, full_BsV, others, lax.top_k(full_BsV, min(KEPT, V - 1))[1])


def summed(value_Bs: Array, view: View) -> Array:
    """Over the tokens that are read."""
    return (value_Bs * view.batch.counted_B[:, None]).sum()


class Coarser(NamedTuple):
    """Sums over the places that are read.  mixed_AF: KL(q || p) of every share of MIXTURES; heated_T: the same at
    every temperature; log_p_T: mean of log p under q there, log_p_N: at NODES and at 1; count: of the places."""

    mixed_AF: Array
    heated_T: Array
    log_p_T: Array
    log_p_N: Array
    count: Array


def own_coarser(view: View) -> Coarser:
    place_Bs, full_BsV, others, _ = view.of_full(read)
    log_p_BsV = jax.nn.log_softmax(full_BsV, axis=-1)
    p_BsV = jnp.exp(log_p_BsV)

    def mixed(a: Array) -> Array:
        qs = [(1 - a) * p_BsV + a * other for other in others]
        log_qs = [jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny)) for q in qs]
        kls = [(q * (log_q - log_p_BsV)).sum(axis=-1) for q, log_q in zip(qs, log_qs, strict=True)]
        return jnp.stack([summed(kl_Bs, view) for kl_Bs in kls])

    def heated(power: Array) -> tuple[Array, Array]:
        q_BsV = jnp.exp(power * log_p_BsV)
        Z_Bs = q_BsV.sum(axis=-1)  # >= 1 for powers up to 1: nothing overflows
        log_p_Bs = (q_BsV * log_p_BsV).sum(axis=-1) / Z_Bs
        return summed((power - 1) * log_p_Bs - jnp.log(Z_Bs), view), summed(log_p_Bs, view)

    _, log_p_N = lax.map(heated, np.append(NODES, 32) / 32)
    count = summed(jnp.ones(place_Bs.shape), view)
    return Coarser(lax.map(mixed, jnp.asarray(SHARES)), *lax.map(heated, 1 / TEMPERATURES), log_p_N, count)


def coarsened(view: View) -> dict[str, Array]:
    """Sums over tokens: their number, KL(p || degraded), and for each family KL(q || degraded) of each q."""
    place_Bs, full_BsV, others, top_BsK = view.of_full(read)
    degraded_BsV = jnp.take_along_axis(view.logits_BSV, place_Bs[..., None], axis=1)
    delta_BsV = deviation.log_ratio(full_BsV, degraded_BsV, 1.0)
    kl, known = summed(deviation.kl(full_BsV, degraded_BsV, 1.0), view), view.known[own_coarser]
    count = summed(jnp.ones(place_Bs.shape), view)
    own = jax.tree.map(lambda total: total * (count / known.count), known)

    root_BsV = jnp.exp(jax.nn.log_softmax(full_BsV, axis=-1) / 32)
    powers = [root_BsV ** int(node) for node in NODES]
    at_nodes = [(q * delta_BsV).sum(axis=-1) / q.sum(axis=-1) for q in powers]
    moved_N = jnp.stack([*(summed(moved_Bs, view) for moved_Bs in at_nodes), -kl])
    sums = {"temperature": own.heated_T - jnp.interp(own.log_p_T, own.log_p_N, moved_N)}
    for i, family in enumerate(MIXTURES):
        moved = summed((others[i] * delta_BsV).sum(axis=-1), view)
        sums[family] = own.mixed_AF[:, i] + (1 - SHARES) * kl - SHARES * moved
    truncation_KBs = of_truncation(full_BsV, degraded_BsV, top_BsK)
    sums["truncation"] = jnp.stack([summed(kl_Bs, view) for kl_Bs in truncation_KBs])
    return sums | {"kl": kl, "count": count}


def of_truncation(full_BsV: Array, degraded_BsV: Array, top_BsK: Array) -> Array:
    """KL(q || d) of what keeps the k most likely tokens, the rest shared evenly [K, B, s]: sums over the kept
    tokens and one over all others, no distribution is written out."""
    log_p_BsV, log_d_BsV = (jax.nn.log_softmax(logits, axis=-1) for logits in (full_BsV, degraded_BsV))
    V = log_p_BsV.shape[-1]
    kept_K = np.arange(1, top_BsK.shape[-1] + 1)
    top, top_d = (jnp.take_along_axis(of, top_BsK, axis=-1) for of in (log_p_BsV, log_d_BsV))
    inside = jnp.cumsum(jnp.exp(top) * (top - top_d), axis=-1)
    rest = jnp.maximum(1 - jnp.cumsum(jnp.exp(top), axis=-1), 0)
    mean_d = (log_d_BsV.sum(axis=-1, keepdims=True) - jnp.cumsum(top_d, axis=-1)) / (V - kept_K)
    outside = jnp.where(rest > 0, rest * (jnp.log(jnp.where(rest > 0, rest / (V - kept_K), 1)) - mean_d), 0)
    return jnp.moveaxis(inside + outside, -1, 0)


def explained_by(*families: str) -> Callable[[dict, Weights], Array]:
    """The share of KL that the best of all coarsenings of these families removes; 0 where there is no KL."""

    def values(sums: dict, weights: Weights) -> Array:
        # between nodes and in f32 it may come out below 0
        least = jnp.maximum(jnp.concatenate([sums[family] for family in families]).min(), 0)
        best = jnp.minimum(sums["kl"], least)
        # a KL that is not finite must stay so: it is not below the bound
        return jnp.where(sums["kl"] <= ROUNDING * sums["count"], 0.0, 1 - best / sums["kl"])

    return values


def best_temperature(sums: dict, weights: Weights) -> Array:
    kl = jnp.append(sums["kl"], sums["temperature"])
    best = jnp.asarray([1, *TEMPERATURES])[jnp.argmin(kl)]
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
        count=itemgetter("count"),
        known=(own_ngrams, own_coarser),
        full=(read,),
        values=explained_by(*families),
        version=4,
    )


METRICS = (
    _explained("explained_by_temperature", "the best temperature from 1 to 8", "temperature"),
    _explained("explained_by_uniform", "the best mixture with a uniform distribution", "uniform"),
    _explained("explained_by_unigram", "the best mixture with its own unigram", "unigram"),
    _explained("explained_by_bigram", "the best mixture with its own bigram", "bigram"),
    _explained("explained_by_truncation", "the best number of tokens kept, up to 64", "truncation"),
    _explained("explained_by_coarsening", "the best of temperature, mixtures and truncation", *FAMILIES),
    Statistic(
        name="resolution_temperature",
        unit="",
        meaning="the temperature from 1 to 8 at which the undegraded model is closest to the degraded one",
        better="lower",
        relative=True,
        gather=coarsened,
        count=itemgetter("count"),
        known=(own_ngrams, own_coarser),
        full=(read,),
        values=best_temperature,
        version=4,
    ),
    Statistic(
        name="calibration_error",
        unit="fraction",
        meaning="expected calibration error, 15 bins: mean of |accuracy - confidence| over scored tokens",
        better="lower",
        gather=calibration,
        count=lambda sums: sums[0].sum(),
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
