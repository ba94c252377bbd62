"""AWQ: activation-aware weight quantisation (Lin et al. 2023, arXiv 2306.00978)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling import model
from wane.scaling.degrade.awq_block import BlockSearch
from wane.scaling.degrade.awq_search import Objective, Search, Target
from wane.scaling.degrade.calibrate import inner_of
from wane.scaling.degrade.contract import BITS, EVERYTHING, Degradation, Promises, Scope, Where, bits_of
from wane.scaling.degrade.cost import CostOf
from wane.scaling.degrade.rounding import StoredBits, align, check_groups, hold_grid, weight_bits
from wane.scaling.degrade.rtn import SCALE_BITS, uniform_rounding
from wane.scaling.degrade.stream import batched, over_batches
from wane.scaling.edit import SITES, Edit, Params
from wane.scaling.model import Inner
from wane.scaling.quantize import Convention, Scheme, straight_through
from wane.scaling.shape import Shape


def awq(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    symmetric: bool = False,
    group_size: int = 0,
    convention: Convention = "awq",
    n_grid: int = 20,
    scale_tokens: int = 512,
    clip: bool = True,
    clip_tokens: int = 512,
    objective: Objective = "output",
) -> Degradation:
    """Rounds weights after scaling up the inputs that are active, and clips ranges (AWQ).

    Severity is given in bits.  Matrices that share inputs (q, k, v; gate and up, of all experts; o; down) share
    the scales activity^r, activity the mean |x| of an input, with the r in 0, 1 / n_grid, .. below 1 that changes
    the output of attention (q, k, v), of the MLP (gate, up) or their own (o, down) least in mean square.  `o` is
    not scaled where it has not the size of `v`, as under grouped queries: `v` could not take up 1 / scale.  Outputs
    of attention and of the MLP are compared on calibration sequences of together scale_tokens tokens, at equal
    strides; 0: on all, as in the published code, where a point costs n_grid forwards of the calibration set for one
    number per site.  Then ranges are clipped (not of q and k) as the outputs of each group ask for, over
    clip_tokens calibration tokens at equal strides, 0: over all.  Both searches see the inputs that the trained
    model makes.
    symmetric, group_size, convention: as in rtn.  objective: see awq_search.Search.  A point costs a forward of the
    calibration set and n_grid of scale_tokens; in memory stand its residual stream and one block's statistics.
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    check_groups(group_size, in_scope, shape)
    check_counts(n_grid, scale_tokens, clip_tokens)
    scheme = Scheme(convention=convention, symmetric=symmetric, mse=False)
    search = Search(scheme=scheme, group_size=group_size, n_grid=n_grid, objective=objective)

    def fit(params: Params, calibration_NT: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        """(the calibration tokens, the mean activity of each site's inputs)."""
        return calibration_NT, mean_activity(params, calibration_NT, shape)

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        tokens_NT, activity = fitted
        bits = weight_bits(bits_of(severity), in_scope, where, shape)
        N, S = tokens_NT[:, 1:].shape
        strides = {
            "scale_stride": stride(N, -(-scale_tokens // S)),
            "clip_stride": stride(N * S, clip_tokens) if clip else 0,
        }
        solver = BlockSearch(shape=shape, search=search, **strides)
        targets = {
            name: Target(params["blocks"][name], align(bits[name], name, shape), align(mask, name, shape))
            for name, mask in in_scope.items()
        }
        x_NSD = model.embed(params, tokens_NT[:, :-1], shape)
        x_nBSD = batched(x_NSD)
        # Constants to the gradient, which goes straight through.
        start, layers = jax.tree.map(lax.stop_gradient, (x_nBSD, (params["blocks"], targets, activity)))
        _, (values, grids) = lax.scan(lambda x, layer: solver.solve(*layer, x), start, layers)
        blocks = {name: straight_through(params["blocks"][name], value) for name, value in values.items()}
        return Edit(params={"blocks": blocks}, weight_bits=bits, weight_grid=grids)

    storage = StoredBits(shape, group_size=group_size, scale_bits=SCALE_BITS, zero_point=not symmetric)
    return Degradation(
        name="awq",
        scope=scope,
        settings={
            "symmetric": symmetric,
            "group_size": group_size,
            "convention": convention,
            "n_grid": n_grid,
            "scale_tokens": scale_tokens,
            "clip": clip,
            "clip_tokens": clip_tokens,
            "objective": objective,
        },
        unit="bits",
        severities=BITS,
        random=False,
        sequential=True,
        needs_calibration=True,
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_grid, round_matrix=uniform_rounding(scheme)),
        cost=CostOf(shape, storage),
    )


def check_counts(n_grid: int, scale_tokens: int, clip_tokens: int) -> None:
    """Raises ValueError naming the setting."""
    if n_grid < 1:
        raise ValueError(f"n_grid = {n_grid}: must be at least 1 (1 tries no scaling only)")
    for name, value in (("scale_tokens", scale_tokens), ("clip_tokens", clip_tokens)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be positive, or 0 for all of the calibration data")


def stride(total: int, wanted: int) -> int:
    """Every how many of `total` one is looked at; wanted 0: at all."""
    return max(total // wanted, 1) if wanted else 1


def mean_activity(params: Params, tokens_NT: Array, shape: Shape) -> dict[str, Array]:
    """Site -> mean |x| of each input [L, I] over all tokens; of an expert's `down` [L, E, I], over the tokens that
    it serves."""

    def of_batch(tokens_BT: Array) -> dict[str, tuple[Array, Array]]:
        inner = model.apply(params, tokens_BT[:, :-1], shape).inner
        return {site: sums(inner, site) for site in SITES}

    def sums(inner: Inner, site: str) -> tuple[Array, Array]:
        if site == "mlp_in":  # all experts see the same inputs
            x = inner[site].astype(jnp.float32).reshape(shape.n_layers, -1, shape.d_model)
        else:
            x = inner_of(inner, site, shape)
        served = jnp.any(x != 0, axis=-1, keepdims=True) if x.ndim == 4 else jnp.ones_like(x[..., :1])
        return jnp.sum(jnp.abs(x), axis=-2), jnp.sum(served, axis=-2, dtype=jnp.int32)

    total = over_batches(of_batch, tokens_NT)
    return {site: x / jnp.maximum(tokens, 1) for site, (x, tokens) in total.items()}
