"""Number formats of weights: NormalFloat against qwix, floating point against ml_dtypes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, trained
from scipy.stats import norm

from wane.scaling.degrade.contract import Where, severity_of
from wane.scaling.degrade.minifloat import find_scale, largest, minifloat, round_float
from wane.scaling.degrade.normal_float import (
    CELLS,
    NF4,
    absmax_grid,
    levels_of,
    normal_float,
    normal_levels,
    round_normal,
)
from wane.scaling.degrade.rounding import by_groups
from wane.scaling.edit import merge
from wane.scaling.quantize import Grid

QWIX = np.load(Path(__file__).parent / "golden" / "rtn_qwix.npz")
SHAPE = SHAPES["mha-swiglu"]


@pytest.mark.parametrize(("tag", "size"), [("pc", 0), ("g16", 16)])
def test_nf4_is_qwix_bit_for_bit(tag, size):
    w_IO = QWIX["W"].T
    grid = by_groups(absmax_grid, size)(w_IO, jnp.float32(4), jnp.ones((1, 1), bool))
    np.testing.assert_array_equal(grid.scale[:: size or 1], QWIX[f"scale_nf4_absmax_{tag}"].T)
    got = jax.jit(round_normal)(w_IO, grid._replace(bits=jnp.float32(4)))
    np.testing.assert_array_equal(got, QWIX[f"Q_nf4_absmax_{tag}"].T)


def test_the_construction_gives_the_printed_levels():
    np.testing.assert_allclose(normal_levels(4), NF4, atol=3e-7)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_levels_are_quantiles_that_contain_0_and_both_ends(bits):
    levels = normal_levels(bits)
    assert len(levels) == 2**bits
    assert (np.diff(levels) > 0).all()
    assert {-1.0, 0.0, 1.0} <= set(levels.tolist())
    above = levels[levels > 0].astype(np.float64)
    p = norm.cdf(above * norm.ppf(1 - (2.0 ** -(bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2))
    np.testing.assert_allclose(np.diff(p), np.diff(p)[0], rtol=1e-4)  # equally likely


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_normal_float_takes_the_nearest_level_and_the_lower_one_of_two(bits):
    levels = levels_of(bits)
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    x = np.concatenate([np.random.default_rng(0).uniform(-1.2, 1.2, 500).astype(np.float32), levels, middles])
    grid = absmax_grid(jnp.ones((1, 1, 1)), jnp.float32(bits), jnp.ones((1, 1, 1), bool))
    grid = grid._replace(scale=jnp.ones((1, 1)), bits=jnp.float32(bits))
    got = np.asarray(jax.jit(round_normal)(x[:, None], grid))[:, 0]
    distance = np.abs(x[:500, None].astype(np.float64) - levels)
    np.testing.assert_array_equal(got[:500], levels[distance.argmin(1)])
    np.testing.assert_array_equal(got[500:], np.concatenate([levels, levels[:-1]]))


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_float_is_exact_next_to_borders_and_ends_of_its_cells(bits):
    levels = levels_of(bits)
    borders = (levels[1:] + levels[:-1]) / 2
    at = np.concatenate([borders, np.arange(CELLS + 1, dtype=np.float32) * 2 / CELLS - 1])
    x = np.concatenate([at, *(np.nextafter(at, np.float32(to)) for to in (-2, 2))])
    grid = Grid(jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.float32(bits))
    got = np.asarray(jax.jit(round_normal)(x[:, None], grid))[:, 0]
    np.testing.assert_array_equal(got, levels[np.searchsorted(borders, x)])


RNG = np.random.default_rng(1)
X = np.concatenate([RNG.normal(size=8000) * 10.0 ** RNG.uniform(-6, 5, 8000), [0.0]]).astype(np.float32)
FORMATS = [
    (4, 8, ml_dtypes.float8_e4m3fn, 448),
    (5, 8, ml_dtypes.float8_e5m2, 57344),
    (3, 6, ml_dtypes.float6_e3m2fn, 28),
    (2, 6, ml_dtypes.float6_e2m3fn, 7.5),
    (2, 4, ml_dtypes.float4_e2m1fn, 6),
]


@functools.partial(jax.jit, static_argnums=2)
def cast(x, bits, exponent_bits):
    return round_float(x, bits, exponent_bits), largest(bits, exponent_bits)[0]


@pytest.mark.parametrize(("exponent_bits", "bits", "dtype", "top"), FORMATS)
def test_floats_are_the_casts_of_ml_dtypes(exponent_bits, bits, dtype, top):
    middles = np.arange(-40, 40, dtype=np.float32) / 16  # ties and subnormals
    x = np.concatenate([X, middles, middles * 2.0**-6, middles * 2.0**-14]).astype(np.float32)
    got, limit = cast(x, np.float32(bits), exponent_bits)
    assert limit == top == float(ml_dtypes.finfo(dtype).max)
    np.testing.assert_array_equal(got, np.clip(x, -top, top).astype(dtype).astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("exponent_bits", [2, 5])
def test_other_widths_have_as_many_numbers_as_codes(exponent_bits, bits):
    exponent = min(exponent_bits, bits - 1)
    mantissa, bias = bits - 1 - exponent, 2 ** (exponent - 1) - 1
    special = 2**mantissa if exponent_bits == 5 and bits >= 8 else 0  # infinity and NaN
    numbers = [
        (1 + m / 2**mantissa) * 2.0 ** (e - bias) if e else m / 2**mantissa * 2.0 ** (1 - bias)
        for e in range(2**exponent)
        for m in range(2**mantissa)
    ]
    numbers = np.array(numbers[: len(numbers) - special])
    got, limit = cast(X, np.float32(bits), exponent_bits)
    assert limit == numbers.max()
    nearest = np.abs(np.abs(X[:2000, None].astype(np.float64)) - numbers).min(1)
    np.testing.assert_allclose(np.abs(X - got)[:2000], nearest, rtol=1e-5, atol=1e-12)
    assert set(np.abs(got).tolist()) <= set(numbers.tolist())


def test_microscaling_shares_a_power_of_two():
    w_IO = np.random.default_rng(2).normal(size=(64, 3)).astype(np.float32)
    w_IO[32:, 0] = 0
    find = by_groups(functools.partial(find_scale, exponent_bits=2, scaling="mx"), 32)
    scale = np.asarray(jax.jit(find)(w_IO, jnp.float32(4), jnp.ones((1, 1), bool)).scale)
    for g in range(2):
        for o in range(3):
            absmax = np.abs(w_IO[32 * g : 32 * g + 32, o]).max()
            expected = 2.0 ** (np.floor(np.log2(absmax)) - 2) if absmax else 1  # e2m1: largest 1.5 x 2^2
            np.testing.assert_array_equal(scale[32 * g : 32 * g + 32, o], expected)


METHODS = {
    "normal_float": normal_float(SHAPE, group_size=8),
    "fp8": minifloat(SHAPE),
    "fp8-tensor": minifloat(SHAPE, exponent_bits=5, per_tensor=True),
    "mxfp4": minifloat(SHAPE, exponent_bits=2, scaling="mx", group_size=8),
}
STORED = {"normal_float": 4 + 16 / 8, "fp8": None, "fp8-tensor": None, "mxfp4": 4 + 8 / 8}


@functools.lru_cache
def program(name: str):
    method, where = METHODS[name], Where.everywhere(SHAPE)

    @functools.partial(jax.jit, **QUICK)
    def run(params, severity):
        edit = method.apply(params, (), severity, where, jax.random.key(0))
        return edit, method.cost(params, edit, severity), method.hold(merge(params, edit), edit)

    return run


@pytest.mark.parametrize("name", METHODS)
def test_a_second_rounding_changes_nothing_and_one_executable_serves_all_widths(name):
    params = trained(SHAPE)
    for bits in (2, 4, 8):
        edit, cost, held = program(name)(params, jnp.float32(severity_of(bits, "bits")))
        for matrix, w in edit.params["blocks"].items():
            np.testing.assert_array_equal(held["blocks"][matrix], w)
            assert (np.asarray(w) != params["blocks"][matrix]).any()
        if bits == 4 and STORED[name]:
            np.testing.assert_allclose(cost.bits_per_weight, STORED[name], rtol=1e-6)
    assert program(name)._cache_size() == 1


def test_fp8_of_a_model_is_the_scaled_cast():
    params = trained(SHAPE)
    edit, _, _ = program("fp8")(params, jnp.float32(severity_of(8, "bits")))
    w_IO = np.asarray(params["blocks"]["down"][1])
    scale = np.abs(w_IO).max(0) / np.float32(448)
    expected = (w_IO / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_allclose(edit.params["blocks"]["down"][1], expected, rtol=1e-6)
    edit, _, _ = program("fp8-tensor")(params, jnp.float32(severity_of(8, "bits")))
    scale = np.abs(w_IO).max() / np.float32(57344)
    expected = (w_IO / scale).astype(ml_dtypes.float8_e5m2).astype(np.float32) * scale
    np.testing.assert_allclose(edit.params["blocks"]["down"][1], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["normal_float", "fp8"])
def test_widths_that_a_format_lacks_are_charged_as_what_they_become(name):
    params = trained(SHAPE)
    edit, _, _ = program(name)(params, jnp.float32(severity_of(1, "bits")))
    np.testing.assert_array_equal(edit.weight_bits["q"], 2)
    edit, _, _ = program(name)(params, jnp.float32(severity_of(12, "bits")))
    np.testing.assert_array_equal(edit.weight_bits["q"], 8 if name == "normal_float" else 12)


def test_contradicting_settings_are_refused():
    with pytest.raises(ValueError, match="group_size = 32: must divide the 16 inputs"):
        minifloat(SHAPE, scaling="mx")
    with pytest.raises(ValueError, match="per_tensor = True"):
        normal_float(SHAPE, group_size=8, per_tensor=True)
