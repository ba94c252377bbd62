"""Signal gain and noise to signal: loops over tokens, what theory says, the rows of a sweep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import EVALUATION, SHAPE, splits_of, subject_of

from wane.eval.cell import sweep
from wane.eval.metrics import METRICS, chosen
from wane.eval.metrics.contract import Weights
from wane.eval.metrics.signal import EVERY, second_moments
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade
from wane.eval.subject import Subject
from wane.scaling.degrade.calibrate import site_of
from wane.scaling.edit import Edit, fold, merge
from wane.scaling.model import apply, init_params
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

NAMES = chosen(("signal",))
EXPERTS = dataclasses.replace(SHAPE, n_experts=3, top_k=2, vocab=64, context=16)
BATCH = EVERY + 3  # two sequences of it are read


def params_of(shape, seed=0):
    return jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(seed), shape))


def batch_of(shape, seed, counted=BATCH):
    rng = np.random.default_rng(seed)
    tokens_BT = jnp.asarray(rng.integers(shape.vocab, size=(BATCH, shape.context + 1)), jnp.int32)
    counted_B = (jnp.arange(BATCH) < counted) * 1.0
    return Batch(**dict.fromkeys(Batch._fields) | {"tokens_BT": tokens_BT, "counted_B": counted_B})


@functools.partial(jax.jit, static_argnames="shape")
def totals_of(shape, params, edit, tokens_nBT, counted_nB):
    """Metric -> values [P] over all batches."""
    weights, totals = Weights(shape, params, merge(params, edit), edit), {}
    for tokens_BT, counted_B in zip(tokens_nBT, counted_nB, strict=True):
        view = View(
            shape=shape, params=params, degraded=weights.degraded, edit=edit,
            batch=Batch(**dict.fromkeys(Batch._fields) | {"tokens_BT": tokens_BT, "counted_B": counted_B}),
            x_BSD=apply(params, tokens_BT[:, :-1], shape, edit).x_BSD,
            stream=apply(params, tokens_BT[:, :-1], shape).x_BSD[None],
        )  # fmt: skip
        for name in NAMES:
            sums = METRICS[name].gather(view)
            totals[name] = jax.tree.map(jnp.add, totals[name], sums) if name in totals else sums
    return {name: METRICS[name].values(sums, weights) for name, sums in totals.items()}


def measured(shape, params, edit, batches):
    tokens_nBT, counted_nB = ([getattr(b, n) for b in batches] for n in ("tokens_BT", "counted_B"))
    return {name: np.asarray(v) for name, v in totals_of(shape, params, edit, tokens_nBT, counted_nB).items()}


def slow(shape, params, edit, batches):
    """Gain and noise to signal, token by token, in float64."""
    power, apart, noise, signal = (np.zeros((len(shape.matrices), shape.n_layers)) for _ in range(4))
    folded = {name: np.float64(w) for name, w in fold(params, edit, shape).items()}
    for batch in batches:
        inner = jax.tree.map(np.float64, apply(params, batch.tokens_BT[:, :-1], shape).inner)
        read = [b for b in range(0, BATCH, EVERY) if batch.counted_B[b]]
        for b, s, l in np.ndindex(len(read), shape.context, shape.n_layers):
            for m, name in enumerate(shape.matrices):
                x = inner[site_of(name)][l, read[b], s]
                bias = np.float64(edit.bias[name][l]) if edit.bias and name in edit.bias else 0.0
                trained, new = np.float64(params["blocks"][name][l]), folded[name][l]
                served = range(1)
                if trained.ndim == 3:
                    served = np.flatnonzero(inner["route"][l, read[b], s])
                    assert len(served) == shape.top_k
                for e in served:
                    x_e = x[e] if x.ndim == 2 else x
                    w, w_new = (trained, new) if trained.ndim == 2 else (trained[e], new[e])
                    power[m, l] += np.sum((x_e @ w_new) ** 2)
                    apart[m, l] += np.sum(w_new**2 * x_e[:, None] ** 2)
                    noise[m, l] += np.sum((x_e @ w_new + bias - x_e @ w) ** 2)
                    signal[m, l] += np.sum((x_e @ w) ** 2)
    return (power / apart).ravel(), (noise / signal).ravel()


def pruned(shape, params, keep=0.6, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    kept = {n: params["blocks"][n] * (rng.random(shape.full(n)) < keep) * scale for n in shape.matrices}
    return Edit(params={"blocks": kept})


@pytest.mark.parametrize("case", ["weights", "units and means", "grouped queries", "experts"])
def test_against_loops_over_tokens(case):
    rng = np.random.default_rng(3)
    shape = dataclasses.replace(SHAPE, vocab=64, context=16)
    shape = {"experts": EXPERTS, "grouped queries": dataclasses.replace(shape, n_kv_heads=1)}.get(case, shape)
    params = params_of(shape)
    edit = pruned(shape, params)
    if case == "units and means":
        bias = {"q": (3, 16), "down": (3, 16)}
        edit = dataclasses.replace(
            edit,
            neuron_LF=jnp.asarray(rng.choice([0, 0.5, 1], (3, 24)), jnp.float32),
            head_LH=jnp.array([[1.0, 0.0], [0.5, 1.0], [1.0, 1.0]]),
            bias={name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in bias.items()},
        )
    batches = [
        batch_of(shape, 0),
        batch_of(shape, 1, counted=2),
    ]  # of the last only the first sequence counts
    found, expected = measured(shape, params, edit, batches), slow(shape, params, edit, batches)
    np.testing.assert_allclose(found["signal_gain"], expected[0], rtol=2e-4)
    np.testing.assert_allclose(found["noise_to_signal"], expected[1], rtol=2e-4)


def test_the_noise_of_the_stream_against_loops():
    shape = dataclasses.replace(SHAPE, vocab=64, context=16)
    params = params_of(shape)
    edit, batches = pruned(shape, params), [batch_of(shape, 0), batch_of(shape, 1, counted=2)]
    found, change, total = measured(shape, params, edit, batches), 0.0, 0.0
    for batch in batches:
        h, full = (np.float64(apply(params, batch.tokens_BT[:, :-1], shape, e).x_BSD) for e in (edit, None))
        for b in np.flatnonzero(batch.counted_B):
            change += ((h[b] - full[b]) ** 2).sum()
            total += (full[b] ** 2).sum()
    assert found["stream_noise_to_signal"] == pytest.approx(change / total, rel=1e-4)


def test_the_bias_of_a_removed_sublayer_is_gone_with_it():
    shape = dataclasses.replace(SHAPE, vocab=64, context=16)
    params, gone = params_of(shape), jnp.array([1.0, 0.0, 1.0])
    edit = Edit(attn_L=gone, bias={"o": jnp.ones((3, 16))})
    ratio = measured(shape, params, edit, [batch_of(shape, 0)])["noise_to_signal"].reshape(-1, 3)[3]
    assert ratio[1] == pytest.approx(1, abs=1e-5)
    assert abs(ratio[0] - 1) > 0.1
    assert measured(shape, params, edit, [batch_of(shape, 0)])["signal_gain"].reshape(-1, 3)[3][1] == 0


def test_what_is_added_to_the_output_of_a_matrix_of_zeros_is_not_told_as_no_noise():
    shape = dataclasses.replace(SHAPE, vocab=64, context=16)
    params = params_of(shape)
    silent = params | {"blocks": params["blocks"] | {"up": params["blocks"]["up"].at[1].set(0)}}
    edits = Edit(bias={"up": jnp.ones((3, 24))}), Edit()
    added, left = (
        measured(shape, silent, edit, [batch_of(shape, 0)])["noise_to_signal"].reshape(-1, 3)
        for edit in edits
    )
    up = list(shape.matrices).index("up")
    assert np.isnan(added[up, 1])
    assert np.isfinite(np.delete(added.ravel(), 3 * up + 1)).all()
    np.testing.assert_array_equal(left, 0)


@pytest.mark.parametrize("width", [16, 48, 96])
def test_the_gain_is_1_at_initialisation_at_every_width(width):
    shape = Shape(
        d_model=width, n_layers=2, n_heads=2, head_dim=width // 2, d_ff=2 * width, vocab=64, context=16
    )
    gains_R = []
    for seed in range(24):
        params = init_params(jax.random.key(seed), shape)
        gains_R.append(measured(shape, params, Edit(), [batch_of(shape, seed)])["signal_gain"].mean())
    error = np.std(gains_R, ddof=1) / np.sqrt(len(gains_R))
    assert abs(np.mean(gains_R) - 1) < 3 * error < 0.1


def test_random_pruning_has_the_noise_that_the_gain_predicts():
    """science: rescaled random pruning at s has noise to signal s / ((1 - s) gain), whatever the gain."""
    shape, s = dataclasses.replace(SHAPE, vocab=64, context=16), 0.4
    params, batches = params_of(shape), [batch_of(shape, 0)]
    # matrices that look where their inputs are: every column gains the inputs' strongest direction
    view = View(
        shape=shape, params=params, degraded=params, edit=Edit(), batch=batches[0], x_BSD=None, stream=None
    )
    strongest_LI = jnp.linalg.eigh(jax.jit(lambda: second_moments(view)["mlp_in"])()[:, :-1, :-1])[1][..., -1]
    up = params["blocks"]["up"] + strongest_LI[..., None]
    coherent = {**params, "blocks": {**params["blocks"], "up": up}}
    place = 3 * list(shape.matrices).index("up")
    gain = measured(shape, coherent, Edit(), batches)["signal_gain"][place]
    assert gain > 1.5 * measured(shape, params, Edit(), batches)["signal_gain"][place]
    noise = [
        measured(shape, coherent, pruned(shape, coherent, 1 - s, 1 / (1 - s), seed), batches)
        for seed in range(12)
    ]
    ratios = np.array([values["noise_to_signal"][place] for values in noise])
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert abs(ratios.mean() - s / ((1 - s) * gain)) < 3 * error
    assert 6 * error < s / (1 - s) - ratios.mean()  # the gain is seen


def test_a_sweep_writes_a_row_per_matrix_and_layer():
    stream = open_data(Data(sources="graded", context=32, facts=16), steps=4, batch_size=4)
    evaluation = dataclasses.replace(EVALUATION, metrics=("loss", "signal"))
    plain = subject_of(splits_of(stream, 1))
    subject = Subject(plain.member, plain.params, plain.splits, evaluation)
    rows, _ = sweep(subject, Degrade(method="rtn", severities=(3.0,)), range(1), "cell", 1, lambda n: None)
    everywhere = [("layer", float(layer), part) for part in SHAPE.matrices for layer in range(3)]
    for metric in NAMES:
        for severity in {row["severity"] for row in rows}:
            mine = [row for row in rows if row["metric"] == metric and row["severity"] == severity]
            places = [(None, None, None)] if metric == "stream_noise_to_signal" else everywhere
            assert [(r["axis"], r["at"], r["part"]) for r in mine] == places
            values = [row["value"] for row in mine]
            if metric == "signal_gain":
                assert all(value > 0 for value in values)
            elif severity == 0:
                assert values == [0] * len(mine)
            else:
                assert all(0 < value < 1 for value in values)
