"""What the heads of a degraded model attend to: how alike the heads of a layer are, how spread each is, and how
alike its queries are, neighbours and any two.

Maps of a few queries of every other sequence are read, in PAIRS of neighbours.  They are made again from queries
and keys: what a forward pass hands over are the maps of all queries.
"""

from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.contract import Place, Statistic, Sums, Weights, layers
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


def entropy(map_C: Array) -> Array:
    """In nats, over the last axis."""
    return -jnp.sum(map_C * jnp.log(jnp.maximum(map_C, jnp.finfo(jnp.float32).tiny)), axis=-1)


def cosine(dot: Array, square: Array, other: Array) -> Array:
    """From the product of two vectors and their squared norms; 0 where one is 0."""
    norm = jnp.sqrt(square) * jnp.sqrt(other)
    return jnp.where(norm > 0, dot / jnp.where(norm > 0, norm, 1), 0)


def total(value_BQ: Array, weight_B: Array) -> Array:
    """Of [.., B, Q] over sequences and queries."""
    return jnp.einsum("...bq,b->...", value_BQ, weight_B)


def of_layer(map_HBQC: Array, q_HBQK: Array, at_Q: np.ndarray, weight_B: Array) -> dict[str, Array]:
    """Sums over sequences and over queries at `queries`: of heads [H] and of their pairs g < h [P]."""
    entropy_HBQ, square_HBQ = entropy(map_HBQC), jnp.sum(map_HBQC**2, axis=-1)

    def of_pair(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        g, h = pair
        mixed_BQ = entropy((map_HBQC[g] + map_HBQC[h]) / 2)
        divergence_BQ = mixed_BQ - (entropy_HBQ[g] + entropy_HBQ[h]) / 2
        dot_BQ = jnp.sum(map_HBQC[g] * map_HBQC[h], axis=-1)
        cosine_BQ = cosine(dot_BQ, square_HBQ[g], square_HBQ[h])
        return total(divergence_BQ, weight_B), total(cosine_BQ, weight_B)

    divergence_P, cosine_P = lax.map(of_pair, np.triu_indices(len(map_HBQC), 1), batch_size=AT_ONCE)
    sums = {"entropy": total(entropy_HBQ, weight_B), "divergence": divergence_P, "cosine": cosine_P}
    return sums | of_queries(map_HBQC, square_HBQ, q_HBQK, at_Q, weight_B)


def of_queries(
    map_HBQC: Array, square_HBQ: Array, q_HBQK: Array, at_Q: np.ndarray, weight_B: Array
) -> dict[str, Array]:
    """Sums [H] over sequences and pairs of queries of a head: of the cosines between their maps, over the keys that
    both see, of neighbours and of all, and between the queries themselves."""
    early_R, late_R = query_pairs(at_Q)
    cosine_HBR = shared_cosine(map_HBQC, square_HBQ, at_Q)
    q = q_HBQK.astype(jnp.float32)
    size_HBQ = jnp.sum(q**2, axis=-1)
    dot_HBR = jnp.sum(q[:, :, early_R] * q[:, :, late_R], axis=-1)
    vectors_HBR = cosine(dot_HBR, size_HBQ[:, :, early_R], size_HBQ[:, :, late_R])
    next_R = at_Q[late_R] == at_Q[early_R] + 1
    return {
        "next": total(cosine_HBR[..., next_R], weight_B),
        "maps": total(cosine_HBR, weight_B),
        "vectors": total(vectors_HBR, weight_B),
    }


def shared_cosine(map_HBQC: Array, square_HBQ: Array, at_Q: np.ndarray) -> Array:
    """Between the maps of two queries over the keys that both see, of `query_pairs` [H, B, R]."""
    early_R, late_R = query_pairs(at_Q)
    both_see = np.arange(map_HBQC.shape[-1]) <= at_Q[early_R, None]
    before, after = map_HBQC[:, :, early_R], jnp.where(both_see, map_HBQC[:, :, late_R], 0)
    largest = jnp.max(after, axis=-1, keepdims=True)  # of a query that sees itself only, squares would be 0
    after = after / jnp.where(largest > 0, largest, 1)
    return cosine(jnp.sum(before * after, axis=-1), square_HBQ[:, :, early_R], jnp.sum(after**2, axis=-1))


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


def vendi_score(similarity_HH: Array) -> Array:
    """exp of the entropy of the eigenvalues of similarity / H, whose diagonal is 1: H where nothing is alike, 1
    where all is the same (Friedman & Dieng 2023, arXiv 2210.02410, definition 3.1)."""
    share_H = jnp.linalg.eigvalsh(similarity_HH / len(similarity_HH))
    return jnp.exp(entropy(jnp.maximum(share_H, 0)))


def divergence_of_pairs(sums: Sums, weights: Weights) -> Array:
    return sums["divergence"] / sums["n"]


def cosine_of_pairs(sums: Sums, weights: Weights) -> Array:
    return sums["cosine"] / sums["n"]


def mean_divergence(sums: Sums, weights: Weights) -> Array:
    return _mean(divergence_of_pairs(sums, weights))


def mean_cosine(sums: Sums, weights: Weights) -> Array:
    return _mean(cosine_of_pairs(sums, weights))


def _mean(pairs_LP: Array) -> Array:
    """[L], [0] where there are no pairs."""
    return pairs_LP.mean(axis=1) if pairs_LP.size else pairs_LP.ravel()


def head_entropy(sums: Sums, weights: Weights) -> Array:
    return sums["entropy"] / sums["n"]


def layer_entropy(sums: Sums, weights: Weights) -> Array:
    return head_entropy(sums, weights).mean(axis=1)


def query_cosine(sums: Sums, weights: Weights) -> Array:
    return sums["next"] / sums["next_pairs"]


def query_pair_cosine(sums: Sums, weights: Weights) -> Array:
    return sums["maps"] / sums["pairs"]


def query_vector_cosine(sums: Sums, weights: Weights) -> Array:
    return sums["vectors"] / sums["pairs"]


def effective_heads(sums: Sums, weights: Weights) -> Array:
    H = weights.shape.n_heads
    return jax.vmap(lambda pairs_P: vendi_score(symmetric(pairs_P, H, 1.0)))(cosine_of_pairs(sums, weights))


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
        version=2,
    )


