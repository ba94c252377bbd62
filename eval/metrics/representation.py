"""How far a degraded model's representations are from the undegraded one's: whole model, by layer, by position."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics import contribution, deviation_layers, deviation_sublayers
from wane.eval.metrics.contract import Place, SequenceMetric, Statistic, TokenMetric, Weights
from wane.eval.metrics.deviation import entropy
from wane.eval.metrics.deviation_quantities import QUANTITIES, Quantity
from wane.eval.metrics.deviation_spaces import (
    TEMPERATURES,
    at_sampled,
    comparison,
    final_state,
    normed,
    scattered,
    summed,
)
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape

STATES = ("embedding", "normed")


def states(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in STATES)


def of_final_state(quantity: Quantity) -> SequenceMetric:
    return SequenceMetric(
        name=quantity.name,
        unit=quantity.unit,
        meaning=f"{quantity.meaning}; final state" + _SAMPLED,
        better=quantity.better,
        measure=lambda view: summed(quantity.read(comparison(view)), length=view.targets_BS.shape[1]),
        places=lambda shape: quantity.places(TEMPERATURES),
        relative=True,
        full=(final_state,),
        version=3,
    )


def prediction_entropy(view: View) -> tuple[Array, Array]:
    return summed(entropy(at_sampled(view.logits_BSV))[None], length=view.targets_BS.shape[1])


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

METRICS = (
    *(of_final_state(quantity) for quantity in QUANTITIES),
    SequenceMetric(
        name="prediction_entropy",
        unit="nats/token",
        meaning="entropy of the next-token distribution" + _SAMPLED,
        better="neither",
        measure=prediction_entropy,
        version=3,
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
        full=(final_state,),
        version=3,
    ),
    TokenMetric(
        name="kl_by_position",
        unit="nats/token",
        meaning="KL(undegraded || degraded) of the next-token distribution" + _SAMPLED,
        better="lower",
        measure=kl_of_tokens,
        by="position",
        relative=True,
        full=(final_state,),
        version=3,
    ),
    *deviation_layers.METRICS,
    *deviation_sublayers.METRICS,
    *contribution.METRICS,
)
