"""Edit: everything by which a degraded model differs from the trained one."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.corrupt import Corruption
from wane.scaling.quantize import Grid
from wane.scaling.shape import Shape

Params = dict  # nested dict of arrays; leaves of params["blocks"] are stacked [L, ...]

SITES = {"attn_in": ("q", "k", "v"), "o_in": ("o",), "mlp_in": ("gate", "up"), "down_in": ("down",)}


class Lens(NamedTuple):
    """An affine translator of the residual stream before the final norm: x @ map_DD + bias_D."""

    map_DD: Array
    bias_D: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """A pytree; None = untouched.  The fields that act inside a block have a leading layer axis.

    params: replacements, a partial tree ({"blocks": {"q": q_LIO}}) merged over the trained one.
    bias: matrix name -> [L, O] (experts [L, E, O]), added to that matrix's product (mean replacement).
    head_LH, neuron_LF ([L, E, F] with experts): multipliers of head outputs and of MLP activations, before `o`
    and `down`.
    attn_L, mlp_L: multipliers of the sublayers' outputs; 0 makes the sublayer (its norm too) the identity.
    residual_XD, residual_map [X, D, D] (x @ map), X = 2 L + 1: act on the residual stream that enters the first
    block (0) and after attention (1 + 2 l) and MLP (2 + 2 l) of block l.
    expert_LE: bool, False takes an expert out before the top-k.  active_L: int, experts per token.
    activation_bits: site (a key of SITES) -> [L], bits of the inputs of that site's matrices.
    activation_absmax: site -> [L], calibrated range for one scale per tensor; None: one scale per token.
    cache_bits: "k" or "v" -> [L], bits of keys and values, as a cache would hold them; one range per token and
    head.  cache_range: "k" or "v" -> [L, 2, G, K], calibrated least and largest value of each channel instead.
    lens: acts after the last block.
    corruption: of the input tokens and their embeddings.
    weight_bits: matrix name -> bits that `params` were rounded to, broadcastable to the matrix, 16 where a
    weight is untouched; weight_grid: the lattice of those values; before: what an earlier method of a
    composition did.  These three do not act: `hold` and the cost read them.
    """

    params: Params | None = None
    bias: dict[str, Array] | None = None
    head_LH: Array | None = None
    neuron_LF: Array | None = None
    attn_L: Array | None = None
    mlp_L: Array | None = None
    residual_XD: Array | None = None
    residual_map: Array | None = None
    expert_LE: Array | None = None
    active_L: Array | None = None
    activation_bits: dict[str, Array] | None = None
    activation_absmax: dict[str, Array] | None = None
    cache_bits: dict[str, Array] | None = None
    cache_range: dict[str, Array] | None = None
    lens: Lens | None = None
    corruption: Corruption | None = None
    weight_bits: dict[str, Array] | None = None
    weight_grid: dict[str, Grid] | None = None
    before: "Edit | None" = None

    def acting(self) -> "Edit":
        """Without what no forward pass reads."""
        return dataclasses.replace(self, weight_bits=None, weight_grid=None, before=None)

    def counted(self) -> "Edit":
        """Without what neither a forward pass nor the cost reads."""
        return dataclasses.replace(self, weight_grid=None, before=self.before and self.before.counted())

    def along(self, direction_BSD: Array | None) -> "Edit":
        """On a batch whose direction of noise or attack is known (None: it is not)."""
        if direction_BSD is None:
            return self
        return dataclasses.replace(
            self, corruption=dataclasses.replace(self.corruption, direction_BSD=direction_BSD)
        )

    def per_layer(self) -> "Edit":
        """The part that acts inside a block, as a scan over layers slices it: of the residual edits [L, 2, ...],
        after attention and after the MLP."""

        def pairs(x):
            return None if x is None else x[1:].reshape(-1, 2, *x.shape[1:])

        return dataclasses.replace(
            self,
            residual_XD=pairs(self.residual_XD),
            residual_map=pairs(self.residual_map),
            **dict.fromkeys(("params", "lens", "corruption", "weight_bits", "weight_grid", "before")),
        )


def filled(edit: Edit, params: Params, shape: Shape) -> Edit:
    """The same edit with every block matrix and every multiplier of heads, neurons and sublayers, trained or 1
    where it had none: what removes weights and what removes units then have one structure and share executables.
    An edit that acts on anything else shares none and stays as it is."""
    acting = {field for field, value in vars(edit.acting()).items() if value is not None}
    if acting - {"params", "head_LH", "neuron_LF", "attn_L", "mlp_L"}:
        return edit
    blocks = {name: params["blocks"][name] for name in shape.matrices}
    replaced = edit.params or {}
    ones = {
        "head_LH": (shape.n_layers, shape.n_heads),
        "neuron_LF": (*shape.lead("up"), shape.d_ff),
        "attn_L": (shape.n_layers,),
        "mlp_L": (shape.n_layers,),
    }
    given = {name: getattr(edit, name) for name in ones}
    return dataclasses.replace(
        edit,
        params={**replaced, "blocks": blocks | replaced.get("blocks", {})},
        **{name: np.ones(ones[name], np.float32) if m is None else m for name, m in given.items()},
    )


def merge(params: Params, edit: Edit | None) -> Params:
    """The parameter tree that the degraded model uses: `edit.params` over `params`."""
    if edit is None or edit.params is None:
        return params
    return {
        name: {**leaf, **edit.params.get(name, {})} if isinstance(leaf, dict) else edit.params.get(name, leaf)
        for name, leaf in params.items()
    }


def fold(params: Params, edit: Edit, shape: Shape) -> dict[str, Array]:
    """Block matrices [.., I, O] of a plain model without the removed units: multipliers folded into weights.

    A multiplier goes into the matrix that reads the unit (`o`, `down`); where it is 0 the matrices that write
    the unit (`q`, `gate`, `up`, and `k`, `v` once a whole group of query heads is gone) are zero too, because
    nothing reads them.  Removed residual dimensions are rows and columns that are zero, removed experts are
    zero altogether.  A residual map is no removal of weights and is not folded.  This is what is counted as
    removed and what is compared with the trained weights.
    """
    blocks = {name: merge(params, edit)["blocks"][name] for name in shape.matrices}
    if edit.residual_XD is not None:
        blocks = _fold_dimensions(blocks, edit.residual_XD)
    if edit.head_LH is not None:
        blocks |= _fold_heads(blocks, edit.head_LH, shape.kv_heads)
    alive = [edit.neuron_LF]
    if edit.expert_LE is not None:
        alive.append(jnp.broadcast_to(edit.expert_LE[..., None], (*shape.lead("up"), shape.d_ff)))
    for unit in alive:
        if unit is not None:
            written = [name for name in ("gate", "up") if name in blocks]
            blocks |= {name: jnp.where(unit[..., None, :] != 0, blocks[name], 0) for name in written}
            blocks["down"] = blocks["down"] * unit[..., :, None]
    for gate_L, names, last in ((edit.attn_L, "qkvo", "o"), (edit.mlp_L, ("gate", "up", "down"), "down")):
        if gate_L is not None:
            for name in (n for n in names if n in blocks):
                g = gate_L.reshape(-1, *[1] * (blocks[name].ndim - 1))
                blocks[name] = blocks[name] * g if name == last else jnp.where(g != 0, blocks[name], 0)
    return blocks


def _fold_heads(blocks: Params, head_LH: Array, kv_groups: int) -> Params:
    L, H = head_LH.shape
    columns = jnp.repeat(head_LH, blocks["q"].shape[2] // H, axis=1)
    group_alive = jnp.any(head_LH.reshape(L, kv_groups, -1) != 0, axis=2)
    kv_alive = jnp.repeat(group_alive, blocks["k"].shape[2] // kv_groups, axis=1)[:, None, :]
    return {
        "q": jnp.where(columns[:, None, :] != 0, blocks["q"], 0),
        "k": jnp.where(kv_alive, blocks["k"], 0),
        "v": jnp.where(kv_alive, blocks["v"], 0),
        "o": blocks["o"] * columns[:, :, None],
    }


def _fold_dimensions(blocks: Params, residual_XD: Array) -> Params:
    """A matrix reads the stream that stands before its sublayer and writes into the one behind it."""
    before_attn, between, after = residual_XD[:-1:2], residual_XD[1::2], residual_XD[2::2]

    def along(name: str, x_LD: Array, axis: int) -> Array:
        size = [1] * blocks[name].ndim
        size[0], size[axis] = x_LD.shape
        return blocks[name] * x_LD.reshape(size)

    read = dict.fromkeys("qkv", before_attn) | dict.fromkeys(("gate", "up"), between)
    out = {name: along(name, x_LD, -2) for name, x_LD in read.items() if name in blocks}
    return blocks | out | {"o": along("o", between, -1), "down": along("down", after, -1)}
