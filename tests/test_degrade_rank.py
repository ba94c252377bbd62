"""Counts, ranks and masks against exact arithmetic and against the masks of Wanda's code and jaxpruner."""

from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wane.scaling.degrade.rank import count, count_as, keep, lowest, ranks

GOLDEN = Path(__file__).parent / "golden"
WANDA, JAXPRUNER = np.load(GOLDEN / "magnitude.npz"), np.load(GOLDEN / "magnitude_jaxpruner.npz")
COUNT = jax.jit(count)


@settings(max_examples=300, deadline=None)
@given(n=st.integers(0, 2**31 - 1), ticks=st.integers(0, 10_000))
def test_count_is_the_exact_floor(n, ticks):
    assert int(COUNT(jnp.int32(n), jnp.float32(ticks / 10_000))) == n * Fraction(ticks, 10_000) // 1


def test_count_at_and_beyond_the_ends():
    assert [int(COUNT(jnp.int32(7), jnp.float32(s))) for s in (-0.5, 0.0, 1.0, 1.5)] == [0, 0, 7, 7]


def masks_of(rank, n, severity):
    return np.asarray(keep(rank, n, jnp.float32(severity)))


def test_equal_scores_go_in_order_of_index():
    np.testing.assert_array_equal(
        ranks(jnp.array([2.0, 1.0, 1.0, 0.0, 1.0]), jnp.bool_(True)), [4, 1, 2, 0, 3]
    )
    kept = masks_of(ranks(jnp.zeros(10), jnp.bool_(True)), 10, 0.5)
    np.testing.assert_array_equal(kept, np.arange(10) >= 5)


def test_what_is_out_of_scope_is_never_reached():
    rng = np.random.default_rng(0)
    in_scope = rng.random(50) < 0.4
    rank = ranks(jnp.asarray(rng.normal(size=50)), in_scope)
    np.testing.assert_array_equal(masks_of(rank, in_scope.sum(), 1.0), ~in_scope)


@pytest.mark.parametrize("percent", [30, 50])
def test_rows_are_those_of_wanda(percent):
    rank = ranks(jnp.abs(WANDA["W"]), jnp.bool_(True))
    np.testing.assert_array_equal(~masks_of(rank, 64, percent / 100), WANDA[f"mask_row_{percent}"])


@pytest.mark.parametrize("percent", [30, 50])
def test_layers_are_those_of_wanda(percent):
    """Its threshold is itself pruned: one weight more than floor(n s)."""
    rank = np.asarray(ranks(jnp.abs(WANDA["W"]).ravel(), jnp.bool_(True)))
    one_more = rank.size * percent // 100 + 1
    np.testing.assert_array_equal(rank.reshape(48, 64) < one_more, WANDA[f"mask_layer_{percent}"])


@pytest.mark.parametrize("percent", [50, 75])
def test_matrices_are_those_of_jaxpruner(percent):
    W = JAXPRUNER["W"]
    kept = masks_of(ranks(jnp.abs(W).ravel(), jnp.bool_(True)), W.size, percent / 100)
    np.testing.assert_array_equal(kept.reshape(W.shape), JAXPRUNER[f"mask_keep_unstructured_{percent}"])


def test_given_scores_are_cut_as_jaxpruner_cuts_them():
    score = JAXPRUNER["random_scores_key8"]
    kept = masks_of(ranks(jnp.asarray(score).ravel(), jnp.bool_(True)), score.size, 0.5)
    np.testing.assert_array_equal(kept.reshape(score.shape), JAXPRUNER["random_mask_keep_50"])


def test_ties_are_those_of_jaxpruner_with_the_order_of_indices_turned():
    """It keeps the lower index of equal scores; here the lower index goes first."""
    score = JAXPRUNER["ties_scores"]
    kept = masks_of(ranks(jnp.asarray(score).ravel()[::-1], jnp.bool_(True)), score.size, 0.5)
    np.testing.assert_array_equal(kept[::-1].reshape(score.shape), JAXPRUNER["ties_mask_keep_50"])


LOWEST = jax.jit(lowest, static_argnames=("axis", "convention"))
AWKWARD = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e38, 1.0000001]


@pytest.mark.parametrize("convention", ["floor", "one_more", "keep_one"])
@pytest.mark.parametrize("axis", [0, -1, -2])
def test_the_lowest_are_those_of_least_rank(axis, convention):
    """Without a sort: ties, both zeros, infinities and NaN (behind them) included."""
    rng = np.random.default_rng(4)
    for score in (rng.normal(size=(3, 8, 5)), rng.integers(-1, 2, (3, 8, 5)), rng.choice(AWKWARD, (3, 8, 5))):
        inside, score = rng.random(score.shape) < 0.7, np.float32(score)
        n, rank = inside.sum(axis, keepdims=True), lexicographic(score, inside, axis)
        for severity in np.float32([0, 0.15, 0.5, 0.9, 1]):
            expected = inside & (rank < np.asarray(count_as(n, severity, convention)))
            found = LOWEST(score, inside, severity, axis=axis, convention=convention)
            np.testing.assert_array_equal(found, expected)


def lexicographic(score, inside, axis):
    """Ranks by (outside, NaN, score, index), line by line in Python."""
    score, inside = np.moveaxis(score, axis, -1), np.moveaxis(inside, axis, -1)
    rank = np.empty(score.shape, int)
    for line in np.ndindex(score.shape[:-1]):
        keys = [
            (not within, bool(np.isnan(x)), 0 if np.isnan(x) else x, i)
            for i, (x, within) in enumerate(zip(score[line], inside[line], strict=True))
        ]
        rank[line] = np.argsort(sorted(range(len(keys)), key=keys.__getitem__))
    return np.moveaxis(rank, -1, axis)
