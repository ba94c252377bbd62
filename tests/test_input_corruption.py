"""Corrupted input: what is replaced, deleted and moved, sequence by sequence, and what the model makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.corrupt import Corruption, corrupt_embeddings, corrupt_tokens
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.input_corruption import (
    delete_tokens,
    embedding_attack,
    embedding_noise,
    substitute_tokens,
)
from wane.scaling.edit import Edit

SHAPE = SHAPES["mha-swiglu"]
METHODS = {
    "substitute": substitute_tokens,
    "delete": delete_tokens,
    "noise": embedding_noise,
    "attack": embedding_attack,
}
V = 7
LONG_BS = np.random.default_rng(0).integers(V, size=(40, 101)).astype(np.int32)
KEY = jax.random.key(2)


@functools.partial(jax.jit, static_argnums=3)
def corrupted(tokens_BS, rate, key, field: str):
    return corrupt_tokens(tokens_BS, Corruption(key=key, **{field: rate}), V)


def substituted(rate, tokens_BS=LONG_BS, key=KEY) -> np.ndarray:
    return np.asarray(corrupted(tokens_BS, jnp.float32(rate), key, "substitute")[0])


def deleted(rate, tokens_BS=LONG_BS, key=KEY) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and source positions."""
    return tuple(map(np.asarray, corrupted(tokens_BS, jnp.float32(rate), key, "delete")))


def surviving(source_BS) -> np.ndarray:
    return np.diff(source_BS, axis=1, prepend=-1) == 1


def test_substitution_replaces_the_share_by_other_tokens_all_alike():
    new = substituted(0.3)
    changed = new != LONG_BS
    assert not changed[:, 0].any()
    assert abs(changed[:, 1:].mean() - 0.3) < 0.03  # 4 standard deviations
    counts = np.bincount((new - LONG_BS)[changed] % V, minlength=V)
    assert counts[0] == 0
    assert abs(counts[1:] / counts.sum() - 1 / (V - 1)).max() < 0.05
    assert (substituted(1.0)[:, 1:] != LONG_BS[:, 1:]).all()
    assert new.min() >= 0
    assert new.max() < V


def test_substitution_is_nested():
    less, more = substituted(0.3), substituted(0.6)
    touched = less != LONG_BS
    np.testing.assert_array_equal(more[touched], less[touched])
    assert (more != LONG_BS).sum() > 1.5 * touched.sum()


def test_deletion_moves_the_survivors_together():
    new, source = deleted(0.4)
    kept = surviving(source)
    assert kept[:, 0].all()
    assert abs(kept[:, 1:].mean() - 0.6) < 0.03
    for b, row in enumerate(LONG_BS):
        survivors = [s for s in range(len(row)) if kept[b, s]]
        np.testing.assert_array_equal(new[b, : len(survivors)], row[survivors])
        for s in range(len(row)):
            assert survivors[source[b, s]] == max(t for t in survivors if t <= s)
    assert (surviving(deleted(0.2)[1]) >= kept).all()
    np.testing.assert_array_equal(deleted(1.0)[1], 0)


@pytest.mark.parametrize("field", ["substitute", "delete"])
def test_rate_0_touches_no_token(field):
    new, source = corrupted(LONG_BS, jnp.float32(0), KEY, field)
    np.testing.assert_array_equal(new, LONG_BS)
    if source is not None:
        np.testing.assert_array_equal(source, np.broadcast_to(np.arange(101), LONG_BS.shape))


@jax.jit
def with_noise(x_BSD, tokens_BS, size):
    return corrupt_embeddings(x_BSD, tokens_BS, Corruption(key=KEY, noise=size), None)


def noisy(x_BSD, size, tokens_BS=LONG_BS) -> np.ndarray:
    return np.asarray(with_noise(jnp.asarray(x_BSD, jnp.float32), tokens_BS, jnp.float32(size)))


def test_a_sequence_is_corrupted_alike_in_every_batch():
    other = np.roll(LONG_BS, 5, axis=0)
    other[:5] = 0
    same, there = slice(0, 35), slice(5, 40)
    np.testing.assert_array_equal(substituted(0.3)[same], substituted(0.3, other)[there])
    for one, two in zip(deleted(0.3), deleted(0.3, other), strict=True):
        np.testing.assert_array_equal(one[same], two[there])
    x = np.ones((40, 101, 8))
    np.testing.assert_array_equal(noisy(x, 0.5)[same], noisy(x, 0.5, other)[there])


def test_sequences_and_keys_and_kinds_have_random_numbers_of_their_own():
    rows = LONG_BS.copy()
    rows[:3] = rows[0]
    rows[1, 50] = (rows[1, 50] + 1) % V  # one other token: another sequence
    changed = substituted(0.5, rows) != rows
    np.testing.assert_array_equal(changed[0], changed[2])
    for other in (
        changed[1],
        (substituted(0.5, rows, jax.random.key(3)) != rows)[0],
        ~surviving(deleted(0.5, rows)[1])[0],
    ):
        assert 0.3 < (changed[0] != other)[1:].mean() < 0.7


