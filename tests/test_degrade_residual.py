"""Early exit with and without a lens, and removal of dimensions of the residual stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.early_exit import early_exit
from wane.scaling.degrade.pca_dimensions import pca_dimensions, second_moments
from wane.scaling.degrade.random_dimensions import random_dimensions
from wane.scaling.degrade.tuned_lens import tuned_lens

SHAPE = SHAPES["mha-swiglu"]
KEY = jax.random.key(0)
PARAMS, TOKENS = trained(SHAPE), tokens(SHAPE)
EVERYWHERE = Where.everywhere(SHAPE)


def apply(method, fitted, severity: float, where: Where = EVERYWHERE):
    return method.apply(PARAMS, fitted, jnp.float32(severity), where, KEY)


@functools.partial(jax.jit, **QUICK)
def states(edit):
    """(final residual stream, intermediates)."""
    return model.apply(PARAMS, TOKENS[:, :-1], SHAPE, edit)


@functools.cache
def log_p() -> np.ndarray:
    """Log-probabilities of the full model."""
    return np.float64(jax.nn.log_softmax(model.unembed(PARAMS, states(None).x_BSD, SHAPE)))


def divergence(x_BSD, sequences: int | None = None) -> float:
    """KL(full model || readout of x_BSD) in f64, over the first so many sequences."""
    q = np.float64(jax.nn.log_softmax(model.unembed(PARAMS, jnp.asarray(x_BSD), SHAPE)))
    return float((np.exp(log_p()) * (log_p() - q)).sum(-1)[:sequences].mean())


@functools.cache
def lens(steps: int = 60):
    fit = functools.partial(tuned_lens, shape=SHAPE, steps=steps, learning_rate=0.01)
    return jax.jit(lambda p, t: fit(p, t), **QUICK)(PARAMS, TOKENS)


@pytest.mark.parametrize(("severity", "blocks"), [(0.0, 3), (0.33, 3), (0.3334, 2), (0.9, 1), (1.0, 0)])
def test_an_exit_reads_the_stream_behind_the_blocks_that_are_left(severity, blocks):
    edit = apply(early_exit(SHAPE), None, severity)
    full = states(None)
    entering = np.concatenate([full.inner["block_in"], full.x_BSD[None]])
    np.testing.assert_array_equal(states(edit).x_BSD, entering[blocks])


def test_every_translator_brings_its_exit_closer_to_the_full_model():
    full = states(None)
    for blocks in range(3):
        h_BSD = np.asarray(full.inner["block_in"][blocks])
        moved = h_BSD @ lens().map_DD[blocks] + lens().bias_D[blocks]
        assert divergence(moved) < 0.7 * divergence(h_BSD)
        assert divergence(h_BSD) > 1e-3
    np.testing.assert_array_equal(lens().map_DD[3], np.eye(16))
    assert not lens().bias_D[3].any()


def test_the_first_step_of_the_lens_goes_down_the_gradient_of_the_divergence():
    """Adam's first step is the learning rate times the sign of the gradient, here of the first batch
    of two sequences; bias in units of the stream's size."""
    first = lens(1)
    for blocks in (0, 2):
        h_BSD = np.asarray(states(None).inner["block_in"][blocks])
        gradient = np.zeros(16)
        for d in range(16):
            h = 0.02 * np.sqrt(np.mean(np.square(h_BSD))) * np.eye(16, dtype=np.float32)[d]
            gradient[d] = divergence(h_BSD + h, 2) - divergence(h_BSD - h, 2)
        clear = np.abs(gradient) > 0.05 * np.abs(gradient).max()
        step = 0.01 * np.sqrt(np.mean(np.square(np.float64(h_BSD))))
        np.testing.assert_allclose(first.bias_D[blocks][clear], -step * np.sign(gradient[clear]), rtol=1e-3)


def test_an_exit_with_a_lens_reads_through_the_translator_of_its_depth():
    method = early_exit(SHAPE, lens="tuned")
    for severity, blocks in ((0.0, 3), (0.5, 2), (1.0, 0)):
        edit = apply(method, lens(), severity)
        np.testing.assert_array_equal(edit.lens.map_DD, lens().map_DD[blocks])
        np.testing.assert_array_equal(edit.lens.bias_D, lens().bias_D[blocks])
    np.testing.assert_array_equal(states(apply(method, lens(), 0.0)).x_BSD, states(None).x_BSD)


def test_the_lens_acts_only_where_the_whole_tail_is_skipped():
    method, last = early_exit(SHAPE, lens="tuned"), Where.only(SHAPE, 2)
    whole = apply(method, lens(), 0.5, last)  # the tail of one block is selected
    np.testing.assert_array_equal(whole.lens.map_DD, lens().map_DD[2])
    part = apply(method, lens(), 0.9, last)  # of the tail of two blocks, one is
    np.testing.assert_array_equal(part.attn_L, [1, 1, 0])
    np.testing.assert_array_equal(part.lens.map_DD, np.eye(16))


def test_removed_dimensions_are_zero_everywhere_and_nested():
    method = random_dimensions(SHAPE)
    ranks = method.fit(PARAMS, None, KEY)
    before = np.zeros(16, bool)
    for severity, n in ((0.0, 0), (0.3, 4), (0.5, 8), (1.0, 16)):
        edit = apply(method, ranks, severity)
        assert edit.residual_XD.shape == (7, 16)
        gone = np.asarray(edit.residual_XD[0] == 0)
        assert (gone.sum(), (edit.residual_XD == edit.residual_XD[0]).all()) == (n, True)
        assert (gone | ~before).all()
        out, before = states(edit), gone
        for x in (out.inner["block_in"], out.inner["mid"], out.x_BSD):
            assert not np.asarray(x)[..., gone].any()
            assert np.asarray(x)[..., ~gone].all()


