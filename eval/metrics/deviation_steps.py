"""How far the degraded model's states have moved at each decoding step of a greedy continuation
(`continuation.py`), in octaves of steps: where each model reads its own text, and where both read the undegraded
model's, which tells what piles up in the key-value cache from what follows from other words.

Step 1 is behind the prompt, where both read the same.  Costs three of the eight readings of `crossing.py`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.continuation import MODELS, OCTAVES, begun, by_octave, model_of
from wane.eval.metrics.contract import Place, SequenceMetric
from wane.eval.metrics.crossing import COMBINATIONS, crossed_states
from wane.eval.metrics.deviation_quantities import QUANTITIES, Quantity
from wane.eval.metrics.deviation_spaces import ROUGH, Comparison, compare, in_spaces, noise_key
from wane.eval.metrics.once import once
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape

# what is read -> whose text the degraded model reads
TEXTS = {"own text": "degraded", "undegraded text": "dense"}
TEMPERATURES = (1.0,)


def at_steps(parts: tuple[str, ...]) -> Callable[[Shape], tuple[Place, ...]]:
    def places(shape: Shape) -> tuple[Place, ...]:
        return tuple(
            Place("step", float(step), part=f"{text}, {part}")
            for part in parts
            for text in TEXTS
            for step in OCTAVES
        )

    return places


def states(view: View, name: str, text: str) -> Array:
    """That each token of a text was said from, or would have been, by one of MODELS, [B, C, D]."""
    x_BCD = crossed_states(view)[COMBINATIONS.index((name, name, text))]
    return jnp.concatenate([begun(view)[name].x_BD[:, None], x_BCD[:, :-1]], axis=1)


@once
def compared(view: View) -> Comparison:
    """Of all steps, one after the other of TEXTS as sequences [2 B, C]."""
    dense = states(view, "dense", "dense")
    pairs = [(dense, states(view, "degraded", text)) for text in TEXTS.values()]
    before, after = (jnp.concatenate(x) for x in zip(*pairs, strict=True))
    models = tuple(model_of(view, name)[0] for name in MODELS)
    vectors = in_spaces(models[0], before, view.shape)
    return compare(models, vectors, after, noise_key(view), view.shape, TEMPERATURES)


def told(value_PNC: Array) -> tuple[Array, Array]:
    """(sum, count) of [P, 2 B, C] as `at_steps`."""
    P, N, C = value_PNC.shape
    value_PUBC = value_PNC.reshape(P, len(TEXTS), N // len(TEXTS), C)
    return by_octave(jnp.moveaxis(value_PUBC, 2, 0).reshape(-1, P * len(TEXTS), C))


def by_step(quantity: Quantity) -> SequenceMetric:
    return SequenceMetric(
        name=f"{quantity.name}_by_step",
        unit=quantity.unit,
        meaning=f"{quantity.meaning}; at a decoding step, in octaves of steps",
        better=quantity.better,
        measure=lambda view: told(quantity.read(compared(view))),
        places=at_steps(tuple(place.part for place in quantity.places(TEMPERATURES))),
        free_running=True,
        relative=True,
    )


def rough(temperatures: tuple[float, ...]) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in ROUGH)


FROM_LESS = Quantity(
    "rough_estimate_kl", "nats/token",
    "KL as estimated to second order from the logits that the undegraded model has largest, or all as likely",
    "neither", lambda found: found.rough_3Bn, rough, noise=False,
)  # fmt: skip
METRICS = tuple(by_step(quantity) for quantity in (*QUANTITIES, FROM_LESS))
