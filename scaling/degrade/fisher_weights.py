"""Second-order weight pruning with the diagonal of the empirical Fisher information."""

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.gradients import mean_over_sequences
from wane.scaling.degrade.weights import Group, Weights, weight_pruner
from wane.scaling.edit import Params
from wane.scaling.shape import Shape


def fisher_weights(shape: Shape, scope: Scope = EVERYTHING, *, group: Group = "global") -> Degradation:
    """Removes the weights of smallest w^2 F / 2, F the mean squared gradient of single calibration sequences.

    Optimal Brain Damage (LeCun et al. 1990, eq. 5: w^2 H / 2 with the diagonal of the Hessian) with the empirical
    Fisher information for the Hessian (Theis et al. 2018, arXiv 1801.05787, eq. 8).  g is the gradient of a
    sequence's mean loss; squares are taken before the mean over sequences.  group: as of taylor_weights.  Costs a
    forward and a backward pass for each sequence.
    """
    names = tuple(scope.weights(shape))

    def score(params: Params, calibration_NT: Array, key: Array) -> Weights:
        fisher = mean_over_sequences(jnp.square, params, calibration_NT, shape, names)
        return {name: f * jnp.square(params["blocks"][name]) / 2 for name, f in fisher.items()}

    return weight_pruner(
        name="fisher_weights",
        shape=shape,
        scope=scope,
        settings={"group": group},
        score=score,
        group=group,
        needs_calibration=True,
    )
