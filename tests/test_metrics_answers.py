"""Graded tasks beyond accuracy: the options that are drawn, and every readout against a loop over tokens."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of, value

from wane.eval.metrics import INSTRUMENTS, METRICS
from wane.eval.metrics.largest import is_largest
from wane.eval.rows import parts, token_rows
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.model import apply, unembed
from wane.train.data import TASKS, Data, open_data
from wane.train.data.options import OPTIONS, drawn, values_of

ANSWERS = tuple(metric.name for metric in INSTRUMENTS["answers"])
FEW = {"L1": 1.0, "L2": 1.0, "S": 1.0}  # without a foil and level, with both, with a level only


@pytest.fixture(scope="module")
def splits():
    stream = open_data(Data(sources="graded", context=32, facts=16, task_shares=FEW), steps=4, batch_size=4)
    return splits_of(stream, 3)


def test_options_of_every_task():
    stream = open_data(
        Data(context=64, facts=64, task_shares=dict.fromkeys(TASKS, 1.0)), steps=1, batch_size=1
    )
    data = stream.evaluation(4, 3)
    again = stream.evaluation(4, 3)
    np.testing.assert_array_equal(data.options_NSO, again.options_NSO)
    assert data.options_NSO.dtype == data.values_N2.dtype == np.int32
    assert (data.options_NSO[~data.scored_NS] == -1).all()
    for index, task in enumerate(data.tasks):
        first, count = values_of(task)
        mine = data.task_N == index
        assert (data.values_N2[mine] == (first, count)).all()
        scored = data.scored_NS[mine]
        answers, foils = data.tokens_NT[mine][:, 1:][scored], data.foil_NS[mine][scored]
        for answer, foil, options in zip(answers, foils, data.options_NSO[mine][scored], strict=True):
            real = options[options >= 0].tolist()
            assert len(real) == len(set(real)) == min(OPTIONS, count), task.name
            assert answer in real
            assert foil < 0 or (foil in real and foil != answer), task.name
            assert all(first <= option < first + count for option in real), task.name
    half = data.of_each_task(1, 3)
    np.testing.assert_array_equal(half.options_NSO[:2], data.options_NSO[1:3])
    np.testing.assert_array_equal(half.values_N2[:2], data.values_N2[1:3])


def test_wrong_options_are_as_frequent_as_answers_and_the_order_tells_nothing():
    M, count = 40_000, 6
    answer, foil = np.full(M, 2), np.where(np.arange(M) < M // 2, -1, 5)
    options = drawn(np.random.default_rng(0), answer, [foil[:, None]], np.full(count, 9))
    free, forced = (np.bincount(part.ravel(), minlength=count) for part in np.split(options, 2))
    expected = np.where(np.arange(count) == 2, 1, 3 / 5) * M / 2
    np.testing.assert_allclose(free, expected, rtol=0.03)
    expected = np.where(np.isin(np.arange(count), (2, 5)), 1, 2 / 4) * M / 2
    np.testing.assert_allclose(forced, expected, rtol=0.03)
    np.testing.assert_allclose((options == 2).mean(axis=0), 1 / 4, atol=0.01)
    weight = np.array([1, 2, 5, 3, 0, 4])
    options = drawn(np.random.default_rng(1), answer, [np.full((M, 1), -1)], weight)
    p, left = np.delete(weight, 2) / 10, np.zeros(5)
    for first, second, third in itertools.permutations(np.flatnonzero(p), 3):  # without replacement
        chance = p[first] * p[second] / (1 - p[first]) * p[third] / (1 - p[first] - p[second])
        left[[first, second, third]] += chance
    found = np.delete(np.bincount(options.ravel(), minlength=count), 2) / M
    np.testing.assert_allclose(found, left, atol=0.015)


def test_wrong_options_come_in_the_order_of_their_ranks():
    """Against a slow reader: every option of a rank is taken before one of the next."""
    rng = np.random.default_rng(3)
    M, count = 500, 9
    answer = rng.integers(count, size=M)
    ranks = [rng.integers(-1, count, size=(M, width)) for width in (2, 1, 3)]
    options = drawn(rng, answer, ranks, rng.integers(3, size=count))
    for m in range(M):
        named, place = {int(answer[m])}, [{int(answer[m])}]
        for rank in ranks:
            place.append(set(rank[m].tolist()) - named - {-1})
            named |= place[-1]
        place.append(set(range(count)) - named)
        left, room = set(options[m].tolist()), 4
        assert len(left) == 4
        for values in place:
            assert len(left & values) == min(room, len(values))
            room -= len(left & values)


def test_is_largest_is_argmax_with_ties():
    rng = np.random.default_rng(0)
    logits, tokens = rng.integers(0, 3, (5, 40, 4)).astype(np.float32), rng.integers(0, 4, (5, 40))
    expected = logits.argmax(-1) == tokens
    np.testing.assert_array_equal(is_largest(jnp.asarray(logits), jnp.asarray(tokens)), expected)
    assert 20 < expected.sum() < 100


def slow(logits, target, foil, options, first, count):
    """name -> value of one scored token, in float64; names without a value are absent."""
    found = {"margin": logits[target] - max(z for v, z in enumerate(logits) if v != target)}
    if count:
        inside = {v: logits[v] for v in range(first, first + count)}
        found["accuracy_of_values"] = max(inside, key=inside.get) == target
        chosen = max((v for v in options if v >= 0), key=lambda v: logits[v])
        found["accuracy_of_options"] = chosen == target
        p = np.exp(np.array(list(inside.values())))
        p = p / p.sum()
        found["answer_entropy"] = -(p * np.log(p)).sum()
    if foil >= 0:
        log_p = logits - np.log(np.exp(logits).sum())
        found["log_odds"] = log_p[target] - log_p[foil]
        found["forced_choice"] = (
            0.5 if logits[target] == logits[foil] else float(logits[target] > logits[foil])
        )
    return found


def test_every_readout_against_loops(splits):
    subject = subject_of(splits)
    subject.settings = Evaluation(sequences=3, batch=4, metrics=("loss", "accuracy", "answers"))
    degrade = Degrade(method="magnitude_weights", severities=(0.6,))
    rows, _, _ = rows_of(subject, degrade)
    method, key, data = degrade.built(SHAPE), subject.draw_key(degrade, 0), splits.evaluation
    fitted = method.fit(subject.params, subject.calibration(degrade), key)
    edit = method.apply(subject.params, fitted, 0.6, Where.everywhere(SHAPE), key)
    x_BSD = apply(subject.params, data.tokens_NT[:, :-1], SHAPE, edit).x_BSD
    logits = np.asarray(unembed(subject.params, x_BSD, SHAPE), np.float64)
    told, by_level = {}, {}
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        target, task = data.tokens_NT[n, s + 1], data.tasks[data.task_N[n]]
        found = slow(logits[n, s], target, data.foil_NS[n, s], data.options_NSO[n, s], *data.values_N2[n])
        for name, number in found.items():
            told.setdefault((name, task.name), []).append(number)
        if task.level:
            found["accuracy"] = logits[n, s].argmax() == target
            found["loss"] = np.log(np.exp(logits[n, s]).sum()) - logits[n, s, target]
            for name in ("accuracy", "loss", "forced_choice", "log_odds"):
                if name in found:
                    place = f"{name}_by_level", task.name, float(data.level_NS[n, s])
                    by_level.setdefault(place, []).append(found[name])
    over = {name: [told[key] for key in told if key[0] == name] for name, _ in told}  # tasks weigh the same
    told |= {(name, "all"): np.concatenate(each) for name, each in over.items()}
    mean = {key: np.mean(values) for key, values in told.items()}
    mean |= {(name, "all"): np.mean([np.mean(values) for values in each]) for name, each in over.items()}
    seen = [r for r in rows if r["severity"] == 0.6 and r["metric"] in ANSWERS]
    assert {(r["metric"], r["task"]) for r in seen if r["axis"] is None} == set(told)
    assert {(r["metric"], r["task"], r["at"]) for r in seen if r["axis"] == "level"} == set(by_level)
    for row in seen:
        if row["axis"] is None:
            place = row["metric"], row["task"]
            expected, count = mean[place], len(told[place])
        else:
            each = by_level[row["metric"], row["task"], row["at"]]
            expected, count = np.mean(each), len(each)
        assert row["value"] == pytest.approx(expected, rel=1e-4, abs=1e-5), row["metric"]
        assert row["count"] == count
    assert {task for _, task in told} == {"all", *FEW}
    # nested competitions: the fewer tokens an answer is compared with, the more often it is right
    for task in FEW:
        nested = [value(rows, name, task, severity=0.6) for name in ("accuracy", *ANSWERS[:2])]
        assert nested == sorted(nested)


def test_chance_and_ceiling_of_each_readout(splits):
    subject = subject_of(splits)
    subject.settings = Evaluation(sequences=3, batch=4, metrics=("loss", "accuracy", "answers"))
    rows, _, _ = rows_of(subject, Degrade(method="rtn", severities=(4.0,)))
    bounds = {(r["metric"], r["task"]): (r["chance"], r["ceiling"]) for r in rows}
    assert bounds["accuracy_of_values", "L1"] == bounds["accuracy", "L1"] == (1 / 64, 0.5)
    assert bounds["accuracy_of_options", "L1"] == (1 / 4, None)  # its ceiling among 4 is not that among 64
    assert bounds["accuracy_of_options", "S"] == (1 / 4, 1.0)
    assert bounds["accuracy_of_options", "L2"] == bounds["forced_choice", "L2"] == (1 / 2, 1.0)
    assert bounds["forced_choice_by_level", "L2"] == (1 / 2, 1.0)
    assert {bounds[r["metric"], "all"] for r in rows if r["task"] == "all"} == {(None, None)}
    assert bounds["margin", "S"] == (None, None)


def test_a_model_without_an_opinion_is_at_chance():
    """All logits equal: ties of a forced choice are one half, and 4 options give one in four."""
    stream = open_data(Data(context=64, task_shares={"S": 1, "L2": 1}), steps=1, batch_size=1)
    data = stream.evaluation(200, 0)
    batch = SimpleNamespace(
        foil_BS=data.foil_NS, options_BSO=jnp.asarray(data.options_NSO), values_B2=jnp.asarray(data.values_N2)
    )
    view = SimpleNamespace(
        logits_BSV=jnp.zeros((*data.scored_NS.shape, 512)), batch=batch,
        targets_BS=jnp.asarray(data.tokens_NT[:, 1:]), scored_BS=jnp.asarray(data.scored_NS),
    )  # fmt: skip
    of = {name: np.asarray(METRICS[name].measure(view)) for name in ("forced_choice", "accuracy_of_options")}
    total, count = of["forced_choice"].sum(axis=1)
    assert total / count == 0.5
    assert count == (data.foil_NS >= 0).sum()
    total, count = of["accuracy_of_options"][:, data.task_N == 1].sum(axis=1)
    assert data.tasks[1].name == "S"
    assert total / count == pytest.approx(1 / 4, abs=4 * float(3 / 16 / count) ** 0.5)


def test_text_has_no_values(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("\n\n".join(f"line number {i} is one of {i * i}." for i in range(900)))
    stream = open_data(Data(sources=f"text:{tmp_path}/a.txt", context=32), steps=4, batch_size=4)
    splits = splits_of(stream, 3)
    assert (splits.evaluation.options_NSO == -1).all()
    assert (splits.evaluation.values_N2 == 0).all()
    subject = subject_of(splits, 0, dataclasses.replace(SHAPE, vocab=stream.vocab))
    subject.settings = Evaluation(sequences=3, batch=4, metrics=("loss", "answers"))
    rows, _, _ = rows_of(subject, Degrade(method="rtn", severities=(4.0,)))
    assert {r["metric"] for r in rows} == {"loss", "margin"}
    assert all(np.isfinite(r["value"]) for r in rows)


def test_levels_are_told_task_by_task(splits):
    data = splits.evaluation
    (part,) = parts("level", data, splits.stream)
    rows = list(token_rows(METRICS["loss_by_level"], 1.0 * data.level_NS, part, SHAPE))
    assert {r["task"] for r in rows} == {"L2", "S"}  # L1 has no level
    assert all(r["value"] == r["at"] for r in rows)
