"""Matrix products with weights, and their gradients in the form that each platform multiplies fastest."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax


def product(x: Array, w_IO: Array, out: str | None = None) -> Array:
    """x @ w, [..., I] to [..., O], in one product of all rows.  out: dtype of the result; None: of the operands."""
    rows = x.reshape(-1, x.shape[-1])
    return _product(rows, w_IO, out).reshape(*x.shape[:-1], w_IO.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_NI: Array, w_IO: Array, out: str | None) -> Array:
    return jnp.matmul(x_NI, w_IO, preferred_element_type=out)


def _forward(x_NI: Array, w_IO: Array, out: str | None) -> tuple[Array, tuple[Array, Array]]:
    return _product(x_NI, w_IO, out), (x_NI, w_IO)


def _backward(out: str | None, operands: tuple[Array, Array], g_NO: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*operands, g_NO, cpu=_gradients_cpu, default=gradients)


def gradients(x_NI: Array, w_IO: Array, g_NO: Array) -> tuple[Array, Array]:
    """Of x and w, as automatic differentiation has them."""
    dx_NI = lax.dot_general(g_NO, w_IO, (((1,), (1,)), ((), ())), preferred_element_type=g_NO.dtype)
    dw_IO = lax.dot_general(x_NI, g_NO, (((0,), (0,)), ((), ())), preferred_element_type=g_NO.dtype)
    return dx_NI.astype(x_NI.dtype), dw_IO.astype(w_IO.dtype)


def _gradients_cpu(x_NI: Array, w_IO: Array, g_NO: Array) -> tuple[Array, Array]:
    """XLA would write g transposed, for the weight gradient, by the same loop that computes it, element by element
    across the rows: up to ten times as slow as the product itself."""
    return gradients(x_NI, w_IO, lax.optimization_barrier(g_NO))


_product.defvjp(_forward, _backward)
