"""How much every sublayer turns the degraded model's residual stream by itself: the stream that it reads against
that behind it.  (What ranks sublayers for removal: He et al. 2024, arXiv 2406.15786.)"""

from collections.abc import Callable
from operator import itemgetter

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Statistic, Sums, Weights
from wane.eval.metrics.deviation import geometry
from wane.eval.metrics.deviation_layers import parts_of_layers
from wane.eval.metrics.moments import chosen, few, weight
from wane.eval.metrics.view import View
from wane.scaling.model import Inner


def between(inner: Inner) -> Array:
    """The stream that enters a block, and that behind its attention, at `few` positions [2, N, D]."""
    return jnp.stack([chosen(inner[name], few) for name in ("block_in", "mid")])


def turns(view: View) -> Sums:
    """Number of tokens, and sums over them of cosine and relative length across, [L, 3] as `parts_of_layers`.  What
    acts behind the last block, a lens or the inverse of deleted tokens, counts with it."""
    start_LND, mid_LND = jnp.moveaxis(view.inside[between], 1, 0)
    end_LND = jnp.concatenate([start_LND[1:], chosen(view.x_BSD, few)[None]])
    pairs = (start_LND, mid_LND), (mid_LND, end_LND), (start_LND, end_LND)
    weight_N = weight(view, few)
    found = [geometry(*pair) for pair in pairs]
    sums = {
        name: jnp.stack([getattr(g, name) @ weight_N for g in found], axis=1)
        for name in ("cosine", "orthogonal")
    }
    return sums | {"n": weight_N.sum()}


def mean(field: str) -> Callable[[Sums, Weights], Array]:
    return lambda sums, weights: sums[field] / sums["n"]


_STATES = (
    "the degraded model's residual stream before and behind a sublayer; block: before and behind both; 64 tokens of"
    " each batch"
)

METRICS = (
    Statistic(
        name="contribution_cosine",
        version=3,
        unit="",
        meaning="cosine between " + _STATES,
        better="neither",
        gather=turns,
        count=itemgetter("n"),
        values=mean("cosine"),
        places=parts_of_layers,
        inside=between,
    ),
    Statistic(
        name="contribution_orthogonal",
        version=3,
        unit="",
        meaning="length of what is added across the stream over the stream's length, from " + _STATES,
        better="neither",
        gather=turns,
        count=itemgetter("n"),
        values=mean("orthogonal"),
        places=parts_of_layers,
        inside=between,
    ),
)
