"""A degraded model as a really smaller one: what was taken away as whole units is cut out of the arrays.

Blocks are stacked, so all layers have one size: that of the layer that keeps most.  The others are filled up
with units that are zero, and what is gone from some layers only saves nothing here.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wane.scaling.edit import Edit, Params, fold, merge
from wane.scaling.narrowed import narrow
from wane.scaling.shape import MLP, Shape

SIGNALS = ("activation_bits", "cache_bits", "corruption")  # of Edit: round or corrupt what passes through
PER_LAYER = ("attn_L", "mlp_L", "expert_LE", "active_L")


class Small(NamedTuple):
    """apply(params, tokens, shape, edit) gives the logits of the degraded model.  edit: what no weight can
    hold, biases of a mean replacement, gates of sublayers that are passed by, closed experts, a lens; often
    empty."""

    params: Params
    shape: Shape
    edit: Edit


def sliced(params: Params, edit: Edit, shape: Shape) -> Small:
    """The smaller model that computes what `params` under `edit` compute, for the same `apply` and `extend`.
    Runs on the host.

    Cut out are neurons (rows of `down` that are zero), heads (rows of `o`), key-value groups whose query
    heads are all gone, experts that are closed, layers that leave the stream as it is, and residual
    dimensions that are gone in every state; of each kind one is left where none is.  head_dim stays.  Groups
    keep equally many query heads.

    Raises ValueError where nothing shrinks (single weights, bits, units of some layers only), where an edit
    acts on signals, and where `narrow` cannot.
    """
    for field in SIGNALS:
        if getattr(edit, field) is not None:
            raise ValueError(
                f"edit.{field}: acts on what passes through, and a smaller model sees something else; "
                "slice without it"
            )
    small = _layers(_folded(params, edit, shape))
    for cut in (_experts, _neurons, _heads):
        small = cut(small)
    if small.shape == shape:
        raise ValueError(
            f"edit: no neuron, head, layer or dimension of {shape.name} is gone from every layer, so that "
            "nothing shrinks; slice what structured pruning left"
        )
    return Small(_f32(small.params), small.shape, _f32(small.edit))


def _f32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else a.dtype), tree)


def _folded(params: Params, edit: Edit, shape: Shape) -> Small:
    """In float64: multipliers of units inside the matrices, the stream narrowed; the edit keeps what is
    left."""
    stream = {"residual_map": edit.residual_map, "residual_XD": edit.residual_XD}
    folded = fold(params, dataclasses.replace(edit, residual_map=None, residual_XD=None), shape)
    whole = jax.tree.map(_exact, merge(params, edit))
    whole["blocks"] = whole["blocks"] | {name: _exact(w) for name, w in folded.items()}
    bias = {name: _exact(b) for name, b in (edit.bias or {}).items()}
    gates = {}
    for field, last in (("attn_L", "o"), ("mlp_L", "down")):
        gate_L = getattr(edit, field)
        if gate_L is None:
            continue
        if last in bias:  # a gate multiplies what the sublayer adds, its bias too
            bias[last] = bias[last] * _exact(gate_L).reshape(-1, *[1] * (bias[last].ndim - 1))
        gates[field] = None if _adds(shape) else (np.asarray(gate_L) != 0).astype(np.float64)
    left = Edit(
        bias=bias or None, lens=edit.lens, **gates, **stream,
        expert_LE=None if edit.expert_LE is None else np.asarray(edit.expert_LE) != 0,
        active_L=None if edit.active_L is None else np.asarray(edit.active_L),
    )  # fmt: skip
    whole, left, narrowed = narrow(whole, left, shape)
    return Small(whole, narrowed, left)


def _exact(a: jax.Array) -> np.ndarray:
    return np.asarray(a, np.float64)


def _adds(shape: Shape) -> bool:
    """Whether a sublayer that gives 0 leaves the stream as it is; else only a gate says that it is passed
    by."""
    return shape.residual and (shape.norm_position == "before" or shape.norm == "none")


def _layers(small: Small) -> Small:
    """Without the layers that leave the stream as it is."""
    params, shape, edit = small
    keep = np.flatnonzero(_acting(small))
    keep = keep if len(keep) else np.array([0])
    new = dataclasses.replace(shape, n_layers=len(keep))
    # Branches are scaled by the depth of the model that was trained.
    ratio = shape.residual_scale / new.residual_scale if shape.residual else 1.0
    scaled = {"o": ratio, "down": ratio}
    blocks = {name: w[keep] * scaled.get(name, 1.0) for name, w in params["blocks"].items()}
    bias = {name: b[keep] * scaled.get(name, 1.0) for name, b in (edit.bias or {}).items()}
    left = {f: None if getattr(edit, f) is None else getattr(edit, f)[keep] for f in PER_LAYER}
    if edit.residual_XD is not None:
        states = np.concatenate([[0], *([1 + 2 * l, 2 + 2 * l] for l in keep)])
        left["residual_XD"] = edit.residual_XD[states]
    return Small(params | {"blocks": blocks}, new, dataclasses.replace(edit, bias=bias or None, **left))


def _acting(small: Small) -> np.ndarray:
    """bool [L]: layers that change the stream."""
    params, shape, edit = small
    acts_L = np.zeros(shape.n_layers, bool)
    for last, gate_L in (("o", edit.attn_L), ("down", edit.mlp_L)):
        if not _adds(shape):
            acts_L |= True if gate_L is None else gate_L != 0
            continue
        added = [params["blocks"][last], *([edit.bias[last]] if last in (edit.bias or {}) else [])]
        for w in added:
            acts_L |= (w != 0).reshape(shape.n_layers, -1).any(axis=1)
    if edit.residual_XD is not None:  # its multipliers act where the sublayers do not
        acts_L |= (edit.residual_XD[1:] != 1).reshape(shape.n_layers, -1).any(axis=1)
    return acts_L


def _experts(small: Small) -> Small:
    params, shape, edit = small
    if edit.expert_LE is None:
        return small
    index_LE = _survivors(edit.expert_LE)
    n = index_LE.shape[1]
    open_LE = _chosen(edit.expert_LE, index_LE, 1)
    blocks = _cut(params["blocks"], MLP, index_LE, 1)
    blocks["router"] = _chosen(blocks["router"], index_LE, 2)
    left = {"expert_LE": None if open_LE.all() else open_LE}
    if edit.bias is not None:
        left["bias"] = _cut(edit.bias, MLP, index_LE, 1)
    new = dataclasses.replace(shape, n_experts=n, top_k=min(shape.top_k, n))
    return Small(params | {"blocks": blocks}, new, dataclasses.replace(edit, **left))


def _neurons(small: Small) -> Small:
    params, shape, edit = small
    index = _survivors((params["blocks"]["down"] != 0).any(axis=-1))  # [L, F'] or [L, E, F']
    blocks = _cut(params["blocks"], ("gate", "up"), index, -1)
    blocks["down"] = _chosen(blocks["down"], index, -2)
    bias = None if edit.bias is None else _cut(edit.bias, ("gate", "up"), index, -1)
    new = dataclasses.replace(shape, d_ff=index.shape[-1])
    return Small(params | {"blocks": blocks}, new, dataclasses.replace(edit, bias=bias))


def _heads(small: Small) -> Small:
    """Groups first, then the query heads of each group."""
    params, shape, edit = small
    L, G, K = shape.n_layers, shape.kv_heads, shape.head_dim
    per_group = shape.n_heads // G
    alive_LGH = (params["blocks"]["o"] != 0).reshape(L, G, per_group, -1).any(axis=-1)
    group_LG = _survivors(alive_LGH.any(axis=-1))
    within_LGH = _survivors(_chosen(alive_LGH, group_LG, 1))
    head_LH = (group_LG[..., None] * per_group + within_LGH).reshape(L, -1)
    column_LO, kv_LO = (_columns(index, K) for index in (head_LH, group_LG))
    blocks = _cut(_cut(params["blocks"], "q", column_LO, -1), "kv", kv_LO, -1)
    blocks["o"] = _chosen(blocks["o"], column_LO, 1)
    bias = edit.bias and _cut(_cut(edit.bias, "q", column_LO, -1), "kv", kv_LO, -1)
    groups = None if shape.n_kv_heads is None else group_LG.shape[1]
    new = dataclasses.replace(shape, n_heads=head_LH.shape[1], n_kv_heads=groups)
    return Small(params | {"blocks": blocks}, new, dataclasses.replace(edit, bias=bias))


def _columns(head_LH: np.ndarray, head_dim: int) -> np.ndarray:
    """[L, H K]: the columns that belong to these heads."""
    return (head_LH[..., None] * head_dim + np.arange(head_dim)).reshape(len(head_LH), -1)


def _survivors(alive: np.ndarray) -> np.ndarray:
    """[.., n]: indices along the last axis, those alive first and in their order; n: the most that any row
    has."""
    n = max(1, alive.sum(axis=-1).max())
    return np.argsort(~alive, axis=-1, kind="stable")[..., :n]


def _cut(blocks: dict, names: Iterable[str], index: np.ndarray, axis: int) -> dict:
    return blocks | {name: _chosen(blocks[name], index, axis) for name in names if name in blocks}


def _chosen(w: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """Entries of w along one axis, others for every layer (and expert): index has its leading axes and, last,
    the choice."""
    axis %= w.ndim
    lead = index.shape[:-1]
    between = (1,) * (axis - len(lead))
    return np.take_along_axis(w, index.reshape(*lead, *between, -1, *(1,) * (w.ndim - axis - 1)), axis)
