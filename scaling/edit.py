"""Edit: everything by which a degraded model differs from the trained one."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

Params = dict  # nested dict of arrays; leaves of params["blocks"] are stacked [L, ...]

SITES = {"attn_in": ("q", "k", "v"), "o_in": ("o",), "mlp_in": ("gate", "up"), "down_in": ("down",)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """A pytree; None = untouched.  Every field but `params` and `weight_bits` has a leading layer axis.

    params: replacements, a partial tree ({"blocks": {"q": q_LIO}}) merged over the trained one.
    bias: matrix name -> [L, O], added to that matrix's product (mean replacement of what was removed).
    head_LH, neuron_LF: multipliers of head outputs and of MLP activations, before `o` and `down`.
    attn_L, mlp_L: multipliers of the sublayers' outputs; 0 makes the sublayer (its norm too) the identity.
    activation_bits: site (a key of SITES) -> [L], bits of the inputs of that site's matrices.
    activation_absmax: site -> [L], calibrated range for one scale per tensor; None: one scale per token.
    weight_bits: matrix name -> bits that `params` were rounded to, broadcastable to [L, I, O], 16 where a weight
    is untouched; does not act, is read by `hold` and by the cost.
    """

    params: Params | None = None
    bias: dict[str, Array] | None = None
    head_LH: Array | None = None
    neuron_LF: Array | None = None
    attn_L: Array | None = None
    mlp_L: Array | None = None
    activation_bits: dict[str, Array] | None = None
    activation_absmax: dict[str, Array] | None = None
    weight_bits: dict[str, Array] | None = None

    def per_layer(self) -> "Edit":
        """The part that acts inside a block: what a scan over layers slices."""
        return dataclasses.replace(self, params=None, weight_bits=None)


def merge(params: Params, edit: Edit | None) -> Params:
    """The parameter tree that the degraded model uses: `edit.params` over `params`."""
    if edit is None or edit.params is None:
        return params
    return {
        name: {**leaf, **edit.params.get(name, {})} if isinstance(leaf, dict) else edit.params.get(name, leaf)
        for name, leaf in params.items()
    }


def fold(params: Params, edit: Edit, kv_groups: int) -> dict[str, Array]:
    """Block matrices [L, I, O] of a plain model without the removed units: multipliers folded into weights.

    A multiplier goes into the matrix that reads the unit (`o`, `down`); where it is 0 the matrices that write
    the unit (`q`, `gate`, `up`, and `k`, `v` once a whole group of query heads is gone) are zero too, because
    nothing reads them.  This is what is counted as removed and what is compared with the trained weights.
    kv_groups: number of key-value heads.
    """
    blocks = dict(merge(params, edit)["blocks"])
    if edit.head_LH is not None:
        blocks |= _fold_heads(blocks, edit.head_LH, kv_groups)
    if edit.neuron_LF is not None:
        written = [name for name in ("gate", "up") if name in blocks]
        alive = edit.neuron_LF[:, None, :] != 0
        blocks |= {name: jnp.where(alive, blocks[name], 0) for name in written}
        blocks["down"] = blocks["down"] * edit.neuron_LF[:, :, None]
    for gate_L, names, last in ((edit.attn_L, "qkvo", "o"), (edit.mlp_L, ("gate", "up", "down"), "down")):
        if gate_L is not None:
            g = gate_L[:, None, None]
            blocks |= {n: jnp.where(g != 0, blocks[n], 0) for n in names if n in blocks}
            blocks[last] = blocks[last] * g
    return {name: leaf for name, leaf in blocks.items() if leaf.ndim == 3}


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
