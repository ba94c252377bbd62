"""What the heads of a degraded model attend to: how alike the heads of a layer are, how spread each is, and how
alike its queries are, neighbours and any two.

Maps of a few queries of every other sequence are read, in PAIRS of neighbours.  They are made again from queries
and keys: what a forward pass hands over are the maps of all queries.  A removed head, whose output nothing reads,
has queries and keys still; it is left out.
"""

from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.contract import Place, Statistic, Sums, Weights, layers
from wane.eval.metrics.deployment import heads_left
from wane.eval.metrics.view import View
from wane.scaling.attention import attention_map
from wane.scaling.model import Inner
from wane.scaling.shape import Shape

AT_ONCE = 16  # pairs of heads
PAIRS = 2  # of queries of a sequence: more would cost more than they tell, a batch has many sequences


def layers_of_heads(shape: Shape) -> tuple[Place, ...]:
    """Layers, where they have two heads to compare."""
    return layers(shape) if shape.n_heads > 1 else ()


def heads(shape: Shape) -> tuple[Place, ...]:
    return tuple(
        Place("head", float(h), part=f"layer {l}")
        for l in range(shape.n_layers)
        for h in range(shape.n_heads)
    )


def head_pairs(shape: Shape) -> tuple[Place, ...]:
    return tuple(
        Place("head", float(g), float(h), f"layer {l}")
        for l in range(shape.n_layers)
        for g, h in zip(*np.triu_indices(shape.n_heads, 1), strict=True)
    )


