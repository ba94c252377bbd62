"""Next-token loss where the data makes it easy or hard: by position, by frequency, in new contexts."""

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import TokenMetric
from wane.eval.metrics.view import View


def every_token(view: View) -> tuple[Array, Array]:
    return view.nll_BS, jnp.ones_like(view.scored_BS)


METRICS = (
    TokenMetric(
        name="loss_by_position",
        unit="nats/token",
        meaning="loss by how many tokens stand before, in octaves told by the smallest",
        better="lower",
        measure=every_token,
        by="position",
    ),
    TokenMetric(
        name="loss_by_frequency",
        unit="nats/token",
        meaning="loss by how often the token comes in the training text, in decades; -1: never; text only",
        better="lower",
        measure=every_token,
        by="frequency",
    ),
    TokenMetric(
        name="loss_by_novelty",
        unit="nats/token",
        meaning="loss by whether a token and the 3 before it are in the training text (0) or not (1); text only",
        better="lower",
        measure=every_token,
        by="novelty",
    ),
)
