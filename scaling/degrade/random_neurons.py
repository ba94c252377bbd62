"""Random removal of MLP hidden units."""

import jax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.replace import Replace
from wane.scaling.degrade.units import Group, neurons, unit_pruner
from wane.scaling.shape import Shape


def random_neurons(
    shape: Shape, scope: Scope = EVERYTHING, *, group: Group = "layer", replace: Replace = "zero"
) -> Degradation:
    """Removes MLP neurons at random (columns of gate and up, rows of down); masks are nested in severity.

    group: the same number in each layer, or a share of the neurons of all layers together.  replace: `zero`;
    `rescale` divides the surviving activations by the fraction left; `mean` replaces a removed neuron by its
    mean activation.
    """
    units = neurons(shape, scope)
    return unit_pruner(
        name="random_neurons",
        shape=shape,
        scope=scope,
        settings={"group": group, "replace": replace},
        units=units,
        score=lambda params, calibration_NT, key: jax.random.uniform(key, units.in_scope_LU.shape),
        group=group,
        replace=replace,
        random=True,
    )
