"""Mixed precision: a budget of storage shared out over matrices, more bits to those that seem to need them."""

import functools
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.ablation import ablation_effects
from wane.scaling.degrade.bit_budget import Budget, evenly
from wane.scaling.degrade.contract import EVERYTHING, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf
from wane.scaling.degrade.effective_rank import relative_effective_rank
from wane.scaling.degrade.rounding import Bits, StoredBits, check_groups, hold_grid, rounded_edit
from wane.scaling.degrade.rtn import SCALE_BITS, uniform_grid, uniform_rounding
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.quantize import IDENTITY_BITS, Scheme, divide
from wane.scaling.shape import Shape

By = Literal["effective_rank", "sensitivity", "uniform"]
PROBE_BITS = 2


def mixed_precision(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    by: By = "effective_rank",
    symmetric: bool = True,
    group_size: int = 0,
) -> Degradation:
    """Rounds each matrix to 1, 2, 4, 8 or 16 bits under a budget of storage.

    The setting is the compression ratio of the matrices in scope: 16 bits over what is stored per weight, scales
    included.  All matrices get the largest width that fits, and those of highest priority the next one, as long as
    they fit.  by: `effective_rank`, that of each matrix over that of a random one; `sensitivity`, what the loss on
    calibration tokens gains per weight when the matrix alone goes to 2 bits (greedy); `uniform`, the control: the
    same number of bits, spread evenly over depth and kinds.  Where 1 bit and its scales do not fit, every matrix
    has 1 bit, and the cost says so.  symmetric, group_size: as in rtn.  Which matrices are wide may change with
    the ratio; all are rounded to nearest.
    """
    refuse(scope, "head", "a budget is shared out over whole matrices")
    scope.check(shape)
    in_scope = scope.weights(shape)
    check_groups(group_size, in_scope, shape)
    budget = Budget(
        shape=shape, scope=scope, group_size=group_size, scale_bits=SCALE_BITS, zero_point=not symmetric
    )
    scheme = Scheme(convention="gptq", symmetric=symmetric, mse=False)
    rounded = functools.partial(
        rounded_edit,
        in_scope=in_scope,
        shape=shape,
        find=uniform_grid(scheme, group_size),
        round_matrix=uniform_rounding(scheme),
    )

    def per_weight(bits_M: Array) -> Bits:
        return {name: bits[..., None, None] for name, bits in budget.split(bits_M).items()}

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array:
        """Priority of each matrix, [M]."""
        count = sum(math.prod(shape.lead(name)) for name in budget.names)
        if by == "uniform":
            return jnp.asarray(evenly(count))
        if by == "effective_rank":
            return budget.flatten(relative_effective_rank(params, budget.names, shape))

        def alone(m: Array) -> Edit:
            return rounded(params, per_weight(jnp.where(np.arange(count) == m, PROBE_BITS, IDENTITY_BITS)))

        effect_M = ablation_effects(params, calibration_NT, shape, alone, jnp.arange(count), "loss")
        sizes = {name: np.full(shape.lead(name), math.prod(shape.matrices[name])) for name in budget.names}
        return effect_M / budget.flatten(sizes).astype(np.float32)

    def apply(params: Params, fitted: Array, severity: Array, where: Where, key: Array) -> Edit:
        bits = per_weight(budget.allocate(fitted, ratio_of(severity)))
        selected = {
            name: jnp.where(mask & where.entries(name, shape), bits[name], IDENTITY_BITS)
            for name, mask in in_scope.items()
        }
        return rounded(params, selected)

    storage = StoredBits(shape, group_size=group_size, scale_bits=SCALE_BITS, zero_point=not symmetric)
    return Degradation(
        name="mixed_precision",
        scope=scope,
        settings={"by": by, "symmetric": symmetric, "group_size": group_size},
        unit="ratio",
        severities=(1.0, 2.0, 4.0, 6.0, 8.0, 10.0),
        random=False,
        needs_calibration=by == "sensitivity",
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_grid, round_matrix=uniform_rounding(scheme)),
        cost=CostOf(shape, storage),
    )


def ratio_of(severity: Array) -> Array:
    """Compression ratio asked for by a traced severity 1 - 1 / ratio, to a thousandth."""
    return divide(jnp.rint(1_000.0 / (1.0 - severity)), jnp.float32(1_000))
