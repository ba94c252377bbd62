"""Removal of layers without looking at them: at random, from one end, or evenly spread."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, Degradation, Scope
from wane.scaling.degrade.layers import Part, in_scope, layer_remover
from wane.scaling.edit import Params
from wane.scaling.shape import Shape

Order = Literal["random", "first", "last", "spread"]


def remove_layers(
    shape: Shape, scope: Scope = EVERYTHING, *, part: Part = "block", order: Order = "random", every: int = 0
) -> Degradation:
    """Removes layers (the residual stream passes them by), at random or in an order that their place decides.

    Severity s removes floor(s n) of the n layers in scope (part joint: of the 2 n sublayers, in
    the order in which a forward pass meets them).  A share that 1e-4 steps cannot hold is rounded up
    by the user: 0.3334, not 1/3, removes 3 of 9.  order: `random`; from the
    `first` or the `last` on; `spread` halves the widest gap again and again, so that what is removed is as
    evenly spaced as nested removal can be.  every = k (with order spread): every k-th layer goes before all
    others (Fan et al. 2020, arXiv 1909.11556, section 3.2: every other), so severity 1/k is exactly those.
    """
    if every and (order != "spread" or not 2 <= every <= shape.n_layers):
        raise ValueError(
            f'remove_layers.every = {every}: must be 0 (off), or from 2 to {shape.n_layers} with order = "spread", '
            f'got order = "{order}"'
        )

    def score(params: Params, calibration_NT: Array, key: Array) -> Array:
        n_parts = 2 if part == "joint" else 1
        if order == "random":
            return jax.random.uniform(key, (n_parts * shape.n_layers,))
        in_scope_PL = in_scope(scope, part, shape).reshape(n_parts, -1)
        place_LP = np.arange(in_scope_PL.size).reshape(
            -1, n_parts
        )  # in the order in which a forward meets them
        if order == "spread":
            place_LP = spread(in_scope_PL.T.ravel(), every).reshape(-1, n_parts)
        return jnp.asarray(-place_LP if order == "last" else place_LP, jnp.float32).T.ravel()

    return layer_remover(
        name="remove_layers",
        shape=shape,
        scope=scope,
        settings={"part": part, "order": order, "every": every},
        part=part,
        score=score,
        random=order == "random",
    )


def spread(in_scope_U: np.ndarray, every: int) -> np.ndarray:
    """[U] the position of each in the order of removal; out of scope last."""
    candidates = np.flatnonzero(in_scope_U)
    first = candidates[every - 1 :: every] if every else candidates[:0]
    order = [int(u) for u in first]
    bounds = {int(candidates[0]) - 1, int(candidates[-1]) + 1}
    for _ in range(len(candidates) - len(order)):
        gone = np.array(sorted(bounds | set(order)))
        room = [(0 if u in gone else int(np.abs(gone - u).min()), -int(u)) for u in candidates]
        order.append(-max(room)[1])
    position_U = np.full(len(in_scope_U), len(in_scope_U))
    position_U[order] = np.arange(len(order))
    return position_U