METRICS = (
    _statistic(
        "head_divergence", "nats", mean_divergence, layers_of_heads,
        "Jensen-Shannon divergence between the attention maps of two heads of a layer, mean over pairs and queries",
    ),
    _statistic(
        "head_pair_divergence", "nats", divergence_of_pairs, head_pairs,
        "Jensen-Shannon divergence between the attention maps of two heads of a layer, mean over queries",
    ),
    _statistic(
        "head_cosine", "", mean_cosine, layers_of_heads,
        "cosine between the attention maps of two heads of a layer, mean over pairs and queries",
    ),
    _statistic(
        "head_pair_cosine", "", cosine_of_pairs, head_pairs,
        "cosine between the attention maps of two heads of a layer, mean over queries",
    ),
    _statistic(
        "effective_heads", "heads", effective_heads, layers,
        "heads of a layer that attend differently: exp of the entropy of the eigenvalues of the cosines between "
        "their maps, divided by their number",
    ),
    _statistic(
        "attention_entropy", "nats", layer_entropy, layers,
        "entropy of the attention of a query, mean over queries and the heads of a layer",
    ),
    _statistic(
        "head_entropy", "nats", head_entropy, heads,
        "entropy of the attention of a query, mean over queries",
    ),
    _statistic(
        "query_cosine", "", query_cosine, heads,
        "cosine between the attention of a query and of the next one, over the keys that both see",
        of="next_pairs",
    ),
    _statistic(
        "query_pair_cosine", "", query_pair_cosine, heads,
        "cosine between the attention of two queries, over keys that both see, mean over all pairs of a sequence",
        of="pairs",
    ),
    _statistic(
        "query_vector_cosine", "", query_vector_cosine, heads,
        "cosine between two queries, as keys are multiplied with them, mean over all pairs of a sequence",
        of="pairs",
    ),
)  # fmt: skip
