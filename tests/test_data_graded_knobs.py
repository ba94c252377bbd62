"""L1o2, M1d, M2l and the tasks with answers of three tokens, K3, R23, M23, T13, against slow readers that see
the tokens and nothing else; and the kinds of tokens that wrong options are of."""

import itertools
import math
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest

from wane.train.data import TASKS, Data, graded_facts, graded_steps, key, open_data, vocabulary
from wane.train.data.graded import CATEGORIES
from wane.train.data.graded_language import successors
from wane.train.data.options import OPTIONS
from wane.train.data.task import World

KNOBS = ("L1o2", "M1d", "M2l", "K3", "R23", "M23", "T13")
WORLDS = {"T13": World(seed=0, facts=4096)}
L1_P = (0.5, 0.25, 0.15, 0.1)
KEYS, VALUES, WORDS = range(192, 320), range(320, 448), range(448, 512)


def generate(task, length=129, role="train", rows=16, seed=0, world=None):
    world = world or WORLDS.get(task, World(seed=0, facts=64))
    return TASKS[task].generate(key.generator("knobs", seed), rows, length, world, role)


@cache
def after_two():
    """L1o2: how often each symbol [64, 64, 64] comes after two others, in training."""
    x = generate("L1o2", rows=3000, length=257)[0][:, 1:] - 64
    code = (x[:, :-2] * 64 + x[:, 1:-1]) * 64 + x[:, 2:]
    return np.bincount(code.ravel(), minlength=64**3).reshape(64, 64, 64)


def solve_trigram(tokens):
    seen = after_two() > 0
    x = tokens - 64
    return {i: (set(64 + np.flatnonzero(seen[x[i - 2], x[i - 1]])), 0, {-1}) for i in range(3, len(x))}


def solve_hop(tokens):
    solved, x, hops = {}, [], 0
    for i, token in enumerate(tokens[1:].tolist(), 1):
        if token in vocabulary.HOP.values():
            hops, x = {23: 0, 24: 1, 25: 2, 26: 4, 27: 8}[token], []
        elif 64 <= token < 68:
            assert not x or x[-1] != token
            x.append(token)
        else:
            at = len(x) - 1
            for _ in range(hops):
                at = next((j + 1 for j in range(at - 1, -1, -1) if x[j] == x[at]), None)
                if at is None:
                    break
            if at is None:
                assert token == vocabulary.UNDEFINED
            else:
                solved[i] = {x[at] + 256}, hops, {-1}
    return solved


def sums_in(tokens, digits):
    """(form, numbers of the chain, signs, place of the first result) of every sum that is told whole."""
    row, i = tokens.tolist(), 1
    while i < len(row):
        form, i = row[i], i + 1
        numbers, signs = [row[i : i + digits]], []
        i += digits
        while i < len(row) and row[i] != vocabulary.EQUALS:
            signs.append({vocabulary.PLUS: 1, vocabulary.MINUS: -1}[row[i]])
            numbers.append(row[i + 1 : i + 1 + digits])
            i += 1 + digits
        i += 1
        yield form, numbers, signs, i
        i += digits * (len(signs) if form == vocabulary.STEPS else 1)


def solve_sums(tokens, digits=1):
    solved = {}
    for form, numbers, signs, start in sums_in(tokens, digits):
        written = form == vocabulary.STEPS
        for n in range(1, len(signs) + 1) if written else [len(signs)]:
            for place in range(digits):
                i = start + ((n - 1) * written * digits) + place
                if i < len(tokens):
                    own = [number[place] - 32 for number in numbers]
                    total = own[0] + sum(s * a for s, a in zip(signs[:n], own[1 : n + 1], strict=True))
                    short = total - signs[n - 1] * own[n]  # without the last term
                    level = n + 10 * written
                    foil = -1 if (total - short) % 7 == 0 else 32 + short % 7
                    solved[i] = {32 + total % 7}, level if digits == 1 else 10 * level + place + 1, {foil}
    return solved


def statements_in(tokens):
    """K3: (name, words, places of values by word) of every statement."""
    statements, before = [], None
    for i, token in enumerate(tokens.tolist()):
        if token in KEYS:
            if before not in KEYS:
                statements.append(((), [], []))
            name, words, places = statements[-1]
            statements[-1] = (*name, token), words, places
        elif token in WORDS:
            statements[-1][1].append(token - 480)
            statements[-1][2].append([])
        elif token in VALUES:
            statements[-1][2][-1].append(i)
        before = token
    return statements


