"""Score -> rank -> mask, shared by every pruner.  Ranks, not thresholds: a constant score still gives the exact
count, ties go to the lower index, and masks of growing severity are nested because ranks do not move."""

from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

Convention = Literal["floor", "one_more", "keep_one"]
GRID = 10_000  # severities act on this grid: f32 floor(n * s) is off by one in 1 % of cases


def count(n: int | Array, severity: Array) -> Array:
    """floor(n * round(1e4 s) / 1e4), exact in int32 for any n below 2^31: how many of n are removed."""
    q = jnp.rint(jnp.clip(severity, 0.0, 1.0) * GRID).astype(jnp.int32)
    n = jnp.asarray(n, jnp.int32)
    return (n // GRID) * q + (n % GRID) * q // GRID


def count_as(n: int | Array, severity: Array, convention: Convention) -> Array:
    """How many of n are removed: `floor` by count; as published code counts, `one_more` than floor (Wanda's and
    SparseGPT's magnitude pruning removes its threshold too), `keep_one`: all but max(1, n (1 - s)) rounded half to
    even (jaxpruner).  Severity 0 removes nothing."""
    if convention == "floor":
        return count(n, severity)
    if convention == "one_more":
        return jnp.where(severity > 0, jnp.minimum(count(n, severity) + 1, n), 0)
    left = GRID - jnp.rint(jnp.clip(severity, 0.0, 1.0) * GRID).astype(jnp.int32)
    n = jnp.asarray(n, jnp.int32)
    whole, rest = (n // GRID) * left + (n % GRID) * left // GRID, (n % GRID) * left % GRID
    half = GRID // 2
    kept = whole + ((rest > half) | ((rest == half) & (whole % 2 == 1)))
    return jnp.where(severity > 0, n - jnp.maximum(kept, 1), 0)


def ranks(score: Array, in_scope: Array, axis: int = -1) -> Array:
    """int32 position of each entry in ascending order of score along an axis: rank 0 is removed first.

    Entries outside the scope rank behind all others, so counts taken in the scope never reach them.
    """
    score = jnp.where(in_scope, score, jnp.inf)
    order = jnp.argsort(score, axis=axis, stable=True)
    return jnp.argsort(order, axis=axis, stable=True).astype(jnp.int32)


def keep(rank: Array, n: int | Array, severity: Array) -> Array:
    """bool, True = kept: all but the count(n, severity) lowest ranks.  n broadcasts against rank."""
    return rank >= count(n, severity)


def lowest(
    score: Array, inside: Array, severity: Array, *, axis: int, convention: Convention = "floor"
) -> Array:
    """bool: the count_as(n, severity) lowest scores of the n entries inside along an axis; ties go to the lower
    index.

    Nothing is sorted: the largest score that goes is built bit by bit, and so is the last of the places that share
    it.  Some 40 counts of a matrix cost a fraction of the two sorts that ranks take, where ranks are not kept.
    """
    n = jnp.sum(inside, axis=axis, keepdims=True, dtype=jnp.int32)
    wanted = count_as(n, severity, convention)
    key, place = ascending(score), lax.broadcasted_iota(jnp.uint32, score.shape, axis % score.ndim)

    def least_with(among: Array, values: Array, wanted: Array, bits: int) -> Array:
        """The least t for which `wanted` values, if any, are t or below."""

        def step(i: Array, t: Array) -> Array:
            more = t | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
            below = jnp.sum(among & (values < more), axis=axis, keepdims=True, dtype=jnp.int32)
            return jnp.where(below < wanted, more, t)

        return lax.fori_loop(0, bits, step, jnp.zeros(wanted.shape, jnp.uint32))

    last = least_with(inside, key, wanted, 32)
    below, tied = inside & (key < last), inside & (key == last)
    left = wanted - jnp.sum(below, axis=axis, keepdims=True, dtype=jnp.int32)
    end = least_with(tied, place, left, score.shape[axis].bit_length())
    return below | (tied & (place <= end) & (left > 0))


def ascending(x: Array) -> Array:
    """uint32 in the order of f32 values; zeros of both signs are equal and NaN comes last, as in jax's sorts."""
    x = jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x == 0, 0, x)).astype(jnp.float32)
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
