"""Overlap of neurons: how many directions the hidden units of an MLP really use, and how alike two of them are."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.contract import Statistic, Sums, Weights, layers
from wane.eval.metrics.moments import moments, own_covariance, participation_ratio, spaced, weight
from wane.eval.metrics.view import View
from wane.scaling.degrade.calibrate import inner_of
from wane.scaling.model import Inner


def some_hidden(inner: Inner) -> Inner:
    """Hidden units, and how experts share tokens, at `spaced` positions."""
    B, S = inner["down_in"].shape[:2]
    at = np.arange(B)[:, None], spaced(S, B)
    return {name: inner[name][at] for name in ("down_in", "route") if name in inner}


def neuron_moments(view: View) -> Sums:
    """`moments` of the hidden units [L, F], of each expert [L, E, F] over the tokens that are routed to it."""
    inner, weight_N = view.inside[some_hidden], weight(view, spaced)
    h = inner_of(inner, "down_in", view.shape)
    if view.shape.n_experts is None:
        return moments(h, jnp.broadcast_to(weight_N, h.shape[:-1]))
    serves = inner["route"].reshape(len(h), -1, view.shape.n_experts) > 0
    return moments(h, weight_N * jnp.swapaxes(serves, 1, 2))


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
    """[L] of [L] or [L, E]: the mean over experts that have a value; nan where none has."""
    return jnp.nanmean(value.reshape(len(value), -1), axis=1)


def neuron_dimensions(sums: Sums, weights: Weights) -> Array:
    ratio = participation_ratio(own_covariance(sums))
    return over_experts(jnp.where(sums["n"] > 1, ratio, jnp.nan))  # one token has no variance


def neuron_cosine(sums: Sums, weights: Weights) -> Array:
    return over_experts(mean_cosine(sums["products"]))


def neuron_overlap(sums: Sums, weights: Weights) -> Array:
    return over_experts(mean_cosine(sums["products"], jnp.abs))


def tokens_of_each(sums: Sums) -> Array:
    """Mean over layers, and over their experts."""
    return sums["n"].mean()


_SAMPLED = (
    ", in a 16th of all tokens; of an expert over those that are routed to it, mean over experts in use"
)

METRICS = (
    Statistic(
        name="neuron_dimensions",
        version=2,
        unit="dimensions",
        meaning="participation ratio of the covariance of an MLP's hidden units" + _SAMPLED,
        better="neither",
        places=layers,
        gather=neuron_moments,
        count=tokens_of_each,
        values=neuron_dimensions,
        inside=some_hidden,
    ),
    Statistic(
        name="neuron_cosine",
        version=2,
        unit="",
        meaning="cosine between the activations of two neurons over tokens, mean over pairs of neurons that "
        "are not dead" + _SAMPLED,
        better="neither",
        places=layers,
        gather=neuron_moments,
        count=tokens_of_each,
        values=neuron_cosine,
        inside=some_hidden,
    ),
    Statistic(
        name="neuron_overlap",
        version=2,
        unit="",
        meaning="absolute cosine between the activations of two neurons over tokens, mean over pairs of neurons "
        "that are not dead" + _SAMPLED,
        better="neither",
        places=layers,
        gather=neuron_moments,
        count=tokens_of_each,
        values=neuron_overlap,
        inside=some_hidden,
    ),
)
