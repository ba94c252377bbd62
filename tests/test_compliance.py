"""Compliance and content of answers inside the program, against the scores of answers one by one in numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of

from wane.eval.metrics import METRICS, compliance, topic
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation, Study
from wane.scaling.edit import Edit
from wane.scaling.family import exact_ladder
from wane.train.data import Data, graded_instruct, open_data
from wane.train.data.task import World
from wane.train.data.vocabulary import END

WORLD = World(seed=0, facts=256)
OTHERS = (10, 11, 33, 35, 70, 100, 130, 136, 137, 450, 600)  # of every kind, and what stands in no answer
RULES = ("compliance_strict", "compliance_loose", "compliance_content")


@pytest.fixture(scope="module")
def evaluation():
    """120 rows of I behind 5 of S."""
    stream = open_data(Data(context=64, task_shares={"S": 1.0, "I": 1.0}), steps=1, batch_size=1)
    return stream.evaluation(120, 0).of_each_task(0, None)


def scored_rows(evaluation, monkeypatch, said_NS):
    """Metric -> (value, counted) [N, S] of planted answers."""
    given = {
        "tokens_BT": evaluation.tokens_NT, "scored_BS": evaluation.scored_NS,
        "values_B2": evaluation.values_N2, "counted_B": np.ones(len(said_NS)),
    }  # fmt: skip
    batch = Batch(**dict.fromkeys(Batch._fields) | {name: jnp.asarray(a) for name, a in given.items()})
    view = View(shape=SHAPE, params={}, degraded={}, edit=Edit(), batch=batch, x_BSD=None, stream=None)
    monkeypatch.setattr(compliance, "said", lambda view: jnp.asarray(said_NS))
    return {name: [np.asarray(a) for a in METRICS[f"{name}_by_level"].measure(view)] for name in RULES}


def runs(evaluation):
    """(row, position of EQUALS, tokens of the right answer) of every answer that its row holds to the end."""
    for n in range(len(evaluation.tokens_NT)):
        if evaluation.tasks[evaluation.task_N[n]].name != "I":
            continue
        asked, _, at_M = graded_instruct.instructions(evaluation.tokens_NT[n : n + 1])
        for m, at in enumerate(at_M):
            one = graded_instruct.Instruction(*(part[m : m + 1] for part in asked))
            length = int((graded_instruct.answers(one, WORLD) > 0).sum())
            if at + length < evaluation.tokens_NT.shape[1]:
                yield n, at, length, one


def planted(evaluation, rng):
    """Right answers, some of them with tokens exchanged, inserted, dropped or in another order."""
    said_NS = evaluation.tokens_NT[:, 1:].copy()
    for n, at, length, _ in runs(evaluation):
        answer = said_NS[n, at : at + length].tolist()
        for _ in range(rng.integers(4)):
            place, token = rng.integers(len(answer)), int(rng.choice(OTHERS))
            change = rng.integers(4)
            if change == 0:
                answer[place] = token
            elif change == 1:
                answer.insert(rng.choice([0, place]), token)
            elif change == 2:
                answer[:-1] = rng.permutation(answer[:-1]).tolist()
            else:
                answer = answer[1:] + [token]
        said_NS[n, at : at + length] = answer[:length]
    return said_NS


def test_scores_against_those_of_one_answer_after_another(evaluation, monkeypatch):
    said_NS = planted(evaluation, np.random.default_rng(0))
    found, seen = scored_rows(evaluation, monkeypatch, said_NS), []
    for n, at, length, asked in runs(evaluation):
        answer = np.zeros((1, graded_instruct.LONGEST), int)
        answer[0, :length] = said_NS[n, at : at + length]
        expected = [
            graded_instruct.compliance_strict(asked, answer)[0],
            graded_instruct.compliance_loose(asked, answer)[0],
            graded_instruct.content(asked, answer, WORLD)[0],
        ]
        assert all(found[name][1][n, at] for name in RULES)
        assert [found[name][0][n, at] for name in RULES] == expected, (n, at, answer)
        seen.append(expected)
    strict, loose, content = np.array(seen).T
    for outcome in (
        strict,
        loose & ~strict,
        ~loose,
        content & ~strict,
        strict & ~content,
        content & loose & ~strict,
    ):
        assert outcome.sum() > 10
    assert {int(found[name][1].sum()) for name in RULES} == {len(seen)}  # and nothing else is counted


def test_right_answers_have_form_and_content(evaluation, monkeypatch):
    found = scored_rows(evaluation, monkeypatch, evaluation.tokens_NT[:, 1:])
    for value_NS, counted_NS in found.values():
        assert counted_NS.sum() > 400
        assert value_NS[counted_NS].all()


def test_silence_has_neither(evaluation, monkeypatch):
    found = scored_rows(evaluation, monkeypatch, np.full_like(evaluation.tokens_NT[:, 1:], END))
    for value_NS, counted_NS in found.values():
        assert not value_NS[counted_NS].any()


def test_text_asks_nothing(evaluation, monkeypatch):
    """Though its tokens may be END, and the first one that of the tag."""
    said_NS = evaluation.tokens_NT[:, 1:]
    text = dataclasses.replace(
        evaluation, values_N2=np.zeros_like(evaluation.values_N2), scored_NS=np.full(said_NS.shape, True)
    )
    assert not any(counted_NS.any() for _, counted_NS in scored_rows(text, monkeypatch, said_NS).values())


def test_what_is_said_is_not_measured_on_corrupted_input():
    parts = {"name": "x", "family": exact_ladder(96, depths=(1,), head_dim=16)}
    parts["degradations"] = (Degrade(method="substitute_tokens"),)
    for metric in (*compliance.METRICS, *topic.METRICS):
        with pytest.raises(ValueError, match=f"{metric.name}: goes token by token"):
            Study(**parts, evaluation=Evaluation(metrics=("loss", metric.name)))


def test_rows_tell_the_task_and_every_format():
    data = Data(context=64, facts=16, task_shares={"S": 1.0, "I": 1.0})
    stream = open_data(data, steps=4, batch_size=4)
    subject = subject_of(splits_of(stream, 24), shape=dataclasses.replace(SHAPE, context=64))
    subject.settings = Evaluation(metrics=("loss", *(metric.name for metric in compliance.METRICS)), batch=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
    rows = [row for row in rows if row["metric"] != "loss" and row["severity"] == 0.5]
    assert {(row["metric"], row["task"]) for row in rows if row["axis"] is None} == {
        (name, task) for name in RULES for task in ("all", "I")
    }
    levels = {row["at"] for row in rows if row["axis"] == "level"}
    assert levels == {100.0 * form + 10 * new for form in range(1, 9) for new in (0, 1)}
    assert all(row["ceiling"] == 1 for row in rows if row["task"] == "I")
    assert all(0 <= row["value"] <= 1 for row in rows)
