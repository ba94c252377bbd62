"""Round-to-nearest fake quantisation of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.scaling.degrade.contract import (
    BITS,
    EVERYTHING,
    Degradation,
    Promises,
    Scope,
    Where,
    bits_of,
    no_fit,
)
from wane.scaling.degrade.cost import cost_of, quantized_bits
from wane.scaling.edit import Edit, Params
from wane.scaling.quantize import (
    IDENTITY_BITS,
    TERNARY_BITS,
    is_ternary,
    quantize_asymmetric,
    quantize_symmetric,
    quantize_ternary,
    straight_through,
)
from wane.scaling.shape import Shape

Bits = dict[str, Array]  # matrix name -> bits of each weight, broadcastable to [L, I, O]
RTN_BITS = (*BITS, TERNARY_BITS)


def rtn(
    shape: Shape, scope: Scope = EVERYTHING, *, symmetric: bool = True, group_size: int = 0
) -> Degradation:
    """Rounds weights to the nearest of 2^b levels, gradients straight through.

    Severity is given in bits: 8 to 2, or 1.585 = log2(3) for ternary weights, whose scale is the mean absolute
    value.  One scale for `group_size` consecutive inputs of each output, 0: for all inputs.  symmetric: range
    [-max|w|, max|w|]; else [min w, max w] with an integer zero point (ternary stays symmetric).  Codes are not
    nested: a coarser grid is no subset of a finer one.
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    check_groups(group_size, in_scope, shape)
    quantize = functools.partial(
        quantize_weights, in_scope=in_scope, symmetric=symmetric, group_size=group_size
    )

    def apply(params: Params, fitted: tuple, severity: Array, where: Where, key: Array) -> Edit:
        bits = weight_bits(bits_of(severity), in_scope, where, shape)
        return Edit(params={"blocks": quantize(params, bits)}, weight_bits=bits)

    def hold(params: Params, edit: Edit) -> Params:
        return {**params, "blocks": {**params["blocks"], **quantize(params, edit.weight_bits)}}

    storage = functools.partial(quantized_bits, group_size=group_size, zero_point=not symmetric, shape=shape)
    return Degradation(
        name="rtn",
        scope=scope,
        settings={"symmetric": symmetric, "group_size": group_size},
        unit="bits",
        severities=RTN_BITS,
        random=False,
        promises=Promises(),
        fit=no_fit,
        apply=apply,
        hold=hold,
        cost=lambda params, edit, severity: cost_of(params, edit, shape, storage),
    )


def check_groups(group_size: int, in_scope: dict[str, np.ndarray], shape: Shape) -> None:
    """Raises ValueError where groups would be ragged."""
    if group_size < 0:
        raise ValueError(f"group_size = {group_size}: must be 0 (one scale per output) or positive")
    for name in in_scope:
        fan_in = shape.matrices[name][0]
        if group_size and fan_in % group_size:
            raise ValueError(
                f"group_size = {group_size}: must divide the {fan_in} inputs of matrix {name} of "
                f"{shape.name}; choose a divisor of {fan_in}, or 0 for one scale per output"
            )


def weight_bits(bits: Array, in_scope: dict[str, np.ndarray], where: Where, shape: Shape) -> Bits:
    """Bits of each weight: the point's bits where it acts, 16 elsewhere."""
    return {
        name: jnp.where(mask & where.entries(name, shape), bits, IDENTITY_BITS)
        for name, mask in in_scope.items()
    }


def quantize_weights(
    params: Params, bits: Bits, *, in_scope: dict[str, np.ndarray], symmetric: bool, group_size: int
) -> dict[str, Array]:
    """Quantised matrices [L, I, O], straight-through; weights with 16 bits keep theirs.

    Ranges are taken over the weights in scope only.
    """

    def matrix(w_IO: Array, bits: Array, mask: Array) -> Array:
        b = jnp.min(bits)  # one width per matrix; a selector only says where it acts
        rounded_IO = lax.stop_gradient(round_matrix(w_IO, b, mask, symmetric, group_size))
        return jnp.where(bits < IDENTITY_BITS, straight_through(w_IO, rounded_IO), w_IO)

    return {
        name: jax.vmap(matrix)(params["blocks"][name], bits[name], jnp.asarray(mask))
        for name, mask in in_scope.items()
    }


def round_matrix(w_IO: Array, bits: Array, mask: Array, symmetric: bool, group_size: int) -> Array:
    """All of one matrix, rounded with the ranges of its masked entries.  bits a scalar; mask broadcasts."""

    def groups(x: Array) -> Array:  # [G, inputs of a group, O]
        return jnp.broadcast_to(x, w_IO.shape).reshape(-1, group_size or len(w_IO), w_IO.shape[1])

    w, inside = groups(w_IO), groups(mask)
    seen = jnp.where(inside, w, 0)
    if symmetric:
        rounded = quantize_symmetric(w, jnp.abs(seen).max(1, keepdims=True), bits)
    else:
        low, high = seen.min(1, keepdims=True), seen.max(1, keepdims=True)
        rounded = quantize_asymmetric(w, low, high, bits)
    absmean = jnp.abs(seen).sum(1, keepdims=True) / jnp.maximum(inside.sum(1, keepdims=True), 1)
    return jnp.where(is_ternary(bits), quantize_ternary(w, absmean), rounded).reshape(w_IO.shape)
