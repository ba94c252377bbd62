"""SparseGPT: vectors of the published code, a slow float64 solver, and what makes it SparseGPT."""

import functools

import hessian_reference as slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK
from sequential_cases import GOLDEN, compare_toy, correlated, everything

from wane.scaling.degrade.sequential import gram
from wane.scaling.degrade.sparsegpt import prune, sparsegpt

VECTORS = np.load(GOLDEN / "sparsegpt.npz")
SETTINGS = {"M": 0, "blocksize": 32, "percdamp": 0.01, "quantize_bits": 0, "reference_count": False}


@functools.cache
def solver(**settings):
    return jax.jit(functools.partial(prune, **(SETTINGS | settings)), **QUICK)


def pruned(w_IO, x_NTI, severity, inside=None, **settings):
    """One matrix alone."""
    hessian_II = gram(jnp.asarray(x_NTI).reshape(-1, len(w_IO))) * (2 / len(x_NTI))
    inside = everything(w_IO) if inside is None else inside
    run = solver(**settings)
    return np.asarray(run({"q": w_IO}, {"q": inside}, hessian_II, jnp.float32(severity))["q"])


@pytest.mark.parametrize(
    ("case", "severity", "settings"),
    [
        ("u50_bs128", 0.5, {"blocksize": 128, "reference_count": True}),
        ("u50_bs32", 0.5, {"reference_count": True}),
        ("u70_bs32", 0.7, {"reference_count": True}),
        ("nm24_bs128", 0.5, {"blocksize": 128, "M": 4}),
        ("nm24_bs32", 0.5, {"M": 4}),
        ("nm48_bs32", 0.5, {"M": 8}),
        ("u50_bs32_q4", 0.5, {"reference_count": True, "quantize_bits": 4}),
    ],
)
def test_published_code(case, severity, settings):
    got = pruned(VECTORS["W"].T, VECTORS["X"], severity, **settings).T
    np.testing.assert_array_equal(got == 0, VECTORS[f"mask_{case}"])
    np.testing.assert_allclose(got, VECTORS[f"W_{case}"], atol=2e-6)


@pytest.mark.parametrize("dead", [(), (3, 11, 12, 13, 14)])
@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        (44, {"blocksize": 16}),
        (20, {"blocksize": 64}),
        (44, {"blocksize": 16, "M": 4}),
        (24, {"blocksize": 8, "M": 8}),
    ],
)
def test_slow_solver(inputs, settings, dead):
    """blocksize divides the inputs, does not, and is larger; every count of an N:M group."""
    w_IO, x_NTI = correlated(inputs, 6, seed=inputs, dead=dead)
    M = settings.get("M", 0)
    for severity in (0.25, 0.5, 0.75, 1.0) if M else (0.05, 0.33, 0.8, 1.0):
        got = pruned(w_IO, x_NTI, severity, **settings)
        want = slow.sparsegpt(
            w_IO, slow.second_moment(x_NTI), severity, blocksize=settings["blocksize"], group=M
        )
        np.testing.assert_array_equal(got == 0, want == 0)
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_each_matrix_and_block_loses_its_own_count():
    w_IO, x_NTI = correlated(44, 10, seed=1)
    weights = {"gate": w_IO[:, :7], "up": w_IO[:, 7:]}
    inside = {name: everything(w) for name, w in weights.items()}
    hessian_II = slow.second_moment(x_NTI)
    for severity in (0.1, 0.29, 0.57, 0.99):
        new = solver(blocksize=16)(weights, inside, jnp.float32(hessian_II), jnp.float32(severity))
        for name, w in weights.items():
            for block in np.split(new[name], [16, 32]):
                assert (block == 0).sum() == block.size * round(100 * severity) // 100
            want = slow.sparsegpt(w, hessian_II, severity, blocksize=16)
            np.testing.assert_allclose(new[name], want, atol=2e-4)


@pytest.mark.parametrize("settings", [{"M": 0}, {"M": 4}, {"M": 0, "quantize_bits": 4}], ids=str)
def test_weights_outside_keep_their_bits_and_take_no_part(settings):
    """Inputs 0 to 27 of 44, outputs 2 to 5: as if there were no other inputs, but for the damping."""
    w_IO, x_NTI = correlated(44, 6, seed=3)
    inside = np.zeros_like(w_IO, bool)
    inside[:28, 2:] = True
    got = pruned(w_IO, x_NTI, 0.5, inside, blocksize=16, **settings)
    np.testing.assert_array_equal(got[~inside], w_IO[~inside])
    if "quantize_bits" in settings:
        return
    hessian_II = slow.second_moment(x_NTI)
    damp = 0.01 * np.diag(hessian_II).mean()
    group = settings["M"]
    want = slow.sparsegpt(w_IO[:28, 2:], hessian_II[:28, :28], 0.5, blocksize=16, group=group, damp=damp)
    np.testing.assert_allclose(got[:28, 2:], want, atol=1e-4)


def test_severity_0_changes_no_bit_even_of_dead_inputs():
    w_IO, x_NTI = correlated(44, 6, seed=4, dead=(2,))
    np.testing.assert_array_equal(pruned(w_IO, x_NTI, 0.0, blocksize=16), w_IO)


def test_inputs_never_seen_give_magnitude_pruning():
    """An expert that no calibration token reached."""
    w_IO, _ = correlated(20, 6, seed=5)
    got = pruned(w_IO, np.zeros((1, 4, 20), np.float32), 0.5, blocksize=64)
    kept = np.abs(w_IO) > np.sort(np.abs(w_IO).ravel())[w_IO.size // 2 - 1]
    np.testing.assert_array_equal(got, np.where(kept, w_IO, 0))


def test_more_weight_error_and_less_output_error_than_magnitude():
    w_IO, x_NTI = correlated(44, 6, seed=6)
    rank = np.argsort(np.argsort(np.abs(w_IO).ravel())).reshape(w_IO.shape)
    magnitude = np.where(rank < w_IO.size // 2, 0, w_IO)
    got = pruned(w_IO, x_NTI, 0.5, blocksize=16)
    assert 0 <= (magnitude == 0).sum() - (got == 0).sum() <= 2  # floor, block by block
    assert np.sum((got - w_IO) ** 2) > np.sum((magnitude - w_IO) ** 2)
    assert np.sum((x_NTI @ (got - w_IO)) ** 2) < 0.75 * np.sum((x_NTI @ (magnitude - w_IO)) ** 2)


@pytest.mark.parametrize(
    ("case", "settings"), [("sparsegpt_50", {"reference_count": True}), ("sparsegpt_2_4", {"group": "n:4"})]
)
def test_published_driver_on_the_toy_decoder(case, settings):
    compare_toy(lambda shape: sparsegpt(shape, **settings), "toy_sparsegpt.npz", case, 0.5)
