"""Random removal of attention heads."""

import jax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.replace import Replace
from wane.scaling.degrade.units import Group, heads, unit_pruner
from wane.scaling.shape import Shape


def random_heads(
    shape: Shape, scope: Scope = EVERYTHING, *, group: Group = "global", replace: Replace = "zero"
) -> Degradation:
    """Removes query heads at random; masks are nested in severity.

    group: `global` ranks the heads of all layers together; `layer` removes as many in each layer, a staircase
    of few steps that differs between shapes and favours deep ones.  Under grouped-query attention a key-value
    head goes once all its query heads are gone.  replace: `zero`; `rescale` divides the surviving heads'
    outputs by the fraction left; `mean` replaces a removed head by its mean output.
    """
    size = (shape.n_layers, shape.n_heads)
    return unit_pruner(
        name="random_heads",
        shape=shape,
        scope=scope,
        settings={"group": group, "replace": replace},
        units=heads(shape, scope),
        score=lambda params, calibration_NT, key: jax.random.uniform(key, size),
        group=group,
        replace=replace,
        random=True,
    )