def test_noise_has_the_size_asked_for_and_is_gaussian():
    x = np.random.default_rng(1).standard_normal((40, 101, 8)).astype(np.float32)
    x *= np.geomspace(0.02, 5, 40, dtype=np.float32)[:, None, None]
    added = {size: noisy(x, size) - x for size in (0.3, 0.6)}
    size = np.sqrt((added[0.3] ** 2).mean((1, 2)) / np.square(x).mean((1, 2)))
    np.testing.assert_allclose(size, 0.3, rtol=1e-4)
    np.testing.assert_allclose(added[0.6], 2 * added[0.3], atol=1e-5)
    z = added[0.3] / added[0.3].std((1, 2), keepdims=True)
    assert np.abs(z.mean((0, 2))).max() < 0.3  # 5 standard deviations, of 320 numbers
    assert abs((np.abs(z) < 1).mean() - 0.6827) < 0.01
    np.testing.assert_array_equal(noisy(x, 0), x)


@functools.partial(jax.jit, static_argnums=3, **QUICK)
def run(params, tokens_BS, edit, shape=SHAPE):
    x_BSD = model.apply(params, tokens_BS, shape, edit).x_BSD
    return x_BSD, model.unembed(params, x_BSD, shape)


def edit_of(name: str, severity) -> Edit:
    method = METHODS[name](SHAPE)
    fitted = method.fit({}, tokens(SHAPE), KEY)
    return method.apply({}, fitted, severity, Where.everywhere(SHAPE), KEY)


@pytest.mark.parametrize("name", METHODS)
def test_severity_0_gives_the_same_bits_and_more_does_harm(name):
    params, tokens_BS = trained(SHAPE), tokens(SHAPE)[:, :-1]
    plain = run(params, tokens_BS, Edit())[1]
    np.testing.assert_array_equal(run(params, tokens_BS, edit_of(name, jnp.float32(0)))[1], plain)
    assert np.abs(run(params, tokens_BS, edit_of(name, jnp.float32(0.5)))[1] - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["delete", "attack"])
def test_severities_map_and_do_not_recompile(name):
    params, tokens_BS = trained(SHAPE), tokens(SHAPE)[:, :-1]
    severities = jnp.array([0.0, 0.2, 0.5], jnp.float32)

    def stream(severity):
        return model.apply(params, tokens_BS, SHAPE, edit_of(name, severity)).x_BSD

    point, together = jax.jit(stream, **QUICK), jax.jit(jax.vmap(stream), **QUICK)(severities)
    for severity, x_BSD in zip(severities, together, strict=True):
        np.testing.assert_allclose(point(severity), x_BSD, atol=1e-5)
    assert point._cache_size() == 1


@functools.partial(jax.jit, **QUICK)
def streams_under(params, tokens_BS, edit):
    """What enters every block, and what stands behind its attention [2, L, B, S, D]."""
    inner = model.apply(params, tokens_BS, SHAPE, edit).inner
    return jnp.stack([inner["block_in"], inner["mid"]])


def test_after_a_deletion_each_token_is_predicted_from_what_is_left_before_it():
    """And the residual streams on the way stand at the original places, so that those of two models compare."""
    params, tokens_BS = trained(SHAPE), np.asarray(tokens(SHAPE)[:, :-1])
    edit = edit_of("delete", jnp.float32(0.5))
    logits, streams = run(params, tokens_BS, edit)[1], streams_under(params, tokens_BS, edit)
    kept = surviving(np.asarray(corrupt_tokens(tokens_BS, edit.corruption, SHAPE.vocab)[1]))
    assert kept.sum() < kept.size
    for s in (0, 3, 7):
        left = tokens_BS[2, : s + 1][kept[2, : s + 1]]
        # Behind a token nothing reads it: filled up to one length, for one compilation.
        shorter = np.resize(left, (6, SHAPE.context)) * 0 + np.pad(left, (0, 8 - len(left)))
        alone, on_the_way = run(params, shorter, Edit())[1], streams_under(params, shorter, Edit())
        np.testing.assert_allclose(logits[2, s], alone[0, len(left) - 1], atol=1e-4)
        np.testing.assert_allclose(streams[:, :, 2, s], on_the_way[:, :, 0, len(left) - 1], atol=1e-4)


@functools.partial(jax.jit, **QUICK)
def embeddings_under(params, tokens_BS, edit):
    """What enters the first block."""
    return model.apply(params, tokens_BS, SHAPE, edit).inner["block_in"][0]


@functools.partial(jax.jit, **QUICK)
def losses_and_gradient(params, x_BSD, tokens_BS, mlp_L):
    """Each sequence's loss, block by block, and its gradient."""

    def loss_B(x_BSD):
        for layer in range(SHAPE.n_layers):
            params_l = {name: w[layer] for name, w in params["blocks"].items()}
            x_BSD, _, _ = model.block(params_l, x_BSD, SHAPE, Edit(mlp_L=mlp_L[layer]))
        return model.nll(params, x_BSD[:, :-1], tokens_BS, SHAPE).mean(1)

    return loss_B(x_BSD), jax.grad(lambda x_BSD: loss_B(x_BSD).sum())(x_BSD)


