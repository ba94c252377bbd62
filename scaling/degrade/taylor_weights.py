"""First-order weight pruning: what a gradient says the loss would miss least goes first."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.gradients import mean_gradient, mean_over_sequences
from wane.scaling.degrade.weights import Group, Weights, weight_pruner
from wane.scaling.edit import Params
from wane.scaling.shape import Shape

Average = Literal["gradient", "sequence"]


def taylor_weights(
    shape: Shape, scope: Scope = EVERYTHING, *, group: Group = "global", average: Average = "gradient"
) -> Degradation:
    """Removes the weights of smallest |w g|, the first-order change of the loss when w is set to zero.

    average: `gradient` takes g of the mean loss over all calibration sequences (SNIP, Lee et al. 2019, arXiv
    1810.02340, eq. 5, without its normalisation, which changes no ranking); `sequence` averages |w g| of single
    sequences (Molchanov et al. 2017, arXiv 1611.06440, eq. 6-8).  group: per output row, per matrix (`layer`),
    aligned groups of inputs (n:4, n:8), or all weights in scope together, the default: the score is in nats
    everywhere.  Costs one forward and backward pass over the calibration set, `sequence` one per sequence.
    """
    names = tuple(scope.weights(shape))

    def score(params: Params, calibration_NT: Array, key: Array) -> Weights:
        if average == "gradient":
            mean = mean_gradient(params, calibration_NT, shape, names)
            mean = {name: jnp.abs(g) for name, g in mean.items()}
        else:
            mean = mean_over_sequences(jnp.abs, params, calibration_NT, shape, names)
        return {name: g * jnp.abs(params["blocks"][name]) for name, g in mean.items()}

    return weight_pruner(
        name="taylor_weights",
        shape=shape,
        scope=scope,
        settings={"group": group, "average": average},
        score=score,
        group=group,
        needs_calibration=True,
    )
