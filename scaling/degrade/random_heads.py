"""Random removal of attention heads."""

import jax

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.replace import Replace
from wane.scaling.degrade.units import Group, HeadUnit, heads, unit_pruner
from wane.scaling.shape import Shape


def random_heads(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    unit: HeadUnit = "head",
    group: Group = "global",
    replace: Replace = "zero",
) -> Degradation:
    """Removes attention heads at random; masks are nested in severity.

    unit: `head`, a query head (a key-value head goes once all its query heads are gone); `kv_group`, a key-value
    head with all its query heads.  group: `global` ranks the heads of all layers together; `layer` removes as many
    in each layer, a staircase of few steps that differs between shapes and favours deep ones.  replace: `zero`;
    `rescale` divides the surviving heads' outputs by the fraction left; `mean` replaces a removed head by its mean
    output.
    """
    units = heads(shape, scope, unit)
    return unit_pruner(
        name="random_heads",
        shape=shape,
        scope=scope,
        settings={"unit": unit, "group": group, "replace": replace},
        units=units,
        score=lambda params, calibration_NT, key: jax.random.uniform(key, units.in_scope_LU.shape),
        group=group,
        replace=replace,
        random=True,
    )
