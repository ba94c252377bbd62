"""Gradients of the loss over calibration sequences, one batch in memory at a time."""

from collections.abc import Callable, Iterable

import jax
from jax import Array

from wane.scaling.degrade.stream import over_batches
from wane.scaling.degrade.weights import Weights
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply, nll
from wane.scaling.shape import Shape


def loss(params: Params, tokens_BT: Array, shape: Shape, edit: Edit | None = None) -> Array:
    """Mean negative log-likelihood in nats."""
    return nll(params, apply(params, tokens_BT[:, :-1], shape, edit).x_BSD, tokens_BT, shape).mean()


def mean_gradient(params: Params, tokens_NT: Array, shape: Shape, matrices: Iterable[str]) -> Weights:
    """Gradient of the mean loss over all sequences with respect to these matrices."""
    of_batch = weight_gradient(params, shape, matrices)
    total = over_batches(lambda b: jax.tree.map(lambda g: len(b) * g, of_batch(b)), tokens_NT)
    return jax.tree.map(lambda g: g / len(tokens_NT), total)


def mean_over_sequences(
    of_gradient: Callable[[Array], Array],
    params: Params,
    tokens_NT: Array,
    shape: Shape,
    matrices: Iterable[str],
) -> Weights:
    """Mean of of_gradient(g) over sequences, g the gradient of one sequence's mean loss.  One at a time: a batch
    would hold a copy of the weights per sequence."""
    of_batch = weight_gradient(params, shape, matrices)
    total = over_batches(lambda b: jax.tree.map(of_gradient, of_batch(b)), tokens_NT, 1)
    return jax.tree.map(lambda g: g / len(tokens_NT), total)


def weight_gradient(params: Params, shape: Shape, matrices: Iterable[str]) -> Callable[[Array], Weights]:
    """tokens_BT -> gradient of their mean loss with respect to these matrices."""
    weights = {name: params["blocks"][name] for name in matrices}

    def of_weights(weights: Weights, tokens_BT: Array) -> Array:
        return loss({**params, "blocks": {**params["blocks"], **weights}}, tokens_BT, shape)

    return lambda tokens_BT: jax.grad(of_weights)(weights, tokens_BT)
