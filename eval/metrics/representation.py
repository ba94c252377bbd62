"""How far a degraded model's representations are from the undegraded one's: whole model, by layer, by position."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics import deviation_layers
from wane.eval.metrics.contract import Place, SequenceMetric, Statistic, TokenMetric, Weights
from wane.eval.metrics.deviation import entropy
from wane.eval.metrics.deviation_spaces import (
    MARGINS,
    TEMPERATURES,
    VECTORS,
    at_sampled,
    comparison,
    normed,
    scattered,
    summed,
)
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape

NOISY = " under noise"
VECTOR_PLACES = tuple(Place(part=part) for part in VECTORS)
PROBABILITY_PLACES = tuple(Place(axis="temperature", at=t, part="probability") for t in TEMPERATURES)
STATES = ("embedding", "normed")


def _with_noise(places: tuple[Place, ...]) -> tuple[Place, ...]:
    return places + tuple(place._replace(part=place.part + NOISY) for place in places)


def all_places(shape: Shape) -> tuple[Place, ...]:
    return VECTOR_PLACES + PROBABILITY_PLACES


def all_places_and_noise(shape: Shape) -> tuple[Place, ...]:
    return _with_noise(VECTOR_PLACES + PROBABILITY_PLACES)


def vectors_and_noise(shape: Shape) -> tuple[Place, ...]:
    return _with_noise(VECTOR_PLACES)


def probabilities(shape: Shape) -> tuple[Place, ...]:
    return PROBABILITY_PLACES


def probabilities_and_noise(shape: Shape) -> tuple[Place, ...]:
    return _with_noise(PROBABILITY_PLACES)


def prediction_and_noise(shape: Shape) -> tuple[Place, ...]:
    return _with_noise((Place(part="probability"),))


def margins(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in MARGINS)


def states(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in STATES)


def moved(field: str, places: slice = slice(None)) -> Callable[[View], tuple[Array, Array]]:
    """A field of `Geometry` at some places, of the degraded state and then of noise."""

    def measure(view: View) -> tuple[Array, Array]:
        both = comparison(view).real, comparison(view).noise
        return summed(*(getattr(changed.places, field)[places] for changed in both))

    return measure


def distance(view: View) -> tuple[Array, Array]:
    return summed(comparison(view).real.places.distance)


def distance_estimate(view: View) -> tuple[Array, Array]:
    return summed(comparison(view).distance_PBn)


def kl_at_temperatures(view: View) -> tuple[Array, Array]:
    return summed(comparison(view).real.kl_TBn, comparison(view).noise.kl_TBn)


def kl_estimate(view: View) -> tuple[Array, Array]:
    return summed(comparison(view).kl_TBn)


def agreement(view: View) -> tuple[Array, Array]:
    both = comparison(view).real, comparison(view).noise
    return summed(jnp.stack([changed.agree_Bn for changed in both]).astype(jnp.float32))


def prediction_margins(view: View) -> tuple[Array, Array]:
    return summed(comparison(view).margin_3Bn)


def prediction_entropy(view: View) -> tuple[Array, Array]:
    return summed(entropy(at_sampled(view.logits_BSV))[None])


def cosine_of_tokens(view: View) -> tuple[Array, Array]:
    return scattered(comparison(view).real.places.cosine[0], view.targets_BS.shape[1])


def kl_of_tokens(view: View) -> tuple[Array, Array]:
    return scattered(comparison(view).real.kl_TBn[TEMPERATURES.index(1.0)], view.targets_BS.shape[1])


def state_moments(view: View) -> tuple[Array, Array, Array]:
    """Number of tokens, sum and sum of squares [2, D] of the final state, before and behind the final norm."""
    both = view.x_BSD, normed(view.degraded, view.x_BSD, view.shape)
    x_2BSD = jnp.stack([x.astype(jnp.float32) for x in both])
    sums = [jnp.einsum("bs,xbsd->xd", view.weight_BS, x) for x in (x_2BSD, x_2BSD * x_2BSD)]
    return view.weight_BS.sum(), *sums


def state_entropy(sums: tuple[Array, Array, Array], weights: Weights) -> Array:
    """ln(2 pi e variance) / 2, mean over the dimensions that vary at all: a removed one would be -inf."""
    count, total_2D, square_2D = sums
    mean_square_2D = square_2D / count
    variance_2D = mean_square_2D - jnp.square(total_2D / count)
    varies_2D = variance_2D > 1e-6 * mean_square_2D  # less is rounding
    nats_2D = 0.5 * jnp.log(2 * np.pi * np.e * jnp.where(varies_2D, variance_2D, 1.0))
    return jnp.where(varies_2D, nats_2D, 0).sum(axis=-1) / jnp.maximum(varies_2D.sum(axis=-1), 1)


_SAMPLED = "; one token of thirty-two"
_AGAINST = (
    " between the degraded and the undegraded final state, by space; under noise: isotropic and as long"
)

METRICS = (
    SequenceMetric(
        name="deviation_cosine",
        unit="",
        meaning="cosine" + _AGAINST + _SAMPLED,
        better="higher",
        measure=moved("cosine"),
        places=all_places_and_noise,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="deviation_angle",
        unit="degrees",
        meaning="angle" + _AGAINST + _SAMPLED,
        better="lower",
        measure=moved("angle"),
        places=all_places_and_noise,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="deviation_orthogonal",
        unit="",
        meaning="length of the change across the undegraded final state, over the state's length" + _SAMPLED,
        better="lower",
        measure=moved("orthogonal", slice(len(VECTORS))),
        places=vectors_and_noise,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="deviation_parallel",
        unit="",
        meaning="length of the change along the undegraded final state, over the state's length" + _SAMPLED,
        better="lower",
        measure=moved("parallel", slice(len(VECTORS))),
        places=vectors_and_noise,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="deviation_distance",
        unit="",
        meaning="1 - cosine between the degraded and the undegraded final state, by space" + _SAMPLED,
        better="lower",
        measure=distance,
        places=all_places,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="estimate_distance",
        unit="",
        meaning="deviation_distance as estimated to second order in the change of the vector or of the logits",
        better="neither",
        measure=distance_estimate,
        places=all_places,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="deviation_kl",
        unit="nats/token",
        meaning="KL(undegraded || degraded) at temperatures; under noise: of the final state" + _SAMPLED,
        better="lower",
        measure=kl_at_temperatures,
        places=probabilities_and_noise,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="estimate_kl",
        unit="nats/token",
        meaning="deviation_kl as estimated to second order in the change of the logits",
        better="neither",
        measure=kl_estimate,
        places=probabilities,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="deviation_agreement",
        unit="fraction",
        meaning="share of tokens predicted as by the undegraded model; under noise: of its final state"
        + _SAMPLED,
        better="higher",
        measure=agreement,
        places=prediction_and_noise,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="prediction_margin",
        unit="logits",
        meaning="largest logit less the second; kept: degraded, of the undegraded model's choice" + _SAMPLED,
        better="higher",
        measure=prediction_margins,
        places=margins,
        relative=True,
        version=2,
    ),
    SequenceMetric(
        name="prediction_entropy",
        unit="nats/token",
        meaning="entropy of the next-token distribution" + _SAMPLED,
        better="neither",
        measure=prediction_entropy,
        version=2,
    ),
    Statistic(
        name="state_entropy",
        unit="nats/dimension",
        meaning="entropy of a Gaussian with the variance over tokens of each dimension of the final state",
        better="neither",
        gather=state_moments,
        values=state_entropy,
        places=states,
    ),
    TokenMetric(
        name="cosine_by_position",
        unit="",
        meaning="cosine of the final residual stream to the undegraded one" + _SAMPLED,
        better="higher",
        measure=cosine_of_tokens,
        by="position",
        relative=True,
        version=2,
    ),
    TokenMetric(
        name="kl_by_position",
        unit="nats/token",
        meaning="KL(undegraded || degraded) of the next-token distribution" + _SAMPLED,
        better="lower",
        measure=kl_of_tokens,
        by="position",
        relative=True,
        version=2,
    ),
    *deviation_layers.METRICS,
)
