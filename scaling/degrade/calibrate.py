"""Statistics of the inputs of all block matrices over calibration sequences, one batch in memory at a time."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.edit import SITES, Params
from wane.scaling.model import apply
from wane.scaling.shape import Shape

BATCH = 8  # sequences of one forward pass; fewer where 8 does not divide their number


class InputStatistics(NamedTuple):
    """Of the inputs of one site's matrices, over all calibration tokens, in f32."""

    mean_LI: Array
    absmax_L: Array


def input_statistics(params: Params, tokens_NT: Array, shape: Shape) -> dict[str, InputStatistics]:
    """Site (a key of edit.SITES) -> statistics of the trained model on T - 1 tokens of each sequence."""
    N, T = tokens_NT.shape
    batch = math.gcd(N, BATCH)

    def of_batch(tokens_BT: Array) -> dict[str, InputStatistics]:
        inner = apply(params, tokens_BT[:, :-1], shape).inner
        inputs = {site: inner[site].astype(jnp.float32) for site in SITES}
        return {
            site: InputStatistics(x_LBSI.mean((1, 2)), jnp.abs(x_LBSI).max((1, 2, 3)))
            for site, x_LBSI in inputs.items()
        }

    def step(total, tokens_BT):
        new = of_batch(tokens_BT)
        merged = {
            site: InputStatistics(t.mean_LI + new[site].mean_LI, jnp.maximum(t.absmax_L, new[site].absmax_L))
            for site, t in total.items()
        }
        return merged, None

    batches = tokens_NT.reshape(N // batch, batch, T)
    total, _ = lax.scan(step, of_batch(batches[0]), batches[1:])
    return {site: s._replace(mean_LI=s.mean_LI * (batch / N)) for site, s in total.items()}


def site_of(matrix: str) -> str:
    """The site whose activation a matrix reads."""
    return next(site for site, readers in SITES.items() if matrix in readers)
