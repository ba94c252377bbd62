"""Wanda: vectors of the published code, a slow numpy version, and its variant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK
from sequential_cases import GOLDEN, compare_toy, correlated, everything

from wane.scaling.degrade.wanda import energy, least, metric, variant, wanda

VECTORS = np.load(GOLDEN / "wanda.npz")


@functools.cache
def removal(M=0, use_variant=False):
    choose = variant if use_variant else functools.partial(least, M=M)
    return jax.jit(lambda w, x, inside, s: choose(metric(w, energy(x)), inside, s), **QUICK)


def removed(w_IO, x_NTI, severity, inside=None, **settings):
    inside = everything(w_IO) if inside is None else inside
    x_TI = x_NTI.reshape(-1, len(w_IO))
    return np.asarray(removal(**settings)(w_IO, x_TI, inside, jnp.float32(severity)))


def test_published_metric():
    x_TI = VECTORS["X"].reshape(-1, len(VECTORS["scaler_row"]))
    energy_I = energy(x_TI) / len(VECTORS["X"])
    np.testing.assert_allclose(energy_I, VECTORS["scaler_row"], rtol=1e-6)
    np.testing.assert_allclose(metric(VECTORS["W"].T, energy_I).T, VECTORS["metric"], rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "severity", "settings"),
    [
        ("mask_50", 0.5, {}),
        ("mask_30", 0.3, {}),
        ("mask_2_4", 0.5, {"M": 4}),
        ("mask_4_8", 0.5, {"M": 8}),
        ("mask_variant_50", 0.5, {"use_variant": True}),
    ],
)
def test_published_masks(mask, severity, settings):
    got = removed(VECTORS["W"].T, VECTORS["X"], severity, **settings)
    np.testing.assert_array_equal(got.T, VECTORS[mask])


@pytest.mark.parametrize("M", [0, 4, 8])
def test_slow_version(M):
    """Every output alone; dead inputs first, ties to the lower input."""
    w_IO, x_NTI = correlated(40, 7, seed=M, dead=(3, 4, 30, 31, 33, 34, 36))
    w_IO[10:14] = w_IO[10]
    x_NTI[..., 10:14] = x_NTI[..., 10:11]
    score = np.abs(w_IO) * np.sqrt(np.sum(x_NTI.astype(np.float32) ** 2, axis=(0, 1)))[:, None]
    size = M or 40
    for hundredths in (0, 13, 25, 50, 77, 100):
        want = np.zeros(w_IO.shape, bool)
        for o in range(7):
            for g in range(0, 40, size):
                order = np.argsort(score[g : g + size, o], kind="stable")
                want[g + order[: size * hundredths // 100], o] = True
        np.testing.assert_array_equal(removed(w_IO, x_NTI, hundredths / 100, M=M), want)


@pytest.mark.parametrize("settings", [{}, {"M": 4}, {"use_variant": True}])
def test_weights_outside_are_neither_removed_nor_counted(settings):
    w_IO, x_NTI = correlated(32, 5, seed=3)
    inside = np.zeros_like(w_IO, bool)
    inside[8:24, 2:] = True
    got = removed(w_IO, x_NTI, 0.5, inside, **settings)
    assert not got[~inside].any()
    alone = removed(w_IO[8:24, 2:], x_NTI[..., 8:24], 0.5, **settings)
    np.testing.assert_array_equal(got[8:24, 2:], alone)


@pytest.mark.parametrize("severity", [0.1, 0.3, 0.6, 0.7])
def test_variant_meets_its_target_with_one_share_of_the_score(severity):
    w_IO, x_NTI = correlated(64, 40, seed=4)
    got = removed(w_IO, x_NTI, severity, use_variant=True)
    assert abs(got.mean() - severity) <= 1e-3
    score = np.abs(w_IO) * np.sqrt(np.sum(x_NTI.astype(np.float64) ** 2, axis=(0, 1)))[:, None]
    gone, whole = np.where(got, score, 0).sum(0), score.sum(0)
    least_kept = np.where(got, np.inf, score).min(0)
    assert (gone / whole).max() < ((gone + least_kept) / whole).min()  # one alpha fits all outputs
    assert (np.where(got, score, 0).max(0) < least_kept).all()


def test_variant_removes_nothing_at_severity_0():
    w_IO, x_NTI = correlated(24, 5, seed=5, dead=(2,))
    assert not removed(w_IO, x_NTI, 0.0, use_variant=True).any()


def test_inputs_never_seen_give_magnitudes():
    """An expert that no calibration token reached."""
    w_IO, _ = correlated(16, 5, seed=6)
    got = removed(w_IO, np.zeros((1, 4, 16), np.float32), 0.5)
    np.testing.assert_array_equal(got, np.argsort(np.argsort(np.abs(w_IO), axis=0), axis=0) < 8)


def test_less_output_error_than_magnitude_where_inputs_differ_in_scale():
    w_IO, x_NTI = correlated(64, 16, seed=7)
    x_NTI = x_NTI * np.geomspace(0.1, 10, 64, dtype=np.float32)
    magnitude = np.argsort(np.argsort(np.abs(w_IO), axis=0), axis=0) < 32
    got = removed(w_IO, x_NTI, 0.5)
    assert got.sum() == magnitude.sum()
    assert np.sum((x_NTI @ (w_IO * got)) ** 2) < 0.5 * np.sum((x_NTI @ (w_IO * magnitude)) ** 2)


@pytest.mark.parametrize(("case", "settings"), [("wanda_50", {}), ("wanda_2_4", {"group": "n:4"})])
def test_published_driver_on_the_toy_decoder(case, settings):
    compare_toy(lambda shape: wanda(shape, **settings), "toy_wanda.npz", case, 0.5)
