"""Generation with a cache against forward passes of whole sequences, one answer at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, tokens, trained
from test_sweep import SHAPE as GRADED
from test_sweep import rows_of, splits_of, subject_of, value

from wane.eval.metrics import factorial, generation
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation, Study
from wane.scaling.corrupt import Corruption
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where, severity_of
from wane.scaling.edit import Edit, merge
from wane.scaling.family import exact_ladder
from wane.scaling.generate import empty_caches, extend
from wane.scaling.model import apply, unembed
from wane.train.data import Data, open_data

METHODS = {
    "random_weights": 0.3, "random_heads": 0.5, "remove_layers": 0.5, "activations": 12, "kv_cache": 3,
    "random_dimensions": 0.3, "slicegpt": 0.3, "early_exit": 0.5,
}  # fmt: skip


def edit_of(name, shape):
    params, key = trained(shape), jax.random.key(0)
    method = build(name, shape)
    fitted = method.fit(params, tokens(shape), key)
    severity = jnp.float32(severity_of(METHODS[name], method.unit))
    return method.apply(params, fitted, severity, Where.everywhere(shape), key)


def logits_at_once(shape, edit, tokens_BS):
    params = trained(shape)
    return unembed(merge(params, edit), apply(params, tokens_BS, shape, edit).x_BSD, shape)


@pytest.mark.parametrize("name", METHODS)
def test_token_by_token_is_all_at_once(name):
    """In pieces of 1, 3 and the rest, under every kind of edit."""
    shape = SHAPES["gqa-gelu"] if name == "kv_cache" else SHAPES["mha-swiglu"]
    edit, read = edit_of(name, shape), tokens(shape)[:4, : shape.context]
    params, caches, parts = merge(trained(shape), edit), empty_caches(4, shape.context, shape), []
    for first, end in ((0, 1), (1, 4), (4, shape.context)):
        logits, caches = extend(params, read[:, first:end], caches, shape, edit)
        parts.append(logits)
    expected = logits_at_once(shape, edit, read)
    # rounding turns the last bit of a sum into a step
    tolerance = 2e-3 if name == "activations" else 2e-4
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, atol=tolerance)


def test_experts_too():
    shape = SHAPES["moe"]
    read = tokens(shape)[:2, : shape.context]
    logits, _ = extend(trained(shape), read, empty_caches(2, shape.context, shape), shape, Edit())
    np.testing.assert_allclose(logits, logits_at_once(shape, Edit(), read), atol=1e-4)


def test_corruption_of_the_input_is_refused():
    shape = SHAPES["mha-swiglu"]
    edit = Edit(corruption=Corruption())
    with pytest.raises(ValueError, match="input corruption"):
        extend(trained(shape), tokens(shape), empty_caches(4, shape.context, shape), shape, edit)


def test_a_study_of_both_is_refused_before_anything_runs():
    parts = {
        "name": "x", "family": exact_ladder(96, depths=(1,), head_dim=16),
        "degradations": (Degrade(method="substitute_tokens"), Degrade(method="rtn")),
    }  # fmt: skip
    Study(**parts)
    with pytest.raises(ValueError, match="goes token by token, and substitute_tokens is of whole sequences"):
        Study(**parts, evaluation=Evaluation(metrics=("loss", "generation")))


def view_of(shape, tokens_BT, scored_BS, edit):
    params = trained(shape)
    out = apply(params, tokens_BT[:, :-1], shape, edit)
    batch = Batch(
        tokens_BT=tokens_BT, scored_BS=scored_BS,
        **{f: jnp.zeros(1) for f in Batch._fields if f not in ("tokens_BT", "scored_BS")},
    )  # fmt: skip
    return View(
        shape=shape, params=params, degraded=merge(params, edit), edit=edit, batch=batch, x_BSD=out.x_BSD,
        stream=out.x_BSD[None],
    )  # fmt: skip


def slow(shape, edit, tokens_BT, scored_BS):
    """One answer after another, each from a forward pass of the whole row for every token of it."""
    read_BS, out = np.array(tokens_BT[:, :-1]), np.full(scored_BS.shape, -1)
    B, S = read_BS.shape
    for b in range(B):
        s = 0
        while s < S:
            row = read_BS[b].copy()
            while s < S and scored_BS[b, s]:
                out[b, s] = np.argmax(logits_at_once(shape, edit, row[None])[0, s])
                if s + 1 < S:
                    row[s + 1] = out[b, s]
                s += 1
            s += 1
    return out


def test_answers_are_said_behind_the_truth_and_what_was_said_of_them():
    shape = SHAPES["mha-swiglu"]
    rng, edit = np.random.default_rng(0), edit_of("random_weights", shape)
    tokens_BT = jnp.asarray(rng.integers(0, shape.vocab, (6, shape.context + 1)))
    scored_BS = rng.random((6, shape.context)) < 0.6
    scored_BS[0], scored_BS[1] = True, False
    view = view_of(shape, tokens_BT, jnp.asarray(scored_BS), edit)
    expected = slow(shape, edit, tokens_BT, scored_BS)
    found = np.asarray(generation.said(view))
    np.testing.assert_array_equal(found[scored_BS], expected[scored_BS])
    forced = np.asarray(view.logits_BSV).argmax(-1)
    assert (forced != expected)[scored_BS].any()  # hearing itself makes a difference here
    total, count = factorial.measure(factorial.Cell("vocabulary", "itself", whole=False))(view)
    targets = np.asarray(tokens_BT)[:, 1:]
    np.testing.assert_array_equal(total, ((expected == targets) & scored_BS).sum(1))
    np.testing.assert_array_equal(count, scored_BS.sum(1))


def test_whole_answers_against_loops():
    rng = np.random.default_rng(1)
    right, scored = rng.random((50, 12)) < 0.8, rng.random((50, 12)) < 0.6
    total, count = factorial.whole_answers(jnp.asarray(right), jnp.asarray(scored))
    for b in range(50):
        runs = "".join("x" if s else " " for s in scored[b]).split()
        hits = iter(right[b][scored[b]])
        whole = [min([next(hits) for _ in run]) for run in runs]
        assert (total[b], count[b]) == (sum(whole), len(runs))


def test_answers_of_one_token_are_the_same_free_running():
    """S has one scored token per answer, R1 six: only there can a model stumble over itself."""
    data = Data(sources="graded", context=64, facts=16, task_shares={"S": 1.0, "R1": 1.0})
    subject = subject_of(
        splits_of(open_data(data, steps=4, batch_size=4), 3), shape=dataclasses.replace(GRADED, context=64)
    )
    names = ("loss", "accuracy", "accuracy_free_running", "whole_answers", "whole_answers_free_running")
    subject.settings = Evaluation(metrics=names, sequences=3, batch=4, calibration_sequences=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.3,)))
    for severity in (0.0, 0.3):
        at = {"severity": severity}
        assert value(rows, "accuracy", "S", **at) == value(rows, "accuracy_free_running", "S", **at)
        assert value(rows, "whole_answers", "S", **at) == value(rows, "accuracy", "S", **at)
        assert value(rows, "whole_answers", "R1", **at) <= value(rows, "accuracy", "R1", **at)
