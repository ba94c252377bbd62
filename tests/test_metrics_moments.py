"""Which tokens sums are over, what of a covariance is rounding, and values that are not defined."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics_overlap import SHAPE, rows_of, slow_cka, splits, subject_of  # noqa: F401

from wane.eval.measure import defined, finite
from wane.eval.metrics import overlap
from wane.eval.metrics.cka import hsic, kernel, unbiased_alignment, unbiased_cka
from wane.eval.metrics.moments import (
    MINIBATCH,
    chosen,
    few,
    moments,
    own_covariance,
    participation_ratio,
    products,
    spaced,
)
from wane.eval.study import Degrade

rng = np.random.default_rng(0)


@pytest.mark.parametrize("width", [2, 4, 16])
@pytest.mark.parametrize("positions", [spaced, few])
@pytest.mark.parametrize("B", [16, 64, 128])
def test_every_place_of_packed_items_is_read(positions, width, B):
    """Also by 16 sequences in a row: those of one task."""
    at_Bn = positions(128, B)
    assert at_Bn.shape == (B, 8 if positions is spaced else max(1, MINIBATCH // B))
    runs = np.minimum(at_Bn * at_Bn.shape[1] // 128, at_Bn.shape[1] - 1)
    np.testing.assert_array_equal(runs, np.broadcast_to(np.arange(at_Bn.shape[1]), at_Bn.shape))
    for first in range(0, B, 16):
        count = np.bincount(at_Bn[first : first + 16].ravel() % width, minlength=width)
        assert count.min() >= 1
        assert count.max() <= count.min() + 1


def test_every_position_is_read_in_some_sequence():
    assert set(spaced(128, 16).ravel()) == set(range(128))
    assert set(few(128, 128).ravel()) == set(range(128))
    assert len(set(few(128, 64).ravel())) == 64


@pytest.mark.parametrize(("S", "B"), [(1, 1), (5, 3), (16, 2), (33, 2), (100, 7), (255, 70)])
def test_positions_of_any_length_are_in_order_and_inside(S, B):
    for positions in (spaced, few):
        at_Bn = positions(S, B)
        assert (np.diff(at_Bn, axis=1) > 0).all()
        assert at_Bn.min() >= 0
        assert at_Bn.max() < S


def test_chosen_tokens_are_those_of_their_sequence():
    x = rng.normal(size=(2, 3, 40, 5))
    found, at_Bn = chosen(jnp.asarray(x, jnp.float32), spaced), spaced(40, 3)
    slow = [[x[l, b, s] for b in range(3) for s in at_Bn[b]] for l in range(2)]
    np.testing.assert_allclose(found, slow, rtol=1e-6)


def summed(*streams, batches=20):
    """Sums over batches of the moments of levels [L, N, D] and of their products, as a sweep adds them up."""
    weight_N = jnp.ones(streams[0].shape[1])

    @jax.jit
    def gather(*batch):
        x, y = batch[0], batch[-1]
        next_LDE = products(x[:-1], x[1:], weight_N)
        return moments(x, weight_N) | {"next": next_LDE}, moments(y, weight_N), products(x, y, weight_N)

    parts = [gather(*(jnp.asarray(x, jnp.float32) for x in streams))] * batches
    return jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *parts)


@pytest.mark.parametrize("N", [64, 2048])
def test_a_constant_unit_with_a_large_mean_adds_no_dimension(N):
    """Three units of equal variance, and one that is always 1000.1."""
    units_ND = np.tile(np.concatenate([np.eye(3), -np.eye(3)]), (N // 6 + 1, 1))[:N]
    with_constant = np.concatenate([units_ND, np.full((N, 1), 1000.1)], axis=1)
    sums, *_ = summed(with_constant[None])
    expected = participation_ratio(np.cov(units_ND.T, bias=True))
    assert participation_ratio(own_covariance(sums))[0] == pytest.approx(float(expected), rel=1e-3)
    assert expected == pytest.approx(3, rel=2e-2)


def test_a_constant_unit_does_not_change_an_alignment_and_a_constant_stream_has_none():
    x, y = rng.normal(size=(2, 3, 256, 6))
    for of in (x, y):
        of[..., 0] = 1000.1
    x[2] = 77.7
    residual, other, cross = summed(x, y)
    found = overlap.stream_cka((residual, other, cross), None)
    for l in range(2):
        assert found[l] == pytest.approx(slow_cka(x[l], y[l]), rel=1e-3)
    near = overlap.neighbour_cka(residual, None)
    assert near[0] == pytest.approx(slow_cka(x[0], x[1]), rel=1e-3)
    assert np.isnan([found[2], near[1]]).all()


def test_the_kernel_of_examples_that_are_the_same_up_to_rounding_is_0():
    """So that no unbiased estimate is made of it; one that varies little about a large mean is kept."""
    one_N, n = jnp.ones(64), 64.0
    same = np.float32(77.7) * (1 + 1e-7 * rng.integers(-2, 3, size=(64, 8)))
    k_NN = kernel(jnp.asarray(same, jnp.float32), one_N)
    assert (k_NN == 0).all()
    assert np.isnan(unbiased_alignment(hsic(k_NN, k_NN, n), 1.0, 1.0))
    x = rng.normal(size=(1, 64, 8))
    far = jnp.asarray(x + 1000, jnp.float32)
    assert unbiased_cka(far, jnp.asarray(x, jnp.float32)) == pytest.approx(1, abs=1e-3)


def test_an_estimate_that_came_out_below_0_has_no_root():
    xx, yy = jnp.array([4.0, -4.0, 4.0, -4.0, 0.0]), jnp.array([9.0, 9.0, -9.0, -9.0, 9.0])
    found = unbiased_alignment(xx, yy, jnp.full(5, 3.0))
    np.testing.assert_allclose(found, [0.5, *[np.nan] * 4])


def test_not_defined_is_not_the_same_as_not_finite():
    value = jnp.array([1.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(defined(value, finite({"n": jnp.zeros(2)})), value)
    np.testing.assert_array_equal(
        defined(value, finite((None, {"n": jnp.zeros(2), "sum": jnp.array([0, jnp.nan])}))),
        [1, np.inf, np.inf],
    )


UNDEFINED = ("neuron_cosine", "neuron_overlap")


def test_what_is_not_defined_has_no_row(splits):  # noqa: F811
    """Of neurons that are all gone no two can be compared, but they have 0 dimensions."""
    rows = rows_of(subject_of(splits), Degrade(method="random_neurons", severities=(0.5, 1.0)))
    assert {r["status"] for r in rows} == {"ok"}
    count = collections.Counter((r["metric"], r["severity"]) for r in rows)
    for name in UNDEFINED:
        assert count[name, 0.0] == count[name, 0.5] == 3
        assert (name, 1.0) not in count
    assert [r["value"] for r in rows if r["metric"] == "neuron_dimensions" and r["severity"] == 1] == [0] * 3
    others = {name for name, _ in count} - set(UNDEFINED)
    assert all(count[name, 0.0] == count[name, 1.0] for name in others)


def test_what_is_not_finite_has_diverged(splits):  # noqa: F811
    subject = subject_of(splits)
    subject.params = jax.tree.map(lambda w: w, subject.params)
    subject.params["blocks"]["up"] = subject.params["blocks"]["up"] * jnp.nan
    subject.settings = dataclasses.replace(subject.settings, metrics=("loss", "overlap", "structure"))
    rows = rows_of(subject, Degrade(method="random_heads", severities=(0.5,)))
    told = {name: {r["status"] for r in rows if r["metric"] == name} for name in subject.settings.metrics}
    assert told["loss"] == told["neuron_cosine"] == told["neuron_dimensions"] == {"diverged"}
    of_weights = {r["part"]: r["status"] for r in rows if r["metric"] == "largest_singular_value"}
    assert of_weights["up"] == "diverged"
    assert of_weights["q"] == "ok"
