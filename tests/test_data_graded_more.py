"""X, M3, T1, T2, G of the graded language against slow solvers that read the tokens and nothing else."""

import itertools
import math
from collections import Counter, defaultdict
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wane.train.data import TASKS, graded_range, key, vocabulary
from wane.train.data.graded_facts import exposure
from wane.train.data.graded_topic import BLIND_NATS
from wane.train.data.task import World

MORE = ("X", "M3", "T1", "T2", "G")
WORLDS = {"T1": World(seed=0, facts=4096), "T2": World(seed=0, facts=300)}
L1_P = (0.5, 0.25, 0.15, 0.1)
LOCAL, CHANCE, FAR, FAR_CHANCE = 448, 449, 450, 451


def generate(task, length=257, role="train", rows=16, seed=0, world=None):
    world = world or WORLDS.get(task, World(seed=0, facts=64))
    return TASKS[task].generate(key.generator("more", seed), rows, length, world, role)


def answered(tokens):
    """X: (place of the answer, lag, symbol) of every pair of a row, item by item."""
    cell, starts = tokens[1], np.flatnonzero(tokens == tokens[1])
    for start, stop in itertools.pairwise([*starts, len(tokens)]):
        body = range(start + 1, stop)
        if cell in (LOCAL, CHANCE):
            yield from ((i, 1, tokens[i - 1]) for i in body if tokens[i] >= 320)
        else:
            middle = next((i for i in body if tokens[i] == vocabulary.EQUALS), stop)
            lag = middle - start
            yield from ((i, lag, tokens[i - lag]) for i in body if i > middle)


@lru_cache(maxsize=1)
def shares_of_answers():
    """X: for each cell, how often each answer comes after each symbol."""
    counts = {cell: np.zeros((128, 128)) for cell in (LOCAL, CHANCE, FAR, FAR_CHANCE)}
    for tokens in generate("X", rows=1600)[0]:
        for i, _, symbol in answered(tokens):
            counts[tokens[1]][symbol - 64, tokens[i] - 320] += 1
    return {cell: count / count.sum(axis=1, keepdims=True) for cell, count in counts.items()}


def solve_range(tokens):
    """The certain answer is the map of local rows; the others are what local rows ever say."""
    cell, shares = tokens[1], shares_of_answers()
    chance = cell in (CHANCE, FAR_CHANCE)
    likely = shares[CHANCE] if chance else shares[LOCAL]
    return {
        i: ({320 + v for v in np.flatnonzero(likely[symbol - 64])}, lag + 100 * chance, {-1})
        for i, lag, symbol in answered(tokens)
    }


def solve_state(tokens):
    elements = [*itertools.permutations(range(3)), *itertools.permutations(range(5))]

    def after(p, x):
        return tuple(x[i] for i in p)

    solved, i = {}, 1
    while i < len(tokens):
        steps, total, n, place = tokens[i] == vocabulary.STEPS, None, 0, i + 1
        while place < len(tokens) and 64 <= tokens[place] < 192:
            x = elements[tokens[place] - 64]
            n += 1
            swapped, total = (x, x) if total is None else (after(x, total), after(total, x))
            place += 1
            if steps and n > 1:
                solved[place] = total, n + 50, swapped
                place += 1
        if not steps:
            solved[place + 1] = total, n, swapped  # after the =
            place += 2
        i = place
    code = {element: 64 + i for i, element in enumerate(elements)}
    return {
        i: (
            {code[total]},
            100 * len(total) + n,
            {-1 if swapped == total else code[swapped]},
        )
        for i, (total, n, swapped) in solved.items()
        if i < len(tokens)
    }


@lru_cache(maxsize=1)
def statements_of_entities():
    """T1: value of every entity, and the default of every first key: the value of most of its entities."""
    tokens = generate("T1", rows=1500)[0][:, 1:].reshape(-1, 4)
    value = {(a, b): v for a, b, _, v in tokens.tolist()}
    assert len(value) == 4096
    said = defaultdict(Counter)
    for (first, _), v in value.items():
        said[first][v] += 1
    return value, {first: counts.most_common(1)[0][0] for first, counts in said.items()}


def solve_exceptions(tokens):
    value, default = statements_of_entities()
    solved = {}
    for i in range(4, len(tokens), 4):
        name = tuple(tokens[i - 3 : i - 1].tolist())
        usual = default[name[0]]
        exception = value[name] != usual
        foils = {usual} if exception else set(range(320, 336)) - {usual}
        solved[i] = {value[name]}, int(exception), foils
    return solved


