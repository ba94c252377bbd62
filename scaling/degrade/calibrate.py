"""Statistics of the inputs of all block matrices over calibration sequences, one batch in memory at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import SITES, Params
from wane.scaling.model import Inner, apply
from wane.scaling.shape import Shape


class InputStatistics(NamedTuple):
    """Of the inputs of one site's matrices, over all calibration tokens, in f32."""

    mean: Array  # [L, I]; of an expert's `down` [L, E, I], over the tokens that it serves
    absmax_L: Array


def input_statistics(params: Params, tokens_NT: Array, shape: Shape) -> dict[str, InputStatistics]:
    """Site (a key of edit.SITES) -> statistics of the trained model on T - 1 tokens of each sequence."""

    def of_batch(tokens_BT: Array) -> dict[str, tuple[Array, Array, Array]]:
        inner = apply(params, tokens_BT[:, :-1], shape).inner
        return {site: jax.vmap(sums)(inner_of(inner, site, shape)) for site in SITES}

    def sums(x: Array) -> tuple[Array, Array, Array]:  # of one layer
        count = jnp.sum(jnp.any(x != 0, axis=-1), axis=-1, dtype=jnp.int32)
        return x.sum(-2), count, jnp.abs(x).max()

    def join(a, b):
        return {
            site: (a[site][0] + b[site][0], a[site][1] + b[site][1], jnp.maximum(a[site][2], b[site][2]))
            for site in SITES
        }

    total = over_batches(of_batch, tokens_NT, join=join)
    dense = tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)
    return {
        site: InputStatistics(x / (jnp.maximum(n, 1)[..., None] if x.ndim == 3 else dense), absmax)
        for site, (x, n, absmax) in total.items()
    }


def inner_of(inner: Inner, site: str, shape: Shape) -> Array:
    """The inputs of a site's matrices as f32 rows [.., T, I], T = all tokens of the batch.  Inside a mixture of
    experts [.., E, T, I], where rows of tokens that an expert does not serve are 0.  Leading axes (of layers)
    stay."""
    x = inner[site].astype(jnp.float32)
    if shape.n_experts is None or site in ("attn_in", "o_in"):
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])
    serves = jnp.moveaxis(inner["route"] > 0, -1, -3)  # [.., E, B, S]
    x = jnp.moveaxis(x, -2, -4) if site == "down_in" else x[..., None, :, :, :]
    x = jnp.where(serves[..., None], x, 0)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def site_of(matrix: str) -> str:
    """The site whose activation a matrix reads."""
    return next(site for site, readers in SITES.items() if matrix in readers)
