"""The graded task language against slow solvers that read the tokens and nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wane.train.data import TASKS, graded_facts, key, sample, vocabulary
from wane.train.data.graded_context import copy_distances
from wane.train.data.graded_language import successors
from wane.train.data.task import World

WORLD = World(seed=0, facts=64)
ROWS = 16


def generate(task, length=129, role="train", rows=ROWS, seed=0, world=WORLD):
    return TASKS[task].generate(key.generator("test", seed), rows, length, world, role)


def symbol(token):
    return token - 64


def solve_agreement(tokens):
    answers, head = {}, None
    for i, token in enumerate(tokens):
        if token == vocabulary.END or i == 0:
            head = None
        elif 64 <= token < 128 and head is None:
            head = token
        elif 128 <= token < 160 and i + 1 < len(tokens):  # a verb stem
            answers[i + 1] = 160 + (head >= 96)
    return answers


def solve_dyck(tokens):
    answers, stack = {}, []
    for i, token in enumerate(tokens[1:], 1):
        if token < 456:
            stack.append(token)
            assert len(stack) <= 4
        else:
            answers[i] = stack.pop() + 8
    return answers


def solve_short(tokens):
    image = dict(zip(range(128), _symbol_map(), strict=True))
    answers = {}
    for i, token in enumerate(tokens[:-1]):
        if 17 <= token <= 19:
            answers[i + 1] = tokens[i + 1 - (token - 15)]
        elif 20 <= token <= 22:
            answers[i + 1] = 64 + image[symbol(tokens[i + 1 - (token - 18)])]
    return answers


def _symbol_map():
    """The map as a patient reader would learn it from items of lag 2."""
    tokens, *_ = generate("S", rows=4000)
    here = np.argwhere(tokens[:, :-1] == 20)
    pairs = {(tokens[b, t - 1] - 64, tokens[b, t + 1] - 64) for b, t in here}
    assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs}) == 128
    assert all(x != y for x, y in pairs)
    return [y for _, y in sorted(pairs)]


def solve_copy(tokens):
    answers, at, end = {}, 1, len(tokens)
    while at < end:
        cue = at + 8  # after the motif comes filler
        while cue < end and tokens[cue] >= 448:
            cue += 1
        wanted = tokens[cue : cue + 2].tolist()
        if len(wanted) == 2:
            latest = max(j for j in range(1, cue - 1) if tokens[j : j + 2].tolist() == wanted)
            for n in range(2, min(8, end - cue)):
                answers[cue + n] = tokens[latest + n]
        at = cue + 8
    return answers


def solve_recall(tokens):
    answers, given_value, asked = {}, {}, set()
    for i, token in enumerate(tokens[:-1]):
        if 192 <= token < 320:
            if token in given_value and token not in asked:
                answers[i + 1] = given_value[token]
                asked.add(token)
            else:
                given_value[token] = tokens[i + 1]
                asked.discard(token)
    return answers


def solve_hop(tokens):
    answers, x, hops = {}, [], 0
    for i, token in enumerate(tokens[1:], 1):
        if 23 <= token <= 27:
            hops, x = {23: 0, 24: 1, 25: 2}[token], []
        elif 64 <= token < 68:
            assert not x or x[-1] != token - 64
            x.append(token - 64)
        else:
            at = len(x) - 1
            for _ in range(hops):
                earlier = [j for j in range(at) if x[j] == x[at]]
                at = earlier[-1] + 1 if earlier else None
                if at is None:
                    break
            if at is None:
                assert token == vocabulary.UNDEFINED
            else:
                answers[i] = 320 + x[at]
    return answers


def solve_modular(tokens):
    answers, i = {}, 1
    while i < len(tokens):
        form, results = tokens[i], []
        total = tokens[i + 1] - 32 if i + 1 < len(tokens) else 0
        i += 2
        while i < len(tokens) and tokens[i] != vocabulary.EQUALS:
            sign = {vocabulary.PLUS: 1, vocabulary.MINUS: -1}[tokens[i]]
            total += sign * (tokens[i + 1] - 32) if i + 1 < len(tokens) else 0
            results.append(total % 7)
            i += 2
        i += 1
        for result in results if form == vocabulary.STEPS else results[-1:]:
            if i < len(tokens):
                answers[i] = 32 + result
            i += 1
    return answers


SOLVERS = {
    "L2": solve_agreement,
    "L3": solve_dyck,
    "S": solve_short,
    "R1": solve_copy,
    "R2": solve_recall,
    "M1": solve_hop,
    "M2": solve_modular,
}


@pytest.mark.parametrize("role", ["train", "evaluation"])
@pytest.mark.parametrize("length", [33, 128, 257])
@pytest.mark.parametrize("task", SOLVERS)
def test_solver_derives_every_scored_token_and_no_other(task, length, role):
    tokens_BT, level_BT, _ = generate(task, length=length, role=role)
    for tokens, level in zip(tokens_BT, level_BT, strict=True):
        answers = SOLVERS[task](tokens)
        assert sorted(answers) == list(np.flatnonzero(level >= 0))
        assert all(tokens[i] == answer for i, answer in answers.items())


@pytest.mark.parametrize("task", TASKS)
@given(length=st.integers(33, 300), rows=st.integers(0, 5), seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_any_length_is_filled_with_tokens_of_the_language(task, length, rows, seed):
    tokens, level, _ = generate(task, length=length, rows=rows, seed=seed)
    assert tokens.shape == level.shape == (rows, length)
    assert (tokens[:, 0] == vocabulary.TAGS[task]).all()
    assert not rows or (tokens[:, 1:].min() > 9 and tokens.max() < 512)
    assert not rows or ((level >= 0).any(axis=1).all() and (level[:, 0] == -1).all())
    assert (generate(task, length=length, rows=rows, seed=seed)[0] == tokens).all()


def test_markov_table_is_four_permutations():
    table = successors(0)
    assert table.shape == (64, 4)
    assert all(len(set(row)) == 4 for row in table)
    assert all(sorted(column) == list(range(64)) for column in table.T)
    assert (successors(0) != successors(1)).any()


def test_bigram_follows_the_table_with_its_probabilities():
    tokens, level, _ = generate("L1", rows=400)
    before, after = symbol(tokens[:, 1:-1]), symbol(tokens[:, 2:])
    rank = (successors(0)[before] == after[..., None]) @ np.arange(1, 5)
    shares = np.bincount(rank.ravel(), minlength=5) / rank.size
    np.testing.assert_allclose(shares, [0, 0.5, 0.25, 0.15, 0.1], atol=4 * 0.5 / math.sqrt(rank.size))
    assert (level[:, 2:] == 0).all()
    assert (level[:, :2] == -1).all()
    bits = -sum(p * math.log(p) for p in (0.5, 0.25, 0.15, 0.1))
    assert bits == pytest.approx(1.208, abs=5e-4)


def test_agreement_has_opposite_attractors_in_evaluation_only():
    def numbers_agree(role):
        tokens, level, _ = generate("L2", role=role, rows=300)
        agree = {k: [] for k in range(4)}
        for row, marks in zip(tokens, level, strict=True):
            nouns = []
            for token, mark in zip(row, marks, strict=True):
                if 64 <= token < 128:
                    nouns.append(token >= 96)
                elif mark >= 0:
                    assert mark == len(nouns) - 1
                    agree[mark] += [noun == nouns[0] for noun in nouns[1:]]
                    nouns = []
        return {k: np.mean(same) for k, same in agree.items() if k}

    assert numbers_agree("evaluation") == {1: 0, 2: 0, 3: 0}
    for same in numbers_agree("train").values():
        assert 0.42 < same < 0.58


def test_dyck_opens_half_of_the_time_between_its_walls():
    tokens, *_ = generate("L3", rows=400)
    opens = tokens[:, 1:] < 456
    depth = np.cumsum(np.where(opens, 1, -1), axis=1)
    before = np.concatenate([np.zeros((400, 1), int), depth[:, :-1]], axis=1)
    assert opens[before == 0].all()
    assert not opens[before == 4].any()
    for inside in (1, 2, 3):
        assert opens[before == inside].mean() == pytest.approx(0.5, abs=0.03)


def test_copy_level_is_the_distance_and_fits_the_row():
    assert copy_distances(257) == [16, 32, 64, 128, 224]
    assert copy_distances(129) == [16, 32, 64, 120]
    assert copy_distances(65) == [16, 32, 56]
    tokens, level, _ = generate("R1", rows=60)
    assert set(level[level >= 0]) == set(copy_distances(129))
    for b, t in np.argwhere(level >= 0):
        assert tokens[b, t - level[b, t]] == tokens[b, t]


def test_recall_asks_each_key_once_at_power_law_gaps():
    tokens, level, _ = generate("R2", rows=600, length=257)
    assert set(level[level >= 0]) == {4, 8, 16, 32}
    assert set(generate("R2", length=65)[1].ravel()) == {-1, 4, 8}
    slot = np.arange(256) % 32 // 2 - 4  # of an item with 4 pairs: slots 0..11 after the pairs
    asked = np.bincount(slot[np.argwhere(level[:, 1:] == 4)[:, 1]], minlength=12)
    share = asked / asked.sum()
    weights = np.arange(1, 13) ** -0.99
    rng = np.random.default_rng(0)
    drawn = [rng.choice(12, 4, replace=False, p=weights / weights.sum()) for _ in range(4000)]
    np.testing.assert_allclose(share, np.bincount(np.ravel(drawn)) / 16000, atol=0.02)


def test_facts_are_the_same_in_forms_that_training_never_uses():
    known, forms = {}, {"train": set(), "evaluation": set()}
    for role in ("train", "evaluation"):
        tokens, level, _ = generate("K", role=role, rows=400)
        for row, marks in zip(tokens, level, strict=True):
            statements, name = [], ()
            for token, mark in zip(row[1:], marks[1:], strict=True):
                if 192 <= token < 320:
                    name = name + (token,) if not statements or statements[-1][0] == name else (token,)
                    if not statements or statements[-1][0] != name:
                        statements.append([name, []])
                        statements[-1][0] = name
                elif token >= 448:
                    statements[-1][0] = name
                    statements[-1][1].append(token - 480)
                else:
                    assert mark == 0
                    attribute = statements[-1][1][-1] % 4
                    assert known.setdefault((name, attribute), token) == token
                if mark == 0 and len(statements[-1][1]) == 4:
                    forms[role].add(tuple(statements[-1][1]))
                    name = ()
    assert len({name for name, _ in known}) == 64
    assert len(known) == 64 * 4
    assert len(forms["train"]) == 72
    assert len(forms["evaluation"]) == 24
    assert not forms["train"] & forms["evaluation"]


def test_a_row_never_states_an_entity_twice():
    tokens, *_ = generate("K", rows=200, length=129)  # at most 13 statements of 64 entities
    names, lengths, _ = graded_facts.entities(WORLD)
    first = {(a, b) for a, b, *_ in names.tolist()}
    assert len(first) == 64
    assert set(lengths) == {2, 3, 4}
    for row in tokens:
        statements = [pair for pair in zip(row[:-1].tolist(), row[1:].tolist(), strict=True) if pair in first]
        starts = [pair for pair in statements if pair[0] >= 192]
        assert len(starts) == len(set(starts)) >= 10


@pytest.mark.parametrize(("count", "population"), [(8, 128), (13, 64), (5, 5), (7, 3)])
def test_distinct_is_uniform_at_every_place(count, population):
    drawn = vocabulary.distinct(key.generator("distinct"), (6000,), count, population)
    assert drawn.min() == 0
    assert drawn.max() == population - 1
    if count <= population:
        assert (np.diff(np.sort(drawn), axis=1) > 0).all()
    for place in range(count):
        share = np.bincount(drawn[:, place], minlength=population) / len(drawn)
        np.testing.assert_allclose(share, 1 / population, atol=5 / math.sqrt(len(drawn) * population))


CHANCE_TOKENS = {"L1": 64, "L2": 2, "L3": 8, "S": 128, "R1": 128, "R2": 128, "M1": 4, "M2": 7}


@pytest.mark.parametrize("task", CHANCE_TOKENS)
def test_chance_is_one_guess_among_equally_frequent_answers(task):
    assert TASKS[task].chance == pytest.approx(1 / CHANCE_TOKENS[task])
    tokens, level, _ = generate(task, rows=1500, role="evaluation")
    answers = np.unique(tokens[level >= 0], return_counts=True)[1]
    assert len(answers) == CHANCE_TOKENS[task]
    best = answers.max() / answers.sum()  # of always saying the same: above chance by sampling noise only
    assert best <= TASKS[task].chance * (1 + 9 / math.sqrt(answers.mean()))


def test_chance_of_facts_is_one_of_64_values_per_attribute():
    values = graded_facts.entities(World(seed=0, facts=16384))[2] - 320
    for attribute in range(4):
        counts = np.bincount(values[:, attribute], minlength=128)
        used = counts[counts > 0]
        assert len(used) == 64
        assert used.max() / used.sum() < TASKS["K"].chance * 1.4


@pytest.mark.parametrize("task", TASKS)
def test_sample_marks_scored_tokens(task):
    words = sample(task, 3, 60).split()
    assert len(words) == 60
    assert words[0] == f"<{task}>"
    scored = TASKS[task].generate(key.generator("sample", 3, task), 1, 60, World(seed=0, facts=256), "train")[
        1
    ]
    assert [word.endswith("*") for word in words] == list(scored[0] >= 0)


def test_sample_of_an_unknown_task_names_the_known():
    with pytest.raises(ValueError, match="task 'Z9': the graded tasks are L1, L2"):
        sample("Z9", 0, 40)