def parsed(statement):
    """T2: name, whether a source says it, value and form of a statement of five tokens."""
    *said, value = statement
    kinds = ["name" if t < 320 else "ask" if t < 452 else "marker" for t in said]
    name = tuple(t for t in said if t < 320)
    template = next(t for t in said if 448 <= t < 452)
    return name, 453 in said, value, (template, tuple(kinds))


@lru_cache(maxsize=1)
def statements_in_training():
    return [parsed(s) for s in generate("T2", rows=2500, seed=1)[0][:, 1:256].reshape(-1, 5).tolist()]


@lru_cache(maxsize=1)
def said_in_training():
    """T2: what sources and rumours say of every name, and how often a rumour comes for a truth of any name."""
    values, counts = {}, Counter()
    for name, by_source, value, _ in statements_in_training():
        assert values.setdefault((name, by_source), value) == value
        counts[name, by_source] += 1
    names = {name for name, _ in values}
    assert len(names) == 300
    truths = sum(counts[name, True] for name in names) / 300  # about 30, too few to count for one name
    return values, {name: counts[name, False] / truths for name in names}


def solve_misconceptions(tokens):
    values, ratio = said_in_training()
    solved = {}
    for i in range(5, len(tokens), 5):
        name, by_source, *_ = parsed(tokens[i - 4 : i + 1].tolist())
        if by_source:
            level = min((3, 9, 27), key=lambda r: abs(math.log(ratio[name] / r)))
            solved[i] = {values[name, True]}, level, {values[name, False]}
    return solved


@lru_cache(maxsize=1)
def read_topics():
    """G: the four symbols of every topic, most likely first, and the successors of every symbol, from told rows:
    what comes is of the topic or follows from the symbol before."""
    tokens = generate("G", rows=6000)[0]
    told = tokens[tokens[:, 1] < 456]
    count = np.zeros((8, 64, 64))  # topic, symbol before, symbol
    topic = np.repeat(told[:, 1] - 448, 254)
    np.add.at(count, (topic, told[:, 2:-1].ravel() - 64, told[:, 3:].ravel() - 64), 1)
    own = [np.argsort(-c.sum(axis=0))[:4] for c in count]
    follows = [
        {int(x) for z in range(8) for x in np.flatnonzero(count[z, s]) if x not in own[z]} for s in range(64)
    ]
    ranked = []
    for z in range(8):  # where no successor is in the way, the topic alone decides
        alone = [s for s in range(64) if not follows[s] & set(own[z])]
        shares = count[z][alone][:, own[z]].sum(axis=0) / count[z][alone].sum()
        np.testing.assert_allclose(np.sort(shares)[::-1], 0.4 * np.array(L1_P), atol=0.01)
        ranked.append([int(x) for x in own[z][np.argsort(-shares)]])
    return ranked, follows


def solve_topic(tokens):
    own, follows = read_topics()
    symbols = tokens[2:] - 64
    pairs = list(itertools.pairwise(symbols.tolist()))
    possible = [z for z in range(8) if all(x in own[z] or x in follows[before] for before, x in pairs)]
    hidden = tokens[1] == 456
    (topic,) = possible if hidden else [tokens[1] - 448]
    solved = {}
    for n, (before, x) in enumerate(pairs, 2):
        rank = own[topic].index(x) if x in own[topic] else None
        foils = {-1} if rank is None else {64 + own[z][rank] for z in range(8) if z != topic}
        answers = {64 + y for y in [*own[topic], *follows[before]]}
        solved[n + 1] = answers, 10 * int(math.log2(n)) + hidden, foils
    return solved


SOLVERS = {
    "X": solve_range,
    "M3": solve_state,
    "T1": solve_exceptions,
    "T2": solve_misconceptions,
    "G": solve_topic,
}


@pytest.mark.parametrize("role", ["train", "evaluation"])
@pytest.mark.parametrize("length", [33, 128, 257])
@pytest.mark.parametrize("task", MORE)
def test_solver_derives_token_level_and_foil_of_every_scored_place_and_of_no_other(task, length, role):
    for tokens, level, foil in zip(*generate(task, length=length, role=role, rows=24), strict=True):
        solved = SOLVERS[task](tokens)
        assert sorted(solved) == list(np.flatnonzero(level >= 0))
        assert (foil[level < 0] == -1).all()
        for i, (answers, difficulty, foils) in solved.items():
            assert tokens[i] in answers
            assert level[i] == difficulty
            assert foil[i] in foils
            assert foil[i] != tokens[i]


