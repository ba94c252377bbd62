"""A passage read twice: models whose gain is known, and a slow reading in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, logits_of
from test_sweep import SHAPE, rows_of, splits_of, subject_of

from wane.eval.metrics import METRICS, copying
from wane.eval.metrics.copying import SOME
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation
from wane.scaling.edit import Edit, merge
from wane.scaling.model import Output, init_params
from wane.train.data import Data, open_data

SMALL = dataclasses.replace(SHAPE, n_layers=2, vocab=64)
V = SMALL.vocab


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda w: 3 * w, jax.jit(init_params, static_argnums=1)(jax.random.key(0), SMALL))


def measured(params, tokens_BT, edit):
    """Sums and counts [B] of loss change and accuracy."""
    B = len(tokens_BT)
    given = {"tokens_BT": tokens_BT, "counted_B": np.ones(B), "values_B2": np.zeros((B, 2), int)}
    batch = Batch(**dict.fromkeys(Batch._fields) | {name: jnp.asarray(a) for name, a in given.items()})
    view = View(
        shape=SMALL,
        params=params,
        degraded=merge(params, edit),
        edit=edit,
        batch=batch,
        x_BSD=None,
        stream=None,
    )
    return [METRICS[name].measure(view) for name in ("copying_loss_change", "copying_accuracy")]


compiled = jax.jit(measured, **QUICK)


@pytest.mark.parametrize("length", [33, 32])
def test_against_a_slow_reading(params, length):
    """Under an edit of weights and of heads, so that both have to be passed on."""
    tokens_BT = np.random.default_rng(0).integers(0, V, (SOME + 2, length))
    kept = jax.random.bernoulli(jax.random.key(1), 0.6, params["blocks"]["down"].shape)
    edit = Edit(
        params={"blocks": {"down": params["blocks"]["down"] * kept}},
        head_LH=jnp.asarray([[1.0, 0.0], [1.0, 1.0]]),
    )
    (change, count), (hits, again) = compiled(params, tokens_BT, edit)
    H = length // 2
    read_BS = np.concatenate([tokens_BT[:, :H]] * 2 + [tokens_BT[:, -1:]], axis=1)  # the last is not read
    logits_BSV = np.float64(logits_of(params, edit, read_BS, SMALL))
    for read, logits_SV, *found in list(zip(read_BS, logits_BSV, change, hits, strict=True))[::SOME]:
        told = []
        for s in range(H - 1):
            first, second = (
                np.log(np.exp(z).sum()) - z[read[s + 1]] for z in (logits_SV[s], logits_SV[H + s])
            )
            told.append((second - first, logits_SV[H + s].argmax() == read[s + 1]))
        np.testing.assert_allclose(found, np.sum(told, axis=0), atol=1e-3)
        assert abs(found[0]) > 0.1
    assert count.tolist() == again.tolist() == [H - 1, *[0] * (SOME - 1), H - 1, 0]
    assert not np.any(np.delete(change, [0, SOME]))


def test_without_blocks_nothing_is_gained(params):
    """A prediction from the current token alone is the same in both places."""
    off = Edit(attn_L=jnp.zeros(2), mlp_L=jnp.zeros(2))
    (change, count), _ = compiled(params, np.random.default_rng(0).integers(0, V, (3, 33)), off)
    np.testing.assert_allclose(change, 0, atol=1e-4)
    assert count.tolist() == [15, 0, 0]


def test_a_model_that_copies_gains_all_and_hits_all(params, monkeypatch):
    """One that says what followed the same token before, and guesses where it did not occur: log V is gained
    on every token of a passage of different tokens."""

    def predicted(tokens_BS):
        out = np.zeros((*tokens_BS.shape, V), np.float32)
        for b, row in enumerate(np.asarray(tokens_BS).tolist()):
            for s, token in enumerate(row):
                before = [i for i in range(s) if row[i] == token]
                if before:
                    out[b, s, row[before[-1] + 1]] = 50
        return out

    def inductive(params, tokens_BS, shape, edit):
        out = jax.ShapeDtypeStruct((*tokens_BS.shape, V), jnp.float32)
        return Output(jax.pure_callback(predicted, out, tokens_BS), None)

    monkeypatch.setattr(copying, "apply", inductive)
    monkeypatch.setattr(copying, "unembed", lambda params, x_BSD, shape: x_BSD)
    tokens_BT = np.stack([np.random.default_rng(b).permutation(V)[:33] for b in range(3)])
    (change, count), (hits, _) = measured(params, tokens_BT, Edit())
    np.testing.assert_allclose(change[0] / count[0], -np.log(V), rtol=1e-5)
    np.testing.assert_array_equal(hits, count)


def test_only_text_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("\n\n".join(f"line number {i} is one of {i * i}." for i in range(900)))
    sources = {"graded": 1, f"text:{tmp_path}/a.txt": 1}
    stream = open_data(Data(sources=sources, context=32, task_shares={"S": 1}), steps=4, batch_size=4)
    subject = subject_of(splits_of(stream, 9), 0, dataclasses.replace(SHAPE, vocab=stream.vocab))
    subject.settings = Evaluation(metrics=("loss", "copying"), sequences=9, batch=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
    rows = [row for row in rows if row["metric"] != "loss"]
    assert {row["task"] for row in rows} == {"all", "text:a.txt"}
    assert {row["count"] for row in rows} == {2 * 15}  # the first of each batch: rows 12 and 16 of 9 .. 17
    assert {row["metric"] for row in rows} == {"copying_loss_change", "copying_accuracy"}
