"""One training step: it learns, packs agree with single members, masks hold, precision options do what they say."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import AS_USUAL
from mask_cases import random_mask

from wane.scaling.model import apply, nll
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.mask import MaskPlan, given_mask, masked, masks_of_pack
from wane.train.step import init_pack, objective, pack_step

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=32, vocab=32, context=12, activation="gelu")
TRAIN = Train(batch_size=4, lr=0.01, eps=1e-6)
STEPS = 40


def tokens(seed, step, batch=4, context=12, vocab=32):
    """The next token is the last one + 1: learnable to a loss of 0."""
    start = np.random.default_rng([seed, step]).integers(0, vocab, (batch, 1))
    return ((start + np.arange(context + 1)) % vocab).astype(np.int32)


@lru_cache
def program(packing, shape=SHAPE):
    """Compiled once for all tests: compiling is what they spend their time on."""
    step = partial(pack_step, shape=shape, train=TRAIN, steps=STEPS, packing=packing)
    return jax.jit(step, **AS_USUAL)


@lru_cache
def initial_states():
    return jax.jit(partial(init_pack, shape=SHAPE, train=TRAIN))(jnp.arange(8, dtype=jnp.uint32))


def initial(seeds, mask_R=None):
    state_R = jax.tree.map(lambda leaf: leaf[jnp.array(seeds)], initial_states())
    return (
        state_R
        if mask_R is None
        else state_R._replace(params=jax.vmap(masked)(state_R.params, mask_R), mask=mask_R)
    )


def train_pack(seeds, data_seeds, lrs, packing, steps=STEPS, shape=SHAPE, mask_R=None):
    """Final state and losses [steps, R]."""
    state, losses = initial(seeds, mask_R), []
    for i in range(steps):
        batch = np.stack([tokens(s, i) for s in data_seeds])
        state, metrics = program(packing, shape)(state, batch, jnp.array(lrs, jnp.float32))
        losses.append(np.asarray(metrics["loss"]))
    return state, np.array(losses)


def train_alone(seed, data_seed, lr, steps=STEPS, shape=SHAPE, mask=None):
    mask_R = mask and {name: leaf[None] for name, leaf in mask.items()}
    state, losses = train_pack((seed,), (data_seed,), (lr,), "map", steps, shape, mask_R)
    return jax.tree.map(lambda leaf: leaf[0], state), losses[:, 0]


def objective_gradient(params, tokens_BT, shape):
    return jax.grad(objective, has_aux=True)(params, tokens_BT, shape, 0.01)[0]


@lru_cache
def gradient(shape):
    return jax.jit(partial(objective_gradient, shape=shape))


def assert_trees(a, b, compare):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        compare(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def test_loss_falls_from_log_vocab_towards_zero():
    _, losses = train_alone(0, 0, 0.01)
    assert losses[0] == pytest.approx(np.log(32), abs=0.05)
    assert losses[-1] < 1.0


@pytest.mark.parametrize("packing", ["map", "vmap"])
def test_a_pack_of_seeds_and_rates_equals_members_trained_alone(packing):
    """Three seeds and three rates in one program."""
    seeds, rates = (3, 1, 2), (0.01, 0.003, 0.02)
    packed, losses_R = train_pack(seeds, (0, 0, 5), rates, packing, steps=8)
    for r, (seed, data_seed, lr) in enumerate(zip(seeds, (0, 0, 5), rates, strict=True)):
        alone, losses = train_alone(seed, data_seed, lr, steps=8)
        np.testing.assert_allclose(losses_R[:, r], losses, rtol=1e-5)
        replica = jax.tree.map(lambda leaf, r=r: leaf[r], packed.params)
        assert_trees(replica, alone.params, partial(np.testing.assert_allclose, atol=1e-4))


def test_a_mapped_member_has_the_same_bits_in_any_pack():
    """What an interrupted study may rely on: on CPU a member does not depend on who is in its pack.  (The
    program without a map differs from it in the last bit where norms are fused, so the loop always maps.)"""
    alone, _ = train_alone(7, 0, 0.01, steps=5)
    packed, _ = train_pack((7, 1, 2), (0, 1, 2), (0.01, 0.02, 0.03), "map", steps=5)
    assert_trees(jax.tree.map(lambda leaf: leaf[0], packed), alone, np.testing.assert_array_equal)


@pytest.mark.parametrize("packing", ["map", "vmap"])
def test_one_compilation_serves_all_seeds_rates_and_steps(packing):
    train_pack((1, 2, 3), (0, 0, 0), (0.01, 0.02, 0.03), packing, steps=2)
    compiled = program(packing)._cache_size()
    train_pack((4, 5, 6), (1, 2, 3), (0.1, 0.2, 0.3), packing, steps=2)
    assert program(packing)._cache_size() == compiled


def test_masked_weights_stay_zero_and_do_not_reach_the_clip():
    mask = {
        name: jax.random.bernoulli(jax.random.key(i), 0.5, (2, *size))
        for i, (name, size) in enumerate(SHAPE.matrices.items())
    }
    state, losses = train_alone(0, 0, 0.01, mask=mask)
    assert losses[-1] < 2.0
    for name, keep in mask.items():
        weights = np.asarray(state.params["blocks"][name])
        assert (weights[~np.asarray(keep)] == 0).all()
        assert (weights[np.asarray(keep)] != 0).all()
        assert (np.asarray(state.opt_state[2].nu["blocks"][name])[~np.asarray(keep)] == 0).all()


def test_gradient_norm_counts_kept_weights_only():
    """Everything removed from the blocks: the gradient is that of embedding, unembedding and norms."""
    mask = {name: jnp.zeros((2, *size), bool) for name, size in SHAPE.matrices.items()}
    state_R, batch = initial((0,), {name: leaf[None] for name, leaf in mask.items()}), tokens(0, 0)
    _, metrics = program("map")(state_R, batch[None], jnp.array([0.01]))
    grads = gradient(SHAPE)(jax.tree.map(lambda leaf: leaf[0], state_R.params), batch)
    rest = [g for p, g in jax.tree.leaves_with_path(grads) if p[-1].key not in SHAPE.matrices]
    assert float(metrics["grad_norm"][0]) == pytest.approx(
        np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in rest)), rel=1e-5
    )


def test_random_mask_removes_the_exact_count_per_matrix_and_layer():
    params_R = initial((0, 1)).params
    plan = MaskPlan(at_step=0, mask=random_mask(SHAPE, 0.3, (0, 1)))
    mask_R = masks_of_pack(plan, params_R)
    for name, (fan_in, fan_out) in SHAPE.matrices.items():
        kept = np.asarray(mask_R[name])
        assert kept.shape == (2, 2, fan_in, fan_out)
        assert ((~kept).sum((-2, -1)) == int(fan_in * fan_out * 3000) // 10_000).all()
        assert (kept[0] != kept[1]).any()
        assert (kept[0, 0] != kept[0, 1]).any()
    again = masks_of_pack(MaskPlan(at_step=0, mask=given_mask(mask_R)), params_R)
    assert_trees(again, mask_R, np.testing.assert_array_equal)


def test_rematerialisation_changes_memory_and_not_the_gradient():
    params = jax.tree.map(lambda leaf: leaf[0], initial((0,)).params)
    remat = dataclasses.replace(SHAPE, remat=True)
    plain, again = (gradient(s)(params, tokens(0, 0)) for s in (SHAPE, remat))
    assert_trees(plain, again, partial(np.testing.assert_allclose, atol=1e-6))
    jaxpr = str(jax.make_jaxpr(partial(objective_gradient, shape=remat))(params, tokens(0, 0)))
    assert "remat" in jaxpr or "checkpoint" in jaxpr


def test_bfloat16_trains_with_float32_weights_and_moments():
    shape = dataclasses.replace(SHAPE, dtype="bfloat16")
    state, losses = train_alone(0, 0, 0.01, shape=shape)
    assert losses[-1] < 1.0
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[2].mu)} == {jnp.dtype("float32")}
    _, in_f32 = train_alone(0, 0, 0.01, steps=3)
    assert (losses[:3] != in_f32).any()
    np.testing.assert_allclose(losses[:3], in_f32, rtol=0.02)


def test_tokens_without_a_score_count_as_much_as_is_said():
    params = jax.tree.map(lambda leaf: leaf[0], initial_states().params)
    rng = np.random.default_rng(0)
    plain, scored = tokens(0, 0), rng.random((4, 13)) < 0.4
    marked = np.where(scored, plain, -1 - plain)
    value = jax.jit(lambda t, w: objective(params, t, SHAPE, 0.0, w)[0], static_argnums=1)
    x_BSD = apply(params, plain[:, :-1], SHAPE).x_BSD
    nll_BS = np.asarray(nll(params, x_BSD, plain, SHAPE), np.float64)
    for weight in (0.0, 0.25, 1.0):
        weight_BS = np.where(scored[:, 1:], 1.0, weight)
        expected = (weight_BS * nll_BS).sum() / weight_BS.sum()
        assert float(value(marked, weight)) == pytest.approx(expected, rel=1e-6)
        assert float(value(plain, weight)) == pytest.approx(nll_BS.mean(), rel=1e-6)
    assert float(value(marked, 1.0)) == float(value(plain, 1.0))


def test_training_counts_them_so():
    step = {
        weight: jax.jit(
            partial(
                pack_step,
                shape=SHAPE,
                train=dataclasses.replace(TRAIN, unscored_weight=weight),
                steps=STEPS,
                packing="map",
            )
        )  # fmt: skip
        for weight in (0.0, 1.0)
    }
    plain = tokens(0, 0)
    marked, other = np.array(plain)[None], np.array(plain)[None]
    marked[:, :, 7:] = ~marked[:, :, 7:]
    other[:, :, 8:] = 5  # only what no scored token is predicted from
    other[:, :, 7:] = ~other[:, :, 7:]
    after = {
        (w, name): f(initial((0,)), batch, jnp.array([0.01]))[0].params
        for w, f in step.items()
        for name, batch in (("marked", marked), ("other", other), ("plain", plain[None]))
    }
    assert_trees(after[0.0, "marked"], after[0.0, "other"], np.testing.assert_array_equal)
    assert_trees(after[1.0, "marked"], after[1.0, "plain"], np.testing.assert_array_equal)
    assert not np.array_equal(after[0.0, "marked"]["embed"], after[0.0, "plain"]["embed"])
