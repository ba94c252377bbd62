"""Rounding against the numbers of GPTQ, AWQ and qwix, and against plain numpy."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wane.scaling.quantize import (
    TERNARY_BITS,
    Scheme,
    dequantize,
    divide,
    fake_quantize_activation,
    find_grid,
    is_binary,
    is_ternary,
    levels,
    quantize,
    round_to,
    straight_through,
)

GOLDEN = Path(__file__).parent / "golden"
RTN, QWIX = np.load(GOLDEN / "rtn.npz"), np.load(GOLDEN / "rtn_qwix.npz")
SCALES = {"rtol": 1e-6, "atol": 1e-12}


@functools.partial(jax.jit, static_argnames="scheme")
def rounded(w_OGC, bits, scheme: Scheme):
    """(grid, codes, values) with one scale for each last axis."""
    grid = find_grid(w_OGC, bits, scheme, axis=2)
    code = quantize(w_OGC, grid, zero_first=scheme.zero_first)
    return grid, code, dequantize(code, grid)


def run(w_OC: np.ndarray, groups: int, bits: float, **scheme):
    """(scale [O, G], zero [O, G], codes [O, C], values [O, C])."""
    scheme = {"convention": "gptq", "mse": False} | scheme
    w_OGC = w_OC.reshape(len(w_OC), groups, -1)
    grid, code, value = rounded(w_OGC, np.float32(bits), Scheme(**scheme))
    grid = [np.broadcast_to(a, (*w_OGC.shape[:2], 1))[:, :, 0] for a in grid]
    return grid[0], grid[1], np.asarray(code).reshape(w_OC.shape), np.asarray(value).reshape(w_OC.shape)


GPTQ = [key[len("scale_gptq_") :] for key in RTN.files if key.startswith("scale_gptq_")]


def test_the_golden_file_has_every_case():
    assert len(GPTQ) == 28  # per channel 4 widths x sym x mse, groups 2 x 3 widths x sym


@pytest.mark.parametrize("case", GPTQ)
def test_gptq(case):
    tag, bits, kind, *mse = case.split("_")
    expected = {part: RTN.get(f"{part}_gptq_{case}") for part in ("scale", "zero", "Q", "code", "tie")}
    groups = expected["scale"].size // len(RTN["W"])
    scale, zero, code, value = run(
        RTN["W"], groups, int(bits[1:]), convention="gptq_code", symmetric=kind == "sym", mse=bool(mse)
    )
    np.testing.assert_allclose(scale, expected["scale"].reshape(scale.shape), **SCALES)
    np.testing.assert_array_equal(zero, expected["zero"].reshape(zero.shape))
    compared = ~expected["tie"] if expected["tie"] is not None else np.ones(code.shape, bool)
    assert compared.mean() > 0.9
    if expected["Q"] is not None:
        np.testing.assert_allclose(value[compared], expected["Q"][compared], rtol=1e-6, atol=1e-9)
    if expected["code"] is not None:
        np.testing.assert_array_equal(code[compared], expected["code"][compared])


@pytest.mark.parametrize("groups", [1, 4])
def test_the_slip_of_the_code_is_in_groups_without_a_negative_value_only(groups):
    w = RTN["W"]
    paper = run(w, groups, 4, symmetric=True)[3].reshape(len(w), groups, -1)
    code = run(w, groups, 4, symmetric=True, convention="gptq_code")[3].reshape(len(w), groups, -1)
    one_sided = (w.reshape(paper.shape) >= 0).all(2) & (w.reshape(paper.shape) > 0).any(2)
    np.testing.assert_array_equal((paper != code).any(2), one_sided)
    assert one_sided.any()
    error = np.abs(paper - w.reshape(paper.shape)).max(2) / w.reshape(paper.shape).max(2, initial=1e-9)
    assert error[one_sided].max() < 0.07  # half of a step, 1 / 15 of the largest value


AWQ = [f"g{g}_b{b}" for g in (16, 32) for b in (2, 3, 4)]


@pytest.mark.parametrize("case", AWQ)
def test_awq(case):
    size, bits = (int(part[1:]) for part in case.split("_"))
    w = RTN["W"]
    scale, zero, _, value = run(w, w.shape[1] // size, bits, convention="awq", symmetric=False)
    np.testing.assert_allclose(scale, RTN[f"scale_awq_{case}_asym"].reshape(scale.shape), **SCALES)
    np.testing.assert_array_equal(zero, RTN[f"zero_awq_{case}_asym"].reshape(zero.shape))
    np.testing.assert_allclose(value, RTN[f"Q_awq_{case}_asym"], rtol=1e-6, atol=1e-9)
    value = run(w, w.shape[1] // size, bits, convention="awq", symmetric=True)[3]
    np.testing.assert_allclose(value, RTN[f"Q_awqfix_{case}_sym"], rtol=1e-6, atol=1e-9)


QWIX_CASES = [key[len("scale_int") :] for key in QWIX.files if key.startswith("scale_int")]


@pytest.mark.parametrize("case", QWIX_CASES)
def test_qwix(case):
    bits, method, tag = case.split("_")
    expected = {part: QWIX.get(f"{part}_int{case}") for part in ("scale", "zero", "code", "tie", "Q")}
    groups, half = expected["scale"].size // len(QWIX["W"]), 2 ** (int(bits) - 1)
    scale, zero, code, value = run(
        QWIX["W"], groups, int(bits), convention="qwix", symmetric=method == "absmax"
    )
    np.testing.assert_allclose(scale, expected["scale"].reshape(scale.shape), **SCALES)
    if expected["zero"] is not None:
        np.testing.assert_array_equal(zero - half, expected["zero"].reshape(zero.shape))
    compared = ~expected["tie"]
    assert compared.mean() > 0.9
    np.testing.assert_array_equal((code - half)[compared], expected["code"][compared])
    if expected["Q"] is not None:
        np.testing.assert_allclose(value[compared], expected["Q"][compared], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("convention", "expected"), [("qwix", 1.0), ("gptq", 0.0)])
def test_qwix_adds_the_zero_point_before_it_rounds(convention, expected):
    w = np.array([[-5, 10, 0.5]], np.float32)  # scale 1, zero point -3: .5 - 3 rounds to the even -2
    assert run(w, 1, 4, convention=convention, symmetric=False)[3][0, 2] == expected


def test_division_is_ieee():
    """Ties stay ties: what XLA makes of x / s, x * (1 / s), is off by an ulp in a share of all quotients."""
    rng = np.random.default_rng(0)
    x, s = rng.normal(size=(64, 64)).astype(np.float32), rng.random((64, 1)).astype(np.float32) + 0.1
    np.testing.assert_array_equal(jax.jit(divide)(x, s), x / s)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
def test_levels_are_exact(bits):
    assert float(jax.jit(levels)(jnp.float32(bits))) == 2**bits - 1


W_OC = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)
W_OC[2] = 0
SCHEMES = [
    {"convention": "gptq", "symmetric": True},
    {"convention": "qwix", "symmetric": False},
    {"convention": "awq", "symmetric": True},
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_ternary_is_rounding_by_the_mean_absolute_value(scheme):
    absmean = np.abs(W_OC).mean(1, keepdims=True)
    safe = np.where(absmean > 0, absmean, 1)
    expected = np.clip(np.rint(W_OC / safe), -1, 1) * safe
    got = run(W_OC, 1, TERNARY_BITS, **scheme)[3]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert set(np.unique(np.rint(got / safe))) == {-1, 0, 1}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_binary_is_the_sign_times_the_mean_absolute_value(scheme):
    expected = np.where(W_OC >= 0, 1, -1) * np.abs(W_OC).mean(1, keepdims=True)
    np.testing.assert_allclose(run(W_OC, 1, 1, **scheme)[3], expected, rtol=1e-6)


def test_only_the_ternary_setting_is_ternary_and_only_one_bit_is_binary():
    assert bool(is_ternary(jnp.float32(TERNARY_BITS)))
    assert not any(bool(is_ternary(jnp.float32(b))) for b in (1, 2, 3, 8, 16))
    assert [bool(is_binary(jnp.float32(b))) for b in (1, TERNARY_BITS, 2, 16)] == [True, False, False, False]


@pytest.mark.parametrize("bits", [1, TERNARY_BITS, 2, 3, 8])
@pytest.mark.parametrize(("convention", "symmetric"), [("gptq", True), ("qwix", False), ("awq", False)])
def test_points_of_a_grid_stay_where_they_are(convention, symmetric, bits):
    scheme = Scheme(convention=convention, symmetric=symmetric, mse=False)

    @jax.jit
    def twice(w, bits):
        grid = find_grid(w, bits, scheme, axis=1)
        once = round_to(w, grid, zero_first=scheme.zero_first)
        return once, round_to(once, grid, zero_first=scheme.zero_first)

    np.testing.assert_array_equal(*twice(W_OC, np.float32(bits)))


@pytest.mark.parametrize("convention", ["gptq", "awq", "qwix"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_values_outside_have_no_part_in_the_range(convention, symmetric):
    scheme = Scheme(convention=convention, symmetric=symmetric, mse=False)
    inside = np.arange(24) < 16
    far = np.where(inside, W_OC, [100, -100] * 12).astype(np.float32)
    for bits in (1.585, 3.0):
        masked = find_grid(far, jnp.float32(bits), scheme, axis=1, inside=inside)
        alone = find_grid(W_OC[:, :16], jnp.float32(bits), scheme, axis=1)
        for a, b in zip(masked, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_only_gptq_searches_its_range():
    with pytest.raises(ValueError, match="mse = True"):
        Scheme(convention="awq", symmetric=True, mse=True)


def test_straight_through_takes_one_value_and_the_other_gradient():
    x = jnp.array([0.3, -1.7])
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(jnp.array([2.0, 3.0]) * straight_through(x, x * x))
    )(x)
    np.testing.assert_allclose(value, 2 * 0.09 + 3 * 2.89, rtol=1e-6)
    np.testing.assert_array_equal(gradient, [2.0, 3.0])


X_BSI = np.random.default_rng(2).normal(size=(2, 3, 16)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activation_per_token(bits):
    got = jax.jit(fake_quantize_activation, static_argnums=2)(X_BSI, jnp.float32(bits), None)
    for token, activation in zip(X_BSI.reshape(-1, 16), np.asarray(got).reshape(-1, 16), strict=True):
        absmax = np.abs(token.astype(np.float64)).max()
        scale = absmax / (2 ** (bits - 1) - 0.5)
        code = np.clip(np.rint(token / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        code[token == -absmax] = -(2 ** (bits - 1))  # half to even, whatever the last bit of the quotient
        np.testing.assert_allclose(activation, code * scale, rtol=1e-6)


def test_an_extreme_of_an_activation_does_not_depend_on_its_last_bit():
    tokens = -np.random.default_rng(3).uniform(0.5, 1, (4096, 1)).astype(np.float32)
    for bits in (2, 3, 4, 8):
        got = np.asarray(fake_quantize_activation(tokens, jnp.float32(bits)))
        np.testing.assert_allclose(got / tokens, 2 ** (bits - 1) / (2 ** (bits - 1) - 0.5), rtol=1e-6)


def test_activation_in_three_and_in_two_values():
    x = np.float32([[-2.0, -0.7, -0.6, 0.0, 0.6, 0.7, 1.9]])  # what is below half of 4/3 becomes 0
    three = np.asarray(fake_quantize_activation(x, jnp.float32(TERNARY_BITS)))
    np.testing.assert_allclose(three, np.float32([[-1, -1, 0, 0, 0, 1, 1]]) * 4 / 3, rtol=1e-6)
    two = np.asarray(fake_quantize_activation(x, jnp.float32(1)))
    np.testing.assert_allclose(two, np.float32([[-1, -1, -1, 0, 1, 1, 1]]), rtol=1e-6)


def test_activation_per_tensor_saturates_and_ignores_the_batch():
    absmax = jnp.float32(1.0)
    got = np.asarray(fake_quantize_activation(X_BSI, jnp.float32(4), absmax))
    np.testing.assert_allclose(got.min(), -8 / 7.5, rtol=1e-6)
    np.testing.assert_allclose(got.max(), 7 / 7.5, rtol=1e-6)
    np.testing.assert_array_equal(fake_quantize_activation(X_BSI[:1], jnp.float32(4), absmax), got[:1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activation_at_16_bits_keeps_its_bits_and_dtype(dtype):
    x = jnp.asarray(X_BSI, dtype)
    got = fake_quantize_activation(x, jnp.float32(16), None)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x)


def test_activation_gradient_is_straight_through():
    def f(x):
        return jnp.sum(fake_quantize_activation(x, jnp.float32(3), None) * X_BSI)

    np.testing.assert_array_equal(jax.grad(f)(jnp.asarray(X_BSI)), X_BSI)
