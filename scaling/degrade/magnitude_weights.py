"""Magnitude pruning (Han et al. 2015): the smallest absolute values go first."""

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.rank import Convention
from wane.scaling.degrade.weights import Group, Weights, weight_pruner
from wane.scaling.edit import Params
from wane.scaling.shape import Shape


def magnitude_weights(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    group: Group = "layer",
    normalise: bool = False,
    tile: tuple[int, int] = (1, 1),
    convention: Convention = "floor",
) -> Degradation:
    """Removes the weights of smallest absolute value.

    group: ranked per output row, per matrix (`layer`), or over all weights in scope.  normalise (with group
    global): divide each matrix by its Frobenius norm before ranking, as jaxpruner does by default; without it
    matrices of small scale are emptied first.  tile: (inputs, outputs) that go together, by their mean; 0: all,
    so that (0, 1) removes outputs and (1, 0) inputs.  convention: `floor` removes floor(n s) of n, the first of
    equal ones first; `one_more` one more than that, as the code of Wanda and SparseGPT does for a whole matrix;
    `keep_one` all but max(1, n (1 - s)) rounded half to even, the last of equal ones first (jaxpruner).
    """
    if normalise and group != "global":
        raise ValueError(
            f'normalise = True: acts on group = "global" only, got group = "{group}"; leave it out'
        )

    def score(params: Params, calibration_NT: Array, key: Array) -> Weights:
        size = {name: jnp.abs(params["blocks"][name]) for name in scope.weights(shape)}
        if not normalise:
            return size
        norm = {name: jnp.sqrt(jnp.sum(a * a, axis=(-2, -1), keepdims=True)) for name, a in size.items()}
        return {name: a / (norm[name] + 1e-8) for name, a in size.items()}

    return weight_pruner(
        name="magnitude_weights",
        shape=shape,
        scope=scope,
        settings={"group": group, "normalise": normalise, "tile": tile, "convention": convention},
        score=score,
        group=group,
        tile=tile,
        convention=convention,
    )
