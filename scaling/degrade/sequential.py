"""Degradation block by block: the statistics of a block come from the degraded blocks before it.

One scan over layers.  In memory stand the residual stream of the calibration set, one block's statistics and one
batch of activations; a call costs two forwards of the calibration set (one more per further stage).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.calibrate import inner_of
from wane.scaling.degrade.contract import Where
from wane.scaling.degrade.stream import batched
from wane.scaling.edit import SITES, Edit, Params
from wane.scaling.model import Inner, block, embed
from wane.scaling.quantize import Grid, straight_through
from wane.scaling.shape import Shape


class Layer(NamedTuple):
    """One block as it stands: its leaves, and its slice of an Edit."""

    params: Params
    edit: Edit


Measure = Callable[[Inner, Any], Any]  # (a batch's intermediates, stage) -> statistics, summed over batches
Modify = Callable[[Layer, Any, Any, Any], Layer]  # (layer, statistics, its slice of aux, stage) -> layer
Matrices = dict[str, Array]  # by name


def walk(
    params: Params,
    tokens_NT: Array,
    shape: Shape,
    aux: Any,
    *,
    measure: Measure,
    modify: Modify,
    stages: tuple = (None,),
) -> Layer:
    """Every block modified in turn, stacked again: Layer(block leaves [L, ...], per-layer edit).

    Per block and stage, `measure` runs over batches of the calibration sequences with the block as it stands
    (inputs are made by the blocks before it, modified), then `modify` changes the block.  aux: pytree of arrays
    with a leading layer axis.
    """
    x_nBSD = batched(embed(params, tokens_NT[:, :-1], shape))

    def run(layer: Layer, x_BSD: Array) -> tuple[Array, Inner]:
        return block(layer.params, x_BSD, shape, layer.edit)[:2]

    def total(layer: Layer, x_nBSD: Array, stage: Any) -> Any:
        def step(sums, x_BSD):
            return jax.tree.map(jnp.add, sums, measure(run(layer, x_BSD)[1], stage)), None

        first = jax.eval_shape(lambda: measure(run(layer, x_nBSD[0])[1], stage))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
        return lax.scan(step, zeros, x_nBSD)[0]

    def body(x_nBSD, xs):
        layer, aux_l = xs
        for stage in stages:
            layer = modify(layer, total(layer, x_nBSD, stage), aux_l, stage)
        return lax.map(lambda x_BSD: run(layer, x_BSD)[0], x_nBSD), layer

    layers = Layer(params["blocks"], Edit())
    return lax.scan(body, x_nBSD, (layers, aux))[1]


def rewrite(
    params: Params,
    tokens_NT: Array,
    shape: Shape,
    in_scope: dict[str, np.ndarray],
    where: Where,
    *,
    measure: Callable[[Array], Any],
    solve: Callable[[Matrices, Any, Matrices], tuple[Matrices, dict[str, Grid]]],
    true_sequential: bool = False,
) -> tuple[Matrices, dict[str, Grid]]:
    """(new weights [.., I, O], lattices) of every matrix in scope, by name.

    measure(x_TI) -> statistics of the inputs of one site's matrices, in f32, summed over batches.
    solve({name: w_IO}, statistics, {name: bool inside_IO}) -> ({name: new w_IO}, {name: Grid}) for the matrices in
    scope that share these inputs (a method without lattices returns {}); lifted over experts.  inside: in scope
    and selected by `where`; nothing else changes.
    true_sequential: the matrices of a later site see the inputs that the earlier ones of the block make after
    their change; else all see the block as it was (the published default).
    """
    params = lax.stop_gradient(params)
    sites = {site: [name for name in readers if name in in_scope] for site, readers in SITES.items()}
    sites = {site: names for site, names in sites.items() if names}

    def lifted(f: Callable, site: str) -> Callable:
        return jax.vmap(f) if len(shape.lead(sites[site][0])) == 2 else f

    def measure_sites(inner: Inner, stage: tuple[str, ...]) -> dict[str, Any]:
        return {site: lifted(measure, site)(inner_of(inner, site, shape)) for site in stage}

    def modify(layer: Layer, statistics: dict, inside: Matrices, stage: tuple[str, ...]) -> Layer:
        new, grids = {}, dict(layer.edit.weight_grid or {})
        for site in stage:
            weights = {name: layer.params[name] for name in sites[site]}
            acts = {name: jnp.broadcast_to(inside[name], shape.matrices[name]) for name in weights}
            solved, lattice = lifted(lambda w, s, acts=acts: solve(w, s, acts), site)(
                weights, statistics[site]
            )
            new |= {name: jnp.where(acts[name], solved[name], weights[name]) for name in weights}
            grids |= lattice
        return Layer({**layer.params, **new}, dataclasses.replace(layer.edit, weight_grid=grids))

    stages = tuple((site,) for site in sites) if true_sequential else (tuple(sites),)
    inside = {name: entries(mask, name, where, shape) for name, mask in in_scope.items()}
    layers = walk(params, tokens_NT, shape, inside, measure=measure_sites, modify=modify, stages=stages)
    return {name: layers.params[name] for name in in_scope}, layers.edit.weight_grid


def entries(mask: np.ndarray, name: str, where: Where, shape: Shape) -> Array:
    """bool [L, I or 1, O or 1]: entries of a matrix in scope and selected; the same for all experts of a layer."""
    chosen = jnp.asarray(mask & where.entries(name, shape))
    return chosen.reshape(len(chosen), *chosen.shape[-2:])


def kept(params: Params, new: Matrices) -> Matrices:
    """new in value; its gradient is that of the trained weight, and 0 where a weight is removed."""
    return {n: jnp.where(w == 0, 0, straight_through(params["blocks"][n], w)) for n, w in new.items()}


def gram(x_TI: Array) -> Array:
    """x^T x [I, I] in f32 at the highest precision of the device."""
    return jnp.einsum("ti,tj->ij", x_TI, x_TI, precision=lax.Precision.HIGHEST)
