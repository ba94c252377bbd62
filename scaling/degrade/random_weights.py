"""Random weight pruning."""

import jax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.replace import Replace
from wane.scaling.degrade.weights import Group, draw, weight_pruner
from wane.scaling.shape import Shape


def random_weights(
    shape: Shape, scope: Scope = EVERYTHING, *, group: Group = "layer", replace: Replace = "zero"
) -> Degradation:
    """Removes weights at random; masks are nested in severity.

    group: exact counts per output row, per matrix (`layer`), or over all weights in scope.  replace: `zero`;
    `rescale` divides the survivors by the fraction left, which keeps the mean output over draws but adds its
    noise to a signal of full size; `mean` adds to each output what the removed weights gave on average.
    """

    return weight_pruner(
        name="random_weights",
        shape=shape,
        scope=scope,
        settings={"group": group, "replace": replace},
        score=lambda params, calibration_NT, key: draw(jax.random.uniform, key, shape),
        group=group,
        replace=replace,
        random=True,
    )
