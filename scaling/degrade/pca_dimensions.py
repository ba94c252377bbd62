"""Removal of the principal directions of the residual stream that carry least."""

import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Cost, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import FULL_BITS
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.random_dimensions import check_dimensions, states_of
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply as forward
from wane.scaling.shape import Shape

WRITERS = ("o", "down")  # into the residual stream; all others read it


def pca_dimensions(shape: Shape, scope: Scope = EVERYTHING, *, normalise: bool = True) -> Degradation:
    """Projects the residual stream onto its principal subspace, one for all layers, smallest directions first.

    The stream after the embedding and after every sublayer becomes x Q Q^T, Q the d_model - floor(s d_model)
    leading eigenvectors of the second moment of all these states on the calibration tokens: the projection of
    least squared error.  normalise: each state counts the same; without it the late, large ones decide and the
    embedding goes first.  A model in the rotated basis would store that many dimensions less of every matrix,
    which is what the cost counts.  Unlike SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024) there is one basis,
    and statistics come from the trained model.  Subspaces are nested, weights are not.  scope: layers.  Costs one
    forward pass over the calibration set.
    """
    check_dimensions(shape, scope)
    D = shape.d_model

    def fit(params: Params, calibration_NT: Array, key: Array) -> Array:
        moment_XDD = second_moments(params, calibration_NT, shape)
        if normalise:
            trace_X = jnp.trace(moment_XDD, axis1=1, axis2=2)
            moment_XDD = moment_XDD / jnp.maximum(trace_X, jnp.finfo(jnp.float32).tiny)[:, None, None]
        return jnp.linalg.eigh(moment_XDD.mean(0))[1]  # columns, smallest eigenvalue first

    def apply(params: Params, fitted: Array, severity: Array, where: Where, key: Array) -> Edit:
        removed = count(D, severity)
        kept_D = jnp.arange(D) >= removed
        onto_DD = jnp.matmul(fitted * kept_D, fitted.T, precision=lax.Precision.HIGHEST)
        touched_X = states_of(scope.layer_L(shape) & where.layer_L)
        touched_X &= removed > 0  # Q Q^T of all directions is the identity but for rounding
        return Edit(residual_map=jnp.where(touched_X[:, None, None], onto_DD, jnp.eye(D)))

    return Degradation(
        name="pca_dimensions",
        scope=scope,
        settings={"normalise": normalise},
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        needs_calibration=True,
        promises=Promises(),
        fit=fit,
        apply=apply,
        hold=hold_nothing,
        cost=lambda params, edit, severity: projection_cost(params, edit, shape),
    )


def second_moments(params: Params, tokens_NT: Array, shape: Shape) -> Array:
    """[X, D, D]: mean x^T x of the residual stream after the embedding and after every sublayer."""

    def of_batch(tokens_BT: Array) -> Array:
        out = forward(params, tokens_BT[:, :-1], shape)
        states_LPBSD = jnp.stack([out.inner["block_in"], out.inner["mid"]], axis=1)
        x_XTD = jnp.concatenate([states_LPBSD.reshape(-1, *out.x_BSD.shape), out.x_BSD[None]])
        x_XTD = x_XTD.reshape(len(x_XTD), -1, shape.d_model).astype(jnp.float32)
        return jnp.einsum("xtd,xte->xde", x_XTD, x_XTD, precision=lax.Precision.HIGHEST)

    return over_batches(of_batch, tokens_NT)


def projection_cost(params: Params, edit: Edit, shape: Shape) -> Cost:
    """Cost of projecting the residual stream: each matrix is projected on the side that touches it."""
    before_attn, between, after = edit.residual_map[:-1:2], edit.residual_map[1::2], edit.residual_map[2::2]
    maps = dict.fromkeys("qkv", before_attn) | dict.fromkeys(("gate", "up", "o"), between) | {"down": after}
    lost = total = removed = jnp.float32(0)
    for name in shape.matrices:
        w = params["blocks"][name]
        gap_LDD = jnp.eye(shape.d_model) - maps[name]
        side = "l...io,loe->l...ie" if name in WRITERS else "lei,l...io->l...eo"
        change = jnp.einsum(side, w, gap_LDD) if name in WRITERS else jnp.einsum(side, gap_LDD, w)
        rank_L = jnp.rint(jnp.trace(gap_LDD, axis1=1, axis2=2))  # dimensions removed
        removed += w[0].size / shape.d_model * rank_L.sum()
        lost, total = lost + jnp.sum(jnp.square(change)), total + jnp.sum(jnp.square(w))
    fraction = removed / shape.param_counts()["blocks"]
    bits = FULL_BITS * (1 - fraction)
    return Cost(fraction, lost / total, bits, FULL_BITS / bits)
