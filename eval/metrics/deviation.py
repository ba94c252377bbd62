"""How far a vector has moved: cosine and angle, the change along and across it, and what the change of logits does
to probabilities, exactly and to second order.  Arrays in, arrays out; the last axis is the vector.

Definitions of "Demystifying When Pruning Works via Representation Hierarchies", with p = softmax(z / T).  It has
two conventions.  generation: weights p of the undegraded model and KL(undegraded || degraded).  transition:
weights of the degraded model and KL(degraded || undegraded).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.largest import choice, lead

Convention = Literal["generation", "transition"]
EPS = 1e-12  # of the source
NEAR = 0.25  # e^d - 1 - d as a series is exact to 2e-7 below, as it is written to 4e-6 above
NOTHING = 1e-6  # a vector shrunk to less of its length is rounding: it has no direction


class Split(NamedTuple):
    """Length of a change along the vector and across it, both divided by the length of the vector, [...]."""

    parallel: Array
    orthogonal: Array


class Geometry(NamedTuple):
    """A changed vector against the one before, [...].  cosine; angle in degrees; distance = 1 - cosine, exact for
    small angles too; parallel, orthogonal: `Split`."""

    cosine: Array
    angle: Array
    distance: Array
    parallel: Array
    orthogonal: Array


class SecondOrder(NamedTuple):
    """Estimates of 1 - cosine of the probabilities and of their KL in nats, [...]."""

    distance: Array
    kl: Array


def _along(v: Array, change: Array) -> tuple[Array, Split]:
    """The change along v as a multiple of v, and the split."""
    multiple = jnp.sum(change * v, axis=-1) / (jnp.sum(v * v, axis=-1) + EPS)
    across = change - multiple[..., None] * v
    length = _length(v)
    parallel, orthogonal = jnp.abs(multiple) * length, _length(across)
    return multiple, Split(parallel / (length + EPS), orthogonal / (length + EPS))


def _length(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(v * v, axis=-1))


def split(v: Array, change: Array) -> Split:
    """The change [..., X] of v [..., X] along v and across it."""
    return _along(v, change)[1]


def geometry(v: Array, changed: Array) -> Geometry:
    """`changed` against v, both [..., X].

    The angle is atan2(across, along): acos of an f32 cosine knows no angle below .02 degrees.  A vector of zeros
    has no direction: its cosine is 0.
    """
    v, changed = v.astype(jnp.float32), changed.astype(jnp.float32)
    multiple, parts = _along(v, changed - v)
    none = (parts.orthogonal < NOTHING) & (jnp.abs(1 + multiple) < NOTHING)
    radians = jnp.where(none, jnp.pi / 2, jnp.arctan2(parts.orthogonal, 1 + multiple))
    distance = 2 * jnp.square(jnp.sin(radians / 2))
    return Geometry(1 - distance, jnp.degrees(radians), distance, *parts)


def cosine(v: Array, changed: Array) -> Array:
    """[..., X] and [..., X] -> [...]."""
    return geometry(v, changed).cosine


def angle(v: Array, changed: Array) -> Array:
    """[..., X] and [..., X] -> degrees [...]."""
    return geometry(v, changed).angle


def weighted_variance(x: Array, weights: Array) -> Array:
    """Variance of x [..., X] under weights [..., X] that sum to 1."""
    mean = jnp.sum(weights * x, axis=-1, keepdims=True)
    return jnp.sum(weights * jnp.square(x - mean), axis=-1)


def log_softmax(z: Array) -> Array:
    """As jax.nn has it, but that the sum is, to the letter, the one that the loss has: XLA computes it once."""
    return z - jax.nn.logsumexp(z, axis=-1)[..., None]


def log_ratio(z: Array, changed: Array, temperature: Array | float) -> Array:
    """log q - log p of the distributions q of changed logits [..., V] and p of logits [..., V].  The change of the
    logits comes first: of two logarithms nearly alike the difference would be rounding."""
    p_norm, q_norm = (jax.nn.logsumexp(logits / temperature, axis=-1)[..., None] for logits in (z, changed))
    return (changed - z) / temperature - (q_norm - p_norm)


def kl(z: Array, changed: Array, temperature: Array | float, convention: Convention = "generation") -> Array:
    """KL in nats between the distributions of logits [..., V] and changed logits [..., V]; [...].

    As sum p (e^d - 1 - d), d = log q - log p: no term is below 0 and all are of second order, so a small KL is as
    exact as a large one.  Sum -p d is the same, but the terms of first order cancel to rounding only.
    """
    if convention == "transition":
        z, changed = changed, z
    log_p, log_q = (log_softmax(logits / temperature) for logits in (z, changed))
    return _kl(log_p, log_q, log_ratio(z, changed, temperature))


def kl_of_known(z: Array, changed: Array, norm: Array) -> Array:
    """`kl` at temperature 1, where the logsumexp [...] of z is known."""
    changed_norm = jax.nn.logsumexp(changed, axis=-1)
    d = changed - z - (changed_norm - norm)[..., None]
    return _kl(z - norm[..., None], changed - changed_norm[..., None], d)


def _kl(log_p: Array, log_q: Array, d: Array) -> Array:
    p = jnp.exp(log_p)
    near = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d / 720))))
    return jnp.sum(jnp.where(jnp.abs(d) < NEAR, p * near, jnp.exp(log_q) - p - p * d), axis=-1)


def second_order(
    z: Array, change: Array, temperature: Array | float, convention: Convention = "generation"
) -> SecondOrder:
    """What a change [..., V] of logits z [..., V] does to p = softmax(z / T), to second order in the change.

    1 - cosine = Var_r(change) / (2 T^2), r = p^2 / sum p^2 (Theorem 2); KL = Var_p(change) / (2 T^2) (Theorem 3).
    """
    p = jax.nn.softmax((z + change if convention == "transition" else z) / temperature, axis=-1)
    r = p * p / (jnp.sum(p * p, axis=-1, keepdims=True) + EPS)
    return SecondOrder(*(weighted_variance(change, w) / (2 * temperature**2) for w in (r, p)))


def kl_of_top(z: Array, change: Array, temperature: Array | float, k: int) -> Array:
    """The estimate of KL from the k largest of logits [..., V] and their change, as if there were no others."""
    top, index = lax.top_k(z, k)
    p = jax.nn.softmax(top / temperature, axis=-1)
    return weighted_variance(jnp.take_along_axis(change, index, axis=-1), p) / (2 * temperature**2)


def kl_of_uniform(change: Array, temperature: Array | float) -> Array:
    """The estimate of KL where all tokens are as likely as each other."""
    return jnp.var(change, axis=-1) / (2 * temperature**2)


def distance_estimate(orthogonal: Array) -> Array:
    """1 - cosine to second order in the change, from its relative length across the vector (Theorem 1)."""
    return jnp.square(orthogonal) / 2


def margin(z: Array) -> Array:
    """The largest of logits [..., V] less the second largest."""
    return kept_margin(z, z)


def kept_margin(z: Array, changed: Array) -> Array:
    """The changed logit [..., V] of the choice of z [..., V], less the largest of the others: below 0 where another
    is chosen."""
    return lead(changed, choice(z))


def entropy(z: Array) -> Array:
    """Entropy in nats of the distribution of logits [..., V]."""
    log_p = log_softmax(z)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
