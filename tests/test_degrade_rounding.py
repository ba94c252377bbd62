"""Round-to-nearest of weights and activations, as methods."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, Case, bench, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where, bits_of, severity_of
from wane.scaling.degrade.rtn import round_matrix, rtn
from wane.scaling.edit import SITES, merge
from wane.scaling.quantize import Scheme
from wane.scaling.shape import Shape

RTN = np.load(Path(__file__).parent / "golden" / "rtn.npz")
SHAPE = SHAPES["mha-swiglu"]
EXPERTS = Shape(
    d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=8, vocab=32, context=8, n_experts=3, top_k=2
)


@pytest.mark.parametrize("group_size", [0, 16, 32])
def test_groups_run_along_the_inputs_as_in_gptq(group_size):
    tag = f"g{group_size}" if group_size else "pc"
    scheme = Scheme(convention="gptq", symmetric=False, mse=False)
    got = jax.jit(round_matrix, static_argnums=(2, 3))(RTN["W"].T, jnp.float32(3), scheme, group_size)
    np.testing.assert_allclose(got.T, RTN[f"Q_gptq_{tag}_b3_asym"], rtol=1e-6, atol=1e-9)


def nearest(w: np.ndarray, bits: float, symmetric: bool) -> np.ndarray:
    """The weights that share a scale, rounded to nearest."""
    top = np.float32(2 ** (bits - 1))
    if bits == 1.585:
        scale = np.abs(w).mean(dtype=np.float32)
        return np.clip(np.rint(w / scale), -1, 1) * scale
    if bits == 1:
        return np.where(w >= 0, 1, -1) * np.abs(w).mean(dtype=np.float32)
    if symmetric:
        scale = np.abs(w).max() / (top - np.float32(0.5))
        return np.clip(np.rint(w / scale), -top, top - 1) * scale
    low, high = np.float32(min(w.min(), 0)), np.float32(max(w.max(), 0))
    scale = (high - low) / (2 * top - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(w / scale) + zero, 0, 2 * top - 1) - zero) * scale


def rounded(
    w_IO: np.ndarray, bits: float, symmetric: bool, group_size: int, per_tensor: bool = False
) -> np.ndarray:
    """Round to nearest, group by group."""
    if per_tensor:
        return nearest(w_IO, bits, symmetric)
    out, g = np.empty_like(w_IO), group_size or len(w_IO)
    for o in range(w_IO.shape[1]):
        for i in range(0, len(w_IO), g):
            out[i : i + g, o] = nearest(w_IO[i : i + g, o], bits, symmetric)
    return out


CASES = [
    Case.of("rtn"),
    Case.of("rtn", symmetric=False, group_size=8),
    Case.of("rtn", symmetric=False, per_tensor=True),
]


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1.585, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_are_rounded_to_nearest(case, bits):
    b = bench(case, "mha-swiglu")
    edit = b.at(severity_of(bits, "bits"))[0]
    settings = {"symmetric": True, "group_size": 0} | dict(case.settings)
    for name, w_LIO in edit.params["blocks"].items():
        for w_IO, got in zip(np.asarray(b.params["blocks"][name]), w_LIO, strict=True):
            np.testing.assert_allclose(got, rounded(w_IO, bits, **settings), rtol=2e-6, atol=1e-8)
        np.testing.assert_allclose(edit.weight_bits[name], bits)


@pytest.mark.parametrize(("case", "per_scale"), list(zip(CASES, (0, 8, -1), strict=True)), ids=str)
def test_storage_is_codes_scales_and_zero_points(case, per_scale):
    cost = bench(case, "mha-swiglu").at(severity_of(3, "bits"))[2]
    bits = weights = 0
    for I, O in SHAPE.matrices.values():
        scales = {0: O, 8: I // 8 * O, -1: 1}[per_scale]
        zero = 0 if per_scale == 0 else 3
        bits, weights = bits + 3 * I * O + scales * (16 + zero), weights + I * O
    np.testing.assert_allclose(cost.bits_per_weight, bits / weights, rtol=1e-6)


@functools.lru_cache
def on_experts(group_size: int):
    """(params, edit at 3 bits in layer 1 only) of a mixture of experts."""
    params = trained(EXPERTS)
    method = rtn(EXPERTS, group_size=group_size)
    apply = jax.jit(lambda p, s, w: method.apply(p, (), s, w, jax.random.key(0)))
    return params, apply(params, jnp.float32(severity_of(3, "bits")), Where.only(EXPERTS, 1)), method


@pytest.mark.parametrize("group_size", [0, 4])
def test_every_expert_has_its_own_scales(group_size):
    params, edit, _ = on_experts(group_size)
    for name in ("gate", "down", "o"):
        w, got = np.asarray(params["blocks"][name]), np.asarray(edit.params["blocks"][name])
        np.testing.assert_array_equal(got[0], w[0])
        for w_IO, got_IO in zip(
            w[1].reshape(-1, *w.shape[-2:]), got[1].reshape(-1, *w.shape[-2:]), strict=True
        ):
            np.testing.assert_allclose(got_IO, rounded(w_IO, 3, True, group_size), rtol=2e-6, atol=1e-8)


def test_hold_rounds_other_parameters_to_the_same_lattice():
    params, edit, method = on_experts(4)
    hold = jax.jit(method.hold)
    once = merge(params, edit)
    np.testing.assert_array_equal(hold(once, edit)["blocks"]["gate"], once["blocks"]["gate"])
    moved = trained(EXPERTS, seed=5)
    held = np.asarray(hold(moved, edit)["blocks"]["down"])
    grid = edit.weight_grid["down"]
    w = np.asarray(moved["blocks"]["down"])
    expected = np.clip(np.rint(w / grid.scale) + grid.zero, 0, 7) - grid.zero
    np.testing.assert_allclose(held[1], (expected * grid.scale)[1], rtol=1e-6)
    np.testing.assert_array_equal(held[0], w[0])


def test_gradients_go_straight_through():
    params, _, method = on_experts(4)
    weight = jax.random.normal(jax.random.key(3), params["blocks"]["up"].shape)

    def f(params):
        where = Where.everywhere(EXPERTS)
        edit = method.apply(params, (), jnp.float32(severity_of(3, "bits")), where, jax.random.key(0))
        return jnp.sum(edit.params["blocks"]["up"] * weight)

    np.testing.assert_array_equal(jax.jit(jax.grad(f))(params)["blocks"]["up"], weight)


@pytest.mark.parametrize("bits", [16, 15, 8, 5, 4, 3, 2, 1.585, 1])
def test_bits_survive_the_severity(bits):
    assert float(bits_of(jnp.float32(severity_of(bits, "bits")))) == np.float32(bits)


@pytest.mark.parametrize("setting", [0, 2.5, 17, 1.6, -3])
def test_bits_that_no_quantiser_has_are_refused(setting):
    with pytest.raises(ValueError, match="whole number from 1 to 15"):
        severity_of(setting, "bits")


@pytest.mark.parametrize(("setting", "unit"), [(1.5, "fraction"), (-0.1, "fraction"), (-1.0, "sigma")])
def test_severities_outside_their_unit_are_refused(setting, unit):
    with pytest.raises(ValueError, match=f"severity = {setting} {unit}"):
        severity_of(setting, unit)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_tensor": True, "group_size": 8}, "per_tensor = True"),
        ({"group_size": 7}, "group_size = 7: must divide the 16 inputs"),
        ({"group_size": -1}, "group_size = -1"),
        ({"mse": True, "convention": "qwix"}, "mse = True"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rtn(SHAPE, **settings)


def test_one_head_is_rounded_by_its_own_range():
    """Rows of `o` outside the head are neither rounded nor part of the range."""
    b, method = bench(Case.of("rtn"), "mha-swiglu"), Case.of("rtn").build(SHAPE, Scope(head=1))
    severity = jnp.float32(severity_of(3, "bits"))
    edit = jax.jit(lambda p: method.apply(p, (), severity, b.everywhere, jax.random.key(0)))(b.params)
    head, w_IO = slice(4, 8), np.asarray(b.params["blocks"]["o"][0])
    got = np.asarray(edit.params["blocks"]["o"][0])
    np.testing.assert_allclose(got[head], rounded(w_IO[head], 3, True, 0), rtol=2e-6)
    np.testing.assert_array_equal(got[8:], w_IO[8:])


def test_per_tensor_ranges_come_from_calibration():
    b = bench(Case.of("activations", granularity="tensor"), "mha-swiglu")
    edit = b.at(severity_of(4, "bits"))[0]
    inner = model.apply(b.params, tokens(b.shape)[:, :-1], b.shape).inner
    assert set(edit.activation_absmax) == set(SITES)
    for site, absmax_L in edit.activation_absmax.items():
        np.testing.assert_allclose(absmax_L, np.abs(inner[site]).max((1, 2, 3)), rtol=1e-5)
        np.testing.assert_array_equal(edit.activation_bits[site], 4)
