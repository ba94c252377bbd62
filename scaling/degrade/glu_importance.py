"""Neurons by importance of their weights and activations: MAW, PPM, VOW, PON and their relatives."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.calibrate import inner_of
from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.similarity import scored
from wane.scaling.degrade.stream import over_batches
from wane.scaling.degrade.units import Group, neurons, unit_pruner
from wane.scaling.edit import Params
from wane.scaling.model import apply
from wane.scaling.shape import Shape

Score = Literal["maw", "ppm", "vow", "pon", "l2", "hybrid", "activation", "wanda", "partition"]
CALIBRATED = ("hybrid", "activation", "wanda", "partition")
SEVERITIES = tuple(step / 10 for step in range(11))


def glu_importance(
    shape: Shape, scope: Scope = EVERYTHING, *, score: Score = "maw", group: Group = "layer", batch: int = 1
) -> Degradation:
    """Removes the MLP neurons of lowest importance: columns of gate and up, rows of down.

    With g, u the columns of gate and up and d the row of down that belong to a neuron, and a its activation (the
    input of down) on the calibration tokens:
    maw: max|g| + max|u|.
    ppm: (max g + |min g|) + (max u + |min u|), which optipfair (Martra 2025, arXiv 2512.22671) calls PPM and MAW.
    vow: var(g) + var(u), unbiased.  pon: |g|_1 |u|_1.  l2: |g|_2 + |u|_2.
    hybrid: the ppm of g, u and d, each over the largest of its matrix, summed, times A, where A adds up |a|_2 of
    batches of `batch` sequences.
    activation: mean |a|.
    wanda: |d|_1 |a|_2, the sum of the Wanda scores of d (Sun et al. 2024, arXiv 2306.11695).
    partition: mean |d| times the squared norm of a, mean over sequences.

    A model without a gate (GELU) is scored by up alone.  group: the same number in each layer, or a share of the
    neurons of all layers.  optipfair keeps one neuron of each layer at least; here severity 1 removes all.
    """
    if batch < 1:
        raise ValueError(f"glu_importance.batch = {batch}: must be 1 or more sequences")

    def measure(params: Params, calibration_NT: Array, key: Array) -> Array:
        blocks = params["blocks"]
        writers = [blocks[name] for name in ("gate", "up") if name in shape.matrices]
        if score in CALIBRATED:
            of_activations = statistic(score, params, calibration_NT, shape, batch)
            result = calibrated(score, writers, blocks["down"], of_activations)
        else:
            result = static(score, writers)
        return result.reshape(shape.n_layers, -1)

    pruner = unit_pruner(
        name="glu_importance",
        shape=shape,
        scope=scope,
        settings={"score": score, "group": group, "batch": batch},
        units=neurons(shape, scope),
        score=measure,
        group=group,
        needs_calibration=score in CALIBRATED,
    )
    return dataclasses.replace(pruner, severities=SEVERITIES)


def static(score: Score, writers: list[Array]) -> Array:
    """[.., F] from the matrices [.., D, F] that write the neurons."""
    measure = {
        "maw": lambda w: jnp.abs(w).max(-2),
        "ppm": peak_to_peak,
        "vow": lambda w: jnp.var(w, axis=-2, ddof=1),
        "pon": lambda w: jnp.abs(w).sum(-2),
        "l2": lambda w: jnp.sqrt(jnp.sum(w * w, axis=-2)),
    }[score]
    first, *others = map(measure, writers)
    for other in others:
        first = first * other if score == "pon" else first + other
    return first


def statistic(score: Score, params: Params, tokens_NT: Array, shape: Shape, batch: int) -> Array:
    """[.., F]: what a calibrated score reads of the activations."""
    if score == "hybrid":
        return batch_norms(params, tokens_NT, shape, batch)

    def of_batch(tokens_BT: Array) -> Array:
        a = activations(params, tokens_BT, shape)
        return (jnp.abs(a) if score == "activation" else a * a).sum(-2)

    total = over_batches(of_batch, tokens_NT)
    if score == "wanda":
        return jnp.sqrt(total)
    return total / (scored(tokens_NT) if score == "activation" else len(tokens_NT))


def calibrated(score: Score, writers: list[Array], down: Array, statistic: Array) -> Array:
    """[.., F] from the weights and that statistic; down [.., F, D]."""
    if score == "hybrid":
        sizes = [peak_to_peak(w) for w in (*writers, jnp.swapaxes(down, -1, -2))]
        return sum(size / (size.max(-1, keepdims=True) + 1e-8) for size in sizes) * statistic
    if score == "activation":
        return statistic
    size = jnp.abs(down)
    return (size.sum(-1) if score == "wanda" else size.mean(-1)) * statistic


def batch_norms(params: Params, tokens_NT: Array, shape: Shape, batch: int) -> Array:
    """[.., F]: norms of the activations over the tokens of each batch, added up; the last may be smaller."""

    def of_batch(tokens_BT: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(activations(params, tokens_BT, shape)), axis=-2))

    whole = len(tokens_NT) // batch * batch
    total = of_batch(tokens_NT[whole:]) if whole < len(tokens_NT) else 0
    return total + over_batches(of_batch, tokens_NT[:whole], batch) if whole else total


def activations(params: Params, tokens_BT: Array, shape: Shape) -> Array:
    """[.., tokens, F] f32: the inputs of `down`; of an expert 0 for the tokens that it does not serve."""
    return inner_of(apply(params, tokens_BT[:, :-1], shape).inner, "down_in", shape)


def peak_to_peak(w: Array) -> Array:
    """max + |min| over the inputs of each output: the range only where the smallest is not positive."""
    return w.max(-2) + jnp.abs(w.min(-2))