@cache
def facts_told(task):
    """K3: what training says of every name and attribute; T13: of every name."""
    told = {}
    for tokens in generate(task, rows=1500, length=257)[0]:
        if task == "K3":
            said = [
                ((name, word % 4), [tokens[i] for i in at])
                for name, words, places in statements_in(tokens)
                for word, at in zip(words, places, strict=True)
            ]
        else:
            said = [(tuple(x[:2]), x[3:]) for x in tokens[1:253].reshape(-1, 6).tolist()]
        for asked, answer in said:
            if len(answer) == 3:
                assert told.setdefault(asked, tuple(map(int, answer))) == tuple(answer)
    assert len(told) == {"K3": 4 * 64, "T13": 4096}[task]
    return told


def solve_facts(tokens):
    solved = {}
    for name, words, places in statements_in(tokens):
        for word, at in zip(words, places, strict=True):
            answer = facts_told("K3")[name, word % 4]
            others = [facts_told("K3")[other, word % 4] for other in namesakes()[name]]
            for n, i in enumerate(at):
                foils = {other[n] for other in others}
                solved[i] = {answer[n]}, n + 1, foils - {answer[n]} | ({-1} if answer[n] in foils else set())
    return solved


@cache
def namesakes():
    """K3: of every name the others that begin alike; of those that begin like no other, one another."""
    names = {name for name, _ in facts_told("K3")}
    first = Counter(name[0] for name in names)
    family = {name: name[0] if first[name[0]] > 1 else None for name in names}
    return {name: [o for o in names if o != name and family[o] == family[name]] for name in names}


def item_of_recall(tokens):
    """R23: value of each key, places where a key is asked; of the first item of a row."""
    value, asked = {}, {}
    for i in range(1, len(tokens), 4):
        token = int(tokens[i])
        if token in value and token not in asked:
            asked[token] = i
        elif token in KEYS:
            if asked:
                break
            value[token] = tuple(tokens[i + 1 : i + 4].tolist())
    return value, asked


