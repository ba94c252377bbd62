"""Agreement of answers and hazard of steps: known cases, and loops over pairs in float64."""

import copy
import dataclasses
from itertools import combinations
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of

from wane.eval.metrics import METRICS, agreement
from wane.eval.metrics.view import Batch, View
from wane.eval.stability import chains, hazard
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit, merge
from wane.scaling.model import apply, unembed
from wane.train.data import TASKS, Data, open_data
from wane.train.data.graded_facts import ATTRIBUTE_WORD, entities
from wane.train.data.graded_state import NAMES as ELEMENTS
from wane.train.data.task import World
from wane.train.data.vocabulary import KEY, KEYS, VALUE, VALUES

FACTS = 12


def view_of(tokens_BT, scored_BS, values_B2, logits_BSV):
    given = {
        "tokens_BT": tokens_BT, "scored_BS": scored_BS, "values_B2": values_B2,
        "counted_B": np.ones(len(tokens_BT)),
    }  # fmt: skip
    batch = Batch(**dict.fromkeys(Batch._fields) | {name: jnp.asarray(a) for name, a in given.items()})
    view = View(shape=SHAPE, params={}, degraded={}, edit=Edit(), batch=batch, x_BSD=None, stream=None)
    vars(view)["logits_BSV"] = jnp.asarray(logits_BSV, jnp.float32)  # as if it were cached
    return view


def test_agreement_of_samples_against_numpy():
    rng = np.random.default_rng(0)
    values_B2 = np.repeat([[10, 5], [0, 3], [0, 0], [12, 8]], 4, axis=0)
    scored_BS = rng.random((16, 7)) < 0.6
    logits_BSV = 3 * rng.normal(size=(16, 7, 20))
    view = view_of(np.zeros((16, 8), int), scored_BS, values_B2, logits_BSV)
    total, count = METRICS["agreement_of_temperatures"].measure(view)
    for b, (first, values) in enumerate(values_B2):
        for t, temperature in enumerate(agreement.TEMPERATURES):
            read_S = scored_BS[b] & (b % 4 == 0)  # one sequence of four
            p = np.exp(logits_BSV[b][read_S][:, first : first + values] / temperature)
            expected = np.square(p / p.sum(-1, keepdims=True)).sum(-1) if values else np.zeros(0)
            assert count[b, t] == len(expected)
            assert total[b, t] == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize(("scale", "column"), [(0.0, 0), (1e4, 1)])
def test_samples_of_a_flat_and_of_a_sure_model(scale, column):
    """chance and ceiling: 1 / values where nothing is known, 1 where only one thing can be said."""
    for name in ("S", "M2", "K"):
        first, values = TASKS[name].answers
        logits_BSV = scale * np.random.default_rng(0).normal(size=(1, 5, 512))
        view = view_of(np.zeros((1, 6), int), np.full((1, 5), True), np.array([[first, values]]), logits_BSV)
        total, count = METRICS["agreement_of_temperatures"].measure(view)
        bound = METRICS["agreement_of_temperatures"].bounds(TASKS[name])[column]
        np.testing.assert_allclose(total / count, bound, rtol=1e-4)


@pytest.fixture(scope="module")
def facts():
    """24 rows of K about 12 entities behind 6 of S: every fact is asked several times."""
    data = Data(context=64, facts=FACTS, task_shares={"S": 1.0, "K": 1.0})
    evaluation = open_data(data, steps=1, batch_size=1).evaluation(24, 0)
    rows = np.r_[0:6, 24:48]
    return evaluation.tokens_NT[rows], evaluation.scored_NS[rows], evaluation.values_N2[rows]


def is_key(token):
    return KEY <= token < KEY + KEYS


def asked(tokens_BT, scored_BS):
    """(row, place, entity, attribute, template) of every question, by the names of the world."""
    names, lengths, _ = entities(World(seed=0, facts=FACTS))
    known = {tuple(name[:n]): e for e, (name, n) in enumerate(zip(names.tolist(), lengths, strict=True))}
    for b, s in np.argwhere(scored_BS):
        if tokens_BT[b, 0] != tokens_BT[-1, 0]:
            continue
        name, at = [], s
        while not is_key(tokens_BT[b, at]):
            at -= 1
        while is_key(tokens_BT[b, at]):
            name, at = [int(tokens_BT[b, at]), *name], at - 1
        template, attribute = divmod(int(tokens_BT[b, s]) - ATTRIBUTE_WORD, 4)
        yield b, s, known[tuple(name)], attribute, template


