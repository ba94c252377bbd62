"""The units of a model that can be taken out alone or together: layers, sublayers, heads, groups of neurons."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from wane.eval.metrics.contract import Place
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

Kind = Literal["layer", "sublayer", "head", "neurons"]
Multipliers = dict[str, np.ndarray]  # field of Edit -> f32 multipliers, 0 for what is taken out


class Unit(NamedTuple):
    """part: layer, attention, mlp, head or neurons.  index: number of the head, or of the group of neurons, in its
    layer.  neurons: numbers of the hidden units of a group, experts one after the other."""

    layer: int
    part: str
    index: int | None = None
    neurons: tuple[int, ...] = ()

    @property
    def place(self) -> Place:
        at_2 = None if self.index is None else float(self.index)
        return Place(axis="layer", at=float(self.layer), at_2=at_2, part=self.part)

    @property
    def label(self) -> str:
        return self.part if self.index is None else f"{self.part} {self.index}"


def check_groups(name: str, groups: int, share: float) -> None:
    """Raises ValueError naming the field of `name` where no group of neurons can be drawn so."""
    if groups < 1:
        raise ValueError(f"examinations.settings.groups = {groups}: {name} needs at least 1")
    if not 0 < share <= 1:
        raise ValueError(
            f"examinations.settings.share = {share}: must be a share of a layer's neurons, above 0 and at most 1"
        )


def hidden_units(shape: Shape) -> int:
    """MLP hidden units of one layer, of all its experts."""
    return (shape.n_experts or 1) * shape.d_ff


def group_size(shape: Shape, share: float) -> int:
    return max(1, round(share * hidden_units(shape)))


def count(kind: Kind, shape: Shape, groups: int, share: float) -> int:
    """How many units of one kind there are; of neurons at most `groups` in a layer."""
    in_layer = {"layer": 1, "sublayer": 2, "head": shape.n_heads}
    in_layer |= {"neurons": min(groups, hidden_units(shape) // group_size(shape, share))}
    return shape.n_layers * in_layer[kind]


def units_of(kind: Kind, shape: Shape, groups: int, share: float, rng: np.random.Generator) -> list[Unit]:
    """All units of one kind; of neurons, disjoint random groups of a share of the layer's."""
    layers = range(shape.n_layers)
    if kind == "layer":
        return [Unit(layer, "layer") for layer in layers]
    if kind == "sublayer":
        return [Unit(layer, part) for layer in layers for part in ("attention", "mlp")]
    if kind == "head":
        return [Unit(layer, "head", head) for layer in layers for head in range(shape.n_heads)]
    size, number = group_size(shape, share), count(kind, shape, groups, share) // shape.n_layers
    orders = [rng.permutation(hidden_units(shape)) for _ in layers]
    return [
        Unit(layer, "neurons", g, tuple(orders[layer][g * size : (g + 1) * size].tolist()))
        for layer in layers
        for g in range(number)
    ]


def without(units: Iterable[Unit], shape: Shape) -> Multipliers:
    """Multipliers under which these units are gone; of no units, all 1."""
    L, F = shape.n_layers, (*shape.lead("up"), shape.d_ff)
    sizes = {"attn_L": (L,), "mlp_L": (L,), "head_LH": (L, shape.n_heads), "neuron_LF": (L, math.prod(F[1:]))}
    kept = {field: np.ones(size, np.float32) for field, size in sizes.items()}
    for unit in units:
        if unit.part in ("layer", "attention"):
            kept["attn_L"][unit.layer] = 0
        if unit.part in ("layer", "mlp"):
            kept["mlp_L"][unit.layer] = 0
        if unit.part == "head":
            kept["head_LH"][unit.layer, unit.index] = 0
        if unit.part == "neurons":
            kept["neuron_LF"][unit.layer, list(unit.neurons)] = 0
    return kept | {"neuron_LF": kept["neuron_LF"].reshape(F)}


def taken_out(params: Params, kept: Multipliers) -> Edit:
    """The edit of all kinds of units and of pairs of them: one structure, one executable."""
    return Edit(**kept)
