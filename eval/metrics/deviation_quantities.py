"""What is told of states that have moved (`deviation_spaces.Comparison`), wherever they stand: behind the last
block, behind one sublayer, along a continuation."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Place
from wane.eval.metrics.deviation_spaces import MARGINS, VECTORS, Comparison

NOISY = " under noise"


def spaces(temperatures: tuple[float, ...]) -> tuple[Place, ...]:
    """The vectors, then probabilities at each temperature."""
    return vectors(temperatures) + probabilities(temperatures)


def vectors(temperatures: tuple[float, ...]) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in VECTORS)


def probabilities(temperatures: tuple[float, ...]) -> tuple[Place, ...]:
    return tuple(Place(axis="temperature", at=t, part="probability") for t in temperatures)


def prediction(temperatures: tuple[float, ...]) -> tuple[Place, ...]:
    return (Place(part="probability"),)


def margins(temperatures: tuple[float, ...]) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in MARGINS)


class Quantity(NamedTuple):
    """read(comparison) -> values [P, B, n] at `of(temperatures)` and, where there is noise, at the same places
    again under noise."""

    name: str
    unit: str
    meaning: str
    better: Literal["lower", "higher", "neither"]
    read: Callable[[Comparison], Array]
    of: Callable[[tuple[float, ...]], tuple[Place, ...]]
    noise: bool

    def places(self, temperatures: tuple[float, ...]) -> tuple[Place, ...]:
        real = self.of(temperatures)
        return real + tuple(place._replace(part=place.part + NOISY) for place in real if self.noise)


def moved(field: str, places: slice = slice(None)) -> Callable[[Comparison], Array]:
    """A field of `Geometry` at some places, of the changed state and then of noise."""

    def read(found: Comparison) -> Array:
        return jnp.concatenate([getattr(c.places, field)[places] for c in (found.real, found.noise)])

    return read


def kl_and_noise(found: Comparison) -> Array:
    return jnp.concatenate([found.real.kl_TBn, found.noise.kl_TBn])


def agreement(found: Comparison) -> Array:
    return jnp.stack([c.agree_Bn for c in (found.real, found.noise)]).astype(jnp.float32)


_AGAINST = " between the degraded and the undegraded state, by space; under noise: isotropic and as long"
_LENGTH = "length of the change {} the undegraded state, over the state's length"
OF_VECTORS = slice(len(VECTORS))

QUANTITIES = (
    Quantity(
        "deviation_cosine", "", "cosine" + _AGAINST,
        "higher", moved("cosine"), spaces, noise=True,
    ),
    Quantity(
        "deviation_angle", "degrees", "angle" + _AGAINST,
        "lower", moved("angle"), spaces, noise=True,
    ),
    Quantity(
        "deviation_orthogonal", "", _LENGTH.format("across"),
        "lower", moved("orthogonal", OF_VECTORS), vectors, noise=True,
    ),
    Quantity(
        "deviation_parallel", "", _LENGTH.format("along"),
        "lower", moved("parallel", OF_VECTORS), vectors, noise=True,
    ),
    Quantity(
        "deviation_distance", "", "1 - cosine between the degraded and the undegraded state, by space",
        "lower", lambda found: found.real.places.distance, spaces, noise=False,
    ),
    Quantity(
        "estimate_distance", "", "1 - cosine as estimated to second order in the change of vector or logits",
        "neither", lambda found: found.distance_PBn, spaces, noise=False,
    ),
    Quantity(
        "deviation_kl", "nats/token", "KL(undegraded || degraded) at temperatures; under noise: of the state",
        "lower", kl_and_noise, probabilities, noise=True,
    ),
    Quantity(
        "estimate_kl", "nats/token", "KL as estimated to second order in the change of the logits",
        "neither", lambda found: found.kl_TBn, probabilities, noise=False,
    ),
    Quantity(
        "deviation_agreement", "fraction",
        "share of tokens predicted as by the undegraded model; under noise: of its state",
        "higher", agreement, prediction, noise=True,
    ),
    Quantity(
        "prediction_margin", "logits",
        "largest logit less the second; kept: degraded, of the undegraded model's choice",
        "higher", lambda found: found.margin_3Bn, margins, noise=False,
    ),
)  # fmt: skip