def slow(tokens_BT, scored_BS, logits_BSV):
    """Sums and counts [B, 2], one pair after another."""
    told = list(asked(tokens_BT, scored_BS))
    sums, counts = np.zeros((2, len(tokens_BT), 2))
    answer = {(b, s): np.argmax(logits_BSV[b, s, VALUE : VALUE + VALUES]) for b, s, *_ in told}
    for b, s, entity, attribute, template in told:
        for b2, s2, entity2, attribute2, template2 in told:
            if attribute == attribute2 and template != template2:
                counts[b, int(entity != entity2)] += 1
                sums[b, int(entity != entity2)] += answer[b, s] == answer[b2, s2]
    return sums, counts


def wordings(tokens_NT, scored_NS, values_N2, logits_NSV):
    """Sums and counts [N, 2] of `agreement_of_wordings`."""
    metric = METRICS["agreement_of_wordings"]
    answer_NS, counted_NS = metric.measure(view_of(tokens_NT, scored_NS, values_N2, logits_NSV))
    evaluation = SimpleNamespace(
        tokens_NT=tokens_NT, scored_NS=scored_NS, tasks=(TASKS["S"], TASKS["K"]),
        task_N=(values_N2[:, 0] == VALUE).astype(int),
    )  # fmt: skip
    return metric.over(np.where(counted_NS, answer_NS, np.nan), evaluation)


def test_agreement_of_wordings_against_loops_over_pairs(facts):
    tokens_BT, scored_BS, values_B2 = facts
    rng = np.random.default_rng(0)
    logits_BSV = rng.normal(size=(*scored_BS.shape, 512))
    logits_BSV[..., VALUE : VALUE + 3] += 2  # few answers, or none would agree
    logits_BSV[..., :5] += 9  # no values
    expected = slow(tokens_BT, scored_BS, logits_BSV)
    np.testing.assert_array_equal(wordings(tokens_BT, scored_BS, values_B2, logits_BSV), expected)
    assert (expected[1].sum(0) > 1000).all()
    assert (expected[0].sum(0) / expected[1].sum(0) > 0.05).all()


def test_entities_of_neighbouring_keys_are_not_confused(facts):
    """Entity e named KEY + e, KEY: the same pairs as with the names of the world."""
    tokens_BT, scored_BS, values_B2 = facts
    logits_BSV = np.random.default_rng(0).normal(size=(*scored_BS.shape, 512))
    renamed_BT = tokens_BT.copy()
    for b, s, entity, *_ in asked(tokens_BT, scored_BS):
        start = max(t for t in range(s) if is_key(tokens_BT[b, t]) and not is_key(tokens_BT[b, t - 1]))
        renamed_BT[b, start : start + 2] = KEY + entity, KEY
    measured = wordings(renamed_BT, scored_BS, values_B2, logits_BSV)
    np.testing.assert_array_equal(measured, slow(tokens_BT, scored_BS, logits_BSV))


def test_who_knows_agrees_and_who_guesses_agrees_by_chance(facts):
    """The truth: 1 about the same fact.  One answer to everything: 1 in both, nothing beyond chance."""
    tokens_BT, scored_BS, values_B2 = facts
    truth = np.eye(512)[tokens_BT[:, 1:]]
    constant = np.eye(512)[np.full_like(tokens_BT[:, 1:], VALUE + 5)]
    random = np.random.default_rng(0).normal(size=truth.shape)
    told = []
    for logits_BSV in (truth, constant, random):
        total, count = wordings(tokens_BT, scored_BS, values_B2, logits_BSV)
        told.append(total.sum(0) / count.sum(0))
    (known, by_chance), constant, random = told
    assert known == 1
    assert by_chance < 0.2
    assert constant.tolist() == [1, 1]
    np.testing.assert_allclose(random, 1 / VALUES, atol=0.01)