@pytest.mark.parametrize("build", [random_dimensions, pca_dimensions])
def test_a_layer_owns_the_states_behind_its_sublayers_and_the_first_also_the_embedding(build):
    for scope, where in ((Scope(), Where.only(SHAPE, 1)), (Scope(layers=(1, 2)), EVERYWHERE)):
        method = build(SHAPE, scope)
        fitted = jax.jit(lambda p, method=method: method.fit(p, TOKENS, KEY), **QUICK)(PARAMS)
        edit = apply(method, fitted, 0.5, where)
        state_X = next(x for x in (edit.residual_XD, edit.residual_map) if x is not None)
        none = np.asarray(state_X[0])
        touched = [bool((x != none).any()) for x in np.asarray(state_X)]
        assert touched == [False, False, False, True, True, False, False]
    first = apply(build(SHAPE), fitted, 0.5, Where.only(SHAPE, 0))
    state_X = np.asarray(next(x for x in (first.residual_XD, first.residual_map) if x is not None))
    assert [bool((x != state_X[-1]).any()) for x in state_X] == [True] * 3 + [False] * 4


def slow_states() -> np.ndarray:
    """[7, tokens, D] f64: the residual stream after the embedding and after every sublayer."""
    out = states(None)
    pairs = [x for l in range(3) for x in (out.inner["block_in"][l], out.inner["mid"][l])]
    return np.float64([*pairs, out.x_BSD]).reshape(7, -1, 16)


@functools.cache
def moments() -> np.ndarray:
    return np.asarray(jax.jit(lambda p: second_moments(p, TOKENS, SHAPE), **QUICK)(PARAMS))


def test_second_moments_are_those_of_all_states():
    x_XTD = slow_states()
    np.testing.assert_allclose(moments(), np.einsum("xtd,xte->xde", x_XTD, x_XTD), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_projection_is_the_principal_subspace_of_all_states(normalise):
    """Against the singular vectors of all states stacked, each over its norm where they count the same."""
    x_XTD = slow_states()
    if normalise:
        x_XTD = x_XTD / np.linalg.norm(x_XTD, axis=(1, 2), keepdims=True)
    v_DD = np.linalg.svd(x_XTD.reshape(-1, 16))[2]  # largest first
    method = pca_dimensions(SHAPE, normalise=normalise)
    fitted = jax.jit(lambda p: method.fit(p, TOKENS, KEY), **QUICK)(PARAMS)
    for severity, kept in ((0.0, 16), (0.25, 12), (0.5, 8), (0.9, 2), (1.0, 0)):
        onto = np.asarray(apply(method, fitted, severity).residual_map)
        np.testing.assert_allclose(onto[0], v_DD[:kept].T @ v_DD[:kept], atol=2e-3)
        assert (onto == onto[0]).all()
    np.testing.assert_array_equal(apply(method, fitted, 0.0).residual_map[0], np.eye(16))
    np.testing.assert_array_equal(apply(method, fitted, 1.0).residual_map, 0)


def test_the_cost_of_a_projection_is_that_of_projected_matrices():
    method = pca_dimensions(SHAPE)
    fitted = jax.jit(lambda p: method.fit(p, TOKENS, KEY), **QUICK)(PARAMS)
    edit = apply(method, fitted, 0.3, Where.only(SHAPE, 1))
    cost = method.cost(PARAMS, edit, jnp.float32(0.3))
    onto = np.float64(edit.residual_map[3])
    blocks = {name: np.float64(w) for name, w in PARAMS["blocks"].items() if name in SHAPE.matrices}
    lost = total = removed = 0
    for name, w_LIO in blocks.items():
        after = w_LIO.copy()
        if name in ("o", "down"):  # of block 1; they write the states behind its sublayers
            after[1] = w_LIO[1] @ onto
        elif name in ("gate", "up"):
            after[1] = onto @ w_LIO[1]
        else:  # q, k, v of block 2 read the state behind block 1
            after[2] = onto @ w_LIO[2]
        lost, total = lost + np.square(w_LIO - after).sum(), total + np.square(w_LIO).sum()
        removed += w_LIO[0].size * 4 / 16
    np.testing.assert_allclose(cost.relative_weight_error, lost / total, rtol=1e-4)
    np.testing.assert_allclose(
        cost.removed_fraction, removed / sum(w.size for w in blocks.values()), rtol=1e-6
    )
    np.testing.assert_allclose(cost.compression_ratio, 1 / (1 - cost.removed_fraction), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (early_exit, {"scope": Scope(layers=(0, 2))}, "scope.layers"),
        (early_exit, {"lens": "tuned", "steps": 0}, "early_exit.steps = 0: must be 1 or more"),
        (early_exit, {"learning_rate": 0.0}, "early_exit.learning_rate = 0.0"),
        (random_dimensions, {"scope": Scope(head=1)}, "scope.head = 1"),
        (pca_dimensions, {"scope": Scope(matrices=("q",))}, "scope.matrices"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        build(SHAPE, **settings)
    assert "\n" not in str(error.value)
