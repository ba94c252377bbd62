"""States along a continuation, against whole forward passes in float64 and where it is known when they part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model
from degrade_cases import QUICK
from deviation_reference import quantities
from test_continuation import SHAPE, TOKENS, C, P, drawn, shaken, view_of
from test_sweep import rows_of, splits_of, subject_of

from wane.eval.metrics import continuation
from wane.eval.metrics.deviation_spaces import noise_key, noisy
from wane.eval.metrics.deviation_steps import METRICS, TEXTS, states
from wane.eval.study import Degrade, Evaluation
from wane.scaling.corrupt import Corruption
from wane.scaling.edit import Edit
from wane.train.data import Data, open_data

OCTAVE = np.floor(np.log2(1 + np.arange(C)))


@functools.partial(jax.jit, **QUICK)
def measured(params, edit):
    """(what both models say greedily, states under noise [2 B, C, D], name -> (sums, counts) of every metric)."""
    view = view_of(params, edit)
    said = {name: heard.tokens_UBC[0] for name, heard in continuation.said(view).items()}
    dense = states(view, "dense", "dense")
    moved = jnp.concatenate([states(view, "degraded", text) for text in TEXTS.values()])
    under_noise = noisy(jnp.concatenate([dense, dense]), moved, noise_key(view))
    return said, under_noise, {metric.name: metric.measure(view) for metric in METRICS}


def final_states(params, rows):
    """Behind the last block, in float64 [rows, S, D]."""
    x = params["embed"][rows]
    for l in range(SHAPE.n_layers):
        weights = {name: leaf[l] for name, leaf in params["blocks"].items()}
        x = reference_model.block(weights, x, SHAPE, {}, reference_model.site_rounder(None, l))
    return x


def test_every_quantity_against_whole_forward_passes():
    params = drawn()
    edit = shaken(params, ("q", "v", "up"))
    edit.params["unembed"] = params["unembed"] * 1.1  # each model reads its states by its own
    said, under_noise, found = measured(params, edit)
    dense = reference_model.cast(params, np.float64)
    degraded = reference_model.override(dense, reference_model.cast(edit.params, np.float64))
    B, told = len(TOKENS), {}
    for b, prompt in enumerate(np.asarray(TOKENS)[:, :P]):
        rows = {
            name: np.concatenate([prompt, np.asarray(said[name])[b]])[None] for name in continuation.MODELS
        }
        before = final_states(dense, rows["dense"])[0, P - 1 : -1]
        for t, (text, whose) in enumerate(TEXTS.items()):
            after = final_states(degraded, rows[whose])[0, P - 1 : -1]
            for step in range(C):
                trio = before[step], after[step], under_noise[t * B + b, step]
                for name, of in quantities((dense, degraded), SHAPE, trio).items():
                    for part, v in of.items():
                        told.setdefault((f"{name}_by_step", b, f"{text}, {part}"), np.zeros(C))[step] = v
    places = {m.name: m.places(SHAPE) for m in METRICS}
    assert {key[0] for key in told} == places.keys()
    for name, (sums, counts) in found.items():
        assert sums.shape == counts.shape == (B, len(places[name]))
        for (b, i), count in np.ndenumerate(np.asarray(counts)):
            place = places[name][i]
            mine = np.log2(place.at) == OCTAVE
            assert count == mine.sum()
            expected = told[name, b, place.part][mine].sum()
            assert sums[b, i] == pytest.approx(expected, rel=5e-3, abs=1e-4), (name, place)


def means(found, name, part):
    """Of the octaves of steps that are reached."""
    places = next(m for m in METRICS if m.name == name).places(SHAPE)
    sums, counts = (np.asarray(a).sum(axis=0) for a in found[name])
    return [sums[i] / counts[i] for i, p in enumerate(places) if p.part == part and counts[i]]


def test_both_texts_are_one_until_the_models_part():
    """At the first step nothing is said yet; where nothing is degraded they never part."""
    params = drawn()
    _, _, found = measured(params, shaken(params, ("q", "v", "up")))
    own, same = (means(found, "deviation_kl_by_step", f"{text}, probability") for text in TEXTS)
    assert own[0] == pytest.approx(same[0], rel=1e-5)
    assert own[0] > 1e-3
    assert not np.allclose(own[1:], same[1:], rtol=1e-2)
    _, _, found = measured(params, shaken(params, ()))
    for text in TEXTS:
        np.testing.assert_allclose(means(found, "deviation_cosine_by_step", f"{text}, logit"), 1, atol=1e-5)
        np.testing.assert_allclose(means(found, "deviation_kl_by_step", f"{text}, probability"), 0, atol=1e-5)


def test_through_a_sweep():
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3))
    names = ("loss", "agreement_by_step", *(m.name for m in METRICS))
    subject.settings = Evaluation(metrics=names, sequences=3, batch=4, calibration_sequences=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
    assert {r["status"] for r in rows} == {"ok"}
    found = {(r["metric"], r["severity"], r["at"], r["part"]): r["value"] for r in rows if r["task"] == "all"}
    assert {key[2] for key in found if key[0] == "deviation_kl_by_step"} == {1, 2, 4, 8, 16}
    for step in (1, 2, 4, 8, 16):
        agreement = found["deviation_agreement_by_step", 0.5, step, "own text, probability"]
        assert agreement == pytest.approx(found["agreement_by_step", 0.5, step, "temperature 0"])


def test_corruption_of_the_input_is_refused():
    view = dataclasses.replace(view_of(drawn(), Edit()), edit=Edit(corruption=Corruption()))
    with pytest.raises(ValueError, match="input corruption"):
        jax.eval_shape(lambda: METRICS[0].measure(view))
