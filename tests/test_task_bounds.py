"""Chance and ceiling of every level, against predictors without the skill, counted on rows of other seeds."""

import dataclasses
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from wane.eval.metrics import METRICS
from wane.eval.rows import as_asked, parts, sequence_rows, token_rows
from wane.scaling.shape import Shape
from wane.train.data import TASKS, Data, open_data

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=24, vocab=512, context=64)


def evaluation_of(name, sequences=400, context=96, **fields):
    stream = open_data(
        Data(context=context, facts=64, task_shares={name: 1.0}, **fields), steps=1, batch_size=1
    )
    return stream, stream.evaluation(sequences, 17)


def by_level(name, right, data):
    """level -> share of `right` (a function of row, place, level), and how many there are."""
    found = defaultdict(list)
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        level = int(data.level_NS[n, s])
        found[level].append(right(data.tokens_NT[n], s + 1, level))
    return {level: (np.mean(values), len(values)) for level, values in found.items()}


@pytest.mark.parametrize("name", ["M1", "M1d"])
def test_chance_of_hops_is_the_best_guess_from_their_number_and_the_symbol(name):
    _, data = evaluation_of(name, 1500, 160)
    counts = defaultdict(Counter)
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        counts[int(data.level_NS[n, s]), data.tokens_NT[n, s] - 64][data.tokens_NT[n, s + 1] - 320] += 1
    best, total = Counter(), Counter()
    for (level, _), count in counts.items():
        best[level] += count.most_common(1)[0][1]
        total[level] += count.total()
    assert set(total) == ({0, 1, 2} if name == "M1" else {0, 1, 2, 4, 8})
    for level, count in total.items():
        chance = TASKS[name].at(np.array([level])).chance
        assert best[level] / count == pytest.approx(chance, abs=0.02), level
    assert as_asked(data)[0].chance == pytest.approx(best.total() / total.total(), abs=0.015)


@pytest.mark.parametrize("name", ["R2", "R23"])
def test_chance_of_recall_is_a_guess_among_what_stands_in_the_item(name):
    _, data = evaluation_of(name, 60, 256)
    tokens = 1 if name == "R2" else 3
    rng = np.random.default_rng(5)

    def guess(row, place, level):
        pairs = level if tokens == 1 else level // 10
        width = (1 + tokens) * (pairs + min(3 * pairs, 256 // (1 + tokens) - pairs))
        start = 1 + (place - 1) // width * width
        values = row[start : start + (1 + tokens) * pairs].reshape(pairs, 1 + tokens)[:, 1:]
        at = 0 if tokens == 1 else level % 10 - 1
        assert row[place] in values[:, at]
        return (rng.choice(values[:, at], 40) == row[place]).mean()

    for level, (share, count) in by_level(name, guess, data).items():
        chance = TASKS[name].at(np.array([level])).chance
        assert share == pytest.approx(
            chance, abs=5 * math.sqrt(chance / 40 / count) + 0.01 * (tokens == 1)
        ), level


def test_chance_of_states_is_a_guess_in_the_group():
    _, data = evaluation_of("M3", 100)
    answers = defaultdict(set)
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        answers[int(data.level_NS[n, s]) // 100].add(int(data.tokens_NT[n, s + 1]))
    for level in np.unique(data.level_NS[data.scored_NS]):
        size = 6 if level // 100 == 3 else 120
        assert len(answers[level // 100]) <= size
        assert TASKS["M3"].at(np.array([level])).chance == pytest.approx(1 / size)


def test_chance_of_instructions_is_a_guess_of_the_kind_that_the_form_allows():
    """symbols are 64, classes 8, numbers 9; brackets and the end are certain, given the form."""
    _, data = evaluation_of("I", 500)

    def guess(row, place, level):
        token = row[place]
        kinds = ((64, 128, 64), (128, 136, 8), (32, 41, 9))
        return next((1 / size for low, high, size in kinds if low <= token < high), 1.0)

    told = by_level("I", guess, data)
    assert len(told) > 40
    for level, (share, count) in told.items():
        assert share == pytest.approx(TASKS["I"].at(np.array([level])).chance, abs=0.4 / math.sqrt(count)), (
            level
        )
    assert as_asked(data)[0].chance == pytest.approx(TASKS["I"].chance, abs=0.01)


def test_ceiling_of_each_cell_is_that_of_who_knows_the_map():
    from wane.train.data.graded_range import images

    _, data = evaluation_of("X", 400, world_seed=2)
    known = by_level(
        "X", lambda row, place, level: row[place] == 320 + images(2)[row[place - level % 100] - 64, 0], data
    )
    assert len(known) == 4
    for level, (share, count) in known.items():
        ceiling = TASKS["X"].at(np.array([level])).ceiling
        assert share == pytest.approx(ceiling, abs=3 / math.sqrt(count)), level


def test_a_ceiling_that_nobody_knows_is_none_and_leaves_that_of_the_task():
    early, late, told = 10 * 2 + 1, 10 * 5 + 1, 10 * 2
    ceilings = [TASKS["G"].at(np.array([level])).ceiling for level in (early, late, told)]
    assert ceilings == [None, TASKS["G"].ceiling, TASKS["G"].ceiling]
    assert TASKS["G"].at(np.array([early, late])).ceiling == TASKS["G"].ceiling
    assert TASKS["G"].at(np.array([early])).chance == TASKS["G"].chance
    assert TASKS["S"].at(np.array([2])) is TASKS["S"]


def test_rows_carry_the_bounds_of_their_level_and_of_what_was_asked():
    stream, data = evaluation_of("M1", 30)
    hit = np.where(data.scored_NS, 1.0, np.nan)
    (part,) = parts("level", data, stream)
    rows = list(token_rows(METRICS["accuracy_by_level"], hit, part, SHAPE))
    assert {(r["at"], r["chance"], r["ceiling"]) for r in rows} == {
        (0.0, 1.0, 1.0), (1.0, 1 / 3, 1.0), (2.0, 0.51, 1.0)
    }  # fmt: skip
    place = METRICS["accuracy"].places(SHAPE)[0]
    counted = data.scored_NS.sum(axis=1)
    total = [np.array([counted.sum()] * 2)] * 2
    rows = sequence_rows(METRICS["accuracy"], place, counted, counted, *total, data, SHAPE)
    (whole,) = (r for r in rows if r["task"] == "M1")
    share = np.bincount(data.level_NS[data.scored_NS]) / data.scored_NS.sum()
    assert whole["chance"] == pytest.approx(share @ [1, 1 / 3, 0.51])
    assert dataclasses.replace(data).tasks[0].chance == 1 / 4
