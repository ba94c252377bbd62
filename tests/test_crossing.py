"""Crossed generation and crossed attention paths, in float64 and where it is known which of them is touched."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK
from reference_model import block, cast, mlp, norm, rope, site_rounder
from test_continuation import SHAPE, TOKENS, C, P, drawn, shaken, view_of
from test_sweep import rows_of, splits_of, subject_of, value

from wane.eval.metrics import continuation, crossing
from wane.eval.study import Degrade, Evaluation
from wane.scaling.edit import Edit
from wane.train.data import Data, open_data

GROUPED = dataclasses.replace(SHAPE, n_heads=4, n_kv_heads=2, head_dim=4)
ZERO = dict.fromkeys((f"{x},{y},{z}" for x, y, z in crossing.COMBINATIONS), 0.0)


@functools.partial(jax.jit, **QUICK)
def crossed(params, edit):
    """(what both models say greedily, sums and counts [B, 8])."""
    view = view_of(params, edit)
    said = {name: heard.tokens_UBC[0] for name, heard in continuation.said(view).items()}
    return said, crossing.crossed_kl(view)


def by_part(params, edit):
    """part -> mean of crossed_kl."""
    sums, counts = crossed(params, edit)[1]
    places = crossing.combinations(SHAPE)
    assert sums.shape == counts.shape == (len(TOKENS), len(places))
    values = np.asarray(sums).sum(0) / np.asarray(counts).sum(0)
    return dict(zip((p.part for p in places), values.tolist(), strict=True))


def layers_of(params):
    """Of parameters in float64, the weights of every layer."""
    return [{name: leaf[l] for name, leaf in params["blocks"].items()} for l in range(SHAPE.n_layers)]


def projected(weights, name, x_SD, first):
    """[S, heads, K] at positions first, first + 1, ..; queries and keys turned."""
    x_SD = norm(x_SD, weights["attn_norm_scale"], None, SHAPE.norm_eps)
    y_SHK = (x_SD @ weights[name]).reshape(len(x_SD), -1, SHAPE.head_dim)
    if name == "v":
        return y_SHK
    padded = np.concatenate([np.zeros((first, *y_SHK.shape[1:])), y_SHK])
    return np.stack([rope(head, SHAPE.rope_theta) for head in padded.swapaxes(0, 1)], axis=1)[first:]


def slow_logits(reader, owner, prompt_P, text_C):
    """Logits [C, V] of `reader` on the text behind the prompt whose keys and values are the owner's."""
    x_PD, y_CD = owner["embed"][prompt_P], reader["embed"][text_C]
    for mine, theirs in zip(layers_of(reader), layers_of(owner), strict=True):
        q = projected(mine, "q", y_CD, P)
        k, v = (
            np.concatenate([projected(theirs, name, x_PD, 0), projected(mine, name, y_CD, P)])
            for name in "kv"
        )
        heads = np.zeros_like(q)
        for c, h in np.ndindex(q.shape[:2]):
            weight = np.exp(k[: P + c + 1, h] @ q[c, h] / np.sqrt(SHAPE.head_dim))
            heads[c, h] = weight / weight.sum() @ v[: P + c + 1, h]
        x_PD = block(theirs, x_PD[None], SHAPE, {}, site_rounder(None, 0))[0]
        y_CD = y_CD + heads.reshape(len(y_CD), -1) @ mine["o"] * SHAPE.residual_scale
        inside = norm(y_CD, mine["mlp_norm_scale"], None, SHAPE.norm_eps)
        y_CD = y_CD + mlp(mine, inside[None], SHAPE, {}, site_rounder(None, 0))[0] * SHAPE.residual_scale
    final = norm(y_CD, reader["final_norm"]["scale"], None, SHAPE.norm_eps)
    return final @ reader["unembed"] / SHAPE.parametrization.width_ratio(SHAPE.d_model)


def test_all_combinations_in_float64():
    params = drawn()
    edit = shaken(params, ("k", "v", "down"))
    said, (sums, counts) = crossed(params, edit)
    degraded = params | {"blocks": params["blocks"] | edit.params["blocks"]}
    models = {"dense": cast(params, np.float64), "degraded": cast(degraded, np.float64)}
    expected = np.zeros(sums.shape)
    for b, row in enumerate(np.asarray(TOKENS)):
        p_dense = None
        for i, (reader, owner, speaker) in enumerate(crossing.COMBINATIONS):
            z = slow_logits(models[reader], models[owner], row[:P], np.asarray(said[speaker])[b])
            log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
            p_dense = log_p if p_dense is None else p_dense
            expected[b, i] = (np.exp(p_dense) * (p_dense - log_p)).sum()
    np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(counts, C)
    assert expected[:, 0].max() == 0
    assert len(np.unique(expected.sum(0).round(4))) == 8  # no two combinations are the same


def test_what_is_not_degraded_costs_nothing():
    params = drawn()
    assert by_part(params, shaken(params, ())) == pytest.approx(ZERO, abs=1e-6)


def test_only_the_last_layer_output_leaves_the_prompt_cache_as_it_is():
    """No key and no value of any layer reads what the last block's MLP writes."""
    params = drawn()
    edit = shaken(params, ())
    down = edit.params["blocks"]["down"]
    edit.params["blocks"]["down"] = down.at[-1].multiply(-1)
    found = by_part(params, edit)
    assert found["dense,degraded,dense"] == pytest.approx(0, abs=1e-6)
    assert found["degraded,degraded,dense"] == pytest.approx(found["degraded,dense,dense"], rel=1e-4)
    assert found["degraded,dense,dense"] > 0.01
    assert found["dense,dense,degraded"] > 0.01  # what is said is different