def test_attack_steps_up_the_gradient_of_the_degraded_models_loss():
    params, tokens_BS = trained(SHAPE), tokens(SHAPE)[:3, :-1]
    x = params["embed"][tokens_BS]
    for mlp_L in (jnp.ones(3), jnp.array([1.0, 0.0, 3.0])):
        edit = Edit(corruption=Corruption(attack=jnp.float32(0.1)), mlp_L=mlp_L)
        moved = embeddings_under(params, tokens_BS, edit)
        before, g = losses_and_gradient(params, x, tokens_BS, mlp_L)
        x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
        norm_x, norm_g = (np.sqrt((a**2).sum((1, 2), keepdims=True)) for a in (x64, g64))
        np.testing.assert_allclose(moved - x, 0.1 * norm_x * g64 / norm_g, atol=1e-5 * norm_x.max())
        assert (losses_and_gradient(params, moved, tokens_BS, mlp_L)[0] > before).all()


def test_a_known_direction_of_attack_is_taken_and_is_the_one_that_would_be_found():
    params, tokens_BS = trained(SHAPE), tokens(SHAPE)[:3, :-1]
    edit = Edit(corruption=Corruption(attack=jnp.float32(0.1)))
    known_BSD = model.against(params, tokens_BS, SHAPE)
    found = embeddings_under(params, tokens_BS, edit)
    taken = embeddings_under(params, tokens_BS, edit.along(known_BSD))
    np.testing.assert_allclose(taken, found, atol=1e-6)
    x, other = params["embed"][tokens_BS], embeddings_under(params, tokens_BS, edit.along(-known_BSD))
    np.testing.assert_allclose(other - x, x - found, atol=1e-6)


def test_the_direction_of_attack_is_found_in_a_fraction_of_the_memory_of_a_whole_batch():
    params, tokens_BS = trained(SHAPE), jnp.tile(tokens(SHAPE), (16, 1))[:16]

    def at_once(params, tokens_BS):
        edit = Edit(corruption=Corruption(attack=jnp.float32(1)))
        return model.apply(params, tokens_BS, SHAPE, edit).x_BSD

    def temporaries(f) -> int:
        return jax.jit(f).lower(params, tokens_BS).compile().memory_analysis().temp_size_in_bytes

    assert 3 * temporaries(lambda p, t: model.against(p, t, SHAPE)) < temporaries(at_once)


def test_targets_of_the_attack_stay_those_before_the_deletion():
    params, tokens_BS = trained(SHAPE), tokens(SHAPE)[:3, :-1]
    both = Corruption(key=KEY, delete=jnp.float32(0.5), attack=jnp.float32(0.1))
    corrupt_BS, source_BS = corrupt_tokens(tokens_BS, both, SHAPE.vocab)
    x = params["embed"][corrupt_BS]

    def loss(x):
        x_BSD = model.apply(
            {**params, "embed": x.reshape(-1, SHAPE.d_model)}, jnp.arange(24).reshape(3, 8), SHAPE
        )
        x_BSD = jnp.take_along_axis(x_BSD.x_BSD, source_BS[..., None], axis=1)
        return model.nll(params, x_BSD[:, :-1], tokens_BS, SHAPE).sum()

    g, before = (
        np.take_along_axis(np.asarray(a), np.asarray(source_BS)[..., None], axis=1)
        for a in (jax.jit(jax.grad(loss), **QUICK)(x), x)
    )
    step = np.asarray(embeddings_under(params, tokens_BS, Edit(corruption=both))) - before
    for b in range(3):
        cosine = (g[b] * step[b]).sum() / np.linalg.norm(g[b]) / np.linalg.norm(step[b])
        assert cosine > 0.9999


def test_gradients_pass_by_the_attack():
    params, tokens_BT = trained(SHAPE), tokens(SHAPE)

    @functools.partial(jax.jit, **QUICK)
    @jax.grad
    def gradient(params):
        x_BSD = model.apply(params, tokens_BT[:, :-1], SHAPE, edit_of("attack", jnp.float32(0.3))).x_BSD
        return model.nll(params, x_BSD, tokens_BT, SHAPE).mean()

    for leaf in jax.tree.leaves(gradient(params)):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_weights_stay_and_only_the_draw_is_random(name):
    method, params = METHODS[name](SHAPE), trained(SHAPE)
    edit = edit_of(name, jnp.float32(0.5))
    assert tuple(method.cost(params, edit, 0.5)) == (0, 0, 16, 1)
    assert method.hold(params, edit) is params
    assert not method.local
    states = [jax.tree.leaves(method.fit(params, tokens(SHAPE), jax.random.key(s))) for s in (1, 2)]
    differ = any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*states, strict=True))
    assert differ == method.random == (name != "attack")


@pytest.mark.parametrize("scope", [{"layers": (0, 1)}, {"head": 0}, {"matrices": ("q",)}])
@pytest.mark.parametrize("name", METHODS)
def test_a_scope_means_nothing(name, scope):
    with pytest.raises(ValueError, match=r"scope\.\w+ = .*before the first block; leave it out"):
        METHODS[name](SHAPE, Scope(**scope))
