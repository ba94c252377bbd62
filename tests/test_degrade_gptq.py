"""GPTQ: vectors of the published code, a slow float64 solver, and what makes it GPTQ."""

import functools

import hessian_reference as slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK
from sequential_cases import GOLDEN, compare_toy, correlated, everything

from wane.scaling.degrade.contract import severity_of
from wane.scaling.degrade.gptq import gptq
from wane.scaling.degrade.gptq_matrix import quantize
from wane.scaling.degrade.sequential import gram
from wane.scaling.quantize import Scheme, find_grid, round_to

VECTORS = np.load(GOLDEN / "gptq.npz")
CASES = (
    "b4_pc_asym", "b4_pc_sym", "b3_g_asym", "b3_g_asym_bs32", "b3_g_sym", "b2_pc_asym", "b2_pc_asym_mse",
    "b2_g_asym", "b4_pc_asym_act", "b3_g_asym_act", "b3_g_asym_act_static",
)  # fmt: skip
SETTINGS = {"group_size": 0, "act_order": False, "static_groups": False, "blocksize": 128, "percdamp": 0.01}


@functools.cache
def solver(symmetric=False, mse=False, **settings):
    scheme = Scheme(convention="gptq", symmetric=symmetric, mse=mse)
    return jax.jit(functools.partial(quantize, scheme=scheme, **(SETTINGS | settings)), **QUICK)


def quantized(w_IO, x_NTI, bits, inside=None, **settings):
    """(weights, codes, scale, zero) of one matrix alone."""
    hessian_II = gram(jnp.asarray(x_NTI).reshape(-1, len(w_IO))) * (2 / len(x_NTI))
    inside = everything(w_IO) if inside is None else inside
    new, grids = solver(**settings)({"q": w_IO}, {"q": inside}, hessian_II, jnp.float32(bits))
    scale, zero = (np.broadcast_to(leaf, w_IO.shape) for leaf in grids["q"][:2])
    w = np.asarray(new["q"])
    with np.errstate(divide="ignore", invalid="ignore"):
        return w, np.rint(w / scale + zero), scale, zero


@pytest.mark.parametrize("case", CASES)
def test_published_code(case):
    words = case.split("_")
    settings = {"blocksize": 32} if "bs32" in words else {}
    settings |= {"symmetric": True} if "sym" in words else {}
    settings |= {"mse": True} if "mse" in words else {}
    settings |= {"group_size": int(VECTORS["groupsize"])} if "g" in words else {}
    settings |= {"act_order": True} if "act" in words else {}
    settings |= {"static_groups": True} if "static" in words else {}
    w, codes, scale, zero = quantized(VECTORS["W"].T, VECTORS["X"], int(case[1]), **settings)
    np.testing.assert_array_equal(codes.T, VECTORS[f"code_{case}"])
    permuted = "act" in words and "static" not in words
    order = VECTORS["perm"] if permuted else np.arange(len(w))
    for ours, theirs in ((scale, "scale"), (zero, "zero")):
        groups = VECTORS[f"{theirs}_{case}"]
        spread = np.repeat(groups, len(w) // groups.shape[1], axis=1)
        np.testing.assert_allclose(ours.T[:, order], spread, rtol=1e-6)
    if f"Q_{case}" in VECTORS:
        np.testing.assert_allclose(w.T, VECTORS[f"Q_{case}"], rtol=1e-6)


@pytest.mark.parametrize("dead", [(), (0, 11, 12, 13)])
@pytest.mark.parametrize(
    "settings",
    [
        {"blocksize": 16},
        {"blocksize": 16, "symmetric": True, "group_size": 4},
        {"blocksize": 12, "group_size": 22},
        {"blocksize": 64, "group_size": 11, "act_order": True},
        {"blocksize": 10, "group_size": 4, "act_order": True, "static_groups": True},
    ],
    ids=str,
)
def test_slow_solver(settings, dead):
    """Groups inside, across and larger than blocks; blocks that do not divide the inputs."""
    w_IO, x_NTI = correlated(44, 6, seed=1, dead=dead)
    for bits in (2, 3, 5, 8):
        w, codes, *_ = quantized(w_IO, x_NTI, bits, **settings)
        want_codes, want = slow.gptq(w_IO, slow.second_moment(x_NTI), bits, **settings)
        np.testing.assert_array_equal(codes, want_codes)
        np.testing.assert_allclose(w, want, atol=1e-4)


def test_weights_outside_keep_their_bits_and_take_no_part():
    """Inputs 0 to 27 of 44, outputs 2 to 5: as if there were no other inputs, but for the damping."""
    w_IO, x_NTI = correlated(44, 6, seed=3)
    inside = np.zeros_like(w_IO, bool)
    inside[:28, 2:] = True
    w, *_ = quantized(w_IO, x_NTI, 3, inside, blocksize=16)
    np.testing.assert_array_equal(w[~inside], w_IO[~inside])
    hessian_II = slow.second_moment(x_NTI)
    damp = 0.01 * np.diag(hessian_II).mean()
    _, want = slow.gptq(w_IO[:28, 2:], hessian_II[:28, :28], 3, blocksize=16, damp=damp)
    np.testing.assert_allclose(w[:28, 2:], want, atol=1e-5)


def test_16_bits_change_no_bit_even_of_dead_inputs():
    w_IO, x_NTI = correlated(44, 6, seed=4, dead=(2,))
    np.testing.assert_array_equal(quantized(w_IO, x_NTI, 16, blocksize=16)[0], w_IO)


@pytest.mark.parametrize("bits", [1, 1.585, 3])
def test_inputs_never_seen_give_plain_rounding(bits):
    """An expert that no calibration token reached."""
    w_IO, x_NTI = correlated(44, 6, seed=5)
    scheme = Scheme(convention="gptq", symmetric=False, mse=False)
    want = round_to(w_IO, find_grid(w_IO, jnp.float32(bits), scheme, axis=0))
    np.testing.assert_allclose(quantized(w_IO, 0 * x_NTI, bits, blocksize=16)[0], want, atol=1e-7)


def test_more_weight_error_and_less_output_error_than_rounding():
    w_IO, x_NTI = correlated(44, 6, seed=6)
    rounded, got = (quantized(w_IO, x, 3, blocksize=16)[0] for x in (0 * x_NTI, x_NTI))
    assert np.sum((got - w_IO) ** 2) > np.sum((rounded - w_IO) ** 2)
    assert np.sum((x_NTI @ (got - w_IO)) ** 2) < 0.75 * np.sum((x_NTI @ (rounded - w_IO)) ** 2)


@pytest.mark.parametrize(
    ("case", "bits", "settings"),
    [
        ("gptq_b4", 4, {}),
        ("gptq_b3_g8", 3, {"group_size": 8}),
        ("gptq_b4_trueseq", 4, {"true_sequential": True}),
    ],
)
def test_published_driver_on_the_toy_decoder(case, bits, settings):
    severity = severity_of(bits, "bits")
    compare_toy(lambda shape: gptq(shape, **settings), "toy_gptq.npz", case, severity)
