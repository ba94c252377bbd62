"""The contract of every degradation method: a small value made of pure functions.

A method is one file that builds one `Degradation`; `wane.scaling.degrade.METHODS` is the literal dict of them.
Severity, `where` and `key` are traced, so one executable serves all severities, draws, seeds and selectors.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.edit import Edit, Params
from wane.scaling.quantize import IDENTITY_BITS, TERNARY_BITS
from wane.scaling.shape import MLP, Shape

Unit = Literal["fraction", "bits", "sigma", "ratio"]
Fitted = Any  # a pytree of arrays: scores, ranks, ranges, calibration tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope:
    """What a degradation may touch, fixed for a whole sweep: counts and rankings are taken inside it.

    layers: half-open range (first, end) of block indices; None = all.  head: one head (of every layer in
    `layers`); None = all.  matrices: names of matrices (q, k, v, o, gate, up, down); None = all.
    """

    layers: tuple[int, int] | None = None
    head: int | None = None
    matrices: tuple[str, ...] | None = None

    def check(self, shape: Shape) -> None:
        """Raises ValueError naming the field when the scope selects nothing of this shape."""
        first, end = self.layer_range(shape)
        if not 0 <= first < end <= shape.n_layers:
            raise ValueError(
                f"scope.layers = {self.layers}: must be (first, end) with 0 <= first < end <= {shape.n_layers}"
            )
        if self.head is not None and not 0 <= self.head < shape.n_heads:
            raise ValueError(f"scope.head = {self.head}: must be in 0 .. {shape.n_heads - 1}")
        if self.head is not None and self.matrices is not None and not set(self.matrices) & set("qkvo"):
            raise ValueError(
                f"scope.matrices = {self.matrices}: no head has a part in them; with scope.head = {self.head} "
                "name some of q, k, v, o"
            )
        unknown = set(self.matrices or ()) - set(shape.matrices)
        if unknown or self.matrices == ():
            names = ", ".join(shape.matrices)
            raise ValueError(f"scope.matrices = {self.matrices}: must be some of {names}")

    def layer_range(self, shape: Shape) -> tuple[int, int]:
        return (0, shape.n_layers) if self.layers is None else self.layers

    def layer_L(self, shape: Shape) -> np.ndarray:
        """bool [L]: layers inside the scope."""
        index = np.arange(shape.n_layers)
        first, end = self.layer_range(shape)
        return (first <= index) & (index < end)

    def head_LH(self, shape: Shape) -> np.ndarray:
        """bool [L, H]: heads inside the scope."""
        heads = np.ones(shape.n_heads, bool) if self.head is None else np.arange(shape.n_heads) == self.head
        return self.layer_L(shape)[:, None] & heads

    def weights(self, shape: Shape) -> dict[str, np.ndarray]:
        """matrix name -> bool, broadcastable to the matrix: weights inside the scope; matrices outside it are
        absent.  One head means the columns of q, the rows of o, and the columns of k and v of its group."""
        names = self.matrices or tuple(shape.matrices)
        if self.head is not None:
            names = tuple(name for name in names if name in "qkvo")
        return {name: Where(self.layer_L(shape), self.head_LH(shape)).entries(name, shape) for name in names}

    def __str__(self) -> str:
        parts = []
        if self.layers is not None:
            parts.append(f"layers {self.layers[0]}-{self.layers[1] - 1}")
        if self.head is not None:
            parts.append(f"head {self.head}")
        if self.matrices is not None:
            parts.append("+".join(self.matrices))
        return ", ".join(parts) or "all"


EVERYTHING = Scope()


class Where(NamedTuple):
    """Traced selector inside the scope: which layers and heads this point degrades (True = degraded).

    layer_L decides over everything that belongs to no head: MLPs, neurons, whole sublayers, activations.
    """

    layer_L: Array
    head_LH: Array

    @staticmethod
    def everywhere(shape: Shape) -> "Where":
        return Where(np.ones(shape.n_layers, bool), np.ones((shape.n_layers, shape.n_heads), bool))

    @staticmethod
    def only(shape: Shape, layer: int, head: int | None = None) -> "Where":
        """One layer, or one head of one layer and nothing of its MLP."""
        layer_L = np.arange(shape.n_layers) == layer
        if head is None:
            return Where(layer_L, np.repeat(layer_L[:, None], shape.n_heads, axis=1))
        return Where(np.zeros_like(layer_L), layer_L[:, None] & (np.arange(shape.n_heads) == head))

    def entries(self, matrix: str, shape: Shape) -> Array:
        """bool, broadcastable to the matrix: the entries of one matrix that belong to the selected heads (for
        q, k, v, o) or to the selected layers (all others)."""
        if matrix in MLP:
            return self.layer_L.reshape(-1, *[1] * (len(shape.full(matrix)) - 1))
        heads_LH = self.head_LH
        if matrix in "kv":  # a key-value head belongs to every query head of its group
            groups = heads_LH.reshape(shape.n_layers, shape.kv_heads, -1)
            heads_LH = groups.any(axis=2)
        numpy = np if isinstance(heads_LH, np.ndarray) else jnp
        units = numpy.repeat(heads_LH, shape.head_dim, axis=1)
        return units[:, :, None] if matrix == "o" else units[:, None, :]


class Cost(NamedTuple):
    """What was really done, over all block matrices (scalars, f32)."""

    removed_fraction: Array  # entries that are zero, or read by nothing, and were not zero before
    relative_weight_error: Array  # sum (w - w')^2 / sum w^2, multipliers folded into the weights
    bits_per_weight: Array  # deployed: values, scales and mask indices, 16 bits for an untouched weight
    compression_ratio: Array  # 16 / bits_per_weight; infinite where no weight is left to store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promises:
    """What the table of promises (tests/test_promises.py) holds a method to.  Every method also is
    deterministic in its key, never recompiles across severities and maps over draws.

    identity: largest absolute change of a logit at severity 0; 0.0 = same bits.
    nested: what is removed at one severity stays removed at every larger one.
    exact_count: exactly count(n, severity) of the n units or weights in scope are removed per ranking group.
    straight_through: the gradient of the loss through the edit with respect to the parameters is finite and
    not everywhere zero.
    """

    identity: float = 0.0
    nested: bool = False
    exact_count: bool = False
    straight_through: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Degradation:
    """One method on one scope of one shape.  Hashes by identity: a static argument of jitted code.

    fit(params, calibration_NT, key) -> fitted: no severity; a random method draws its ranks here, one fitted
    state per draw.  apply(params, fitted, severity, where, key) -> Edit: pure, everything traced.
    hold(params, edit) -> params: the same removal or rounding on other parameters, straight-through; called at
    each step of a training under it, and unchanged by a second call on its own result.
    cost(params, edit, severity) -> Cost.  severities: the default grid, in units of `setting`.
    local: leaves alone what runs before the first selected layer, so that a sweep may start there.
    direction(params, fitted, tokens_BS) -> [B, S, D]: in which it moves the embeddings of the trained model, the
    same at all severities, so that a sweep finds it once.
    exit(severity) -> l: all that it does is to skip the blocks from l on (int32), so that a sweep runs none.
    computes: all that fit and apply follow from, in words (`wane.scaling.executables`); None where nobody can say.
    """

    name: str
    scope: Scope
    settings: Mapping[str, Any]
    unit: Unit
    severities: tuple[float, ...]
    random: bool
    sequential: bool = False
    needs_calibration: bool = False
    local: bool = True
    direction: Callable[[Params, Fitted, Array], Array] | None = None
    exit: Callable[[Array], Array] | None = None
    promises: Promises
    fit: Callable[[Params, Array, Array], Fitted]
    apply: Callable[[Params, Fitted, Array, Where, Array], Edit]
    hold: Callable[[Params, Edit], Params]
    cost: Callable[[Params, Edit, Array], Cost]
    computes: str | None = None


def severity_of(setting: float, unit: Unit) -> float:
    """The severity, 0 = identity and growing with harm, of what a user asked for: bits count down from 16, a
    compression ratio r is 1 - 1 / r.

    Raises ValueError when the unit does not allow the setting.
    """
    allowed, right = {
        "fraction": ("a number from 0 to 1", 0 <= setting <= 1),
        "bits": (
            "16 (untouched), a whole number from 1 to 15, or 1.585 (ternary)",
            setting == TERNARY_BITS or (setting in range(1, 17)),
        ),
        "ratio": ("1 (untouched) or larger", 1 <= setting < float("inf")),
        "sigma": ("0 or a positive number", 0 <= setting < float("inf")),
    }[unit]
    if not right:
        raise ValueError(f"severity = {setting} {unit}: must be {allowed}")
    if unit == "bits":
        return 1.0 - setting / IDENTITY_BITS
    return 1.0 - 1.0 / setting if unit == "ratio" else float(setting)


def identity_of(unit: Unit) -> float:
    """The setting that leaves a model as it was trained."""
    return {"bits": float(IDENTITY_BITS), "ratio": 1.0}.get(unit, 0.0)


def bits_of(severity: Array) -> Array:
    """Bits asked for by a traced severity, to a thousandth of a bit (1.585 is ternary)."""
    return jnp.rint((1.0 - severity) * 16_000.0) / 1_000.0


FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BITS = (16.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0)


def no_fit(params: Params, calibration_NT: Array, key: Array) -> tuple:
    """The fitted state of a method that has nothing to learn."""
    return ()