def solve_recall(tokens):
    solved, start = {}, 1
    while start < len(tokens):
        value, asked = item_of_recall(np.append(0, tokens[start:]))
        width = 4 * len(value)
        if len(tokens) - start > width:
            slots = min(3 * len(value), (len(tokens) - 1) // 4 - len(value))
            for name, i in asked.items():
                at = range(start + i, min(start + i + 3, len(tokens)))
                place = list(value).index(name)
                beside = list(value.values())[place + 1 if place % 2 == 0 else place - 1]
                for n, j in enumerate(at):
                    foil = -1 if beside[n] == value[name][n] else beside[n]
                    solved[j] = {value[name][n]}, 10 * len(value) + n + 1, {foil}
            width += 4 * slots
        start += width
    return solved


@cache
def defaults_told():
    """T13: for each place the most frequent value of every first key."""
    counts = defaultdict(Counter)
    for (first, _), answer in facts_told("T13").items():
        for n, token in enumerate(answer):
            counts[first, n][token] += 1
    return {asked: count.most_common(1)[0][0] for asked, count in counts.items()}


def solve_exceptions(tokens):
    solved = {}
    for start in range(1, len(tokens), 6):
        name = tuple(tokens[start : start + 2].tolist())
        for n, i in enumerate(range(start + 3, min(start + 6, len(tokens)))):
            right, usual = facts_told("T13")[name][n], defaults_told()[name[0], n]
            foils = set(range(320, 336)) - {usual} if right == usual else {usual}
            solved[i] = {right}, 10 * (right != usual) + n + 1, foils
    return solved


SOLVERS = {
    "L1o2": solve_trigram,
    "M1d": solve_hop,
    "M2l": solve_sums,
    "K3": solve_facts,
    "R23": solve_recall,
    "M23": lambda tokens: solve_sums(tokens, digits=3),
    "T13": solve_exceptions,
}


@pytest.mark.parametrize("role", ["train", "evaluation"])
@pytest.mark.parametrize("length", [33, 66, 128, 257])
@pytest.mark.parametrize("task", KNOBS)
def test_a_reader_derives_token_level_and_foil_of_every_scored_place_and_of_no_other(task, length, role):
    """So a predictor with the skill is right everywhere: the ceiling is 1, where only one token can come."""
    first, count = TASKS[task].answers
    for tokens, level, foil in zip(*generate(task, length, role), strict=True):
        solved = SOLVERS[task](tokens)
        assert sorted(solved) == list(np.flatnonzero(level >= 0))
        assert (foil[level < 0] == -1).all()
        for i, (answers, difficulty, foils) in solved.items():
            assert tokens[i] in answers
            assert first <= tokens[i] < first + count
            assert len(answers) == (4 if task == "L1o2" else 1)
            assert level[i] == difficulty
            assert foil[i] in foils
            assert foil[i] != tokens[i]
    assert TASKS[task].ceiling == (0.5 if task == "L1o2" else 1.0)
    assert not TASKS[task].mixed


UNIFORM = {"L1o2": 64, "M1d": 4, "M2l": 7, "R23": 128, "M23": 7, "T13": 16}


@pytest.mark.parametrize("task", UNIFORM)
def test_chance_is_one_guess_among_equally_frequent_answers(task):
    world = World(seed=0, facts=16384)
    tokens, level, _ = generate(task, rows=1500, role="evaluation", world=world)
    answers = np.unique(tokens[level >= 0], return_counts=True)[1]
    assert len(answers) == UNIFORM[task]
    assert TASKS[task].chance == 1 / UNIFORM[task]
    # Answers of one row depend on each other, most in T13, whose keys share their defaults.
    np.testing.assert_allclose(
        answers / answers.sum(), TASKS[task].chance, rtol=9 / math.sqrt(answers.mean())
    )


def test_a_trigram_needs_both_symbols():
    count_ABC = after_two()
    assert ((count_ABC > 0).sum(axis=2) == 4).all()
    ranked = np.sort(count_ABC / count_ABC.sum(axis=2, keepdims=True), axis=2)[..., ::-1][..., :4]
    np.testing.assert_allclose(ranked.mean(axis=(0, 1)), L1_P, atol=0.01)
    p = np.array(L1_P)
    assert -(p * np.log(p)).sum() == pytest.approx(1.208, abs=5e-4)
    best_AB = count_ABC.argmax(axis=2)
    tokens, level, _ = generate("L1o2", rows=800, role="evaluation", length=257)
    x = tokens[:, 1:] - 64
    assert (best_AB[x[:, :-2], x[:, 1:-1]] == x[:, 2:]).mean() == pytest.approx(0.5, abs=0.006)
    best_B = count_ABC.sum(axis=0).argmax(axis=1)  # who sees the last symbol only
    assert (best_B[x[:, 1:-1]] == x[:, 2:]).mean() == pytest.approx(1 / 64, abs=0.001)
    assert (level[:, 3:] == 0).all()
    assert (level[:, :3] == -1).all()


def test_the_table_of_order_two_is_permutations_of_the_earlier_state():
    table_ABR = successors(0, 2).reshape(64, 64, 4)
    assert (np.sort(table_ABR, axis=0) == np.arange(64)[:, None, None]).all()
    assert (np.diff(np.sort(table_ABR, axis=2), axis=2) > 0).all()
    assert not (table_ABR == successors(0)[:, None]).all(axis=(0, 2)).any()  # nor is any of L1's
    assert len({table_ABR[:, b].tobytes() for b in range(64)}) == 64


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_item_of_so_many_symbols_has_an_answer_after_k_hops_and_of_one_less_has_not(k):
    """All sequences of 3 k + 1 and 3 k + 2 symbols of 4 without equal neighbours, their first one fixed."""
    for symbols, answered in ((3 * k + 1, False), (3 * k + 2, True)):
        turn = np.array(list(itertools.product((1, 2, 3), repeat=symbols - 1)))
        x_BMS = np.pad(np.cumsum(turn, axis=1) % 4, ((0, 0), (1, 0)))[:, None]
        target = graded_steps.after_latest(x_BMS)
        reached = np.broadcast_to(np.arange(symbols), x_BMS.shape)
        for _ in range(k):
            reached = np.where(reached < 0, -1, np.take_along_axis(target, np.maximum(reached, 0), axis=-1))
        assert (reached >= 0).any(axis=-1).all() == answered
        length = 1 + 1 + 2 * symbols
        assert (k in graded_steps.answerable((k,), length)) == answered


def test_hops_are_those_that_fit_and_items_have_a_hundred_symbols():
    for length, hops in (
        (33, {0, 1, 2, 4}),
        (53, {0, 1, 2, 4}),
        (54, {0, 1, 2, 4, 8}),
        (257, {0, 1, 2, 4, 8}),
    ):
        tokens, level, _ = generate("M1d", length=length, rows=400)
        assert set(level[level >= 0]) == hops
        assert (level >= 0).any(axis=1).all()
        asked = Counter(tokens[:, 1].tolist())
        assert min(asked.values()) > 0.7 * 400 / len(hops)
        starts = np.nonzero(np.isin(tokens, [*vocabulary.HOP.values()]))[1]
        assert set(starts) == {at for at in (1, 202) if at < length}


def test_hops_are_worth_more_than_the_symbol_before_the_answer():
    """What is right who knows k and the last symbol only: 1, 1/3, 1/2, .35, .27 for k = 0, 1, 2, 4, 8."""
    tokens, level, _ = generate("M1d", rows=3000, length=257, role="evaluation")
    found = []
    for k in (0, 1, 2, 4, 8):
        b, t = np.nonzero(level == k)
        count = np.zeros((4, 4))
        np.add.at(count, (tokens[b, t - 1] - 64, tokens[b, t] - 320), 1)
        found.append(count.max(axis=1).sum() / count.sum())
    np.testing.assert_allclose(found, [1, 1 / 3, 1 / 2, 0.35, 0.27], atol=0.015)


@pytest.mark.parametrize(("task", "terms", "digits"), [("M2l", 6, 1), ("M23", 3, 3)])
def test_sums_have_every_number_of_terms_alike_and_half_are_written(task, terms, digits):
    tokens, level, _ = generate(task, rows=600, length=257)
    first = [next(sums_in(row, digits)) for row in tokens]
    count = np.bincount([len(signs) for _, _, signs, _ in first], minlength=terms + 1)
    assert count[0] == 0
    np.testing.assert_allclose(count[1:] / 600, 1 / terms, atol=0.07)
    assert np.mean([form == vocabulary.STEPS for form, *_ in first]) == pytest.approx(0.5, abs=0.07)
    steps = [n + 10 * written for written in (0, 1) for n in range(1, terms + 1)]
    wanted = steps if digits == 1 else [10 * s + d for s in steps for d in (1, 2, 3)]
    assert sorted(set(level[level >= 0])) == wanted


def test_no_digit_of_a_sum_tells_another():
    tokens, _, _ = generate("M23", rows=1500, length=257)
    results = [row[i : i + 3] - 32 for row in tokens for *_, i in sums_in(row, 3) if i + 3 <= 257]
    count = np.bincount(np.array(results) @ [49, 7, 1], minlength=343)
    assert len(count) == 343
    np.testing.assert_allclose(count / count.mean(), 1, atol=6 / math.sqrt(count.mean()))


def pairwise_guess(answers, one, other):
    """How often what one half of the answers mostly has with the token at place `one` is right in the other."""
    seen = defaultdict(Counter)
    half = len(answers) // 2
    for answer in answers[:half].tolist():
        seen[answer[one]][answer[other]] += 1
    guesses = {token: count.most_common(1)[0][0] for token, count in seen.items()}
    return np.mean([guesses.get(answer[one]) == answer[other] for answer in answers[half:].tolist()])


def test_long_facts_are_chance_to_who_knows_one_token_of_them():
    world = World(seed=0, facts=16384)
    values = graded_facts.values_of_entities(world, 3)
    assert values.shape == (16384, 4, 3)
    assert TASKS["K3"].chance == 1 / 64
    for attribute in range(4):
        for n in range(3):
            count = np.bincount(values[:, attribute, n] - 320, minlength=128)
            assert sorted(np.flatnonzero(count)) == list(range(attribute % 2 * 64, attribute % 2 * 64 + 64))
            np.testing.assert_allclose(count[count > 0] / 256, 1, atol=5 / 16)
    for one, other in itertools.permutations(range(3), 2):
        assert pairwise_guess(values[:, 0], one, other) == pytest.approx(1 / 64, abs=0.006)
    elsewhere = graded_facts.values_of_entities(World(seed=1, facts=16384), 3)
    for others in (elsewhere, graded_facts.entities(world)[2][..., None]):
        assert (values == others).mean() == pytest.approx(1 / 64, abs=0.002)


def test_long_facts_are_the_same_in_forms_that_training_never_uses():
    forms = {}
    for role in ("train", "evaluation"):
        tokens, level, _ = generate("K3", role=role, rows=400, length=257)
        told = [s for row in tokens for s in statements_in(row) if len(s[1]) == 4]
        forms[role] = {tuple(words) for _, words, _ in told}
        count = np.bincount(level[level >= 0])
        assert count[0] == 0
        np.testing.assert_allclose(count[1:] / count[1:].mean(), 1, atol=0.02)
    assert len(forms["train"]) == 72
    assert len(forms["evaluation"]) == 24
    assert not forms["train"] & forms["evaluation"]
    for row in tokens:  # no entity twice; the last name may be cut off
        names = [name for name, *_ in statements_in(row)][:-1]
        assert len(names) == len(set(names)) >= 10


def test_long_values_of_recall_share_each_token_between_two_keys():
    second = []
    pairs_seen = set()
    for length in (33, 65, 257):
        for row in generate("R23", length=length, rows=150)[0]:
            value, asked = item_of_recall(row)
            pairs_seen.add((length, len(value)))
            for n in range(3):
                assert set(Counter(v[n] for v in value.values()).values()) == {2}
            assert len({v for one in value.values() for v in one}) == 3 * len(value) // 2
            for one, other in itertools.combinations(value.values(), 2):
                assert sum(a == b for a, b in zip(one, other, strict=True)) <= 1
            for name in asked:  # copy on from where the first token came last
                latest = [v for v in value.values() if v[0] == value[name][0]][-1]
                second.append(latest[1] == value[name][1])
    assert np.mean(second) == pytest.approx(1 / 2, abs=0.03)
    assert pairs_seen == {(33, 4), (65, 4), (65, 8), (257, 4), (257, 8), (257, 16), (257, 32)}


def test_recall_of_three_tokens_asks_every_key_once_in_every_slot_that_is_left():
    for length, pairs, slots in ((33, 4, 4), (65, 8, 8), (65, 4, 12), (257, 32, 32), (257, 16, 48)):
        rows = [item_of_recall(row) for row in generate("R23", length=length, rows=120)[0]]
        whole = [(value, asked) for value, asked in rows if len(value) == pairs]
        places = {(i - 1) // 4 - pairs for _, asked in whole for i in asked.values()}
        assert places <= set(range(slots))
        assert len(places) > 0.9 * slots  # the last ones are rarely asked
        assert all(asked.keys() == value.keys() for value, asked in whole)


def test_exceptions_of_three_tokens_are_one_in_five_and_different_in_every_token():
    told, usual = facts_told("T13"), defaults_told()
    other = {name: [t != usual[name[0], n] for n, t in enumerate(told[name])] for name in told}
    assert all(len(set(flags)) == 1 for flags in other.values())
    exceptions = [name for name, flags in other.items() if flags[0]]
    assert len(exceptions) == 4096 // 5
    for n in range(3):
        assert sorted(Counter(usual[first, n] for first, _ in told if (first, n) in usual)) == list(
            range(320, 336)
        )
        assert sorted(Counter(t for (_, m), t in usual.items() if m == n).values()) == [8] * 16
        count = Counter(told[name][n] for name in exceptions)
        assert max(count.values()) < 1.6 * len(exceptions) / 16
    own = np.array([told[name] for name in exceptions])
    for one, two in itertools.permutations(range(3), 2):
        assert len({(usual[first, one], usual[first, two]) for first in range(192, 320)}) > 60
        assert pairwise_guess(own, one, two) < 3 / 16  # few are left to learn it from
    assert generate("T13")[0].tolist() != generate("T13", world=World(seed=1, facts=4096))[0].tolist()


def kind_of(task, token):
    """What kind of answer a token is, of the formats of the tasks as they are written in their docstrings."""
    if task in ("K", "K3", "E"):  # attributes 0 and 2 have one half of the values, 1 and 3 the other
        return "lower" if token < 384 else "upper"
    if task == "M3":
        return "S3" if token < 64 + 6 else "S5"
    if task == "I":
        named = (("symbol", 64, 128), ("class", 128, 136), ("digit", 32, 41))
        return next((kind for kind, low, high in named if low <= token < high), "mark")
    return "answer"


KINDS = {"K": 2, "K3": 2, "E": 2, "M3": 2, "I": 4}


@pytest.fixture(scope="module")
def evaluation():
    data = Data(context=64, facts=64, task_shares=dict.fromkeys(TASKS, 1.0))
    return open_data(data, steps=1, batch_size=1).evaluation(40, 3)


@pytest.mark.parametrize("task", TASKS)
def test_wrong_options_are_of_the_kind_of_the_answer(evaluation, task):
    index = [t.name for t in evaluation.tasks].index(task)
    mine = evaluation.task_N == index
    scored = evaluation.scored_NS[mine]
    answers = evaluation.tokens_NT[mine][:, 1:][scored]
    options, foils = evaluation.options_NSO[mine][scored], evaluation.foil_NS[mine][scored]
    count = min(OPTIONS, TASKS[task].answers[1])
    seen = set()
    for answer, offered, foil in zip(answers, options, foils, strict=True):
        real = offered[offered >= 0].tolist()
        assert len(set(real)) == len(real) == count
        assert answer in real
        assert {kind_of(task, token) for token in real} == {kind_of(task, answer)}
        assert foil < 0 or foil in real
        seen.add(kind_of(task, answer))
    assert len(seen) == KINDS.get(task, 1)


@pytest.mark.parametrize("task", ["R1", "R2", "R23"])
@pytest.mark.parametrize("context", [64, 128])
def test_wrong_options_stand_in_the_item_like_the_answer(task, context):
    """Read from the tokens alone: items end where the level says.  Who knows what the item holds, and not what is
    asked for, is right once in as many options."""
    stream = open_data(Data(context=context, facts=16, task_shares={task: 1.0}), steps=1, batch_size=1)
    data = stream.evaluation(40, 0)
    guessed = []
    for tokens, level, options in zip(data.tokens_NT, data.level_NS, data.options_NSO, strict=True):
        for place in np.flatnonzero(level >= 0):
            asked = level[place]
            if task == "R1":
                width = asked + 8
            else:
                pairs, width = (asked, 2) if task == "R2" else (asked // 10, 4)
                width *= pairs + min(3 * pairs, context // width - pairs)
            item = tokens[1 + place // width * width : 1 + place].tolist()
            answer, offered = tokens[place + 1], set(options[place].tolist())
            assert answer in item
            first, count = data.tasks[0].answers
            there = {token for token in item if first <= token < first + count}
            assert len(offered & there) == min(4, len(there))
            guessed.append(1 / len(offered & there))
    assert len(guessed) > 100
    assert np.mean(guessed) < 0.26


def test_wrong_options_of_a_kind_are_as_frequent_as_its_answers():
    """K: of 64 entities some values have many and some have none, and the frequency tells no answer."""
    data = open_data(Data(context=128, facts=64, task_shares={"K": 1.0}), steps=1, batch_size=1).evaluation(
        900, 0
    )
    answers = data.tokens_NT[:, 1:][data.scored_NS]
    options = data.options_NSO[data.scored_NS]
    wrong = options[options != answers[:, None]]
    assert len(wrong) == 3 * len(answers)
    for half in (range(320, 384), range(384, 448)):
        count = np.bincount(wrong[np.isin(wrong, half)] - half[0], minlength=64)
        right = np.bincount(answers[np.isin(answers, half)] - half[0], minlength=64)
        assert (count[right == 0] == 0).all()
        assert right.std() / right.mean() > 0.5
        assert np.corrcoef(count, right)[0, 1] > 0.98
        frequent = right[options[np.isin(answers, half)] - half[0]]
        best = frequent == frequent.max(axis=1, keepdims=True)
        hit = (best & (options[np.isin(answers, half)] == answers[np.isin(answers, half)][:, None])).any(
            axis=1
        )
        assert (hit / best.sum(axis=1)).mean() < 0.33  # who says the most frequent of the four


def test_tags_have_not_moved_and_categories_hold_every_task_once():
    tags = {"L1": 1, "L2": 2, "L3": 3, "S": 4, "K": 5, "R1": 6, "R2": 7, "M1": 8, "M2": 9, "X": 28}
    tags |= dict(zip(("M3", "I", "T1", "T2", "E", "L0", "L4", "G", "P", "B"), range(48, 58), strict=True))
    assert tags.items() <= vocabulary.TAGS.items()
    assert set(vocabulary.TAGS) == set(TASKS) == {*tags, *KNOBS}
    assert len(set(vocabulary.TAGS.values())) == len(TASKS)
    others = {10, *range(11, 28), *range(32, 48)}
    assert not others & set(vocabulary.TAGS.values())
    assert [name for name, task in TASKS.items() if task.mixed] == [
        "L1", "L2", "L3", "S", "R1", "R2", "X", "K", "M1", "M2"
    ]  # fmt: skip
    assert sorted(itertools.chain(*CATEGORIES.values())) == sorted(TASKS)
