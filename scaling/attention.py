"""Causal softmax attention: a plain form, and one for CPUs that skips what the mask removes and keeps no map."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

# Of queries, each with the keys up to its end: 4 blocks are 5/8 of the products.  Smaller ones cost more in calls
# than they save, and every block is compiled on its own.
BLOCKS, QUERIES = 4, 32


def attention_map(q_BSHK: Array, k_BCGK: Array, positions_S: Array) -> Array:
    """softmax(q k^T / sqrt(K)) over the keys that a position may see, [B, H, S, C] in f32; C keys, G key-value
    heads each serving H / G query heads."""
    k_BCHK = per_query_head(k_BCGK, q_BSHK)
    scores = jnp.einsum("bshk,bchk->bhsc", q_BSHK, k_BCHK, preferred_element_type=jnp.float32)
    causal_SC = jnp.arange(k_BCHK.shape[1]) <= positions_S[:, None]
    scores = jnp.where(causal_SC, scores * q_BSHK.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def per_query_head(t_BCGK: Array, q_BSHK: Array) -> Array:
    """Keys or values [B, C, H, K], those of a group repeated for each of its query heads."""
    repeats = q_BSHK.shape[2] // t_BCGK.shape[2]
    return jnp.repeat(t_BCGK, repeats, axis=2) if repeats > 1 else t_BCGK


def attend(q_BSHK: Array, k_BCGK: Array, v_BCGK: Array, positions_S: Array) -> Array:
    """The heads' outputs [B, S, H, K]; the plain form."""
    map_BHSC = attention_map(q_BSHK, k_BCGK, positions_S)
    return jnp.einsum("bhsc,bchk->bshk", map_BHSC.astype(v_BCGK.dtype), per_query_head(v_BCGK, q_BSHK))


def attend_causal(q_BSHK: Array, k_BSGK: Array, v_BSGK: Array) -> Array:
    """`attend` where queries and keys are the same S positions, in the form that the platform runs fastest."""
    B, S, H, K = q_BSHK.shape
    k_BSHK, v_BSHK = per_query_head(k_BSGK, q_BSHK), per_query_head(v_BSGK, q_BSHK)
    y_NSK = _attend(*(t.transpose(0, 2, 1, 3).reshape(B * H, S, K) for t in (q_BSHK, k_BSHK, v_BSHK)))
    return y_NSK.reshape(B, H, S, K).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _attend(q_NSK: Array, k_NSK: Array, v_NSK: Array) -> Array:
    return _forward(q_NSK, k_NSK, v_NSK)[0]


def _forward(q_NSK: Array, k_NSK: Array, v_NSK: Array) -> tuple[Array, tuple[Array, ...]]:
    y_NSK, norm_NS1 = lax.platform_dependent(q_NSK, k_NSK, v_NSK, cpu=_forward_blocks, default=_forward_plain)
    y_NSK, norm_NS1 = checkpoint_name(y_NSK, "heads"), checkpoint_name(norm_NS1, "norm")
    return y_NSK, (q_NSK, k_NSK, v_NSK, y_NSK, norm_NS1)


def _backward(saved: tuple[Array, ...], g_NSK: Array) -> tuple[Array, Array, Array]:
    return lax.platform_dependent(*saved, g_NSK, cpu=_backward_blocks, default=_backward_plain)


_attend.defvjp(_forward, _backward)


def _plain(q_NSK: Array, k_NSK: Array, v_NSK: Array) -> Array:
    one_head = (x[:, :, None] for x in (q_NSK, k_NSK, v_NSK))
    return attend(*one_head, jnp.arange(q_NSK.shape[1]))[:, :, 0]


def _forward_plain(q_NSK: Array, k_NSK: Array, v_NSK: Array) -> tuple[Array, Array]:
    return _plain(q_NSK, k_NSK, v_NSK), jnp.zeros((*q_NSK.shape[:2], 1), jnp.float32)


def _backward_plain(
    q_NSK: Array, k_NSK: Array, v_NSK: Array, y_NSK: Array, norm_NS1: Array, g_NSK: Array
) -> tuple[Array, Array, Array]:
    return jax.vjp(_plain, q_NSK, k_NSK, v_NSK)[1](g_NSK)


def _blocks(S: int) -> list[tuple[int, int]]:
    """(first, end) of each block of queries; its keys are 0 .. end."""
    count = max(1, min(BLOCKS, S // QUERIES))
    size = S // count if S % count == 0 else S
    return [(first, first + size) for first in range(0, S, size)]


def _scores(q_NQK: Array, k_NCK: Array, first: int) -> Array:
    """Of the queries first, first + 1, .. on keys 0, 1, ..; -inf in effect where a key comes later."""
    scores = jnp.einsum("nqk,nck->nqc", q_NQK, k_NCK, preferred_element_type=jnp.float32)
    causal_QC = jnp.arange(k_NCK.shape[1]) <= first + jnp.arange(q_NQK.shape[1])[:, None]
    return jnp.where(causal_QC, scores * q_NQK.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)


def _forward_blocks(q_NSK: Array, k_NSK: Array, v_NSK: Array) -> tuple[Array, Array]:
    """(outputs, logarithm of the softmax's denominator [N, S, 1] in f32)."""
    y, norm = [], []
    for first, end in _blocks(q_NSK.shape[1]):
        scores = _scores(q_NSK[:, first:end], k_NSK[:, :end], first)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        size = jnp.exp(scores - largest)
        total = jnp.sum(size, axis=-1, keepdims=True)
        mixed = jnp.einsum("nqc,nck->nqk", size.astype(v_NSK.dtype), v_NSK[:, :end])
        y.append(mixed / total.astype(mixed.dtype))
        norm.append(largest + jnp.log(total))
    return jnp.concatenate(y, axis=1), jnp.concatenate(norm, axis=1)


def _backward_blocks(
    q_NSK: Array, k_NSK: Array, v_NSK: Array, y_NSK: Array, norm_NS1: Array, g_NSK: Array
) -> tuple[Array, Array, Array]:
    """The gradient of FlashAttention (Dao et al. 2022, arXiv 2205.14135, appendix B): the map is made again from
    the scores and the norm.  Gradients of keys and values are written as [N, K, S], as XLA multiplies fastest."""
    N, S, K = q_NSK.shape
    inner_NS1 = jnp.sum((g_NSK * y_NSK).astype(jnp.float32), axis=-1, keepdims=True)
    dq, dk_NKS, dv_NKS = [], *jnp.zeros((2, N, K, S), q_NSK.dtype)
    for first, end in _blocks(S):
        q, g, k, v = q_NSK[:, first:end], g_NSK[:, first:end], k_NSK[:, :end], v_NSK[:, :end]
        map_NQC = jnp.exp(_scores(q, k, first) - norm_NS1[:, first:end])
        change = jnp.einsum("nqk,nck->nqc", g, v, preferred_element_type=jnp.float32)
        ds = (map_NQC * (change - inner_NS1[:, first:end]) * K**-0.5).astype(q.dtype)
        dq.append(jnp.einsum("nqc,nck->nqk", ds, k))
        dk_NKS = dk_NKS.at[:, :, :end].add(jnp.einsum("nqk,nqc->nkc", q, ds))
        dv_NKS = dv_NKS.at[:, :, :end].add(jnp.einsum("nqk,nqc->nkc", g, map_NQC.astype(g.dtype)))
    return jnp.concatenate(dq, axis=1), jnp.swapaxes(dk_NKS, 1, 2), jnp.swapaxes(dv_NKS, 1, 2)