def test_an_answer_that_is_not_a_number_agrees_with_nothing(facts):
    tokens_BT, scored_BS, values_B2 = facts
    logits_BSV = np.zeros((*scored_BS.shape, 512))
    logits_BSV[10] = np.nan
    total, _ = wordings(tokens_BT, scored_BS, values_B2, logits_BSV)
    assert np.isnan(total[10]).all()
    assert np.isfinite(total[11]).all()


def test_rows_tell_temperatures_and_wordings():
    data = Data(context=64, facts=FACTS, task_shares={"S": 1.0, "K": 1.0})
    subject = subject_of(
        splits_of(open_data(data, steps=4, batch_size=4), 4), shape=dataclasses.replace(SHAPE, context=64)
    )
    subject.settings = Evaluation(metrics=("loss", "agreement"), batch=4)
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
    rows = [row for row in rows if row["metric"] != "loss" and row["severity"] == 0.5]
    samples = [row for row in rows if row["metric"] == "agreement_of_temperatures" and row["task"] == "K"]
    assert [(row["axis"], row["at"]) for row in samples] == [
        ("temperature", t) for t in agreement.TEMPERATURES
    ]
    assert {(row["chance"], row["ceiling"]) for row in samples} == {(1 / VALUES, 1.0)}
    values = [row["value"] for row in samples]
    assert values == sorted(values, reverse=True)  # the warmer, the less two samples agree
    of_wordings = [row for row in rows if row["metric"] == "agreement_of_wordings"]
    assert {(row["task"], row["part"]) for row in of_wordings} == {
        (task, part) for task in ("all", "K") for part in agreement.PARTS
    }
    found = subject.splits.evaluation  # of 3 sequences, in batches of another number
    counts = slow(found.tokens_NT, found.scored_NS, np.zeros((*found.scored_NS.shape, 512)))[1].sum(axis=0)
    for part, count in zip(agreement.PARTS, counts, strict=True):
        assert {row["count"] for row in of_wordings if row["part"] == part} == {count}


@pytest.fixture(scope="module")
def drawn():
    """Rows of three draws of removed weights, and what each of them answers, from a forward pass of its own."""
    data = Data(context=64, facts=FACTS, task_shares={"S": 1.0, "K": 1.0})
    splits = splits_of(open_data(data, steps=4, batch_size=4), 4)
    subject = subject_of(splits, shape=dataclasses.replace(SHAPE, context=64))
    subject.settings = Evaluation(metrics=("loss", "agreement_of_draws"), batch=3)
    degrade = Degrade(method="random_weights", severities=(0.5,), draws=3)
    rows, _, _ = rows_of(subject, degrade)
    engine, found, shape = subject.engine(degrade, 1), splits.evaluation, subject.member.shape
    answers_RNS = []
    for draw in range(3):
        key = subject.draw_key(degrade, draw)
        fitted = engine.fit(subject.params, subject.calibration(degrade), key)
        where, key = Where.everywhere(shape), jax.random.fold_in(key, 1)
        edit = engine.degrade(subject.params, fitted, np.float32(0.5), where, key)
        params = merge(subject.params, edit)
        out = apply(params, jnp.asarray(found.tokens_NT[:, :-1]), shape, edit)
        logits_NSV = np.array(unembed(params, out.x_BSD, shape))
        for n, (first, values) in enumerate(found.values_N2):
            logits_NSV[n, :, :first] = logits_NSV[n, :, first + values :] = -np.inf
        answers_RNS.append(logits_NSV.argmax(axis=-1))
    return subject, degrade, rows, np.stack(answers_RNS)


def test_agreement_of_draws_against_loops_over_pairs(drawn):
    subject, _, rows, answers_RNS = drawn
    found = subject.splits.evaluation
    for i, task in enumerate(found.tasks):
        answers_RM = answers_RNS[:, found.scored_NS & (found.task_N == i)[:, None]]
        told = {
            (r["draw"], r["part"]): r for r in rows if r["task"] == task.name and r["metric"] != "loss"
            if r["severity"] == 0.5
        }  # fmt: skip
        assert len(told) == 6
        for r in range(3):
            others = [q for q in range(3) if q != r]
            same = [a == b for q in others for a, b in zip(answers_RM[r], answers_RM[q], strict=True)]
            another = [a == b for q in others for a in answers_RM[r] for b in answers_RM[q]]
            for part, expected in (("same item", same), ("another item", another)):
                assert told[r, part]["value"] == pytest.approx(np.mean(expected), rel=1e-12)
                assert told[r, part]["count"] == answers_RM.shape[1]
        mean = np.mean([told[r, "same item"]["value"] for r in range(3)])
        pairs = [np.mean(answers_RM[q] == answers_RM[r]) for q, r in combinations(range(3), 2)]
        assert mean == pytest.approx(np.mean(pairs), rel=1e-12)
        assert 0 < told[0, "same item"]["value"] < 1