def queries(S: int) -> np.ndarray:
    """The positions of the queries that are read, evenly spread, the last included: first of every pair the earlier
    one, then of every pair the later one."""
    count = min(PAIRS, S // 2)
    later = S - 1 - np.arange(count) * S // max(count, 1)
    return np.concatenate([later - 1, later])


def query_pairs(at_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(earlier, later) of all pairs of queries [R], as places in `queries`."""
    a, b = np.triu_indices(len(at_Q), 1)
    return np.where(at_Q[a] < at_Q[b], a, b), np.where(at_Q[a] < at_Q[b], b, a)


def surprise(map_C: Array) -> Array:
    """-p ln p of each entry."""
    return -map_C * jnp.log(jnp.maximum(map_C, jnp.finfo(jnp.float32).tiny))


def entropy(map_C: Array) -> Array:
    """In nats, over the last axis."""
    return jnp.sum(surprise(map_C), axis=-1)


def cosine(dot: Array, square: Array, other: Array) -> Array:
    """From the product of two vectors and their squared norms; 0 where one is 0."""
    norm = jnp.sqrt(square) * jnp.sqrt(other)
    return jnp.where(norm > 0, dot / jnp.where(norm > 0, norm, 1), 0)


def total(value_BQ: Array, weight_B: Array) -> Array:
    """Of [.., B, Q] over sequences and queries."""
    return jnp.einsum("...bq,b->...", value_BQ, weight_B)


def of_layer(map_HBQC: Array, q_HBQK: Array, at_Q: np.ndarray, weight_B: Array) -> dict[str, Array]:
    """Sums over sequences and over queries at `queries`: of heads [H] and of their pairs g < h [P]."""
    surprise_HBQC = surprise(map_HBQC)
    entropy_HBQ, square_HBQ = jnp.sum(surprise_HBQC, axis=-1), jnp.sum(map_HBQC**2, axis=-1)

    def of_pair(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        g, h = pair
        mixed_BQ = entropy((map_HBQC[g] + map_HBQC[h]) / 2)
        divergence_BQ = mixed_BQ - (entropy_HBQ[g] + entropy_HBQ[h]) / 2
        dot_BQ = jnp.sum(map_HBQC[g] * map_HBQC[h], axis=-1)
        cosine_BQ = cosine(dot_BQ, square_HBQ[g], square_HBQ[h])
        return total(divergence_BQ, weight_B), total(cosine_BQ, weight_B)

    divergence_P, cosine_P = lax.map(of_pair, np.triu_indices(len(map_HBQC), 1), batch_size=AT_ONCE)
    sums = {"entropy": total(entropy_HBQ, weight_B), "divergence": divergence_P, "cosine": cosine_P}
    return sums | of_queries(map_HBQC, surprise_HBQC, q_HBQK, at_Q, weight_B)


def of_queries(
    map_HBQC: Array, surprise_HBQC: Array, q_HBQK: Array, at_Q: np.ndarray, weight_B: Array
) -> dict[str, Array]:
    """Sums [H] over sequences and pairs of queries of a head: of Jensen-Shannon divergences and cosines between
    their maps, over the keys that both see, of neighbours and of all, and of cosines between the queries.

    The later query's map is that over the keys that the earlier one sees, so that it sums to 1 there: no key counts
    as a difference because it came later.  Where it leaves nothing for them, divergence is ln 2 and cosine 0.
    """
    early_R, late_R = query_pairs(at_Q)
    both_see = np.arange(map_HBQC.shape[-1]) <= at_Q[early_R, None]
    before, after = map_HBQC[:, :, early_R], jnp.where(both_see, map_HBQC[:, :, late_R], 0)
    left_HBR = jnp.sum(after, axis=-1)
    some_HBR = jnp.where(left_HBR > 0, left_HBR, 1)
    after = after / some_HBR[..., None]
    own_HBR = jnp.sum(surprise_HBQC[:, :, early_R], axis=-1)
    # Of p / c, where c is the sum of p: its entropy without another logarithm of every key.
    other_HBR = jnp.sum(jnp.where(both_see, surprise_HBQC[:, :, late_R], 0), axis=-1)
    other_HBR = other_HBR / some_HBR + jnp.log(some_HBR)
    divergence_HBR = entropy((before + after) / 2) - (own_HBR + other_HBR) / 2
    divergence_HBR = jnp.where(left_HBR > 0, divergence_HBR, np.log(2))
    pairs = (before, after), (before, before), (after, after)
    cosine_HBR = cosine(*(jnp.sum(a * b, axis=-1) for a, b in pairs))
    q = q_HBQK.astype(jnp.float32)
    size_HBQ = jnp.sum(q**2, axis=-1)
    dot_HBR = jnp.sum(q[:, :, early_R] * q[:, :, late_R], axis=-1)
    vectors_HBR = cosine(dot_HBR, size_HBQ[:, :, early_R], size_HBQ[:, :, late_R])
    next_R = at_Q[late_R] == at_Q[early_R] + 1
    return {
        "next_divergence": total(divergence_HBR[..., next_R], weight_B),
        "pair_divergence": total(divergence_HBR, weight_B),
        "next_cosine": total(cosine_HBR[..., next_R], weight_B),
        "pair_cosine": total(cosine_HBR, weight_B),
        "vectors": total(vectors_HBR, weight_B),
    }


def some_maps(inner: Inner) -> tuple[Array, Array]:
    """The maps of a layer that are read, [B / 2, H, Q, C], and their queries [B / 2, Q, H, K]."""
    at_Q = queries(inner["q"].shape[1])
    q_BQHK = inner["q"][::2, at_Q]
    return attention_map(q_BQHK, inner["cached_k"][::2], at_Q), q_BQHK


def maps(view: View) -> Sums:
    """`of_layer` of every layer [L, ..], and of how many queries and pairs of queries it is."""
    at_Q, weight_B = queries(view.weight_BS.shape[1]), view.batch.counted_B[::2]

    def of(read: tuple[Array, Array]) -> dict[str, Array]:
        map_BHQC, q_BQHK = read
        return of_layer(jnp.moveaxis(map_BHQC, 1, 0), jnp.moveaxis(q_BQHK, 2, 0), at_Q, weight_B)

    # All layers at once: a loop over them would be of work too small for several threads.
    sums = jax.vmap(of)(view.inside[some_maps])
    n = weight_B.sum() * len(at_Q)
    return sums | {"n": n, "next_pairs": n / 2, "pairs": n * (len(at_Q) - 1) / 2}


def symmetric(pairs_P: Array, H: int, diagonal: float) -> Array:
    """[H, H] of the values of all pairs g < h."""
    upper = jnp.zeros((H, H)).at[np.triu_indices(H, 1)].set(pairs_P)
    return upper + upper.T + diagonal * jnp.eye(H)


def vendi_score(similarity_HH: Array, left_H: Array) -> Array:
    """exp of the entropy of the eigenvalues of similarity / H of the H that are left, whose diagonal is 1: H where
    nothing is alike, 1 where all is the same (Friedman & Dieng 2023, arXiv 2210.02410, definition 3.1); nan where
    none is left."""
    count = left_H.sum()
    # a removed one has an eigenvalue of 0
    similarity_HH = jnp.where(left_H[:, None] & left_H, similarity_HH, 0)
    share_H = jnp.linalg.eigvalsh(similarity_HH / jnp.maximum(count, 1))
    return jnp.where(count > 0, jnp.exp(entropy(jnp.maximum(share_H, 0))), jnp.nan)


def pairs_left(weights: Weights) -> Array:
    """bool [L, P]: both heads of a pair g < h are left."""
    left_LH = heads_left(weights)
    g_P, h_P = np.triu_indices(weights.shape.n_heads, 1)
    return left_LH[:, g_P] & left_LH[:, h_P]


def of_heads(name: str, count: str) -> Callable[[Sums, Weights], Array]:
    """Mean of a sum [L, H]; nan where the head is removed."""
    return lambda sums, weights: jnp.where(heads_left(weights), sums[name] / sums[count], jnp.nan)


def of_pairs(name: str) -> Callable[[Sums, Weights], Array]:
    """Mean of a sum [L, P]; nan where a head of the pair is removed."""
    return lambda sums, weights: jnp.where(pairs_left(weights), sums[name] / sums["n"], jnp.nan)


def over_layer(values: Callable[[Sums, Weights], Array]) -> Callable[[Sums, Weights], Array]:
    """Mean over the heads or pairs of a layer that are left, [L]; nan where none is; [0] of one head's pairs."""

    def mean(sums: Sums, weights: Weights) -> Array:
        each = values(sums, weights)
        return jnp.nanmean(each, axis=1) if each.size else each.ravel()

    return mean


def effective_heads(sums: Sums, weights: Weights) -> Array:
    H = weights.shape.n_heads
    similarity_LHH = jax.vmap(lambda pairs_P: symmetric(pairs_P, H, 1.0))(sums["cosine"] / sums["n"])
    return jax.vmap(vendi_score)(similarity_LHH, heads_left(weights))


def _statistic(
    name: str, unit: str, values: Callable, places: Callable, meaning: str, of: str = "n"
) -> Statistic:
    return Statistic(
        name=name,
        unit=unit,
        values=values,
        places=places,
        better="neither",
        meaning=meaning,
        gather=maps,
        count=itemgetter(of),
        inside=some_maps,
        version=3,
    )


_SHARED = "over the keys that both see, where each sums to 1"

METRICS = (
    _statistic(
        "head_divergence", "nats", over_layer(of_pairs("divergence")), layers_of_heads,
        "Jensen-Shannon divergence between the attention maps of two heads of a layer, mean over pairs and queries",
    ),
    _statistic(
        "head_pair_divergence", "nats", of_pairs("divergence"), head_pairs,
        "Jensen-Shannon divergence between the attention maps of two heads of a layer, mean over queries",
    ),
    _statistic(
        "head_cosine", "", over_layer(of_pairs("cosine")), layers_of_heads,
        "cosine between the attention maps of two heads of a layer, mean over pairs and queries",
    ),
    _statistic(
        "head_pair_cosine", "", of_pairs("cosine"), head_pairs,
        "cosine between the attention maps of two heads of a layer, mean over queries",
    ),
    _statistic(
        "effective_heads", "heads", effective_heads, layers,
        "heads of a layer that attend differently: exp of the entropy of the eigenvalues of the cosines between "
        "their maps, divided by their number",
    ),
    _statistic(
        "attention_entropy", "nats", over_layer(of_heads("entropy", "n")), layers,
        "entropy of the attention of a query, mean over queries and the heads of a layer",
    ),
    _statistic(
        "head_entropy", "nats", of_heads("entropy", "n"), heads,
        "entropy of the attention of a query, mean over queries",
    ),
    _statistic(
        "query_divergence", "nats", of_heads("next_divergence", "next_pairs"), heads,
        f"Jensen-Shannon divergence between the attention of a query and of the next one, {_SHARED}",
    ),
    _statistic(
        "query_pair_divergence", "nats", of_heads("pair_divergence", "pairs"), heads,
        f"Jensen-Shannon divergence between the attention of two queries, {_SHARED}, mean over all pairs of a "
        "sequence",
    ),
    _statistic(
        "query_cosine", "", of_heads("next_cosine", "next_pairs"), heads,
        "cosine between the attention of a query and of the next one, over the keys that both see",
        of="next_pairs",
    ),
    _statistic(
        "query_pair_cosine", "", of_heads("pair_cosine", "pairs"), heads,
        "cosine between the attention of two queries, over keys that both see, mean over all pairs of a sequence",
        of="pairs",
    ),
    _statistic(
        "query_vector_cosine", "", of_heads("vectors", "pairs"), heads,
        "cosine between two queries, as keys are multiplied with them, mean over all pairs of a sequence",
        of="pairs",
    ),
)  # fmt: skip
