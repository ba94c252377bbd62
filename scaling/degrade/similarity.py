"""How far layers move the residual stream: cosine similarity, block influence, angular distance.

Everything in f32.  States are those before the final norm; h_0 enters the first block, h_L leaves the last.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply
from wane.scaling.shape import Shape

Part = Literal["block", "attention", "mlp", "joint"]
Distance = Literal["angular", "cosine"]
SMALLEST_NORM = 1e-8


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between vectors along the last axis; 0 where one of them is 0."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = [jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=-1)), SMALLEST_NORM) for x in (a, b)]
    return jnp.sum(a * b, axis=-1) / (norms[0] * norms[1])


def block_influence(a: Array, b: Array) -> Array:
    """1 - cosine of the states before and after a block, .5 where one of them is 0 (Men et al. 2024, arXiv
    2403.03853, eq. 1)."""
    defined = jnp.any(a != 0, axis=-1) & jnp.any(b != 0, axis=-1)
    return jnp.where(defined, 1 - cosine(a, b), 0.5)


def angular_distance(a: Array, b: Array) -> Array:
    """Angle between vectors over pi, from 0 to 1 (Gromov et al. 2024, arXiv 2403.17887, section 3).

    The cosine is clamped: rounding puts it above 1 for equal vectors.
    """
    return jnp.arccos(jnp.clip(cosine(a, b), -1.0, 1.0)) / jnp.pi


def block_influences(params: Params, tokens_NT: Array, shape: Shape, edit: Edit | None = None) -> Array:
    """[L]: mean block influence over all tokens (the reference's sum over tokens gives the same order)."""

    def of_batch(tokens_BT: Array) -> Array:
        h_PBSD = hidden_states(params, tokens_BT, shape, edit)
        return block_influence(h_PBSD[:-1], h_PBSD[1:]).sum((1, 2))

    return over_batches(of_batch, tokens_NT) / scored(tokens_NT)


def similarities(
    params: Params, tokens_NT: Array, shape: Shape, part: Part, *,
    layer_drop_norm: bool = True, edit: Edit | None = None,
) -> Array:  # fmt: skip
    """[L], joint [2 L] (attention first): mean cosine over all tokens between what enters and what leaves a block
    or its sublayer (He et al. 2024, arXiv 2406.15786, section 3).

    layer_drop_norm: the residual stream before and after the sublayer, so that the norm goes with it; False
    compares a sublayer's normed input with its output, without the residual connection.
    """

    def of_batch(tokens_BT: Array) -> Array:
        out = apply(params, tokens_BT[:, :-1], shape, edit)
        inner = out.inner
        left_LBSD = jnp.concatenate([inner["block_in"][1:], out.x_BSD[None]])
        ends = {"attention": (inner["block_in"], inner["mid"]), "mlp": (inner["mid"], left_LBSD)}
        if not layer_drop_norm:
            ends = {
                "attention": (inner["attn_in"], inner["attn_out"]),
                "mlp": (inner["mlp_in"], inner["mlp_out"]),
            }
        ends["block"] = (inner["block_in"], left_LBSD)
        parts = ("attention", "mlp") if part == "joint" else (part,)
        return jnp.concatenate([cosine(*ends[name]).sum((1, 2)) for name in parts])

    return over_batches(of_batch, tokens_NT) / scored(tokens_NT)


def distance_table(params: Params, tokens_NT: Array, shape: Shape, distance: Distance) -> Array:
    """[P, P], P = L + 1: entry (i, j) is the distance of h_i and h_j.

    angular: mean angular distance of the last token of each sequence.  cosine: 1 - mean cosine of all tokens.
    """
    measure = {"angular": angular_distance, "cosine": lambda a, b: 1 - cosine(a, b)}[distance]

    def of_batch(tokens_BT: Array) -> Array:
        h_PBSD = hidden_states(params, tokens_BT, shape)
        if distance == "angular":
            h_PBSD = h_PBSD[:, :, -1:]
        return jnp.stack([measure(h_BSD, h_PBSD).sum((1, 2)) for h_BSD in h_PBSD])

    tokens = len(tokens_NT) if distance == "angular" else scored(tokens_NT)
    return over_batches(of_batch, tokens_NT) / tokens


def hidden_states(params: Params, tokens_BT: Array, shape: Shape, edit: Edit | None = None) -> Array:
    """[P, B, S, D], P = L + 1: the residual stream that enters each block, and leaves the last."""
    out = apply(params, tokens_BT[:, :-1], shape, edit)
    return jnp.concatenate([out.inner["block_in"], out.x_BSD[None]])


def scored(tokens_NT: Array) -> int:
    """Number of positions that run through the model."""
    return tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)