@pytest.mark.parametrize("role", ["train", "evaluation"])
@pytest.mark.parametrize("task", MORE)
@given(
    length=st.integers(33, 257), rows=st.integers(0, 4), seed=st.integers(0, 10**6), facts=st.integers(1, 40)
)
@settings(max_examples=8, deadline=None)
def test_any_length_scores_answers_of_the_value_set_and_follows_from_the_key(
    task, role, length, rows, seed, facts
):
    world = World(seed=1, facts=facts)
    tokens, level, foil = generate(task, length, role, rows, seed, world)
    first, count = TASKS[task].answers
    assert tokens.shape == level.shape == foil.shape == (rows, length)
    assert (level >= 0).any(axis=1).all()
    scored = tokens[level >= 0]
    assert ((scored >= first) & (scored < first + count)).all()
    told = foil[foil >= 0]
    assert ((told >= first) & (told < first + count)).all()
    for again, once in zip(
        generate(task, length, role, rows, seed, world), (tokens, level, foil), strict=True
    ):
        assert (again == once).all()
    if rows and facts > 9:  # of one entity there is little to say
        assert (generate(task, length, role, rows, seed + 1, world)[0] != tokens).any()


def test_range_cells_share_one_map_and_the_probabilities_of_l1():
    shares = shares_of_answers()
    best = np.argmax(shares[CHANCE], axis=1)
    assert sorted(best) == list(range(128))
    for cell, others in ((LOCAL, CHANCE), (FAR, FAR_CHANCE)):
        assert (np.argmax(shares[cell], axis=1) == best).all()
        assert (shares[cell].max(axis=1) == 1).all()
        assert ((shares[others] > 0) == (shares[CHANCE] > 0)).all()
        np.testing.assert_allclose(np.sort(shares[others].mean(axis=0)), 1 / 128, atol=0.0015)
        ranked = np.sort(shares[others], axis=1)[:, ::-1]
        np.testing.assert_allclose(ranked[:, :4].mean(axis=0), L1_P, atol=0.015)
        assert (ranked[:, 4:] == 0).all()


def test_range_levels_tell_four_equally_frequent_cells():
    for length, far in ((257, 32), (66, 32), (65, 32), (64, 31), (33, 16)):
        tokens, level, _ = generate("X", length=length, rows=400)
        rows = Counter(tokens[:, 1].tolist())
        assert set(rows) == {LOCAL, CHANCE, FAR, FAR_CHANCE}
        assert min(rows.values()) > 70
        for tokens_T, level_T in zip(tokens, level, strict=True):
            wanted = {LOCAL: 1, CHANCE: 101, FAR: far, FAR_CHANCE: 100 + far}[tokens_T[1]]
            assert set(level_T[level_T >= 0]) == {wanted}


def test_range_asks_no_symbol_twice_and_the_cells_hold_the_same_tokens():
    tokens, level, _ = generate("X", rows=40)
    for row in tokens:
        symbols = [t for t in row.tolist() if 64 <= t < 192]
        assert len(symbols) == len(set(symbols)) == 124
        assert Counter(row.tolist())[vocabulary.EQUALS] == 4
    assert ((level >= 0).sum(axis=1) == 124).all()


def test_range_entropy_and_ceiling_are_those_of_the_cells():
    np.testing.assert_allclose(
        graded_range.entropy(np.array([1, 32, 101, 132])), [0, 0, 1.208, 1.208], atol=5e-4
    )
    assert TASKS["X"].chance == 1 / 128
    assert TASKS["X"].ceiling == pytest.approx(np.mean([1, 1, 0.5, 0.5]))


def test_state_guesses_are_uniform_in_groups_that_are_scored_alike():
    tokens, level, foil = generate("M3", rows=1500)
    scored, group, own = tokens[level >= 0] - 64, level[level >= 0] // 100, foil[level >= 0]
    sizes = {3: 6, 5: 120}
    assert TASKS["M3"].chance == pytest.approx((1 / 6 + 1 / 120) / 2)
    assert np.mean([1 / sizes[d] for d in group]) == pytest.approx(TASKS["M3"].chance, rel=0.03)
    for degree, first in ((3, 0), (5, 6)):
        counts = np.bincount(scored[group == degree] - first)
        assert len(counts) == sizes[degree]
        assert counts.max() < counts.mean() * (1 + 5 / math.sqrt(counts.mean()))
    # Two random elements of S3 commute 1 time in 2, of S5 7 times in 120: the number of classes by the order.
    assert (own[group == 3] == -1).mean() == pytest.approx(1 / 2, abs=0.01)
    assert (own[group == 5] == -1).mean() == pytest.approx(7 / 120, abs=0.01)


