"""Functional redundancy of neurons: how much of what a removed subset did the others can do when they, or their
common output, are transformed in a restricted way.

A random subset of the neurons of one layer is removed.  The output y_r of the remaining ones goes through the map
that brings it nearest, in least squares over the calibration tokens, to the full output y: a scalar, one number per
dimension, or the identity plus a map of low rank; or each remaining neuron is scaled.  Then the loss is measured,
as it is where they are removed outright.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.examine.contract import Examination, Examined, Finding, Tick
from wane.eval.examine.losses import Losses
from wane.eval.examine.transformation import PARTS, transformations
from wane.eval.examine.units import hidden_units
from wane.eval.metrics.contract import Metric, Place
from wane.scaling.degrade.sequential import gram
from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply
from wane.scaling.program import Program
from wane.scaling.shape import Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """sizes: shares of a layer's neurons that are removed.  subsets: random orders in which they go, in every
    layer.  rank: of the map that is added to the identity."""

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
    """scale_F: f32, what the neurons of `layer` are multiplied by ([E, F] with experts), 0 for those that are gone;
    map_DD: what their output goes through."""

    layer: np.int32
    scale_F: np.ndarray
    map_DD: np.ndarray


def forwards(shape: Shape, settings: Settings) -> int:
    return 1 + shape.n_layers * settings.subsets * len(settings.sizes) * len(PARTS)


def replaced(params: Params, removal: Removal) -> Edit:
    """The map goes into the rows of `down`, so that the edit is one of weights."""
    down = params["blocks"]["down"]
    kept = lax.dynamic_index_in_dim(down, removal.layer, keepdims=False) * removal.scale_F[..., None]
    # The identity must leave the weights as they are: passes in fewer bits would round them.
    mapped = jnp.matmul(kept, removal.map_DD, precision=lax.Precision.HIGHEST)
    return Edit(params={"blocks": {"down": lax.dynamic_update_index_in_dim(down, mapped, removal.layer, 0)}})


@functools.lru_cache(maxsize=32)
def activity(shape: Shape, precision: str) -> Program:
    """(params, tokens_NT, layer) -> [U, U] f32: second moments, summed over tokens, of the layer's hidden units as
    its `down` reads them, each times the routing weight of its expert."""

    def moments(params: Params, tokens_NT: Array, layer: Array) -> Array:
        def of_batch(tokens_BT: Array) -> Array:
            inner = apply(params, tokens_BT[:, :-1], shape).inner
            x = inner["down_in"][layer].astype(jnp.float32)
            if shape.n_experts is not None:
                x = x * inner["route"][layer][..., None]
            return gram(x.reshape(-1, hidden_units(shape)))

        return over_batches(of_batch, tokens_NT)

    return Program(moments, precision)


def run(examined: Examined, settings: Settings, tick: Tick) -> Iterator[Finding]:
    shape, rng = examined.shape, np.random.default_rng(examined.seed)
    size_F, D, U = shape.full("down")[1:-1], shape.d_model, hidden_units(shape)
    nothing = Removal(np.int32(0), np.ones(size_F, np.float32), np.eye(D, dtype=np.float32))
    losses = Losses(examined, replaced, nothing, tick)
    moments = activity(shape, examined.precision)
    # parts, layers, subsets, sizes, tasks
    rise_PLXSJ = np.empty(
        (len(PARTS), shape.n_layers, settings.subsets, len(settings.sizes), len(losses.tasks))
    )
    for layer in range(shape.n_layers):
        w_UD = np.asarray(examined.params["blocks"]["down"][layer], np.float64).reshape(U, D)
        gram_UU = np.asarray(moments(examined.params, examined.calibration_NT, np.int32(layer)), np.float64)
        for x in range(settings.subsets):
            order_U = rng.permutation(U)  # a larger subset holds the smaller ones
            for s, size in enumerate(settings.sizes):
                keep_U = np.ones(U, np.float32)
                keep_U[order_U[: max(1, math.floor(size * U))]] = 0
                found = transformations(gram_UU, w_UD, keep_U, settings.rank)
                for p, (scale_U, map_DD) in enumerate(found.values()):
                    scale_F = np.float32(scale_U).reshape(size_F)
                    removal = Removal(np.int32(layer), scale_F, np.float32(map_DD))
                    rise_PLXSJ[p, layer, x, s] = losses.rise(removal, layer)
    yield from _findings(rise_PLXSJ, settings, losses)


def _findings(rise_PLXSJ: np.ndarray, settings: Settings, losses: Losses) -> Iterator[Finding]:
    """Means over subsets of every layer, and over layers; and the share that a transformation makes good."""
    mean_PLSJ = rise_PLXSJ.mean(axis=2)
    for s, size in enumerate(settings.sizes):
        for j, (task, tokens) in enumerate(zip(losses.tasks, losses.tokens, strict=True)):
            for p, part in enumerate(PARTS):
                rise_L, whole = mean_PLSJ[p, :, s, j], Place(axis="removed", at=size, part=part)
                yield Finding("restricted_removal", rise_L.mean(), tokens, whole, task)
                for layer, rise in enumerate(rise_L):
                    place = whole._replace(at_2=float(layer))
                    yield Finding("restricted_removal", rise, tokens, place, task)
                outright = mean_PLSJ[0, :, s, j].mean()
                if p and outright > 0:
                    share = 1 - rise_L.mean() / outright
                    yield Finding("functional_redundancy", share, tokens, whole, task)


EXAMINATION = Examination(
    name="restricted",
    meaning="random neurons of one layer removed, the others or their output transformed as well as can be",
    source="low rank: reduced-rank regression, Izenman 1975, J. Multivariate Analysis 5",
    settings=Settings,
    metrics=(
        Metric(
            name="restricted_removal",
            unit="nats/token",
            meaning="rise of the loss when a share of a layer's neurons is removed and the others or their output "
            "go through the best map of a kind; part none: outright; at_2: of one layer, null: their mean",
            better="lower",
        ),
        Metric(
            name="functional_redundancy",
            unit="fraction",
            meaning="share of the rise of outright removal that the best map of a kind makes good",
            better="neither",
        ),
    ),
    forwards=forwards,
    run=run,
    needs_calibration=True,
    version=2,
)
