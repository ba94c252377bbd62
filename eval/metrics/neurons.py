"""Overlap of neurons: how many directions the hidden units of an MLP really use, and how alike two of them are."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.contract import Statistic, Sums, Weights, layers
from wane.eval.metrics.moments import chosen, moments, own_covariance, participation_ratio, spaced, weight
from wane.eval.metrics.view import View
from wane.scaling.degrade.calibrate import inner_of


def neuron_moments(view: View) -> Sums:
    """`moments` of the hidden units [L, F], of each expert [L, E, F] over the tokens that are routed to it."""
    inner, weight_N = view.inner, weight(view, spaced)
    B, S = view.weight_BS.shape
    read = ("down_in",) if view.shape.n_experts is None else ("down_in", "route")
    h = inner_of({name: inner[name][:, :, spaced(S, B)] for name in read}, "down_in", view.shape)
    if view.shape.n_experts is None:
        return moments(h, jnp.broadcast_to(weight_N, h.shape[:-1]))
    return moments(h, weight_N * jnp.swapaxes(chosen(inner["route"], spaced) > 0, 1, 2))


def mean_cosine(products_FF: Array, of: Callable[[Array], Array] = jnp.asarray) -> Array:
    """Mean of `of` of the cosine between two different vectors whose products are [.., F, F]; vectors of length 0
    are left out; nan where fewer than two are left."""
    square_F = jnp.diagonal(products_FF, axis1=-2, axis2=-1)
    alive_F = square_F > 0
    scale_F = jnp.where(alive_F, lax.rsqrt(jnp.where(alive_F, square_F, 1)), 0)
    cosine_FF = of(products_FF * scale_F[..., :, None] * scale_F[..., None, :])
    n = alive_F.sum(axis=-1)
    return (jnp.sum(cosine_FF, axis=(-2, -1)) - n) / (n * (n - 1.0))


def over_experts(value: Array) -> Array:
    """[L] of [L] or [L, E]: the mean over experts that have a value."""
    return jnp.nanmean(value.reshape(len(value), -1), axis=1)


def neuron_dimensions(sums: Sums, weights: Weights) -> Array:
    return over_experts(participation_ratio(own_covariance(sums)))


def neuron_cosine(sums: Sums, weights: Weights) -> Array:
    return over_experts(mean_cosine(sums["products"]))


def neuron_overlap(sums: Sums, weights: Weights) -> Array:
    return over_experts(mean_cosine(sums["products"], jnp.abs))


_EXPERTS = "; of an expert over the tokens that are routed to it, mean over experts"

METRICS = (
    Statistic(
        name="neuron_dimensions",
        unit="dimensions",
        meaning="participation ratio of the covariance of an MLP's hidden units" + _EXPERTS,
        better="neither",
        places=layers,
        gather=neuron_moments,
        values=neuron_dimensions,
        inner=True,
    ),
    Statistic(
        name="neuron_cosine",
        unit="",
        meaning="cosine between the activations of two neurons over tokens, mean over pairs of neurons that "
        "are not dead" + _EXPERTS,
        better="neither",
        places=layers,
        gather=neuron_moments,
        values=neuron_cosine,
        inner=True,
    ),
    Statistic(
        name="neuron_overlap",
        unit="",
        meaning="absolute cosine between the activations of two neurons over tokens, mean over pairs of neurons "
        "that are not dead" + _EXPERTS,
        better="neither",
        places=layers,
        gather=neuron_moments,
        values=neuron_overlap,
        inner=True,
    ),
)
