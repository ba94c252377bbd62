"""The solver that SparseGPT and GPTQ share, what holds for both as methods, and their settings."""

import dataclasses
import functools

import hessian_reference as slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained
from sequential_cases import GOLDEN, correlated

from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.degrade.gptq import gptq
from wane.scaling.degrade.hessian import inverse_factor, pose
from wane.scaling.degrade.sparsegpt import sparsegpt
from wane.scaling.degrade.wanda import wanda
from wane.scaling.edit import merge

SHAPE = SHAPES["mha-swiglu"]
EXPERTS = dataclasses.replace(SHAPE, n_experts=4, top_k=2, n_layers=2)
METHODS = {
    "joint": (SHAPE, sparsegpt(SHAPE, quantize_bits=4)),
    "groups in another order": (SHAPE, gptq(SHAPE, group_size=8, act_order=True)),
    "experts": (EXPERTS, sparsegpt(EXPERTS, group="n:4")),
    "experts of gptq": (EXPERTS, gptq(EXPERTS)),
    "experts of wanda": (EXPERTS, wanda(EXPERTS)),
}
posed = jax.jit(functools.partial(pose, percdamp=0.01, blocksize=128, act_order=False), **QUICK)
factor = jax.jit(inverse_factor, **QUICK)


@pytest.mark.parametrize("file", ["sparsegpt.npz", "gptq.npz"])
def test_published_factor(file):
    vectors = np.load(GOLDEN / file)
    w_IO = vectors["W"].T
    problem = posed({"q": w_IO}, {"q": np.ones_like(w_IO, bool)}, vectors["H"])
    np.testing.assert_allclose(problem.factor_II, vectors["Hinv_chol_upper"], atol=1e-6)
    assert (np.asarray(problem.w_IO)[vectors["dead_columns"]] == 0).all()


def test_factor_of_an_ill_conditioned_hessian():
    """Fewer tokens than inputs: without the damping there is no inverse."""
    _, x_NTI = correlated(60, 1, seed=0)
    hessian_II = slow.second_moment(x_NTI[:1, :20])
    damp = 0.01 * np.diag(hessian_II).mean()
    got = factor(jnp.float32(hessian_II + damp * np.eye(60)))
    want = slow.factor(hessian_II, damp)
    np.testing.assert_allclose(got, want, atol=1e-4 * want.max())
    assert (np.tril(got, -1) == 0).all()


def test_dead_inputs_count_as_1_in_the_damping():
    """Which decides where inputs are small."""
    w_IO, x_NTI = correlated(20, 3, seed=1, dead=range(9))
    hessian_II = slow.second_moment(x_NTI / 50)
    problem = posed({"q": w_IO}, {"q": np.ones_like(w_IO, bool)}, jnp.float32(hessian_II))
    _, revived, damp = slow.prepared(w_IO, hessian_II, 0.01)
    np.testing.assert_allclose(problem.factor_II, slow.factor(revived, damp), atol=1e-4)


@functools.cache
def outcome(name):
    """(trained matrices, edit, degraded, held, cost) at half the weights or 4 bits."""
    shape, method = METHODS[name]
    everywhere, key, calibration_NT = Where.everywhere(shape), jax.random.key(0), tokens(shape)

    @functools.partial(jax.jit, **QUICK)
    def run(params, severity):
        fitted = method.fit(params, calibration_NT, key)
        edit = method.apply(params, fitted, severity, everywhere, key)
        degraded = merge(params, edit)
        return edit, degraded, method.hold(degraded, edit), method.cost(params, edit, severity)

    severity = 0.5 if method.unit == "fraction" else severity_of(4, "bits")
    return run(trained(shape), jnp.float32(severity))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_left_stays_close_and_is_held(name):
    """Rounding again finds the same codes, zeros stay zeros."""
    edit, degraded, held, cost = outcome(name)
    assert edit.weight_grid is None or set(edit.weight_grid) == set(METHODS[name][0].matrices)
    for matrix in METHODS[name][0].matrices:
        np.testing.assert_array_equal(held["blocks"][matrix], degraded["blocks"][matrix])
    assert 0 < cost.relative_weight_error < 0.5
    assert cost.bits_per_weight < 11


@pytest.mark.parametrize("name", ["experts", "experts of wanda"])
def test_every_expert_is_pruned_by_the_tokens_that_it_serves(name):
    """Half of each of 4 inputs, of each output, or of each expert."""
    degraded = outcome(name)[1]["blocks"]
    for matrix in ("gate", "up", "down"):
        w_LEIO = np.asarray(degraded[matrix])
        np.testing.assert_array_equal((w_LEIO == 0).mean(axis=2), 0.5)


def test_joint_sparsity_and_rounding_stores_a_bitmap_codes_and_scales():
    edit, _, _, cost = outcome("joint")
    scales = sum(outputs for _, outputs in SHAPE.matrices.values()) * SHAPE.n_layers * (16 + 4)
    per_weight = 1 + 4 * (1 - cost.removed_fraction) + scales / SHAPE.param_counts()["blocks"]
    np.testing.assert_allclose(cost.bits_per_weight, per_weight, rtol=1e-6)
    for name, grid in edit.weight_grid.items():
        codes = edit.params["blocks"][name] / grid.scale + grid.zero
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert codes.min() > -0.1
        assert codes.max() < 15.1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sparsegpt(SHAPE, blocksize=0), "blocksize = 0: must be at least 1"),
        (lambda: gptq(SHAPE, percdamp=0.0), "percdamp = 0.0: must be positive"),
        (lambda: sparsegpt(SHAPE, group="n:8", blocksize=12), "blocksize = 12: must be a multiple of 8"),
        (
            lambda: sparsegpt(SHAPE, group="n:4", reference_count=True),
            "reference_count = True: acts on group",
        ),
        (lambda: sparsegpt(SHAPE, quantize_bits=1), "quantize_bits = 1: must be 0"),
        (lambda: gptq(SHAPE, group_size=5), "group_size = 5: must divide the 16 inputs of matrix q"),
        (lambda: gptq(SHAPE, static_groups=True), "static_groups = True: acts with a group_size"),
        (lambda: wanda(SHAPE, group="n:8", use_variant=True), 'use_variant = True: acts on group = "row"'),
        (
            lambda: wanda(dataclasses.replace(SHAPE, d_ff=18), group="n:4"),
            'group = "n:4": 4 must divide the 18',
        ),
        (lambda: gptq(SHAPE, Scope(layers=(0, 9))), "scope.layers"),
    ],
)
def test_settings_that_contradict_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
