"""Overlap of representations: how much of what a model holds it holds twice, across layers, neurons and tokens,
and how much of the undegraded model's residual stream is left.

A level l is the residual stream that enters block l; level L that behind the last block.  Covariances are summed
over a 16th of all tokens.  The unbiased CKA takes one minibatch of 64 tokens from each batch of the evaluation,
whose sequences are mostly of one task: it compares tokens inside of tasks.  A CKA of what does not vary is not
defined.
"""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics import neurons
from wane.eval.metrics.cka import alignment, hsic_each, hsic_pairs, kernel, unbiased_alignment
from wane.eval.metrics.contract import Place, Statistic, Sums, Weights
from wane.eval.metrics.moments import (
    Positions,
    centre,
    chosen,
    covariance,
    few,
    moments,
    own_covariance,
    participation_ratio,
    products,
    spaced,
    weight,
)
from wane.eval.metrics.once import once
from wane.eval.metrics.view import View
from wane.scaling.model import Inner
from wane.scaling.shape import Shape


def levels(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place("layer", float(l)) for l in range(shape.n_layers + 1))


def level_pairs(shape: Shape) -> tuple[Place, ...]:
    rows, columns = np.triu_indices(shape.n_layers + 1, 1)
    return tuple(Place("layer", float(l), float(m)) for l, m in zip(rows, columns, strict=True))


def raw_and_centred_pairs(shape: Shape) -> tuple[Place, ...]:
    return tuple(pair._replace(part=part) for part in ("raw", "centred") for pair in level_pairs(shape))


def neighbours(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place("layer", float(l), float(l + 1)) for l in range(shape.n_layers))


def raw_and_centred(shape: Shape) -> tuple[Place, ...]:
    return Place(part="raw"), Place(part="centred")


def entering_spaced(inner: Inner) -> Array:
    """The residual stream that enters a block, at `spaced` positions [N, D]."""
    return chosen(inner["block_in"], spaced)


def entering_few(inner: Inner) -> Array:
    """The same at `few`."""
    return chosen(inner["block_in"], few)


ENTERING = {spaced: entering_spaced, few: entering_few}


def degraded(view: View, positions: Positions) -> Array:
    """Every level of the degraded model [L + 1, N, D]."""
    return jnp.concatenate([view.inside[ENTERING[positions]], chosen(view.x_BSD, positions)[None]])


@once
def residual_moments(view: View) -> Sums:
    """`moments` of every level, and the products of each with the next [L, D, D]."""
    x, weight_N = degraded(view, spaced), weight(view, spaced)
    return moments(x, weight_N) | {"next": products(x[:-1], x[1:], weight_N)}


def stream_moments(view: View) -> tuple[Sums, Sums, Array]:
    """`moments` of every level of the degraded model and of the undegraded one, and their products."""
    y, weight_N = chosen(view.stream, spaced), weight(view, spaced)
    cross = products(degraded(view, spaced), y, weight_N)
    return residual_moments(view), moments(y, weight_N), cross


@once
def residual_kernels(view: View) -> Array:
    """Of a minibatch, [L + 1, N, N]."""
    return jax.vmap(kernel, (0, None))(degraded(view, few), weight(view, few))


def layer_hsic(view: View) -> tuple[Array, Array]:
    """Of all pairs of levels [L + 1, L + 1], and the number of tokens."""
    k_LNN, n = residual_kernels(view), weight(view, few).sum()
    return n * hsic_pairs(k_LNN, k_LNN, n), n


def level_directions(view: View) -> Sums:
    """Number of tokens of a minibatch, and sums over them of the cosines between all levels [L + 1, L + 1]: as they
    are, and without each level's mean."""
    x_LND, weight_N = degraded(view, few), weight(view, few)
    n = weight_N.sum()
    mean_L1D = jnp.einsum("n,lnd->ld", weight_N, x_LND)[:, None] / jnp.maximum(n, 1)

    def cosines(x_LND: Array) -> Array:
        norm_LN1 = jnp.linalg.norm(x_LND, axis=-1, keepdims=True)
        unit_LND = x_LND / jnp.where(norm_LN1 > 0, norm_LN1, 1)
        # One product of L + 1 rows of all tokens: of each token it would be many of next to nothing.
        rows = (unit_LND * jnp.sqrt(weight_N)[:, None]).reshape(len(unit_LND), -1)
        return rows @ rows.T

    return {"n": n, "raw": cosines(x_LND), "centred": cosines(x_LND - mean_L1D)}


def stream_hsic(view: View) -> tuple[Array, Array, Array, Array]:
    """[L + 1] each: of the degraded stream with itself, of the undegraded one, and of both; and the number of
    tokens."""
    weight_N = weight(view, few)
    k_LNN = residual_kernels(view)
    m_LNN = jax.vmap(kernel, (0, None))(chosen(view.stream, few), weight_N)
    return *hsic_of(k_LNN, m_LNN, weight_N.sum()), weight_N.sum()


def hsic_of(k_LNN: Array, m_LNN: Array, n: Array) -> tuple[Array, Array, Array]:
    """[L + 1] each: of the first kernels with themselves, of the second ones, and of both."""
    pairs = (k_LNN, k_LNN), (m_LNN, m_LNN), (k_LNN, m_LNN)
    return tuple(n * hsic_each(k, m, n) for k, m in pairs)


