"""How far the final state has moved, space by space: residual stream, behind the final norm, logits, probabilities;
beside it isotropic noise of the same length, and second-order estimates.  (Claim: probabilities are fragile where
logits look robust.  In a null model they are too, hence the noise.)

All spaces are compared at the same tokens, one of thirty-two: what costs is probabilities, at every temperature.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.deviation import (
    Geometry,
    choice,
    distance_estimate,
    geometry,
    kept_margin,
    kl,
    kl_of_top,
    kl_of_uniform,
    margin,
    second_order,
)
from wane.eval.metrics.once import once
from wane.eval.metrics.view import View
from wane.scaling.edit import Params
from wane.scaling.model import normalize, unembed
from wane.scaling.shape import Shape

# "unnormed logit": the unembedding of the state without the final norm.  Centred: less the mean over the
# vocabulary, which softmax does not see and which brings cosines near 1.
VECTORS = ("embedding", "normed", "unnormed logit", "logit", "centred logit")
TEMPERATURES = (0.3, 0.5, 1.0, 1.5)
RUN = 32  # one token of each run of so many is compared
NOISE_SEED = 0
TOPS = 5, 10  # of the undegraded logits
ROUGH = ("uniform", *(f"top {k}" for k in TOPS))
MARGINS = ("undegraded", "degraded", "kept")


class Compared(NamedTuple):
    """A changed state against the undegraded one.  places: VECTORS, then probabilities at each temperature,
    [P, B, n]; kl_TBn in nats; agree_Bn: whether both predict the same token."""

    places: Geometry
    kl_TBn: Array
    agree_Bn: Array


class Comparison(NamedTuple):
    """The changed state, the undegraded one under noise, and second-order estimates of the first: 1 - cosine at
    all places [P, B, n] and KL [T, B, n].  margin_3Bn: in the order of MARGINS.  rough_3Bn: KL at temperature 1
    estimated from less, in the order of ROUGH."""

    real: Compared
    noise: Compared
    distance_PBn: Array
    kl_TBn: Array
    margin_3Bn: Array
    rough_3Bn: Array


class Sample(NamedTuple):
    """Positions [B, n], and how many tokens each stands for, in units of their mean: 1 on average in every run."""

    place_Bn: np.ndarray
    weight_Bn: np.ndarray


@functools.lru_cache(maxsize=32)
def sample(batch: int, length: int) -> Sample:
    """One position of each run of RUN, at random: a task of fixed layout is then seen everywhere.  Of as many
    sequences as a run has octaves (`groups.position`) or more, some read each of its octaves: the first positions
    would else be missing from most batches."""
    rng, places, weights = np.random.default_rng(0), [], []
    for first in range(0, length, RUN):
        position = np.arange(first, min(first + RUN, length))
        _, begins, size = np.unique(np.log2(1 + position).astype(int), return_index=True, return_counts=True)
        if batch < len(size):
            begins, size = np.zeros(1, int), np.array([len(position)])
        reads = np.ones_like(size)
        for _ in range(batch - len(size)):
            reads[np.argmax(size / reads)] += 1
        octave_B = rng.permutation(np.repeat(np.arange(len(size)), reads))
        places.append(first + begins[octave_B] + rng.integers(0, size[octave_B]))
        weights.append((size / reads)[octave_B] * batch / len(position))
    return Sample(np.stack(places, axis=1), np.stack(weights, axis=1).astype(np.float32))


def sampled(batch: int, length: int, run: int) -> np.ndarray:
    """Positions [B, n]: one of each run of so many, at random."""
    first_n = np.arange(0, length, run)
    offset_Bn = np.random.default_rng(0).integers(0, np.minimum(run, length - first_n), (batch, len(first_n)))
    return first_n + offset_Bn


def at_sampled(x: Array, run: int | None = None) -> Array:
    """[..., B, S, X] at the tokens of `sample`, or of `sampled` by runs of so many, [..., B, n, X]."""
    B, S, _ = x.shape[-3:]
    place_Bn = sample(B, S).place_Bn if run is None else sampled(B, S, run)
    return x[..., np.arange(B)[:, None], place_Bn, :]


def scattered(value_Bn: Array, length: int) -> tuple[Array, Array]:
    """(value, counted) of all tokens [B, S] from those of the sampled ones."""
    B = len(value_Bn)
    place = np.arange(B)[:, None], sample(B, length).place_Bn
    return jnp.zeros((B, length)).at[place].set(value_Bn), jnp.zeros((B, length), bool).at[place].set(True)


def summed(*values_PBn: Array, length: int) -> tuple[Array, Array]:
    """(sum, count) over the sampled tokens of sequences of this length, [B, P], of places [P, B, n] one after the
    other; each token counts as many as it stands for."""
    value_PBn = jnp.concatenate(values_PBn)
    P, B, _ = value_PBn.shape
    weight_Bn = sample(B, length).weight_Bn
    count_BP = np.repeat(weight_Bn.sum(axis=1, keepdims=True), P, axis=1)
    return (value_PBn * weight_Bn).sum(axis=-1).T, jnp.asarray(count_BP)


def normed(params: Params, x: Array, shape: Shape) -> Array:
    """The state behind the final norm, [..., D]."""
    norm = params.get("final_norm", {})
    return normalize(x, norm.get("scale"), norm.get("bias"), shape.norm_eps)


def in_spaces(params: Params, x_BnD: Array, shape: Shape) -> tuple[Array, ...]:
    """A final state in each of VECTORS."""
    without = {name: leaf for name, leaf in params.items() if name != "final_norm"}
    z_BnV = unembed(params, x_BnD, shape)
    centred_BnV = z_BnV - z_BnV.mean(axis=-1, keepdims=True)
    return x_BnD, normed(params, x_BnD, shape), unembed(without, x_BnD, shape), z_BnV, centred_BnV


def noisy(x: Array, changed: Array, key: Array) -> Array:
    """x [..., D] and isotropic noise, as long as the change is."""
    noise, change = jax.random.normal(key, x.shape), (changed - x).astype(jnp.float32)
    change_length, noise_length = (jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (change, noise))
    return (x + noise * change_length / noise_length).astype(x.dtype)


def noise_key(view: View) -> Array:
    """A number of the tokens: all members and severities of one width get the same directions."""
    return jax.random.fold_in(jax.random.key(NOISE_SEED), view.batch.tokens_BT.sum())


def compare(
    models: tuple[Params, Params], vectors: tuple[Array, ...], changed_x: Array, key: Array, shape: Shape,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> Comparison:  # fmt: skip
    """A changed state [B, n, D] against the undegraded one as `in_spaces` tells it, each read by the final norm and
    the unembedding of its own of two models.  Noise acts before the undegraded ones."""
    params, degraded = models
    moved = in_spaces(degraded, changed_x, shape)
    under_noise = in_spaces(params, noisy(vectors[0], changed_x, key), shape)
    z, changed_z, noisy_z = (of[VECTORS.index("logit")] for of in (vectors, moved, under_noise))

    def at(temperature: Array) -> tuple:
        p, q, noisy_p = (jax.nn.softmax(logits / temperature, axis=-1) for logits in (z, changed_z, noisy_z))
        real = geometry(p, q), kl(z, changed_z, temperature)
        null = geometry(p, noisy_p), kl(z, noisy_z, temperature)
        return real, null, second_order(z, changed_z - z, temperature)

    real, null, estimate = jax.vmap(at)(jnp.asarray(temperatures))
    top, changed_top, noisy_top = (choice(logits) for logits in (z, changed_z, noisy_z))
    real, null = (
        Compared(_places(vectors, ours, of_p), kl_TBn, top == ours_top)
        for (of_p, kl_TBn), ours, ours_top in ((real, moved, changed_top), (null, under_noise, noisy_top))
    )
    of_vectors = distance_estimate(real.places.orthogonal[: len(VECTORS)])
    distance_PBn = jnp.concatenate([of_vectors, estimate.distance])
    margin_3Bn = jnp.stack([margin(z), margin(changed_z), kept_margin(z, changed_z)])
    few = [kl_of_top(z, changed_z - z, 1.0, min(k, shape.vocab)) for k in TOPS]
    rough_3Bn = jnp.stack([kl_of_uniform(changed_z - z, 1.0), *few])
    return Comparison(real, null, distance_PBn, estimate.kl, margin_3Bn, rough_3Bn)


def _places(vectors: tuple[Array, ...], changed: tuple[Array, ...], of_p: Geometry) -> Geometry:
    """[P, B, n] of each field: VECTORS, then probabilities."""
    each = [geometry(v, w) for v, w in zip(vectors, changed, strict=True)]
    return jax.tree.map(lambda of_p_TBn, *rest: jnp.stack([*rest, *of_p_TBn]), of_p, *each)


def final_state(view: View) -> tuple[Array, ...]:
    """That of the undegraded model at the sampled tokens, `in_spaces`."""
    return in_spaces(view.params, at_sampled(view.full_x_BSD), view.shape)


@once
def comparison(view: View) -> Comparison:
    """Of the final states at the sampled tokens."""
    models, changed_BnD = (view.params, view.degraded), at_sampled(view.x_BSD)
    return compare(models, view.of_full(final_state), changed_BnD, noise_key(view), view.shape)
