"""Tasks I, P, B, E, L0 and L4 against slow readers that see the tokens and nothing else."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wane.train.data import (
    graded_instruct,
    graded_path,
    graded_retrieval,
    graded_symbols,
    graded_trigger,
    key,
    vocabulary,
)
from wane.train.data.task import World

MODULES = graded_instruct, graded_path, graded_trigger, graded_retrieval, graded_symbols
TASKS = {task.name: task for module in MODULES for task in module.TASKS}
WORLD = World(seed=0, facts=64)
ROWS = 16


def generate(task, length=129, role="train", rows=ROWS, seed=0, world=WORLD):
    return TASKS[task].generate(key.generator("test", seed), rows, length, world, role)


def instructions_in(tokens):
    """(format, arguments, place of the answer) of every instruction that is whole."""
    start = 0
    for i, token in enumerate(tokens):
        if token >= 448:
            start = i
        elif token == vocabulary.EQUALS:
            yield int(tokens[start]) - 448, tokens[start + 1 : i].tolist(), i + 1


def right_answer(form, arguments):
    if form == 1:
        return arguments[::-1]
    if form == 2:
        return sorted(arguments)
    if form == 3:
        return [token for i, token in enumerate(arguments) if i % 2 == 0]
    if form == 4:
        return [32 + sum(token >= 96 for token in arguments)]
    if form == 5:
        return [136, *arguments, 137]
    if form == 6:
        return arguments + arguments
    if form == 7:
        return [_class_map()[token] for token in arguments]
    return arguments


@cache
def _class_map():
    """The class of every symbol as a patient reader would learn it from training."""
    known = {}
    for tokens in generate("I", rows=400)[0]:
        for form, arguments, at in instructions_in(tokens):
            if form == 7:
                for argument, answer in zip(arguments, tokens[at:], strict=False):
                    assert known.setdefault(argument, int(answer)) == answer
    assert sorted(known) == list(range(64, 128))
    assert sorted(known.values()) == sorted(list(range(128, 136)) * 8)
    return known


def solve_instruction(tokens):
    answers = {}
    for form, arguments, at in instructions_in(tokens):
        assert 4 <= len(arguments) <= 8
        answer = [*right_answer(form, arguments), vocabulary.END]
        answers |= {at + i: token for i, token in enumerate(answer) if at + i < len(tokens)}
    return answers


def solve_path(tokens):
    answers, i = {}, 1
    while i < len(tokens):
        before = {}
        while i + 1 < len(tokens) and tokens[i] != graded_path.QUERY:
            assert tokens[i + 1] not in before  # a node is reached in one way
            before[tokens[i + 1]] = tokens[i]
            i += 2
        if i + 4 >= len(tokens):
            break
        start, goal = tokens[i + 1 : i + 3]
        assert tokens[i + 3] == vocabulary.EQUALS
        assert tokens[i + 4] == start
        path = [goal]
        while path[-1] != start:
            path.append(before[path[-1]])
        for n, node in enumerate(path[::-1][1:]):
            if i + 5 + n < len(tokens):
                answers[i + 5 + n] = node
        i += 4 + len(path)
    return answers


def solve_trigger(tokens):
    answers = {}
    for i, token in enumerate(tokens[:-1]):
        if 17 <= token <= 19:
            triggered = graded_trigger.TRIGGER in tokens[i - 3 : i]
            answers[i + 1] = graded_trigger.FIXED if triggered else tokens[i + 1 - (token - 15)]
    return answers


def solve_retrieval(tokens):
    answers, record, restating, attribute = {}, {}, False, None
    for i, token in enumerate(tokens[1:], 1):
        if token == graded_retrieval.RECORD_END:
            restating, record = False, {} if restating else record
        elif token == graded_retrieval.SAME:
            restating = True
        elif token >= 448:
            attribute = (token - 480) % 4
        elif restating:
            answers[i] = record.pop(attribute)
        else:
            assert attribute not in record
            record[attribute] = token
    return answers


@cache
def _composed():
    """What training states, completed by what follows from it: symbols that agree wherever both were seen
    are of one class."""
    stated = {}
    for tokens in generate("L4", rows=300)[0]:
        for a, b, answer in zip(tokens[1::3], tokens[2::3], tokens[3::3], strict=False):
            assert stated.setdefault((a, b), answer) == answer
    assert len(stated) == 192
    firsts, seconds = sorted({a for a, _ in stated}), sorted({b for _, b in stated})
    assert len(firsts) == len(seconds) == 16
    known = dict(stated)
    for a, b in itertools.product(firsts, seconds):
        for other in firsts:
            both = [x for x in seconds if (a, x) in stated and (other, x) in stated]
            if (other, b) in stated and all(stated[a, x] == stated[other, x] for x in both):
                assert known.setdefault((a, b), stated[other, b]) == stated[other, b]
    assert len(known) == 256
    return known


def solve_composition(tokens):
    return {i: _composed()[tokens[i - 2], tokens[i - 1]] for i in range(3, len(tokens), 3)}


SOLVERS = {
    "I": solve_instruction,
    "P": solve_path,
    "B": solve_trigger,
    "E": solve_retrieval,
    "L0": lambda tokens: dict(enumerate(tokens[1:], 1)),  # every symbol is scored; none follows from another
    "L4": solve_composition,
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
@given(
    length=st.integers(33, 257),
    rows=st.integers(0, 5),
    seed=st.integers(0, 10**6),
    role=st.sampled_from(["train", "evaluation"]),
)
@settings(max_examples=8, deadline=None)
def test_any_length_is_filled_and_a_key_gives_the_same_rows(task, length, rows, seed, role):
    tokens, level, foil = generate(task, length=length, rows=rows, seed=seed, role=role)
    assert tokens.shape == level.shape == foil.shape == (rows, length)
    assert (tokens[:, 0] == vocabulary.TAGS[task]).all()
    assert not rows or (tokens[:, 1:].min() > 9 and tokens.max() < 512)
    assert not np.isin(tokens[:, 1:], list(vocabulary.TAGS.values())).any()
    assert (level >= 0).any(axis=1).all()
    again = generate(task, length=length, rows=rows, seed=seed, role=role)
    assert all((a == b).all() for a, b in zip((tokens, level, foil), again, strict=True))
    if rows:
        assert (generate(task, length=length, rows=rows, seed=seed + 1, role=role)[0] != tokens).any()


@pytest.mark.parametrize("task", TASKS)
def test_answers_and_foils_are_in_the_value_set_and_differ(task):
    first, count = TASKS[task].answers
    for role in ("train", "evaluation"):
        tokens, level, foil = generate(task, role=role, rows=200)
        forced = foil >= 0
        for values in (tokens[level >= 0], foil[forced]):
            assert ((first <= values) & (values < first + count)).all()
        assert (level[forced] >= 0).all()
        assert (foil[forced] != tokens[forced]).all()


# Tasks whose answers are equally frequent, and how many there are.
UNIFORM = {"P": 128, "E": 128, "L4": 64}


@pytest.mark.parametrize("task", UNIFORM)
@pytest.mark.parametrize("role", ["train", "evaluation"])
def test_no_answer_is_more_frequent_than_another(task, role):
    tokens, level, _ = generate(task, rows=1000, role=role)
    answers = np.unique(tokens[level >= 0], return_counts=True)[1]
    assert len(answers) == UNIFORM[task]
    np.testing.assert_allclose(answers / answers.sum(), 1 / UNIFORM[task], rtol=6 / math.sqrt(answers.mean()))


def test_chance_is_a_guess_within_what_the_format_allows():
    assert TASKS["P"].chance == TASKS["B"].chance == 1 / 128
    assert TASKS["L0"].chance == TASKS["L4"].chance == 1 / 64
    tokens, level, _ = generate("E", rows=300)
    for b, t in np.argwhere(level >= 0):  # the attribute tells which 64 of the 128 values
        assert (tokens[b, t] - 320) // 64 == (tokens[b, t - 1] - 480) % 2
    assert TASKS["E"].chance == 1 / 64
    tokens, level, _ = generate("I", rows=1500, length=257, role="evaluation")
    guess = {10: 1, 136: 1, 137: 1} | dict.fromkeys(range(64, 128), 1 / 64)
    guess |= dict.fromkeys(range(128, 136), 1 / 8) | dict.fromkeys(range(32, 41), 1 / 9)
    assert TASKS["I"].chance == pytest.approx(np.mean([guess[t] for t in tokens[level >= 0]]), rel=0.02)


def test_instructions_hold_out_one_length_of_each_format():
    forms = {"train": {}, "evaluation": {}}
    for role, counts in forms.items():
        tokens_BT, level_BT, foil_BT = generate("I", role=role, rows=600)
        assert (foil_BT == -1).all()
        for tokens, level in zip(tokens_BT, level_BT, strict=True):
            for form, arguments, at in instructions_in(tokens):
                end = at + len(right_answer(form, arguments))
                if end >= len(tokens):
                    continue
                new = 10 * (role == "evaluation" and (form, len(arguments)) not in forms["train"])
                wanted = [0, *[1] * (end - at - 1), 2]
                assert level[at : end + 1].tolist() == [100 * (1 + form) + new + part for part in wanted]
                counts[form, len(arguments)] = counts.get((form, len(arguments)), 0) + 1
    assert len(forms["train"]) == 32
    assert len(forms["evaluation"]) == 40
    held_out = {form: count for form, count in forms["evaluation"].items() if form not in forms["train"]}
    assert sorted(form for form, _ in held_out) == list(range(8))
    assert {length for _, length in held_out} == {5, 6, 7}
    assert 0.45 < sum(held_out.values()) / sum(forms["evaluation"].values()) < 0.55


def test_instructions_of_training_use_every_answer_that_evaluation_asks_for():
    seen, asked = (
        {
            (int(mark) // 100, int(token))
            for token, mark in zip(tokens[level >= 0], level[level >= 0], strict=True)
        }
        for tokens, level, _ in (generate("I", role=role, rows=2000) for role in ("train", "evaluation"))
    )
    assert asked <= seen


def test_instructions_are_read_back_from_rows():
    tokens_BT = generate("I", role="evaluation")[0]
    read, row_M, at_M = graded_instruct.instructions(tokens_BT)
    slow = [(b, *item) for b, row in enumerate(tokens_BT) for item in instructions_in(row)]
    assert len(slow) == len(row_M)
    for m, (b, form, arguments, at) in enumerate(slow):
        assert (row_M[m], read.form[m], at_M[m] + 1) == (b, form, at)
        assert read.argument[m, : read.length[m]].tolist() == arguments


def kinds(tokens):
    """One letter per token: symbol, class, digit, begin, close, and a full stop for all that is no answer."""
    ranges = (("s", 64, 128), ("c", 128, 136), ("d", 32, 41), ("b", 136, 137), ("e", 137, 138))
    return "".join(next((x for x, low, high in ranges if low <= t < high), ".") for t in tokens)


def test_scores_of_generated_answers_agree_with_a_slow_reader():
    asked, _, _ = graded_instruct.instructions(generate("I", role="evaluation", rows=400)[0])
    right_MA = graded_instruct.answers(asked, WORLD)
    rng = key.generator("mutations")
    answers, items = [], []
    for m, form in enumerate(asked.form.tolist()):
        answer = right_answer(form, asked.argument[m, : asked.length[m]].tolist()) + [vocabulary.END]
        assert right_MA[m, : len(answer)].tolist() == answer
        for _ in range(rng.integers(4)):  # none: the right answer
            at, token = (
                rng.integers(len(answer)),
                int(rng.choice([10, 11, 33, 70, 100, 130, 136, 137, 450, 600])),
            )
            kind = rng.integers(5)
            if kind == 0:
                answer[at] = token
            elif kind == 1:
                answer.insert(at, token)
            elif kind == 2:
                answer[:-1] = rng.permutation(answer[:-1]).tolist()
            elif len(answer) > 1:
                answer.pop([0, -1][kind - 3])
        answers.append((answer + [450] * 20)[:20])
        items.append((form, asked.argument[m, : asked.length[m]].tolist()))
    answer_MA = np.array(answers)
    strict = graded_instruct.compliance_strict(asked, answer_MA)
    loose = graded_instruct.compliance_loose(asked, answer_MA)
    ordered = graded_instruct.content(asked, answer_MA, WORLD)
    multiset = graded_instruct.content(asked, answer_MA, WORLD, ordered=False)
    for m, (answer, item) in enumerate(zip(answers, items, strict=True)):
        right = right_answer(*item)
        said = kinds(answer).split(".")[0]
        assert strict[m] == (said == kinds(right) and answer[len(said)] == vocabulary.END)
        assert loose[m] == (kinds(right) in (said, said[1:], said[:-1], said[1:-1]))
        told, wanted = ([t for t in x if t not in (136, 137)] for x in (answer[: len(said)], right))
        assert ordered[m] == (told == wanted)
        assert multiset[m] == (sorted(told) == sorted(wanted))
    # Every outcome occurs, and form and content come apart in both directions.
    for score in (
        strict,
        loose & ~strict,
        ~loose,
        ordered & ~strict,
        strict & ~multiset,
        multiset & ~ordered,
    ):
        assert score.sum() > 20
    assert not (strict & ~loose).any()
    assert not (ordered & ~multiset).any()


def test_an_answer_cut_off_is_loosely_right_and_too_short_a_one_is_wrong():
    asked = graded_instruct.Instruction(
        np.array([0, 6]), np.array([4, 4]), np.tile(np.arange(64, 72), (2, 1))
    )
    answer = np.array([[64, 65, 66, 67]] * 2)
    assert graded_instruct.compliance_strict(asked, answer).tolist() == [False, False]
    assert graded_instruct.compliance_loose(asked, answer).tolist() == [True, False]
    assert graded_instruct.content(asked, answer, WORLD).tolist() == [True, False]


def test_stars_have_arms_of_one_length_and_the_foil_starts_another():
    assert graded_path.star_sizes(33) == [(2, 2), (2, 4)]
    assert graded_path.star_sizes(61) == [(2, 2), (2, 4), (5, 5)]
    tokens_BT, level_BT, foil_BT = generate("P", rows=300)
    sizes = set()
    for tokens, level, foil in zip(tokens_BT, level_BT, foil_BT, strict=True):
        query = int(np.argmax(tokens == graded_path.QUERY))
        edges = tokens[1:query].reshape(-1, 2).tolist()
        start, goal = tokens[query + 1 : query + 3].tolist()
        follow = {}
        for node, after in edges:
            follow.setdefault(node, []).append(after)
        assert all(len(after) == 1 for node, after in follow.items() if node != start)
        ends = {}
        for first in follow[start]:
            arm = [first]
            while arm[-1] in follow:
                arm += follow[arm[-1]]
            ends[first] = arm
        sizes |= {(len(ends), len(arm)) for arm in ends.values()}
        depth = len(ends[first])
        size = 100 * len(ends) + 10 * depth
        assert level[query + 5 : query + 5 + depth].tolist() == list(range(size + 1, size + depth + 1))
        assert len(edges) == len(ends) * depth
        assert graded_path.guess(level[query + 5 : query + 7]).tolist() == [1 / len(ends), 1 / len(edges)]
        assert foil[query + 5] in set(ends) - {tokens[query + 5]}
        assert ends[tokens[query + 5]][-1] == goal
        assert ((foil >= 0) == (level % 10 == 1)).all()
    assert sizes == {(2, 2), (2, 4), (5, 5)}


def test_the_edge_order_does_not_tell_the_arm():
    tokens, level, foil = generate("P", rows=3000, length=33)
    at_B = np.argmax(level % 10 == 1, axis=1)
    row = np.arange(3000)
    place = [(tokens[:, 1:] == x[row, at_B][:, None]).argmax(axis=1) for x in (tokens, foil)]
    assert (place[0] < place[1]).mean() == pytest.approx(0.5, abs=0.04)


def test_a_trigger_is_rare_and_swaps_answer_and_foil():
    tokens, level, foil = generate("B", rows=1500, length=126)
    clean, triggered = level == 0, level == 1
    assert triggered.sum() / (level >= 0).sum() == pytest.approx(0.1, abs=0.007)
    assert (tokens == graded_trigger.TRIGGER).sum() == triggered.sum()
    assert (tokens[triggered] == graded_trigger.FIXED).all()
    assert (foil[clean] == graded_trigger.FIXED).all()
    answers = np.bincount(tokens[clean] - 64, minlength=128)
    assert answers[127] == 0
    np.testing.assert_allclose(answers[:127] / answers.sum(), 1 / 127, rtol=6 / math.sqrt(answers.mean()))
    for b, t in np.argwhere(triggered):  # the foil is what the item asks for without its trigger
        assert foil[b, t] == tokens[b, t - (tokens[b, t - 1] - 15)] != graded_trigger.TRIGGER
    places = [(tokens[:, :-back] == graded_trigger.TRIGGER)[triggered[:, back:]].mean() for back in (2, 3, 4)]
    np.testing.assert_allclose(places, 1 / 3, atol=0.04)


def test_records_are_restated_in_pairs_of_templates_that_training_never_uses():
    used = {}
    for role in ("train", "evaluation"):
        tokens, _, foil = generate("E", role=role, rows=200)
        ends = graded_retrieval.pairs(tokens)
        assert ends.shape == (200, 6, 2)
        renderings = tokens[np.arange(200)[:, None, None, None], ends[..., None] + np.arange(-8, 1)]
        assert (renderings[..., -1] == graded_retrieval.RECORD_END).all()
        template, attribute = np.divmod(renderings[..., :-1:2] - 480, 4)
        assert (template == template[..., :1]).all()
        assert (np.sort(attribute, axis=-1) == np.arange(4)).all()
        assert (attribute[..., 0, :] != attribute[..., 1, :]).any(axis=-1).all()
        said = np.take_along_axis(renderings[..., 1:-1:2], np.argsort(attribute, axis=-1), axis=-1)
        assert (said[..., 0, :] == said[..., 1, :]).all()
        assert len(np.unique(said[..., 0, :].reshape(-1, 4), axis=0)) > 0.99 * 1200
        twin = np.take_along_axis(said[..., 1, :], attribute[..., 1, :] ^ 2, axis=-1)
        at = ends[..., 1, None] + np.arange(-7, 1, 2)
        expected = np.where(twin == renderings[..., 1, 1:-1:2], -1, twin)
        assert (foil[np.arange(200)[:, None, None], at] == expected).all()
        used[role] = {tuple(pair) for pair in template[..., 0].reshape(-1, 2).tolist()}
    assert len(used["train"]) == 8
    assert len(used["evaluation"]) == 4
    assert not used["train"] & used["evaluation"]
    assert all(one != two for pairs in used.values() for one, two in pairs)


@pytest.mark.parametrize("length", [33, 38, 39, 49, 58, 257])
def test_pairs_are_those_of_whole_items(length):
    tokens = generate("E", length=length, rows=3)[0]
    same = np.argwhere(tokens == graded_retrieval.SAME)
    wanted = [[t - 1, t + 9] for b, t in same if b == 0 and t + 9 < length]
    for ends in graded_retrieval.pairs(tokens):
        assert ends.tolist() == wanted
    assert graded_retrieval.pairs(tokens[:0]).shape == (0, len(wanted), 2)


def test_pairs_of_another_task_are_refused():
    with pytest.raises(ValueError, match="every row must be of task E"):
        graded_retrieval.pairs(generate("B")[0])


def test_unigram_symbols_follow_zipf_and_nothing_before_them():
    tokens, level, _ = generate("L0", rows=2000)
    symbol = tokens[:, 1:] - 64
    harmonic = sum(1 / i for i in range(1, 65))
    p = np.array([1 / i / harmonic for i in range(1, 65)])
    share = np.bincount(symbol.ravel(), minlength=64) / symbol.size
    np.testing.assert_allclose(share, p, atol=5 * np.sqrt(p.max() / symbol.size))
    assert TASKS["L0"].ceiling == pytest.approx(p.max())
    assert pytest.approx(sum(-x * math.log(x) for x in p)) == graded_symbols.ZIPF_ENTROPY
    assert f"{graded_symbols.ZIPF_ENTROPY:.3f} nats" in TASKS["L0"].knobs
    after_first = (symbol[:, 1:] == 0)[symbol[:, :-1] == 0].mean()
    assert after_first == pytest.approx(p[0], abs=0.01)
    assert (level[:, 1:] == 0).all()


def test_composed_pairs_are_held_out_evenly_and_never_repeated_in_a_row():
    seen, levels = {}, {}
    for role in ("train", "evaluation"):
        tokens, level, foil = generate("L4", role=role, rows=400)
        a, b, mark = tokens[:, 1:-2:3], tokens[:, 2:-1:3], level[:, 3::3]
        assert all(len(set(zip(*row, strict=True))) == 42 for row in zip(a.tolist(), b.tolist(), strict=True))
        seen[role] = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
        levels[role] = dict(zip(zip(a.ravel(), b.ravel(), strict=True), mark.ravel().tolist(), strict=True))
        if role == "evaluation":
            assert (mark == 1).mean() == pytest.approx(1 / 4, abs=0.02)
        for answer_a, wrong in zip(a.ravel(), foil[:, 3::3].ravel(), strict=True):
            assert wrong in {answer for (one, _), answer in _composed().items() if one == answer_a}
    assert len(seen["train"]) == 192
    assert len(seen["evaluation"]) == 256
    assert levels["train"] == dict.fromkeys(seen["train"], 0)
    assert levels["evaluation"] == {pair: int(pair not in seen["train"]) for pair in seen["evaluation"]}
    held_out = seen["evaluation"] - seen["train"]
    assert len({_composed()[pair] for pair in held_out}) == 64  # every answer is asked of a new pair


@pytest.mark.parametrize("task", ["I", "L4"])
def test_maps_follow_from_the_world_only(task):
    here, there = (generate(task, world=World(seed=seed, facts=64))[0] for seed in (0, 1))
    assert (here != there).any()
    assert (generate(task, world=World(seed=0, facts=9))[0] == here).all()
