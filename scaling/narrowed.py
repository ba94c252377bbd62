"""A model whose residual stream keeps one subspace everywhere, with that subspace as its whole d_model."""

import dataclasses
import math

import numpy as np

from wane.scaling.edit import SITES, Edit, Params
from wane.scaling.shape import Shape

NORM_OF = {"attn_in": "attn_norm_scale", "mlp_in": "mlp_norm_scale"}
SAME = 1e-4  # entries of f32 projectors onto one subspace differ by less


def kept_basis(edit: Edit, shape: Shape) -> np.ndarray | None:
    """Orthonormal columns [D, K] that span what is left of the residual stream in every state, float64; one
    column of zeros where nothing is left.  None: all of it is left.

    Raises ValueError where the states of the stream are projected onto different subspaces.
    """
    D = shape.d_model
    if edit.residual_map is not None:
        map_XDD = np.asarray(edit.residual_map, np.float64)
        if not one_basis(map_XDD):
            raise ValueError(
                "edit.residual_map: every state of the stream keeps a subspace of its own, and one d_model has "
                "one basis; cut it with wane.scaling.degrade.slicing.slice_model"
            )
        rank = round(np.trace(map_XDD[0]))
        basis_DK = None if rank == D else np.linalg.eigh(map_XDD[0])[1][:, D - rank :]
    elif edit.residual_XD is not None:
        alive_D = (np.asarray(edit.residual_XD) != 0).any(axis=0)
        basis_DK = None if alive_D.all() else np.eye(D)[:, alive_D]
    else:
        return None
    return np.zeros((D, 1)) if basis_DK is not None and basis_DK.shape[1] == 0 else basis_DK


def one_basis(map_XDD: np.ndarray) -> bool:
    """Whether all states of the stream are projected onto one subspace."""
    map_XDD = np.asarray(map_XDD)
    return bool(np.abs(map_XDD - map_XDD[0]).max() <= SAME)


def narrow(params: Params, edit: Edit, shape: Shape) -> tuple[Params, Edit, Shape]:
    """The same model with d_model = K, the dimensions of `kept_basis`; as it was where that is None.

    A root mean square over K entries instead of D is sqrt(D / K) times as large: norm_eps and the gains of
    the norms make up for it, exactly.  The norms' own gains go into the matrices that read them, and tied
    embeddings are untied, because the two take different gains.  params: float64 on the host, multipliers of
    units folded in.

    Raises ValueError for a model that no smaller norm computes, and for a lens, which reads all dimensions.
    """
    basis_DK = kept_basis(edit, shape)
    if basis_DK is None:
        return params, dataclasses.replace(edit, residual_map=None), shape
    _check(edit, shape)
    D, K = basis_DK.shape
    has_norm = shape.norm != "none"
    ratio = math.sqrt(D / K) if has_norm else 1.0
    new = dataclasses.replace(shape, d_model=K, norm_eps=shape.norm_eps * ratio**2, tied_embeddings=False)
    blocks, bias = dict(params["blocks"]), dict(edit.bias or {})
    for site, norm in NORM_OF.items():
        gain_LD = blocks.get(norm, np.ones((shape.n_layers, D)))
        for name in (*SITES[site], *(["router"] if site == "mlp_in" else [])):
            if name in blocks:
                blocks[name] = np.einsum("dk,ld,l...do->l...ko", basis_DK, gain_LD, blocks[name])
        if has_norm:
            blocks[norm] = np.full((shape.n_layers, K), ratio)
    for tree in (blocks, bias):
        tree |= {name: tree[name] @ basis_DK for name in ("o", "down") if name in tree}
        if shape.qk_norm:  # the norms of q and k share norm_eps
            tree |= {name: tree[name] * ratio for name in "qk" if name in tree}
    w_DV = params["embed"].T if shape.tied_embeddings else params["unembed"]
    if has_norm:
        w_DV = params["final_norm"]["scale"][:, None] * w_DV
    narrowed = {
        "embed": params["embed"] @ basis_DK,
        "blocks": blocks,
        "unembed": basis_DK.T @ w_DV * (shape.logit_scale / new.logit_scale),
    }
    if has_norm:
        narrowed["final_norm"] = {"scale": np.full(K, ratio)}
    return narrowed, dataclasses.replace(edit, **_multipliers(edit, basis_DK), bias=bias or None), new


def _multipliers(edit: Edit, basis_DK: np.ndarray) -> dict:
    """What of the residual edits still acts inside the basis."""
    if edit.residual_XD is None:
        return {"residual_map": None, "residual_XD": None}
    left_XK = (
        np.asarray(edit.residual_XD, np.float64) @ basis_DK
    )  # columns of the identity: a choice of entries
    return {"residual_map": None, "residual_XD": None if (left_XK == 1).all() else left_XK}


def _check(edit: Edit, shape: Shape) -> None:
    if edit.residual_map is not None and edit.residual_XD is not None:
        raise ValueError(
            "edit.residual_XD: stands beside edit.residual_map, in another basis; slice them one by one"
        )
    if shape.norm == "layernorm":
        raise ValueError(
            'shape.norm = "layernorm": a removed dimension still carries the mean of the others, so the '
            'stream cannot be narrowed; use "rmsnorm" or "none"'
        )
    if shape.norm_position == "after" and shape.norm != "none":
        raise ValueError(
            'shape.norm_position = "after": the norm sees dimensions before they are removed, so the stream '
            'cannot be narrowed; use "before"'
        )
    if edit.lens is not None:
        raise ValueError("edit.lens: reads and writes all dimensions of the stream; slice without it")