def test_undegraded_all_draws_agree(drawn):
    _, _, rows, _ = drawn
    told = [r for r in rows if r["severity"] == 0 and r["metric"] != "loss"]
    assert {r["value"] for r in told if r["part"] == "same item"} == {1.0}
    assert all(r["value"] < 1 for r in told if r["part"] == "another item")


def test_one_draw_agrees_with_nobody(drawn):
    subject, degrade, _, _ = drawn
    rows, _, _ = rows_of(subject, degrade, draws=range(1))
    assert {r["metric"] for r in rows} == {"loss"}


def test_a_draw_that_is_not_a_number_has_no_agreement(drawn):
    subject, degrade, _, _ = drawn
    broken = copy.copy(subject)
    broken.params = subject.params | {
        "final_norm": jax.tree.map(lambda a: a * jnp.nan, subject.params["final_norm"])
    }
    rows, _, _ = rows_of(broken, degrade)
    told = [r for r in rows if r["metric"] == "agreement_of_draws" and r["severity"] == 0.5]
    assert len(told) == 2 * 2 * 3
    assert {(r["value"], r["status"]) for r in told} == {(None, "diverged")}


def levels_of(task):
    stream = open_data(Data(context=128, task_shares={task: 1.0}), steps=1, batch_size=1)
    data = stream.evaluation(60, 0)
    return data, sorted(set(data.level_NS[data.scored_NS].tolist()))


def test_chains_read_the_levels_of_both_tasks():
    _, levels = levels_of("M2l")
    assert set(chains("M2l", dict.fromkeys(map(float, levels), 1.0))["direct"]) == set(range(1, 7))
    _, levels = levels_of("M2")
    told = chains("M2", {float(level): level / 100 for level in levels})
    assert told == {
        "direct": {n: n / 100 for n in (1, 2, 3)},
        "written": {n: (10 + n) / 100 for n in (1, 2, 3)},
    }
    data, levels = levels_of("M3")
    told = chains("M3", {float(level): level for level in levels})
    assert set(told) == {f"S{degree} {form}" for degree in (3, 5) for form in ("direct", "written")}
    for name, chain in told.items():
        assert set(chain) == set(range(4 if "direct" in name else 2, 17))
        for level in chain.values():  # an element of S3 is a word of 3 digits
            answers = data.tokens_NT[:, 1:][data.scored_NS & (data.level_NS == level)]
            assert {len(ELEMENTS[int(token)]) for token in answers} == {int(name[1])}
    with pytest.raises(ValueError, match="task = 'K': levels count steps in M2, M2l, M3 only"):
        chains("K", {0.0: 1.0})


def test_hazard_of_chains_whose_steps_are_known():
    """Steps that fail independently have one hazard, whatever chance is and whichever lengths are asked."""
    h, chance = np.array([0.1, 0.2, 0.4, 0.0]), 1 / 7
    survival = np.cumprod(1 - h)
    told = hazard({n + 1: chance + (1 - chance) * s for n, s in enumerate(survival)}, chance)
    np.testing.assert_allclose([told[n] for n in (1, 2, 3, 4)], h, atol=1e-12)
    sparse = hazard({n: 0.9**n for n in (2, 3, 8, 16)})
    np.testing.assert_allclose(list(sparse.values()), 0.1)
    assert list(sparse) == [2, 3, 8, 16]
    assert hazard({1: 0.5, 2: 0.75})[2] == pytest.approx(-0.5)
    lost = hazard({1: 0.1, 2: 0.1}, chance=0.2)
    assert lost[1] == 1
    assert np.isnan(lost[2])
    with pytest.raises(ValueError, match="chance = 1.0: must be at least 0 and below 1"):
        hazard({1: 0.5}, chance=1.0)
    with pytest.raises(ValueError, match="must be of one step or more"):
        hazard({0: 0.5})
