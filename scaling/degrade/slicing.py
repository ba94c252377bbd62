"""A model whose residual stream was projected, as smaller matrices: what it costs, and the sliced model itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.contract import Cost
from wane.scaling.degrade.cost import FULL_BITS
from wane.scaling.edit import Edit, Params, fold, merge
from wane.scaling.shape import Shape

READS = {"q": "attn", "k": "attn", "v": "attn", "gate": "mlp", "up": "mlp"}  # the norm that a matrix reads


class Sliced(NamedTuple):
    """Norm gains, residual scale and rotations are inside the matrices; every block has its own widths.

    embed [V, k], blocks: matrices, their `bias` (of LayerNorm), and shortcuts `attn_shortcut`, `mlp_shortcut`
    [k, k'] of the residual connections (absent where it is the identity); unembed [k, V] and its bias [V].
    """

    embed: Array
    blocks: list[dict]
    unembed: Array
    unembed_bias: Array


def kept_dimensions(map_XDD: Array) -> Array:
    """Dimensions that each projector keeps, int32 [X]."""
    return jnp.rint(jnp.trace(map_XDD, axis1=-2, axis2=-1)).astype(jnp.int32)


def sliced_cost(params: Params, edit: Edit, severity: Array, *, shape: Shape) -> Cost:
    """Net cost: sliced matrices plus shortcut matrices, against all block matrices; the weight error is that of
    the matrices with the norms' gains and the projectors inside."""
    gone_X = shape.d_model - kept_dimensions(edit.residual_map)
    before, between, behind = gone_X[:-1:2], gone_X[1::2], gone_X[2::2]
    rows = {name: (before if norm == "attn" else between) for name, norm in READS.items()}
    saved_L = jnp.zeros(shape.n_layers)
    for name, (fan_in, fan_out) in shape.matrices.items():
        experts = int(np.prod(shape.lead(name)[1:]))
        sliced, other = (
            (rows[name], fan_out) if name in rows else (between if name == "o" else behind, fan_in)
        )
        saved_L += experts * other * sliced.astype(jnp.float32)
    if shape.residual:
        saved_L -= _shortcut(before, between, shape.d_model) + _shortcut(between, behind, shape.d_model)
    removed = jnp.sum(saved_L) / shape.param_counts()["blocks"]
    bits = FULL_BITS * (1 - removed)
    return Cost(removed, _weight_error(params, edit, shape), bits, FULL_BITS / bits)


def _shortcut(gone_in: Array, gone_out: Array, d_model: int) -> Array:
    """Entries of the matrix on a residual connection; none where both sides keep the whole stream as it is."""
    size = ((d_model - gone_in) * (d_model - gone_out)).astype(jnp.float32)
    return jnp.where((gone_in == 0) & (gone_out == 0), 0, size)


def _weight_error(params: Params, edit: Edit, shape: Shape) -> Array:
    after, maps = fold(params, edit, shape), edit.residual_map
    before, between, behind = maps[:-1:2], maps[1::2], maps[2::2]
    lost = total = jnp.float32(0)
    for name, w in after.items():
        trained = params["blocks"][name]
        lead = (len(w), *[1] * (w.ndim - 3))
        if name in READS:
            gain_LD = params["blocks"].get(f"{READS[name]}_norm_scale", jnp.ones((len(w), shape.d_model)))
            gain = gain_LD.reshape(*lead, -1, 1)
            map_DD = (before if READS[name] == "attn" else between).reshape(*lead, *maps.shape[1:])
            trained, w = gain * trained, _exact(map_DD, gain * w)
        else:
            map_DD = (between if name == "o" else behind).reshape(*lead, *maps.shape[1:])
            w = _exact(w, map_DD)
        lost, total = lost + jnp.sum(jnp.square(trained - w)), total + jnp.sum(jnp.square(trained))
    return lost / total


def _exact(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def slice_model(params: Params, edit: Edit, shape: Shape) -> Sliced:
    """The smaller model that computes what `params` under this edit's residual maps (projectors, or the identity)
    compute.  Runs on the host.

    Raises ValueError for a mixture of experts and for a model with norms behind its sublayers.
    """
    if shape.n_experts is not None:
        raise ValueError(
            f"shape.n_experts = {shape.n_experts}: only dense models are sliced; use the masked form"
        )
    if shape.norm_position != "before" and shape.norm != "none":
        raise ValueError(f'shape.norm_position = "{shape.norm_position}": cannot be sliced; use "before"')
    basis = [_basis(map_DD) for map_DD in np.asarray(edit.residual_map, np.float64)]
    # LayerNorm takes the mean off what enters it: here off everything that is written into the stream.
    centre_DD = np.eye(shape.d_model) - (1 / shape.d_model if shape.norm == "layernorm" else 0)
    whole = jax.tree.map(lambda a: np.asarray(a, np.float64), merge(params, edit))
    whole["blocks"] |= {name: np.asarray(w, np.float64) for name, w in fold(params, edit, shape).items()}
    final = whole.get("final_norm", {})
    w_DV = whole["embed"].T if shape.tied_embeddings else whole["unembed"]
    sliced = Sliced(
        embed=whole["embed"] @ centre_DD @ basis[0],
        blocks=[
            _slice_block(
                {n: w[l] for n, w in whole["blocks"].items()}, basis[2 * l : 2 * l + 3], centre_DD, shape
            )
            for l in range(shape.n_layers)
        ],
        unembed=basis[-1].T @ (final["scale"][:, None] * w_DV if final else w_DV),
        unembed_bias=final["bias"] @ w_DV if "bias" in final else np.zeros(shape.vocab),
    )
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), sliced)


def _slice_block(weights: dict, basis: list[np.ndarray], centre_DD: np.ndarray, shape: Shape) -> dict:
    """One block between the bases of the stream before, between and behind its sublayers."""
    before, between, behind = basis
    block = {name: weights[name] for name in ("q_norm_scale", "k_norm_scale") if name in weights} | {
        "bias": {}
    }
    for name, norm in ((n, f"{READS[n]}_norm") for n in READS if n in weights):
        gain, bias = weights.get(f"{norm}_scale"), weights.get(f"{norm}_bias")
        fused = weights[name] if gain is None else gain[:, None] * weights[name]
        block[name] = (before if READS[name] == "attn" else between).T @ fused
        block["bias"][name] = 0.0 if bias is None else bias @ weights[name]
    scale = shape.residual_scale if shape.residual else 1.0
    block |= {
        "o": scale * weights["o"] @ centre_DD @ between,
        "down": scale * weights["down"] @ centre_DD @ behind,
    }
    if shape.residual:
        pairs = {"attn_shortcut": (before, between), "mlp_shortcut": (between, behind)}
        block |= {n: a.T @ b for n, (a, b) in pairs.items() if min(a.shape[1], b.shape[1]) < shape.d_model}
    return block


def _basis(map_DD: np.ndarray) -> np.ndarray:
    """Orthonormal columns [D, k] that span what a projector keeps; the identity for the identity."""
    D, k = len(map_DD), round(np.trace(map_DD))
    return np.eye(D) if k == D else np.linalg.eigh(map_DD)[1][:, D - k :]
