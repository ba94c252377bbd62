"""Removal of one run of consecutive blocks, the one that turns the residual stream least (Gromov et al. 2024)."""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, structured_bits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.layers import check, edit_of
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.similarity import Distance, distance_table
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Starts = Literal["all", "after_first", "gap_plus_one"]


def drop_consecutive_layers(
    shape: Shape, scope: Scope = EVERYTHING, *, distance: Distance = "angular", starts: Starts = "all"
) -> Degradation:
    """Removes the n consecutive blocks whose input and output are closest; n = floor(s L), not nested in s.

    Blocks i .. i + n - 1 go, with i the start of least distance between h_i and h_(i+n) (Gromov et al. 2024,
    arXiv 2403.17887, section 3); the lowest among equals.  distance: `angular` of the last token of each
    sequence, mean over sequences; `cosine`: 1 - mean cosine of all tokens (LLM-Drop, consecutive blocks).
    starts: `all`, from h_0 on (ShortGPT's code); `after_first` never removes the first block (PruneMe leaves
    out h_0); `gap_plus_one` compares h_i with h_(i+n+1), as LLM-Drop's code does, which leaves out the last
    start too.  Where a convention leaves no start, the first possible is taken.  Runs of growing n are chosen
    anew, so removal is not nested.  Costs one forward pass over the calibration set.
    """
    check(scope, "block", shape)
    first, end = scope.layer_range(shape)
    index_L = np.arange(shape.n_layers)

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array:
        return distance_table(params, calibration_NT, shape, distance)

    def apply(params: Params, fitted: Array, severity: Array, where: Where, key: Array) -> Edit:
        n = count(end - first, severity)
        start = start_of_run(fitted, n, first, end, starts)
        gone_L = (start <= index_L) & (index_L < start + n) & where.layer_L
        return edit_of(jnp.where(gone_L, jnp.float32(0), jnp.float32(1)), "block")

    return Degradation(
        name="drop_consecutive_layers",
        scope=scope,
        settings={"distance": distance, "starts": starts},
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        needs_calibration=True,
        promises=Promises(exact_count=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, structured_bits),
    )


def start_of_run(distance_PP: Array, n: Array, first: int, end: int, starts: Starts) -> Array:
    """The block at which the best run of n blocks inside first .. end - 1 begins; n is traced."""
    gap = n + (starts == "gap_plus_one")
    index_P = jnp.arange(len(distance_PP))
    last = len(distance_PP) - 1
    distance_P = distance_PP[index_P, jnp.minimum(index_P + gap, last)]
    lowest = jnp.where((starts == "after_first") & (first == 0) & (n < end), 1, first)
    allowed_P = (lowest <= index_P) & (index_P + gap <= end)
    return jnp.where(allowed_P.any(), jnp.argmin(jnp.where(allowed_P, distance_P, jnp.inf)), first)
