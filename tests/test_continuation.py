"""Continuations against whole forward passes in float64, their measures against loops, and known speakers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model
from degrade_cases import QUICK
from test_sweep import SHAPE as GRADED
from test_sweep import rows_of, splits_of, subject_of, value

from wane.eval.metrics import continuation, saying
from wane.eval.metrics.contract import Metric
from wane.eval.metrics.view import Batch, View
from wane.eval.samples import Sample, behind, continuations, samples_section, samples_text, told
from wane.eval.study import Degrade, Evaluation
from wane.scaling.corrupt import Corruption
from wane.scaling.edit import Edit, merge
from wane.scaling.model import apply, init_params
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=24, vocab=24, context=18)
P, C, U = 9, 9, len(continuation.TEMPERATURES)
TOKENS = jax.random.randint(jax.random.key(9), (3, SHAPE.context + 1), 0, SHAPE.vocab)
METRIC: dict[str, Metric] = {metric.name: metric for metric in continuation.METRICS}


def drawn(shape=SHAPE, scale=3.0):
    """Random parameters of which a prediction is not flat."""
    return jax.tree.map(lambda w: scale * w, init_params(jax.random.key(0), shape))


def shaken(params, names, size=0.3):
    """An edit that adds noise to some block matrices; it replaces all of them, so that edits share a program."""
    keys = dict(zip(names, jax.random.split(jax.random.key(5), len(names)), strict=True))
    blocks = {
        name: w * (1 + size * jax.random.normal(keys[name], w.shape)) if name in keys else w
        for name, w in params["blocks"].items()
        if name in SHAPE.matrices
    }
    return Edit(params={"blocks": blocks})


def view_of(params, edit, tokens_BT=TOKENS, shape=SHAPE):
    tokens_BS = tokens_BT[:, :-1]
    full, out = (apply(params, tokens_BS, shape, e) for e in (None, edit))
    others = {f: jnp.zeros(1) for f in Batch._fields if f not in ("tokens_BT", "scored_BS", "counted_B")}
    counts = {"scored_BS": jnp.ones(tokens_BS.shape, bool), "counted_B": jnp.ones(len(tokens_BS))}
    return View(
        shape=shape, params=params, degraded=merge(params, edit), edit=edit, x_BSD=out.x_BSD,
        stream=jnp.concatenate([full.inner["block_in"], full.x_BSD[None]]),
        batch=Batch(tokens_BT=tokens_BT, **counts, **others),
    )  # fmt: skip


def slow(params, edit, tokens_BT):
    """Tokens [U, B, C] and entropies, from a float64 forward pass of everything so far for every token."""
    key_B, blocks = saying.noise_keys(tokens_BT[:, :P]), (edit.params or {}).get("blocks", {})
    trained = jax.tree.map(np.asarray, params)
    edited = {"params": {"blocks": jax.tree.map(np.asarray, blocks)}}
    tokens, entropies = [], []
    for temperature in continuation.TEMPERATURES:
        rows, told = np.asarray(tokens_BT[:, :P]), []
        for step in range(C):
            logits_BV = reference_model.forward(trained, rows, SHAPE, edit=edited)[:, -1]
            noise_BV = np.asarray(saying.noise_at(key_B, step, SHAPE.vocab), np.float64)
            p_BV = np.exp(logits_BV) / np.exp(logits_BV).sum(1, keepdims=True)
            told.append(-(p_BV * np.log(p_BV)).sum(1))
            said_B = (logits_BV + temperature * noise_BV).argmax(1)
            rows = np.concatenate([rows, said_B[:, None]], axis=1)
        tokens.append(rows[:, P:])
        entropies.append(np.stack(told, axis=1))
    return np.stack(tokens), np.stack(entropies)


@functools.partial(jax.jit, **QUICK)
def heard(params, edit, tokens_BT=TOKENS):
    """What both models say, and name -> (sums, counts) [B, places] of every metric."""
    view = view_of(params, edit, tokens_BT)
    return continuation.said(view), {name: metric.measure(view) for name, metric in METRIC.items()}


def test_both_models_say_what_whole_forward_passes_say():
    params = drawn()
    edit = shaken(params, ("q", "v", "up"))
    found, _ = heard(params, edit)
    expected = slow(params, Edit(), TOKENS), slow(params, edit, TOKENS)
    for name, (tokens, entropies) in zip(continuation.MODELS, expected, strict=True):
        np.testing.assert_array_equal(found[name].tokens_UBC, tokens)
        np.testing.assert_allclose(found[name].entropy_UBC, entropies, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(expected[0][0], expected[1][0])
    assert not np.array_equal(expected[1][0][0], expected[1][0][2])  # the temperature makes a difference


def loops(mine, theirs, entropies, u, b):
    """name -> (sums, counts) of one continuation, of all places of one temperature, by loops over its tokens."""
    same = [int(x == y) for x, y in zip(mine, theirs, strict=True)]
    runs = {n: [tuple(mine[i : i + n]) for i in range(C - n + 1)] for n in (1, 2, 3, 4)}
    octaves = [[same[i] for i in range(C) if o <= i + 1 < 2 * o] for o in (1, 2, 4, 8, 16, 32)]
    out = {"first_divergence": ([(same + [0]).index(0)], [1])}
    out["agreement_by_step"] = [sum(s) for s in octaves], [len(s) for s in octaves]
    out |= {f"distinct_{n}": ([len(set(runs[n]))], [len(runs[n])]) for n in (1, 2, 3)}
    out["repetition"] = [sum(run in runs[4][:i] for i, run in enumerate(runs[4]))], [len(runs[4])]
    return out | {"output_entropy": ([entropies[u, b].sum()], [C])}


def test_every_metric_against_loops_over_tokens():
    params = drawn()
    said, found = heard(params, shaken(params, ("v", "down")))
    mine, theirs = (np.asarray(said[name].tokens_UBC).tolist() for name in ("degraded", "dense"))
    entropies = np.asarray(said["degraded"].entropy_UBC, np.float64)
    for name, metric in METRIC.items():
        assert {a.shape for a in found[name]} == {(len(TOKENS), len(metric.places(SHAPE)))}
    for u in range(U):
        for b in range(len(TOKENS)):
            for name, (sums, counts) in loops(mine[u][b], theirs[u][b], entropies, u, b).items():
                places = slice(u * len(sums), (u + 1) * len(sums))
                np.testing.assert_allclose(found[name][0][b, places], sums, rtol=1e-5, err_msg=name)
                np.testing.assert_array_equal(found[name][1][b, places], counts, err_msg=name)
    assert len(np.unique(found["first_divergence"][0])) > 2


def test_runs_that_came_before():
    said = jnp.asarray([[[1, 2, 1, 2, 1, 2, 1]]])
    expected = {1: [0, 0, 1, 1, 1, 1, 1], 2: [0, 0, 1, 1, 1, 1], 4: [0, 0, 1, 1], 8: []}
    for n, before in expected.items():
        assert continuation.said_before(said, n)[0, 0].tolist() == [bool(x) for x in before]


def test_a_model_that_knows_nothing_repeats_itself_greedily_and_is_as_unsure_as_can_be():
    params = drawn() | {"unembed": jnp.zeros((SHAPE.d_model, SHAPE.vocab))}
    _, found = heard(params, shaken(params, ()))
    share = {name: np.asarray(sums) / np.maximum(counts, 1) for name, (sums, counts) in found.items()}
    np.testing.assert_allclose(share["output_entropy"], np.log(SHAPE.vocab), rtol=1e-5)
    np.testing.assert_allclose(share["distinct_1"][:, 0], 1 / C, rtol=1e-6)
    np.testing.assert_allclose(share["repetition"][:, 0], 5 / 6, rtol=1e-6)
    assert share["distinct_1"][:, 2].min() > 0.4  # a token of 24, nine times
    assert (share["first_divergence"] == C).all()


def test_tokens_are_drawn_from_the_distribution_at_the_temperature():
    logits, prompts = (
        jnp.asarray([0.0, 1.0, 2.0, -1.0]),
        jax.random.randint(jax.random.key(2), (8000, 5), 0, 9),
    )
    noise_BV = saying.noise_at(saying.noise_keys(prompts), 3, 4)
    for temperature in continuation.TEMPERATURES[1:]:
        said_B = jnp.argmax(logits + temperature * noise_BV, axis=1)
        share = np.bincount(np.asarray(said_B), minlength=4) / len(prompts)
        np.testing.assert_allclose(share, jax.nn.softmax(logits / temperature), atol=0.02)
    assert (
        abs(np.corrcoef(noise_BV[:, 0], saying.noise_at(saying.noise_keys(prompts), 4, 4)[:, 0])[0, 1]) < 0.05
    )


def test_what_is_said_depends_on_the_prompt_alone():
    params = drawn()
    edit = shaken(params, ("q", "v", "up"))
    whole, _ = heard(params, edit)
    others, _ = heard(params, edit, TOKENS[::-1].at[:, P:].set(0).at[0].set(0))
    for name in continuation.MODELS:
        np.testing.assert_array_equal(others[name].tokens_UBC[:, 1:], whole[name].tokens_UBC[:, 1::-1])


def test_corruption_of_the_input_is_refused():
    view = dataclasses.replace(view_of(drawn(), Edit()), edit=Edit(corruption=Corruption()))
    with pytest.raises(ValueError, match="input corruption"):
        jax.eval_shape(lambda: continuation.said(view))


def test_samples_are_the_greedy_continuations_of_every_severity():
    params = drawn()
    edits = {0.5: shaken(params, ("q", "v", "up")), 0.0: shaken(params, ())}
    samples = continuations(SHAPE, params, edits, TOKENS[:2, :P], length=C)
    said, _ = heard(params, edits[0.5])
    tokens = {name: said[name].tokens_UBC[0, :2].tolist() for name in continuation.MODELS}
    assert [s.severity for s in samples] == [0.0, 0.5, 0.0, 0.5]
    assert [list(s.prompt) for s in samples[::2]] == TOKENS[:2, :P].tolist()
    assert [list(s.degraded) for s in samples[1::2]] == tokens["degraded"]
    assert (
        [list(s.dense) for s in samples[1::2]] == [list(s.degraded) for s in samples[::2]] == tokens["dense"]
    )
    for prompts, length, words in ((TOKENS[:0], 4, "prompts_BP has the shape"), (TOKENS, 0, "length = 0")):
        with pytest.raises(ValueError, match=words):
            continuations(SHAPE, params, edits, prompts, length)


def test_samples_at_a_temperature_are_the_continuations_of_that_temperature():
    params = drawn()
    edits = {0.5: shaken(params, ("q", "v", "up")), 0.6: shaken(params, ())}
    said, _ = heard(params, edits[0.5])
    known = None
    for u, temperature in enumerate(continuation.TEMPERATURES):
        samples = continuations(SHAPE, params, edits, TOKENS[:2, :P], C, temperature=temperature)
        for name in continuation.MODELS:
            tokens = said[name].tokens_UBC[u, :2].tolist()
            assert [list(getattr(sample, name)) for sample in samples[::2]] == tokens
        known = known or behind._cache_size()
    assert behind._cache_size() == known  # it is an argument
    with pytest.raises(ValueError, match="temperature = -1: must be 0 or more"):
        continuations(SHAPE, params, edits, TOKENS[:2, :P], C, temperature=-1)


def test_samples_side_by_side():
    words = ["a", "b", "x|y", "one\ntwo", "\\", "<x>"]
    samples = [
        Sample(0.25, (0, 1), (2,), (3, 4)),
        Sample(0.5, (0, 1), (2, 0), (2, 5)),
        Sample(1, (5,), (2,), (2,)),
    ]
    rows_told = told(samples, lambda tokens: " ".join(words[t] for t in tokens))
    head, rule, *rows = samples_text(rows_told).splitlines()
    assert head == "| prompt | severity | undegraded | degraded |"
    assert rule.count("|") == head.count("|")
    assert rows == [
        r"| a b | 0.25 | x\|y | one↵two \\ |", r"| a b | 0.5 | x\|y a | x\|y <x> |", r"| <x> | 1 | x\|y | x\|y |"
    ]  # fmt: skip
    entry = {"member": "d<8", "degradation": "rtn", "tasks": {"S": rows_told}}
    shown = samples_section({"d<8 rtn": entry})
    assert "<td>&lt;x&gt;</td>" in shown
    assert "d&lt;8" in shown
    assert "<td>x|y <mark>&lt;x&gt;</mark></td>" in shown
    assert "<td>x|y</td></tr>" in shown  # the same: nothing is marked
    assert samples_section({}) == ""


def test_through_a_sweep():
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3), shape=GRADED)
    names = ("loss", "continuation")
    subject.settings = Evaluation(metrics=names, sequences=3, batch=4, calibration_sequences=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.6,)))
    for temperature in continuation.TEMPERATURES:
        place = {"axis": "temperature", "at": temperature}
        assert value(rows, "first_divergence", severity=0.0, **place) == 16
        assert value(rows, "first_divergence", severity=0.6, **place) < 16
    steps = [r for r in rows if r["metric"] == "agreement_by_step" and r["task"] == "all"]
    assert {r["at"] for r in steps} == {1, 2, 4, 8, 16}  # of 16 tokens, half a window
    assert {r["count"] for r in steps if r["at"] == 8} == {6 * 8}
    assert {r["part"] for r in steps} == {"temperature 0", "temperature 0.7", "temperature 1"}
    assert {r["value"] for r in steps if r["severity"] == 0} == {1.0}
    assert min(r["value"] for r in steps if r["severity"]) < 0.5
