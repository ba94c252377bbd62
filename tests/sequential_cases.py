"""What the tests of sequential methods share: one random matrix with correlated inputs, and the toy decoder."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from degrade_cases import QUICK
from model_cases import forward
from test_model_parity import PROJECTIONS, toy_model

from wane.scaling.degrade.contract import Where
from wane.scaling.edit import merge

GOLDEN = Path(__file__).parent / "golden"


def correlated(inputs, outputs, seed, dead=()):
    """(w_IO, x_NTI) in f32; inputs in `dead` are 0 everywhere."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 50, inputs)) @ (np.eye(inputs) + rng.normal(size=(inputs, inputs)) / 4)
    x[..., list(dead)] = 0
    return rng.normal(size=(inputs, outputs)).astype(np.float32), x.astype(np.float32)


def everything(w_IO):
    return np.ones(w_IO.shape, bool)


def compare_toy(method_of, file, case, severity, atol=1e-5):
    """A method on the toy decoder against what the published driver left: masks, some weights, logits."""
    golden = np.load(GOLDEN / file)
    shape, params, arrays = toy_model()
    method = method_of(shape)
    # A method reads all tokens of a sequence but the last.
    tokens_NT = jnp.pad(arrays["calib_tokens"], ((0, 0), (0, 1)))
    everywhere, key = Where.everywhere(shape), jax.random.key(0)

    @functools.partial(jax.jit, **QUICK)
    def run(params, severity):
        return method.apply(params, method.fit(params, tokens_NT, key), severity, everywhere, key)

    edit = run(params, jnp.float32(severity))
    for name, w_LIO in edit.params["blocks"].items():
        for layer, w_IO in enumerate(w_LIO):
            theirs = f"layers.{layer}.{PROJECTIONS[name]}"
            if (mask := f"{case}.mask.{theirs}") in golden:
                np.testing.assert_array_equal(w_IO.T == 0, golden[mask])
            if (weights := f"{case}.W.{theirs}") in golden:
                np.testing.assert_allclose(w_IO.T, golden[weights], atol=atol)
    logits, _ = forward(merge(params, edit), jnp.asarray(arrays["eval_tokens"]), shape)
    np.testing.assert_allclose(logits, golden[f"{case}.logits"], atol=1e-4)
