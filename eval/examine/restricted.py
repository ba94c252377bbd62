"""Functional redundancy of neurons, or of heads: how much of what a removed subset did the others can do when they,
or their common output, are transformed in a restricted way.

A random subset of the units of one layer is removed.  The output y_r of the remaining ones goes through the map
that brings it nearest, in least squares over the calibration tokens, to the full output y: a scalar, one number per
dimension, or the identity plus a map of low rank; or each remaining unit is scaled.  Then the loss is measured,
as it is where they are removed outright.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.examine.contract import Examination, Examined, Finding, Tick
from wane.eval.examine.losses import Losses
from wane.eval.examine.transformation import PARTS, transformations
from wane.eval.examine.units import hidden_units
from wane.eval.metrics.contract import Metric, Place
from wane.scaling.degrade.calibrate import site_of
from wane.scaling.degrade.sequential import gram
from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply
from wane.scaling.program import Program
from wane.scaling.shape import Shape

Kind = Literal["neuron", "head"]
READS = {"neuron": "down", "head": "o"}  # the matrix that adds the units up
# Nats: below, nothing was lost that could be made good.  A map that brings all back leaves 3e-7 of rounding: .003
# of such a rise, but 300 times one of 1e-9.
LEAST_RISE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """unit: what is removed.  sizes: shares of a layer's units that are removed, rounded down to whole units, at
    least one; rows tell the share that is gone.  subsets: random orders in which they go, in every layer.  rank: of
    the map that is added to the identity."""

    unit: Kind = "neuron"
    sizes: tuple[float, ...] = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
    subsets: int = 4
    rank: int = 4

    def __post_init__(self):
        if not self.sizes or not all(0 < size < 1 for size in self.sizes):
            raise ValueError(
                f"examinations.settings.sizes = {self.sizes}: must be shares above 0 and below 1"
            )
        for field in ("subsets", "rank"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"examinations.settings.{field} = {getattr(self, field)}: must be at least 1"
                )


class Removal(NamedTuple):
    """scale_U: f32, what the rows of the matrix that adds the units of `layer` up are multiplied by, 0 for those
    that are gone; map_DD: what their output goes through."""

    layer: np.int32
    scale_U: np.ndarray
    map_DD: np.ndarray


def counts(shape: Shape, settings: Settings) -> dict[int, float]:
    """How many units are removed -> their share of a layer's: of two heads one is a half, whatever was asked, and
    shapes are compared at what they lost.  Sizes of as many units are one; a layer keeps at least one unit."""
    units = hidden_units(shape) if settings.unit == "neuron" else shape.n_heads
    numbers = {max(1, math.floor(size * units)) for size in settings.sizes}
    return {n: n / units for n in sorted(numbers) if n < units}


def forwards(shape: Shape, settings: Settings) -> int:
    removals = len(counts(shape, settings))
    return 1 + shape.n_layers * settings.subsets * removals * len(PARTS) if removals else 0


def _replaced(params: Params, removal: Removal, *, name: str) -> Edit:
    """The map goes into the rows of the matrix that adds the units up, so that the edit is one of weights."""
    w = params["blocks"][name]
    here = lax.dynamic_index_in_dim(w, removal.layer, keepdims=False)
    kept = here * removal.scale_U.reshape(*here.shape[:-1], 1)
    # The identity must leave the weights as they are: passes in fewer bits would round them.
    mapped = jnp.matmul(kept, removal.map_DD, precision=lax.Precision.HIGHEST)
    return Edit(params={"blocks": {name: lax.dynamic_update_index_in_dim(w, mapped, removal.layer, 0)}})


REPLACED = {unit: functools.partial(_replaced, name=name) for unit, name in READS.items()}


@functools.lru_cache(maxsize=32)
def activity(shape: Shape, unit: Kind, precision: str) -> Program:
    """(params, tokens_NT, layer) -> [U, U] f32: second moments, summed over tokens, of what the matrix that adds
    the units up reads; hidden units each times the routing weight of its expert."""

    def moments(params: Params, tokens_NT: Array, layer: Array) -> Array:
        def of_batch(tokens_BT: Array) -> Array:
            inner = apply(params, tokens_BT[:, :-1], shape).inner
            x = inner[site_of(READS[unit])][layer].astype(jnp.float32)
            if unit == "neuron" and shape.n_experts is not None:
                x = x * inner["route"][layer][..., None]
            return gram(x.reshape(-1, math.prod(x.shape[2:])))

        return over_batches(of_batch, tokens_NT)

    return Program(moments, precision)


def run(examined: Examined, settings: Settings, tick: Tick) -> Iterator[Finding]:
    shape, rng, removed = (
        examined.shape,
        np.random.default_rng(examined.seed),
        counts(examined.shape, settings),
    )
    if not removed:
        return
    name = READS[settings.unit]
    U, D = math.prod(shape.full(name)[1:-1]), shape.d_model
    size = shape.head_dim if settings.unit == "head" else 1
    nothing = Removal(np.int32(0), np.ones(U, np.float32), np.eye(D, dtype=np.float32))
    losses = Losses(examined, REPLACED[settings.unit], nothing, tick)
    moments = activity(shape, settings.unit, examined.precision)
    # parts, layers, subsets, sizes, tasks
    rise_PLXSJ = np.empty((len(PARTS), shape.n_layers, settings.subsets, len(removed), len(losses.tasks)))
    for layer in range(shape.n_layers):
        w_UD = np.asarray(examined.params["blocks"][name][layer], np.float64).reshape(U, D)
        gram_UU = np.asarray(moments(examined.params, examined.calibration_NT, np.int32(layer)), np.float64)
        for x in range(settings.subsets):
            order_N = rng.permutation(U // size)  # a larger subset holds the smaller ones
            for s, number in enumerate(removed):
                keep_N = np.ones(U // size, np.float32)
                keep_N[order_N[:number]] = 0
                found = transformations(gram_UU, w_UD, np.repeat(keep_N, size), settings.rank, size)
                for p, (scale_U, map_DD) in enumerate(found.values()):
                    removal = Removal(np.int32(layer), np.float32(scale_U), np.float32(map_DD))
                    rise_PLXSJ[p, layer, x, s] = losses.rise(removal, layer)
    yield from _findings(rise_PLXSJ, list(removed.values()), settings.unit, losses)


def _findings(rise_PLXSJ: np.ndarray, sizes: list[float], unit: Kind, losses: Losses) -> Iterator[Finding]:
    """Means over subsets of every layer, and over layers; and the share that a transformation makes good, where
    there is something to make good."""
    parts = [f"per_{unit}" if part == "per_unit" else part for part in PARTS]
    mean_PLSJ = rise_PLXSJ.mean(axis=2)
    for s, size in enumerate(sizes):
        for j, (task, tokens) in enumerate(zip(losses.tasks, losses.tokens, strict=True)):
            for p, part in enumerate(parts):
                rise_L, whole = mean_PLSJ[p, :, s, j], Place(axis="removed", at=size, part=part)
                yield Finding("restricted_removal", rise_L.mean(), tokens, whole, task)
                for layer, rise in enumerate(rise_L):
                    place = whole._replace(at_2=float(layer))
                    yield Finding("restricted_removal", rise, tokens, place, task)
                outright = mean_PLSJ[0, :, s, j].mean()
                if p and outright > LEAST_RISE:
                    share = 1 - rise_L.mean() / outright
                    yield Finding("functional_redundancy", share, tokens, whole, task)


EXAMINATION = Examination(
    name="restricted",
    meaning="random neurons or heads of a layer removed, the others or their output transformed as well as can be",
    source="low rank: reduced-rank regression, Izenman 1975, J. Multivariate Analysis 5",
    settings=Settings,
    metrics=(
        Metric(
            name="restricted_removal",
            unit="nats/token",
            meaning="rise of the loss when a share of a layer's neurons or heads is removed and the others or "
            "their output go through the best map of a kind; at: the share; part none: outright; at_2: of one "
            "layer, null: a mean",
            better="lower",
        ),
        Metric(
            name="functional_redundancy",
            unit="fraction",
            meaning="share of the rise of outright removal that the best map of a kind makes good; at: the share "
            "removed; none where removal costs less than 1e-4 nats",
            better="neither",
        ),
    ),
    forwards=forwards,
    run=run,
    needs_calibration=True,
    version=3,
)
