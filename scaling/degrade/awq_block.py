"""AWQ on one block: what the searches need to know of the calibration data, and the block's new matrices.

Inside a mixture of experts the targets and grids of gate, up and down have a leading axis of experts; the scales
of gate and up are shared by all experts, which see the same inputs, and judged by the output of the whole MLP.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling import model
from wane.scaling.degrade.awq_search import (
    Search,
    Target,
    best_scales,
    clip_limits,
    diagonal_losses,
    group_grams,
    linear_losses,
    losses_of,
    round_scaled,
    spread,
)
from wane.scaling.degrade.calibrate import inner_of
from wane.scaling.degrade.rounding import lift
from wane.scaling.degrade.sequential import gram
from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import SITES
from wane.scaling.model import Inner
from wane.scaling.quantize import Grid
from wane.scaling.shape import Shape

OUTPUT = {"attn_in": "attn_out", "mlp_in": "mlp_out"}  # by which the matrices of a site are judged together
NEVER_CLIPPED = ("q", "k")  # their products meet in a softmax
Blocks = Mapping[str, Array]  # leaves of one block


class Statistics(NamedTuple):
    """Site -> sums over the calibration data.  gram: [.., I, I], of sites not in OUTPUT; groups: [.., G, g, g], of
    the sampled tokens."""

    gram: dict[str, Array]
    groups: dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSearch:
    """scale_stride: every how many calibration sequences one is seen by the search for scales that a whole sublayer
    is judged by.  clip_stride: every how many tokens one is seen by the search for ranges; 0: ranges are not
    clipped."""

    shape: Shape
    search: Search
    scale_stride: int
    clip_stride: int

    def solve(
        self, block: Blocks, targets: Mapping[str, Target], activity: Mapping[str, Array], x_nBSD: Array
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Grid]]]:
        """(the residual stream behind the trained block, (new matrices, their grids)).

        activity: site -> [I], of experts' `down` [E, I].  x_nBSD: batches of the residual stream.
        """
        sites = {s: names for s, readers in SITES.items() if (names := [n for n in readers if n in targets])}
        activity = {
            site: lift(self.search.activity, activity[site].ndim - 1)(activity[site]) for site in sites
        }
        losses = self.losses(block, targets, activity, x_nBSD, sites)
        x_nBSD, statistics = self.measure(block, x_nBSD, sites)
        values, grids = {}, {}
        for site, names in sites.items():
            own = {n: targets[n] for n in names}
            scales = self.scales(site, own, activity[site], losses.get(site), statistics)
            for name in names:
                experts = targets[name].w_IO.ndim - 2
                arguments = (targets[name], jnp.broadcast_to(scales, targets[name].w_IO.shape[:-1]))
                limit = None
                if self.clip_stride and name not in NEVER_CLIPPED:
                    limit = lift(self.limits, experts)(*arguments, statistics.groups[site])
                rounded = lift(lambda t, s, limit=None: round_scaled(t, s, self.search, limit), experts)
                values[name], grids[name] = rounded(*arguments, *([] if limit is None else [limit]))
        return x_nBSD, (values, grids)

    def limits(self, target: Target, s_I: Array, gram_Ggg: Array) -> Array:
        """Limit of |w s| for each weight, [I, O]."""
        return spread(clip_limits(target, s_I, gram_Ggg, self.search)[0], len(s_I))

    def scales(
        self,
        site: str,
        targets: Mapping[str, Target],
        activity: Array,
        losses: Array | None,
        statistics: Statistics,
    ) -> Array:
        """Scales of a site's inputs, of the shape of its activity.  losses: [n_grid] of a site in OUTPUT."""
        matrices = self.shape.matrices
        if site == "o_in" and matrices["o"] != matrices["v"]:
            return jnp.ones_like(activity)
        own = activity.ndim - 1
        if self.search.objective == "diagonal":
            losses = self.diagonal(targets, activity)
        elif losses is None:
            (target,) = targets.values()
            losses = lift(lambda t, g, a: linear_losses(t, g, a, self.search), own)(
                target, statistics.gram[site], activity
            )
        return lift(lambda l, a: best_scales(l, a, self.search.ratios), own)(losses, activity)

    def diagonal(self, targets: Mapping[str, Target], activity: Array) -> Array:
        """Losses of all matrices that share these scales together."""
        total = 0
        for target in targets.values():
            shared = target.w_IO.ndim - 1 - activity.ndim  # experts that share their activity

            def losses(t: Target, a: Array) -> Array:
                return diagonal_losses(t, a, self.search)

            over = jax.vmap(losses, in_axes=(0, None)) if shared else lift(losses, activity.ndim - 1)
            value = over(target, activity)
            total = total + (value.sum(0) if shared else value)
        return total

    def measure(
        self, block: Blocks, x_nBSD: Array, sites: Mapping[str, list[str]]
    ) -> tuple[Array, Statistics]:
        """(the residual stream behind the block, statistics): one pass over the calibration data."""

        def of_batch(n: Array, x_BSD: Array) -> tuple[Array, Statistics]:
            after_BSD, inner, _ = model.block(block, x_BSD, self.shape)
            return after_BSD, self.grams(inner, n, sites)

        def step(total, batch):
            after_BSD, statistics = of_batch(*batch)
            return jax.tree.map(jnp.add, total, statistics), after_BSD

        batches = (jnp.arange(len(x_nBSD)), x_nBSD)
        shapes = jax.eval_shape(lambda: of_batch(*jax.tree.map(lambda a: a[0], batches))[1])
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        statistics, x_nBSD = lax.scan(step, zeros, batches)
        return x_nBSD, statistics

    def losses(
        self,
        block: Blocks,
        targets: Mapping[str, Target],
        activity: Mapping[str, Array],
        x_nBSD: Array,
        sites: Mapping[str, list[str]],
    ) -> dict[str, Array]:
        """Site in OUTPUT -> change of the sublayer's output for each ratio, [n_grid]."""
        if self.search.objective != "output":
            return {}
        sampled_NSD = x_nBSD.reshape(-1, *x_nBSD.shape[2:])[:: self.scale_stride]
        halves = {"attn_in": model.behind_attention, "mlp_in": model.behind_mlp}

        def of_batch(x_BSD: Array) -> dict[str, Array]:
            found = {}
            for site, behind in halves.items():
                if site in sites:
                    own = {name: targets[name] for name in sites[site]}
                    found[site] = self.output_losses(site, behind, block, own, activity[site], x_BSD)
                x_BSD = behind(block, x_BSD, self.shape)[0]
            return found

        return over_batches(of_batch, sampled_NSD)

    def output_losses(
        self,
        site: str,
        behind: Callable,
        block: Blocks,
        targets: Mapping[str, Target],
        activity_I: Array,
        x_BSD: Array,
    ) -> Array:
        def output(weights: Mapping[str, Array]) -> Array:
            return behind({**block, **weights}, x_BSD, self.shape)[1][OUTPUT[site]]

        def rounded(s_I: Array) -> dict[str, Array]:
            return {
                name: lift(lambda t: round_scaled(t, s_I, self.search)[0], target.w_IO.ndim - 2)(target)
                for name, target in targets.items()
            }

        weights = {name: target.w_IO for name, target in targets.items()}
        return losses_of(output, weights, rounded, activity_I, self.search.ratios)

    def grams(self, inner: Inner, n: Array, sites: Mapping[str, list[str]]) -> Statistics:
        """Of batch n."""
        whole, groups = {}, {}
        for site in sites:
            x = inner_of(inner, site, self.shape)
            leading = x.ndim - 2
            if site not in OUTPUT and self.search.objective == "output":
                whole[site] = lift(gram, leading)(x)
            if self.clip_stride:
                size = self.search.group_size or x.shape[-1]
                sampled = every(x, self.clip_stride, n * x.shape[-2])
                groups[site] = lift(lambda x_TI, size=size: group_grams(x_TI, size), leading)(sampled)
        return Statistics(whole, groups)


def every(x: Array, stride: int, first: Array) -> Array:
    """The rows of x [.., T, I] whose number is a multiple of `stride`, numbers counted from `first` on; rows of
    zeros make up for a number of rows that depends on it."""
    T = x.shape[-2]
    place = (-first) % stride + np.arange(-(-T // stride)) * stride
    return jnp.where((place < T)[:, None], jnp.take(x, jnp.minimum(place, T - 1), axis=-2), 0)