@functools.partial(jax.jit, **QUICK)
def changed(params, edit):
    view = view_of(params, edit, shape=GROUPED)
    return view.stream, crossing.path_changes(view), crossing.path_change(view)


def slow_changes(params, edited, stream):
    """[L, 3, b, Q], a query and a head at a time, of one sequence of twenty."""
    S, groups = SHAPE.context, GROUPED.n_heads // GROUPED.n_kv_heads
    at_Q = [S - 1 - i * S // crossing.QUERIES for i in range(crossing.QUERIES)]
    looked_at = range(0, len(TOKENS), crossing.EVERY)
    out = np.zeros((SHAPE.n_layers, 3, len(looked_at), len(at_Q)))
    for l, b in np.ndindex(SHAPE.n_layers, len(looked_at)):
        w, v = [], []
        for model in (params, edited):
            weights = {name: leaf[l] for name, leaf in cast(model["blocks"], np.float64).items()}
            x_SD = norm(np.float64(stream[l, looked_at[b]]), weights["attn_norm_scale"], None, SHAPE.norm_eps)
            q, k, value_SGK = ((x_SD @ weights[n]).reshape(S, -1, GROUPED.head_dim) for n in "qkv")
            q, k = (np.stack([rope(t[:, h], SHAPE.rope_theta) for h in range(t.shape[1])], 1) for t in (q, k))
            q = q / np.sqrt(GROUPED.head_dim)
            w.append(lambda s, h, q=q, k=k: softmax(k[: s + 1, h // groups] @ q[s, h]))
            v.append(value_SGK)
        for i, s in enumerate(at_Q):
            y = np.array([[np.concatenate([w[m](s, h) @ v[n][: s + 1, h // groups] for h in range(4)])
                           for n in (0, 1)] for m in (0, 1)])  # fmt: skip
            change = np.linalg.norm([y[1, 0] - y[0, 0], y[0, 1] - y[0, 0], y[1, 1] - y[0, 0]], axis=1)
            out[l, :, b, i] = change / np.linalg.norm(y[0, 0])
    return out


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_paths_in_float64():
    params = drawn(GROUPED)
    edit = shaken(params, ("q", "k", "v"))
    stream, changes, (sums, counts) = changed(params, edit)
    expected = slow_changes(params, {"blocks": params["blocks"] | edit.params["blocks"]}, stream)
    np.testing.assert_allclose(changes, expected, rtol=1e-3, atol=1e-5)
    assert expected.min(axis=(2, 3)).max() > 0
    totals = np.concatenate([layer.sum(axis=-1) for layer in expected])
    np.testing.assert_allclose(sums[:: crossing.EVERY], totals.T, rtol=1e-3)
    np.testing.assert_array_equal(counts[:: crossing.EVERY], crossing.QUERIES)
    looked_at = np.arange(len(TOKENS)) % crossing.EVERY == 0
    assert not np.any(counts[~looked_at])
    assert [tuple(p[i] for i in (1, 3)) for p in crossing.paths_of_layers(GROUPED)][3] == (1.0, "weights")


def paths(edit, params=None):
    """[L, 3], means of the weights, the values and both."""
    return np.asarray(changed(drawn(GROUPED) if params is None else params, edit)[1]).mean(axis=(2, 3))


def bits(name):
    return Edit(cache_bits={name: jnp.full(2, 2.0)})


@pytest.mark.parametrize("edit", [lambda: shaken(drawn(GROUPED), ("v",)), lambda: bits("v")])
def test_what_changes_only_values(edit):
    weights, values, both = paths(edit()).T
    np.testing.assert_allclose(weights, 0, atol=1e-6)
    np.testing.assert_allclose(values, both, rtol=1e-4)
    assert values.min() > 0.05


@pytest.mark.parametrize("edit", [lambda: shaken(drawn(GROUPED), ("k",)), lambda: bits("k")])
def test_what_changes_only_weights(edit):
    weights, values, both = paths(edit()).T
    np.testing.assert_allclose(values, 0, atol=1e-6)
    np.testing.assert_allclose(weights, both, rtol=1e-4)
    assert weights.min() > 0.05


def test_what_touches_neither():
    np.testing.assert_allclose(paths(shaken(drawn(GROUPED), ("o", "up"))), 0, atol=1e-6)


def test_removed_heads_and_sublayers_are_values():
    gone = Edit(head_LH=jnp.ones((2, 4)).at[0].set(0), attn_L=jnp.array([1.0, 0]))
    np.testing.assert_allclose(paths(gone), [[0, 1, 1], [0, 1, 1]], atol=1e-6)


def test_a_layer_reads_the_stream_as_the_edit_leaves_it_before_its_block():
    """Of the five places of the stream the third stands before the second block."""
    stream = Edit(residual_XD=jnp.ones((5, 16)).at[2].set(0))
    np.testing.assert_allclose(paths(stream)[0], 0, atol=1e-6)
    np.testing.assert_allclose(paths(stream)[1, 1:], 1, atol=1e-6)  # without keys it looks everywhere alike


def test_through_a_sweep():
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3))
    names = ("loss", *(metric.name for metric in crossing.METRICS))
    subject.settings = Evaluation(metrics=names, sequences=3, batch=4, calibration_sequences=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
    found = [r for r in rows if r["metric"] != "loss" and r["task"] == "all"]
    assert len(found) == 2 * (8 + 3 * 3)
    assert max(abs(r["value"]) for r in found if r["severity"] == 0) < 1e-5
    everything = value(rows, "crossed_kl", severity=0.5, part="degraded,degraded,degraded")
    assert everything > value(rows, "crossed_kl", severity=0.5, part="dense,degraded,dense") > 0
    assert value(rows, "attention_path_change", severity=0.5, at=2.0, part="values") > 0.1
