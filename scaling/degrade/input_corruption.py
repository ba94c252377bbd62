"""Corruption of what a model reads: tokens substituted or deleted, embeddings moved.  Weights stay.

Targets are those of the untouched sequence, and its first token stays (scaling/corrupt.py).  A sequence's random
numbers follow from the draw's key and its own tokens: it is corrupted alike in every batch, and more of the same
as severity grows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from wane.scaling.corrupt import Corruption, isotropic
from wane.scaling.degrade.contract import (
    EVERYTHING,
    FRACTIONS,
    Degradation,
    Promises,
    Scope,
    Unit,
    Where,
)
from wane.scaling.degrade.cost import CostOf, full_bits
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.model import against
from wane.scaling.shape import Shape

NOISE_SIGMAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
ATTACK_SIGMAS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def _of_noise(params: Params, fitted: Array, tokens_BS: Array, shape: Shape) -> Array:
    return isotropic(fitted, tokens_BS, shape.d_model)


def _of_attack(params: Params, fitted: None, tokens_BS: Array, shape: Shape) -> Array:
    return against(params, tokens_BS, shape)


DIRECTIONS = {"substitute": None, "delete": None, "noise": _of_noise, "attack": _of_attack}


def substitute_tokens(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Replaces each token after the first, with probability severity, by one of the others, all alike."""
    return _corruption("substitute_tokens", shape, scope, "substitute", "fraction", FRACTIONS)


def delete_tokens(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Deletes each token after the first with probability severity; what is left moves together.

    Each token of the original sequence is predicted from what is left of the tokens before it.
    """
    return _corruption("delete_tokens", shape, scope, "delete", "fraction", FRACTIONS)


def embedding_noise(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Adds Gaussian noise to a sequence's embeddings, of severity times their root mean square."""
    return _corruption("embedding_noise", shape, scope, "noise", "sigma", NOISE_SIGMAS)


def embedding_attack(shape: Shape, scope: Scope = EVERYTHING) -> Degradation:
    """Moves a sequence's embeddings against the model: one step of severity times their norm.

    The step goes up the gradient of the sequence's own loss under the degraded model (fast gradient method,
    Miyato et al. 2017, arXiv 1605.07725, eq. 5); it knows the targets.  One backward pass finds it for all
    severities, or where weights are degraded too, at every point.
    """
    return _corruption("embedding_attack", shape, scope, "attack", "sigma", ATTACK_SIGMAS)


def _corruption(
    name: str, shape: Shape, scope: Scope, field: str, unit: Unit, severities: tuple[float, ...]
) -> Degradation:
    """The method that sets one field of Corruption to the severity."""
    for selector in ("layers", "head", "matrices"):
        refuse(scope, selector, "the input is corrupted before the first block")
    random = field != "attack"

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array | None:
        return jax.random.key_data(key) if random else None

    def apply(params: Params, fitted: Array | None, severity: Array, where: Where, key: Array) -> Edit:
        return Edit(corruption=Corruption(key=fitted, **{field: jnp.asarray(severity, jnp.float32)}))

    return Degradation(
        name=name,
        scope=scope,
        settings={},
        unit=unit,
        severities=severities,
        random=random,
        local=False,
        direction=DIRECTIONS[field] and functools.partial(DIRECTIONS[field], shape=shape),
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=CostOf(shape, full_bits),
    )
