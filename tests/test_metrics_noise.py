"""Noise to signal of outputs: loops over tokens, cases whose noise is known, something of every kind of method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics_signal import params_of
from test_sweep import SHAPE

from wane.eval.measure import insides
from wane.eval.metrics import METRICS
from wane.eval.metrics.contract import Weights
from wane.eval.metrics.deviation_layers import COMPARED, PARTS
from wane.eval.metrics.deviation_spaces import sample, sampled
from wane.eval.metrics.few import EVERY
from wane.eval.metrics.noise import block_ratios, stream_ratios
from wane.eval.metrics.view import Batch, View
from wane.scaling.corrupt import Corruption
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where, severity_of
from wane.scaling.edit import Edit, merge
from wane.scaling.model import apply, block

NAMES = ("block_noise_to_signal", "layer_noise_to_signal")
SMALL = dataclasses.replace(SHAPE, vocab=64, context=40)
EXPERTS = dataclasses.replace(SMALL, n_experts=3, top_k=2)
BATCH = EVERY + 3  # two sequences of it are read


@functools.partial(jax.jit, static_argnames="shape")
def values_of(shape, params, edit, tokens_nBT, counted_nB):
    weights, totals = Weights(shape, params, merge(params, edit), edit), {}
    for tokens_BT, counted_B in zip(tokens_nBT, counted_nB, strict=True):
        (read,) = insides(NAMES)
        full = apply(params, tokens_BT[:, :-1], shape)
        out = apply(params, tokens_BT[:, :-1], shape, edit, keep=read)
        view = View(
            shape=shape, params=params, degraded=weights.degraded, edit=edit,
            batch=Batch(**dict.fromkeys(Batch._fields) | {"tokens_BT": tokens_BT, "counted_B": counted_B}),
            x_BSD=out.x_BSD, stream=jnp.concatenate([full.inner["block_in"], full.x_BSD[None]]),
            inside={read: out.inner},
        )  # fmt: skip
        for name in NAMES:
            sums = METRICS[name].gather(view)
            totals[name] = jax.tree.map(jnp.add, totals[name], sums) if name in totals else sums
    return [METRICS[name].values(totals[name], weights) for name in NAMES]


def tokens_of(shape, seed, batches=1, batch=BATCH):
    return np.random.default_rng(seed).integers(shape.vocab, size=(batches, batch, shape.context + 1))


def measured(shape, params, edit, tokens_nBT=None, counted=None):
    """(blocks [L, 3], their mean, what enters them [L]); counted: sequences of the last batch."""
    tokens_nBT = tokens_of(shape, 5) if tokens_nBT is None else tokens_nBT
    counted_nB = np.ones(tokens_nBT.shape[:2], np.float32)
    counted_nB[-1, counted:] *= counted is None
    blocks, entering = values_of(shape, params, edit, tokens_nBT, counted_nB)
    return np.reshape(blocks[:-1], (-1, 3)), float(blocks[-1]), np.asarray(entering)


def slow(shape, params, edit, tokens_nBT, counted):
    """The same, sums of float64 over tokens, blocks one at a time."""
    noise, signal = np.zeros((2, shape.n_layers, 4))
    layers, new = params["blocks"], merge(params, edit)["blocks"]
    for n, tokens_BT in enumerate(tokens_nBT):
        B = counted if n == len(tokens_nBT) - 1 else len(tokens_BT)
        full, bad = (apply(params, tokens_BT[:, :-1], shape, e).inner["block_in"] for e in (None, edit))
        for l in range(shape.n_layers):
            x, per_layer = full[l], jax.tree.map(lambda a, l=l: a[l], edit.per_layer())
            told = []
            for leaves, e in ((layers, None), (new, per_layer)):
                end, inner, _ = block(jax.tree.map(lambda a, l=l: a[l], leaves), x, shape, e)
                start, mid, end = (np.float64(a) for a in (x, inner["mid"], end))
                told.append((mid - start, end - mid, end - start))
            for p, (f, changed) in enumerate(zip(*told, strict=True)):
                for i in range(0, B, EVERY):
                    at = sampled(len(tokens_BT[::EVERY]), -(-shape.context // 2), COMPARED)[i // EVERY]
                    noise[l, p] += np.sum((changed[i, at] - f[i, at]) ** 2)
                    signal[l, p] += np.sum(f[i, at] ** 2)
            for i, (places, weights) in enumerate(zip(*sample(len(tokens_BT), shape.context), strict=True)):
                if i < B:
                    change = np.float64(bad[l, i, places]) - np.float64(x[i, places])
                    noise[l, 3] += weights @ np.sum(change**2, axis=1)
                    signal[l, 3] += weights @ np.sum(np.float64(x[i, places]) ** 2, axis=1)
    ratio = noise / signal
    return ratio[:, :3], ratio[:, PARTS.index("block")].mean(), ratio[:, 3]


@pytest.mark.parametrize("shape", [SMALL, EXPERTS], ids=["dense", "experts"])
def test_against_loops_over_tokens(shape):
    rng, params = np.random.default_rng(3), params_of(shape, 4)
    kept = {n: params["blocks"][n] * (rng.random(shape.full(n)) < 0.7) for n in ("q", "up")}
    edit = Edit(
        params={"blocks": kept},
        head_LH=jnp.array([[1.0, 0.0], [0.5, 1.0], [1.0, 1.0]]),
        bias={"v": jnp.asarray(rng.normal(size=(3, shape.n_heads * shape.head_dim)), jnp.float32)},
    )
    tokens_nBT = tokens_of(shape, 1, batches=2)
    found = measured(shape, params, edit, tokens_nBT, counted=2)
    for mine, theirs in zip(found, slow(shape, params, edit, tokens_nBT, 2), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=1e-9)
    assert found[2][0] == 0  # nothing stands before the first block
    assert (found[2][1:] > 0).all()


def test_a_sublayer_at_half_its_size_has_a_quarter_of_its_energy_as_noise():
    gates = {"attn_L": jnp.array([0.5, 1.0, 0.0]), "mlp_L": jnp.array([1.0, 0.25, 0.0])}
    blocks, mean, _ = measured(SMALL, params_of(SMALL, 8), Edit(**gates))
    np.testing.assert_allclose(blocks[:, 0], [0.25, 0, 1], atol=1e-5)
    np.testing.assert_allclose(blocks[1:, 1], [0.5625, 1], atol=1e-5)
    assert blocks[2, 2] == pytest.approx(1, abs=1e-5)
    assert mean == pytest.approx(float(blocks[:, 2].mean()), rel=1e-5)


def test_noise_on_embeddings_enters_the_first_block_with_its_own_energy():
    """Of severity times their root mean square in every sequence, so s^2; nothing acts inside blocks."""
    shape, s = dataclasses.replace(SMALL, context=256), 0.6
    edit = Edit(corruption=Corruption(key=jax.random.key_data(jax.random.key(2)), noise=jnp.float32(s)))
    blocks, mean, entering = measured(shape, params_of(shape, 2), edit, tokens_of(shape, 3, batch=60))
    assert entering[0] == pytest.approx(s**2, rel=0.05)
    assert (entering[1:] > 0.01).all()
    np.testing.assert_allclose(blocks, 0, atol=1e-9)
    assert mean == pytest.approx(0, abs=1e-9)


def test_noise_where_there_was_no_signal_is_not_told_as_none():
    """Of a layer that adds nothing: undefined, and so is the mean over blocks; nothing of nothing is 0."""
    noise_LP, signal_LP = jnp.array([[1.0, 0, 1], [2, 2, 4]]), jnp.array([[4.0, 0, 4], [0, 1, 0]])
    told = block_ratios((noise_LP, signal_LP), None)
    np.testing.assert_array_equal(told, [0.25, 0, 0.25, np.nan, 2, np.nan, np.nan])
    np.testing.assert_array_equal(block_ratios((noise_LP[:1], signal_LP[:1]), None)[-1], 0.25)
    np.testing.assert_array_equal(stream_ratios((noise_LP[1], signal_LP[1]), None), [np.nan, 2, np.nan])


def test_the_identity_has_no_noise():
    blocks, mean, entering = measured(SMALL, params_of(SMALL, 6), Edit())
    np.testing.assert_allclose([*blocks.ravel(), mean, *entering], 0, atol=1e-9)


INSIDE = {  # method: setting, settings
    "random_weights": (0.3, {}), "rtn": (4.0, {}), "activations": (4.0, {}), "kv_cache": (3.0, {}),
    "random_heads": (0.5, {}), "slicegpt": (0.3, {}), "random_dimensions": (0.3, {}),
    "early_exit": (0.5, {"lens": "tuned", "steps": 2}), "remove_layers": (0.5, {}), "gaussian_noise": (0.2, {}),
    "fewer_experts": (0.5, {}),
}  # fmt: skip
BEFORE = {
    "substitute_tokens": 0.3, "delete_tokens": 0.3, "embedding_noise": 0.3, "embedding_attack": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", [*INSIDE, *BEFORE])
def test_whatever_is_done_has_noise_where_it_is_done(name):
    shape = EXPERTS if name == "fewer_experts" else SMALL
    setting, settings = INSIDE.get(name, (BEFORE.get(name), {}))
    method, params, key = build(name, shape, settings=settings), params_of(shape, 9), jax.random.key(5)
    tokens_NT = jnp.asarray(tokens_of(shape, 12, batch=8)[0])
    edit = jax.jit(
        lambda params: method.apply(
            params, method.fit(params, tokens_NT, key), jnp.float32(severity_of(setting, method.unit)),
            Where.everywhere(shape), key,
        ).acting()
    )(params)  # fmt: skip
    blocks, mean, entering = measured(shape, params, edit)
    if name in INSIDE:
        assert mean > 1e-5
        assert blocks[:, PARTS.index("block")].max() > 1e-5
    else:
        np.testing.assert_allclose(blocks, 0, atol=1e-9)
        assert (entering > 1e-5).all()