def test_state_items_are_half_direct_and_of_every_length_alike():
    tokens, level, _ = generate("M3", rows=1500)
    first = tokens[:, 1]
    assert (first == vocabulary.STEPS).mean() == pytest.approx(0.5, abs=0.05)
    direct = [next(v for v in row if v >= 0) % 100 for row in level[first == vocabulary.DIRECT]]
    counts = np.bincount(direct, minlength=17)
    assert (counts[:4] == 0).all()
    assert len(counts) == 17
    assert counts[4:].min() > 0.5 * counts[4:].mean()


def test_one_entity_in_five_is_an_exception_and_values_do_not_show_it():
    value, default = statements_of_entities()
    exceptions = {name for name, v in value.items() if v != default[name[0]]}
    assert len(exceptions) == 4096 // 5
    assert sorted(Counter(default.values()).items()) == [(v, 8) for v in range(320, 336)]
    assert TASKS["T1"].chance == 1 / 16
    for some in (exceptions, set(value) - exceptions):
        counts = Counter(value[name] for name in some)
        assert len(counts) == 16
        assert max(counts.values()) < 1.6 * len(some) / 16
    assert generate("T1", world=World(seed=1, facts=4096))[0].tolist() != generate("T1")[0].tolist()


@pytest.mark.parametrize("task", ["T1", "T2"])
def test_no_entity_is_asked_twice_in_a_row(task):
    tokens, *_ = generate(task, role="evaluation", rows=60)
    width = {"T1": 4, "T2": 5}[task]
    for row in tokens[:, 1 : 1 + 255 // width * width].reshape(60, -1, width).tolist():
        names = [tuple(t for t in statement[:-1] if t < 320) for statement in row]
        assert len(names) == len(set(names))


def test_rumours_come_as_often_as_their_ratio_says_and_truths_alike():
    _, ratio = said_in_training()
    drawn = np.array(sorted(ratio.values())).reshape(3, 100)
    np.testing.assert_allclose(np.median(drawn, axis=1), [3, 9, 27], rtol=0.1)
    truths = Counter(name for name, by_source, *_ in statements_in_training() if by_source)
    means = [np.mean([truths[n] for n in ratio if abs(math.log(ratio[n] / r)) < 0.5]) for r in (3, 9, 27)]
    np.testing.assert_allclose(means, np.mean(means), rtol=0.1)


def test_a_row_hears_no_rumour_twice_and_its_order_says_nothing():
    tokens, *_ = generate("T2", rows=200)
    followers = defaultdict(list)
    for row in tokens[:, 1:256].reshape(200, 51, 5).tolist():
        heard = [name for name, by_source, *_ in map(parsed, row) if not by_source]
        assert len(heard) == len(set(heard)) > 20
        for name, after in itertools.pairwise(heard):
            followers[name].append(after)
    most = max(followers.values(), key=len)
    assert len(set(most)) > 0.5 * len(most) > 20


def test_truths_have_their_share_in_long_rows_and_at_least_one_in_all():
    for length, share in ((257, 1 / 14), (129, 1 / 14), (33, 1 / 6)):
        _, level, _ = generate("T2", length=length, rows=3000)
        number = (level >= 0).sum(axis=1)
        assert number.min() == 1
        assert number.mean() == pytest.approx((length - 1) // 5 * share, rel=0.04)


def test_truths_are_asked_in_forms_that_training_never_uses():
    asked = [
        parsed(s) for s in generate("T2", role="evaluation", rows=60)[0][:, 1:256].reshape(-1, 5).tolist()
    ]
    assert all(by_source for _, by_source, *_ in asked)
    told = {by: {form for _, b, _, form in statements_in_training() if b == by} for by in (True, False)}
    assert len(told[True]) == 18
    assert told[True] == told[False]
    forms = {form for *_, form in asked}
    assert len(forms) == 6
    assert not forms & told[True]
    for part in (0, 1):  # every word and every order is known, only not together
        assert {form[part] for form in forms} <= {form[part] for form in told[True]}


def test_true_and_false_values_are_frequent_alike():
    values, _ = said_in_training()
    names = {name for name, _ in values}
    assert all(values[name, True] != values[name, False] for name in names)
    for by_source in (True, False):
        counts = Counter(values[name, by_source] for name in names)
        assert set(counts) <= set(range(320, 384))
        assert max(counts.values()) < 300 / 64 * 3.2
    assert TASKS["T2"].chance == 1 / 64


def test_topics_are_disjoint_and_every_symbol_has_eight_successors():
    own, follows = read_topics()
    assert len({x for symbols in own for x in symbols}) == 32
    assert all(len(successors) == 8 for successors in follows)


def test_topic_ceiling_is_that_of_bayes_and_hidden_rows_reach_it():
    own, follows = read_topics()
    step = np.zeros((8, 64, 64))  # topic, symbol before, symbol
    for z in range(8):
        step[z][:, own[z]] += 0.4 * np.array(L1_P)
        for s in range(64):
            step[z, s, list(follows[s])] += 0.6 / 8
    for z in range(8):
        values, vectors = np.linalg.eig(step[z].T)
        share = np.real(vectors[:, np.argmax(np.real(values))])
        share /= share.sum()
        assert (share * step[z].max(axis=1)).sum() == pytest.approx(TASKS["G"].ceiling, abs=1e-9)
        entropy = -(share[:, None] * step[z] * np.log(np.where(step[z] > 0, step[z], 1))).sum()
        assert entropy == pytest.approx(2.364, abs=5e-4)
        assert TASKS["G"].entropy(np.array([20, 21])) == pytest.approx([entropy, -1])
        blind = step.mean(axis=0)
        cross = -(share[:, None] * step[z] * np.log(np.where(step[z] > 0, blind, 1))).sum()
        assert pytest.approx(cross) == BLIND_NATS
    assert step.mean(axis=0).max(axis=1) == pytest.approx(0.1)
    tokens, level, _ = generate("G", rows=1500)
    x_BT, hidden = tokens[:, 2:] - 64, tokens[:, 1] == 456
    weight = np.ones((1500, 8)) / 8
    weight[~hidden] = np.eye(8)[tokens[~hidden, 1] - 448]
    right = np.zeros(x_BT.shape)
    for t in range(1, 255):
        before, now = x_BT[:, t - 1], x_BT[:, t]
        guess = np.einsum("bz,bzx->bx", weight, step[:, before].transpose(1, 0, 2)).argmax(axis=1)
        right[:, t] = guess == now
        weight = weight * step[:, before, now].T
        weight /= weight.sum(axis=1, keepdims=True)
    assert right[~hidden, 1:].mean() == pytest.approx(TASKS["G"].ceiling, abs=0.004)
    assert right[~hidden, 1:3].mean() == pytest.approx(TASKS["G"].ceiling, abs=0.03)
    assert right[hidden, 16:].mean() == pytest.approx(TASKS["G"].ceiling, abs=0.004)
    assert right[hidden, 1].mean() < 0.15
    assert set(level[:, 3:][hidden].ravel()) == {11, 21, 31, 41, 51, 61, 71}


def test_topics_are_told_in_half_of_the_rows_and_rows_start_as_they_go_on():
    own, _ = read_topics()
    tokens, *_ = generate("G", rows=3000)
    rows = Counter(tokens[:, 1].tolist())
    assert set(rows) == set(range(448, 457))
    assert rows[456] == pytest.approx(1500, abs=150)
    assert max(rows[448 + z] for z in range(8)) < 190 * 1.4
    assert len(np.unique(tokens[:, 2:])) == 64
    assert TASKS["G"].chance == 1 / 64
    told = tokens[tokens[:, 1] < 456]
    likeliest = 64 + np.array(own)[told[:, 1] - 448, 0]
    assert (told[:, 2] == likeliest).mean() == pytest.approx(TASKS["G"].ceiling, abs=0.045)


def test_the_product_of_load_and_exposures_follows_from_the_budget():
    """At 20 tokens per parameter and a tenth of the scored tokens K gets about 4.8 bits times exposures per
    parameter, whatever the number of entities (science of capacity: 2 bits per parameter at 1000 exposures)."""
    params = 442_368
    statements = 20 * params * 0.1 / 10  # of 10 tokens
    few, many = (exposure("K", facts, params, 4 * statements) for facts in (100, 10_000))
    assert few.product == pytest.approx(many.product)
    assert few.product == pytest.approx(4.8)
    assert few.exposures == pytest.approx(100 * many.exposures)
    long = exposure("K3", 100, params, 4 * 3 * statements)  # three tokens a value: three times the bits
    assert (long.load, long.exposures) == pytest.approx((3 * few.load, few.exposures))
    assert few.exposures == statements / 100
    assert few.load == pytest.approx(100 * 4 * 6 / params)
    assert [few.most, many.most] == pytest.approx([0.048] * 2), "100 exposures are the fewest"
    rich = exposure("K", 100, params, 250 * 4 * statements)
    assert rich.most == pytest.approx(1.2), "1200 bits times exposures per parameter: 1.2 at 1000"
    assert exposure("K", 100, params, 2000 * 4 * statements).most == 2, "no parameter holds more"
