"""SliceGPT: the residual stream loses the directions in which it varies least (Ashkboos et al. 2024, arXiv
2401.15024).

Here in masked form: a projector Q_k Q_k^T acts on the stream after the embedding and after every sublayer, which
gives the logits of the sliced matrices (wane.scaling.degrade.slicing makes those) while k stays traced.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.hold import hold_nothing
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.sequential import gram
from wane.scaling.degrade.slicing import sliced_cost
from wane.scaling.degrade.stream import batched
from wane.scaling.degrade.units import refuse
from wane.scaling.edit import Edit, Params
from wane.scaling.model import behind_attention, behind_mlp, embed
from wane.scaling.shape import Shape

DAMPING = 0.01  # of the mean eigenvalue, added to all


def slicegpt(
    shape: Shape,
    scope: Scope = EVERYTHING,
    *,
    round_to: int = 1,
    profile: tuple[float, ...] = (),
    slice_head: bool = False,
    subtract_embedding_mean: bool = False,
) -> Degradation:
    """Slices the residual stream down to its leading principal components, block after block.

    Severity is the share of the d_model dimensions that are sliced off.  round_to: the number that is left is
    rounded down to a multiple (8 in the published code).  profile: a factor of severity for each layer, such as
    (0, 1, 1, 2); empty: 1 for all.  A layer owns the stream behind its two sublayers, the first one also that
    behind the embedding; that behind the last layer keeps all dimensions unless slice_head.
    subtract_embedding_mean: where the embeddings are sliced, take the mean of its entries from each first, as the
    published code does for every model; LayerNorm models are centred in any case, others change by it.

    Principal components are uncentred, from calibration streams that the sliced blocks before make, so what is
    removed at a larger severity need not contain what is removed at a smaller one.  Cost: one forward of the
    calibration set and 2 L + 1 eigendecompositions per point.  removed_fraction and bits count the shortcut
    matrices of real slicing, and are negative and above 16 where these are larger than what they save.
    """
    refuse(scope, "head", "the residual stream belongs to no head")
    refuse(scope, "matrices", "the residual stream is sliced for all matrices that read and write it")
    scope.check(shape)
    check(shape, round_to, profile)
    in_scope_L, factor_L = scope.layer_L(shape), np.asarray(profile or (1,) * shape.n_layers, np.float32)
    centred = shape.norm == "layernorm"
    centred_first = centred or subtract_embedding_mean

    def kept(severity: Array, where: Where) -> Array:
        """Dimensions kept, int32 [2 L + 1]."""
        removed_L = count(shape.d_model, jnp.where(in_scope_L & where.layer_L, severity * factor_L, 0))
        removed_X = jnp.repeat(removed_L, 2, total_repeat_length=2 * shape.n_layers)
        removed_X = jnp.concatenate([removed_X[:1], removed_X])
        k_X = shape.d_model - removed_X
        k_X = jnp.where(removed_X > 0, k_X - k_X % round_to, shape.d_model)
        return k_X if slice_head else k_X.at[-1].set(shape.d_model)

    def apply(params: Params, tokens_NT: Array, severity: Array, where: Where, key: Array) -> Edit:
        frozen, k_X = lax.stop_gradient(params), kept(severity, where)
        x_NSD = embed(frozen, tokens_NT[:, :-1], shape)
        first_DD = projector(gram_of(x_NSD, centred_first), k_X[0], centred=centred_first)
        map_XDD = follow(frozen, onto(first_DD, x_NSD), k_X[1:].reshape(-1, 2))
        return Edit(residual_map=jnp.concatenate([first_DD[None], map_XDD]))

    def follow(params: Params, x_NSD: Array, k_L2: Array) -> Array:
        """Projectors behind every sublayer, [2 L, D, D]: each half of a block runs once, on what the halves before
        it make of the calibration set."""

        def half(behind: Callable, params_l: Params, x_nBSD: Array, k: Array) -> tuple[Array, Array]:
            def step(gram_DD: Array, x_BSD: Array) -> tuple[Array, Array]:
                y_BSD, _ = behind(params_l, x_BSD, shape)
                return gram_DD + gram_of(y_BSD, centred), y_BSD

            gram_DD, y_nBSD = lax.scan(step, jnp.zeros((shape.d_model, shape.d_model)), x_nBSD)
            map_DD = projector(gram_DD, k, centred=centred)
            return onto(map_DD, y_nBSD), map_DD

        def block(x_nBSD: Array, layer: tuple[Params, Array]) -> tuple[Array, Array]:
            params_l, k_2 = layer
            x_nBSD, mid_DD = half(behind_attention, params_l, x_nBSD, k_2[0])
            x_nBSD, out_DD = half(behind_mlp, params_l, x_nBSD, k_2[1])
            return x_nBSD, jnp.stack([mid_DD, out_DD])

        map_L2DD = lax.scan(block, batched(x_NSD), (params["blocks"], k_L2))[1]
        return map_L2DD.reshape(-1, *map_L2DD.shape[2:])

    return Degradation(
        name="slicegpt",
        scope=scope,
        settings={
            "round_to": round_to,
            "profile": profile,
            "slice_head": slice_head,
            "subtract_embedding_mean": subtract_embedding_mean,
        },
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        sequential=True,
        needs_calibration=True,
        promises=Promises(),
        fit=lambda params, calibration_NT, key: calibration_NT,
        apply=apply,
        hold=hold_nothing,
        cost=functools.partial(sliced_cost, shape=shape),
    )


def check(shape: Shape, round_to: int, profile: tuple[float, ...]) -> None:
    """Raises ValueError for a model that cannot be sliced and for settings that mean nothing."""
    if shape.norm_position != "before" and shape.norm != "none":
        raise ValueError(
            f'shape.norm_position = "{shape.norm_position}": a norm of the whole stream stands before each slice, '
            'so that slicing cannot be exact; use "before"'
        )
    if round_to < 1:
        raise ValueError(f"round_to = {round_to}: must be a whole number from 1 to d_model = {shape.d_model}")
    if profile and (len(profile) != shape.n_layers or not all(0 <= p < np.inf for p in profile)):
        raise ValueError(
            f"profile = {profile}: must be empty or {shape.n_layers} numbers, one per layer, each 0 or larger"
        )


def onto(map_DD: Array, x_BSD: Array) -> Array:
    """The residual stream under a projector, as the masked model computes it (wane.scaling.model.restrict)."""
    return jnp.matmul(x_BSD, map_DD.astype(x_BSD.dtype), precision=lax.Precision.HIGHEST)


def gram_of(x_BSD: Array, centred: bool) -> Array:
    """Sum of x^T x over all tokens [D, D]; centred: without the mean of each token's entries, as LayerNorm sees
    it."""
    x_TD = x_BSD.reshape(-1, x_BSD.shape[-1]).astype(jnp.float32)
    return gram(x_TD - x_TD.mean(-1, keepdims=True) if centred else x_TD)


def principal_components(gram_DD: Array, *, centred: bool) -> tuple[Array, Array]:
    """Eigenvalues of the damped Gram matrix in descending order [D], eigenvectors in the columns [D, D].

    centred: nothing is added along the vector of ones, so that it comes last and all others are orthogonal to it.
    """
    D = len(gram_DD)
    mean = jnp.trace(gram_DD) / D
    scale = jnp.where(mean > 0, mean, 1)  # eigh in f32 is best at entries of size 1
    damped_DD = gram_DD / scale + DAMPING * (jnp.eye(D) - (1 / D if centred else 0))
    value_D, vector_DD = jnp.linalg.eigh(damped_DD)
    return value_D[::-1] * scale, vector_DD[:, ::-1]


def projector(gram_DD: Array, k: Array, *, centred: bool) -> Array:
    """Q_k Q_k^T onto the k leading principal components; exactly the identity where none is left out."""
    D = len(gram_DD)
    vector_DD = principal_components(gram_DD, centred=centred)[1]
    leading_DD = jnp.where(jnp.arange(D) < k, vector_DD, 0)
    map_DD = jnp.matmul(leading_DD, leading_DD.T, precision=lax.Precision.HIGHEST)
    return jnp.where(k >= D, jnp.eye(D), map_DD)