def token_directions(view: View) -> Sums:
    """Sums over tokens and over pairs of them, of the final state's direction: as it is, and as it is without the
    mean of the batch."""
    x, weight_N = view.x_BSD.reshape(-1, view.shape.d_model).astype(jnp.float32), view.weight_BS.ravel()
    n = weight_N.sum()
    mean_D = weight_N @ x / n

    def both(x_ND: Array) -> Array:
        norm_N = jnp.linalg.norm(x_ND, axis=-1)
        return weight_N / jnp.where(norm_N > 0, norm_N, 1) @ x_ND

    return {"raw": both(x), "n": n, "centred": jnp.sum(both(x - mean_D) ** 2) - n, "pairs": n * (n - 1)}


def residual_dimensions(sums: Sums, weights: Weights) -> Array:
    return participation_ratio(own_covariance(sums))


def neighbour_cka(sums: Sums, weights: Weights) -> Array:
    cov, of = own_covariance(sums), centre(sums)
    before, behind = jax.tree.map(lambda a: a[:-1], of), jax.tree.map(lambda a: a[1:], of)
    cross = covariance(sums["next"], before, behind, sums["n"])
    return jax.vmap(alignment)(cov[:-1], cov[1:], cross)


def stream_cka(sums: Sums, weights: Weights) -> Array:
    x, y, cross = sums
    cross = covariance(cross, centre(x), centre(y), x["n"])
    return jax.vmap(alignment)(own_covariance(x), own_covariance(y), cross)


def unbiased_layer_cka(sums: Sums, weights: Weights) -> Array:
    hsic_LL, _ = sums
    own_L = jnp.diagonal(hsic_LL)
    cka_LL = unbiased_alignment(own_L[:, None], own_L, hsic_LL)
    return cka_LL[np.triu_indices(len(own_L), 1)]


def level_cosine(sums: Sums, weights: Weights) -> Array:
    upper = np.triu_indices(weights.shape.n_layers + 1, 1)
    return jnp.stack([sums[name][upper] for name in ("raw", "centred")]) / sums["n"]


def unbiased_stream_cka(sums: Sums, weights: Weights) -> Array:
    xx_L, yy_L, xy_L, *_ = sums  # pairs of members have no count beside them
    return unbiased_alignment(xx_L, yy_L, xy_L)


def token_cosine(sums: Sums, weights: Weights) -> Array:
    n = sums["n"]
    return jnp.stack([(jnp.sum(sums["raw"] ** 2) - n) / (n * (n - 1)), sums["centred"] / sums["pairs"]])


_SAMPLED = ", in a 16th of all tokens"
_MINIBATCH = ", in minibatches of 64 tokens of one batch each"

METRICS = (
    *neurons.METRICS,
    Statistic(
        name="layer_cka",
        version=3,
        unit="",
        meaning="unbiased linear CKA of the residual stream between two levels" + _MINIBATCH,
        better="neither",
        places=level_pairs,
        gather=layer_hsic,
        count=itemgetter(-1),
        values=unbiased_layer_cka,
        inside=entering_few,
    ),
    Statistic(
        name="level_cosine",
        version=3,
        unit="",
        meaning="mean cosine between the residual streams of a token at two levels; centred: without each level's"
        " mean over the minibatch" + _MINIBATCH,
        better="neither",
        places=raw_and_centred_pairs,
        gather=level_directions,
        count=itemgetter("n"),
        values=level_cosine,
        inside=entering_few,
    ),
    Statistic(
        name="neighbour_cka",
        version=2,
        unit="",
        meaning="linear CKA of the residual stream before and behind a block" + _SAMPLED,
        better="neither",
        places=neighbours,
        gather=residual_moments,
        count=itemgetter("n"),
        values=neighbour_cka,
        inside=entering_spaced,
    ),
    Statistic(
        name="stream_cka",
        version=2,
        unit="",
        meaning="linear CKA of the residual stream with that of the undegraded model" + _SAMPLED,
        better="higher",
        places=levels,
        gather=stream_moments,
        count=lambda sums: sums[0]["n"],
        values=stream_cka,
        relative=True,
        streams=True,
        inside=entering_spaced,
    ),
    Statistic(
        name="stream_cka_unbiased",
        version=3,
        unit="",
        meaning="unbiased linear CKA of the residual stream with that of the undegraded model" + _MINIBATCH,
        better="higher",
        places=levels,
        gather=stream_hsic,
        count=itemgetter(-1),
        values=unbiased_stream_cka,
        relative=True,
        streams=True,
        inside=entering_few,
    ),
    Statistic(
        name="residual_dimensions",
        version=2,
        unit="dimensions",
        meaning="participation ratio of the covariance of the residual stream" + _SAMPLED,
        better="neither",
        places=levels,
        gather=residual_moments,
        count=itemgetter("n"),
        values=residual_dimensions,
        inside=entering_spaced,
    ),
    Statistic(
        name="token_cosine",
        unit="",
        meaning="mean cosine between the final states of two tokens; centred: without the mean of their batch",
        better="neither",
        places=raw_and_centred,
        gather=token_directions,
        count=itemgetter("n"),
        values=token_cosine,
    ),
)
