"""Rounding of weights and activations, and the noise that matches it, as methods."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, Case, bench, tokens

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, bits_of, severity_of
from wane.scaling.degrade.rtn import round_matrix
from wane.scaling.edit import SITES

RTN = np.load(Path(__file__).parent / "golden" / "rtn.npz")


@pytest.mark.parametrize("group_size", [0, 16, 32])
def test_groups_run_along_the_inputs_as_in_gptq(group_size):
    tag = f"g{group_size}" if group_size else "pc"
    w_IO = RTN["W"].T
    got = round_matrix(w_IO, jnp.float32(3), np.ones((1, 1), bool), False, group_size)
    np.testing.assert_allclose(got.T, RTN[f"Q_gptq_{tag}_b3_asym"], rtol=1e-6, atol=1e-9)


def rounded(w_IO: np.ndarray, bits: float, symmetric: bool, group_size: int) -> np.ndarray:
    """Round to nearest, group by group."""
    out, g = np.empty_like(w_IO), group_size or len(w_IO)
    for o in range(w_IO.shape[1]):
        for i in range(0, len(w_IO), g):
            w = w_IO[i : i + g, o]
            low, high = np.float32(min(w.min(), 0)), np.float32(max(w.max(), 0))
            top = np.float32(2 ** (bits - 1)) if bits != 1.585 else np.float32(1)
            if bits == 1.585:
                scale = np.abs(w).mean(dtype=np.float32)
                out[i : i + g, o] = np.clip(np.rint(w / scale), -1, 1) * scale
            elif symmetric:
                scale = np.abs(w).max() / (top - np.float32(0.5))
                out[i : i + g, o] = np.clip(np.rint(w / scale), -top, top - 1) * scale
            else:
                scale = (high - low) / (2 * top - 1)
                zero = np.rint(-low / scale)
                out[i : i + g, o] = (np.clip(np.rint(w / scale) + zero, 0, 2 * top - 1) - zero) * scale
    return out


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1.585])
@pytest.mark.parametrize("case", [Case.of("rtn"), Case.of("rtn", symmetric=False, group_size=8)], ids=str)
def test_weights_are_rounded_to_nearest(case, bits):
    b = bench(case, "mha-swiglu")
    edit = b.at(severity_of(bits, "bits"))[0]
    settings = dict(b.method.settings)
    for name, w_LIO in edit.params["blocks"].items():
        for w_IO, got in zip(np.asarray(b.params["blocks"][name]), w_LIO, strict=True):
            np.testing.assert_allclose(got, rounded(w_IO, bits, **settings), rtol=2e-6, atol=1e-8)
        np.testing.assert_allclose(edit.weight_bits[name], bits)


@pytest.mark.parametrize("bits", [16, 15, 8, 5, 4, 3, 2, 1.585])
def test_bits_survive_the_severity(bits):
    assert float(bits_of(jnp.float32(severity_of(bits, "bits")))) == np.float32(bits)


@pytest.mark.parametrize("setting", [1, 0, 2.5, 17, 1.6, -3])
def test_bits_that_no_quantiser_has_are_refused(setting):
    with pytest.raises(ValueError, match="whole number from 2 to 15"):
        severity_of(setting, "bits")


@pytest.mark.parametrize(("setting", "unit"), [(1.5, "fraction"), (-0.1, "fraction"), (-1.0, "sigma")])
def test_severities_outside_their_unit_are_refused(setting, unit):
    with pytest.raises(ValueError, match=f"severity = {setting} {unit}"):
        severity_of(setting, unit)


def test_one_head_is_rounded_by_its_own_range():
    """Rows of `o` outside the head are neither rounded nor part of the range."""
    shape = SHAPES["mha-swiglu"]
    b, method = bench(Case.of("rtn"), "mha-swiglu"), Case.of("rtn").build(shape, Scope(head=1))
    severity = jnp.float32(severity_of(3, "bits"))
    edit = method.apply(b.params, (), severity, b.everywhere, jax.random.key(0))
    head, w_IO = slice(4, 8), np.asarray(b.params["blocks"]["o"][0])
    np.testing.assert_allclose(
        edit.params["blocks"]["o"][0][head], rounded(w_IO[head], 3, True, 0), rtol=2e-6
    )


def column_energy(x_LIO, group_size):
    L, fan_in, fan_out = x_LIO.shape
    return np.square(np.float64(x_LIO)).reshape(L, -1, group_size or fan_in, fan_out).sum(2)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_noise_has_the_asked_share_of_every_column(sigma):
    b = bench(Case.of("gaussian_noise"), "mha-swiglu")
    for name, noisy in b.at(sigma)[0].params["blocks"].items():
        w = np.asarray(b.params["blocks"][name])
        np.testing.assert_allclose(column_energy(noisy - w, 0), sigma**2 * column_energy(w, 0), rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 2, 1.585])
def test_noise_has_the_energy_of_the_rounding_error(bits):
    b = bench(Case.of("gaussian_noise", match="rtn", group_size=8), "mha-swiglu")
    for name, noisy in b.at(severity_of(bits, "bits"))[0].params["blocks"].items():
        w = np.asarray(b.params["blocks"][name])
        error = np.stack([rounded(w_IO, bits, True, 8) for w_IO in w]) - w
        np.testing.assert_allclose(column_energy(noisy - w, 8), column_energy(error, 8), rtol=1e-4)
        assert np.corrcoef((noisy - w).ravel(), error.ravel())[0, 1] < 0.3


def test_noise_is_gaussian():
    b = bench(Case.of("gaussian_noise"), "mha-swiglu")
    w = np.asarray(b.params["blocks"]["up"])
    z = (b.at(0.5)[0].params["blocks"]["up"] - w) / np.sqrt(column_energy(w, 0) / w.shape[1])[:, 0:1] / 0.5
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    np.testing.assert_allclose(z.var(), 1, atol=0.01)
    np.testing.assert_allclose((z**4).mean(), 3, atol=0.6)


def test_per_tensor_ranges_come_from_calibration():
    b = bench(Case.of("activations", granularity="tensor"), "mha-swiglu")
    edit = b.at(severity_of(4, "bits"))[0]
    inner = model.apply(b.params, tokens(b.shape)[:, :-1], b.shape).inner
    assert set(edit.activation_absmax) == set(SITES)
    for site, absmax_L in edit.activation_absmax.items():
        np.testing.assert_allclose(absmax_L, np.abs(inner[site]).max((1, 2, 3)), rtol=1e-5)
        np.testing.assert_array_equal(edit.activation_bits[site], 4)
