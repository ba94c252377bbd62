"""Wrong options of each task: one is a plausible default, and the tokens do not tell which option is right."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from wane.train.data import TASKS, Data, key, open_data
from wane.train.data.graded_context import symbol_map
from wane.train.data.graded_facts import entities, namesake, values_of_entities
from wane.train.data.task import World

SEED, FACTS = 5, 200


def evaluation_of(name, sequences=150, context=128):
    data = Data(context=context, facts=FACTS, world_seed=SEED, task_shares={name: 1.0})
    return open_data(data, steps=1, batch_size=1).evaluation(sequences, 23)


def asked(data):
    """(row, place of the answer, level, foil, options) of every scored token."""
    for n, s in zip(*np.nonzero(data.scored_NS), strict=True):
        yield (
            data.tokens_NT[n].tolist(), s + 1, int(data.level_NS[n, s]), int(data.foil_NS[n, s]),
            data.options_NSO[n, s].tolist(),
        )  # fmt: skip


def at_chance(picked, slack=0.0):
    """picked: of every item the share of a strategy's picks that are right; 1 in 4 within 4 standard errors."""
    picked = np.array(picked, float)
    assert len(picked) > 400
    return abs(picked.mean() - 1 / 4) < 4 * picked.std() / math.sqrt(len(picked)) + slack


def share(chosen, answer):
    """How often one of `chosen`, taken blindly, is right."""
    return (answer in chosen) / len(chosen) if chosen else 0.25


def pairs_of(row, place, level):
    width = 2 * (level + min(3 * level, 64 - level))
    start = 1 + (place - 1) // width * width
    return [(row[i], row[i + 1]) for i in range(start, start + 2 * level, 2)]


def test_recall_offers_the_neighbour_and_another_two_neighbours():
    blind = defaultdict(list)
    for row, place, level, foil, options in asked(evaluation_of("R2")):
        pairs, answer = pairs_of(row, place, level), row[place]
        (at,) = (i for i, (name, _) in enumerate(pairs) if name == row[place - 1])
        values = [value for _, value in pairs]
        beside = values[at ^ 1]
        assert values[at] == answer
        assert foil == (beside if beside != answer else -1)
        assert foil < 0 or foil in options
        if len(set(values)) < level:  # two keys of one value
            continue
        where = sorted(values.index(option) for option in options)
        assert [i // 2 for i in where] == [where[0] // 2] * 2 + [where[2] // 2] * 2
        for i in range(4):
            blind["first, second, ..", i].append(values[where[i]] == answer)
        seen = Counter(row[:place])
        blind["latest"].append(max(options, key=lambda o: place - row[:place][::-1].index(o)) == answer)
        blind["earliest"].append(min(options, key=row.index) == answer)
        most = max(seen[o] for o in options)
        blind["most frequent"].append(share([o for o in options if seen[o] == most], answer))
    for strategy in [("first, second, ..", i) for i in range(4)] + ["earliest"]:
        assert at_chance(blind[strategy]), strategy
    # Who was asked already is asked no more: that is read off the item, and is no recall; but it is no default.
    assert np.mean(blind["latest"]) < 0.45


def test_short_context_offers_both_symbols_both_ways():
    image = symbol_map(SEED)
    blind = defaultdict(list)
    for row, place, level, foil, options in asked(evaluation_of("S", 400)):
        symbols, query, answer = [t - 64 for t in row[place - 4 : place - 1]], row[place - 1], row[place] - 64
        mapped, one = query >= 20, symbols[4 - level]
        assert foil == -1
        assert answer == (image[one] if mapped else one)
        offered = {option - 64 for option in options}
        ways = {int(v) for s in symbols for v in (s, image[s])}
        if len(ways) < 6:
            continue
        there = [s for s in symbols if s in offered]
        assert len(there) == 2
        assert one in there
        assert offered == {int(v) for s in there for v in (s, image[s])}
        blind["stands there"].append(share(there, answer))
        blind["does not"].append(share(list(offered - set(there)), answer))
        blind["first that stands there"].append(there[0] == answer)
        blind["last, mapped"].append(image[there[1]] == answer)
        for lag in (2, 3, 4):
            blind[lag].append(share([s for s in there if s == symbols[4 - lag]], answer))
    assert all(at_chance(picked) for picked in blind.values()), {k: np.mean(v) for k, v in blind.items()}


def test_facts_offer_what_is_said_of_who_shares_half_of_the_name():
    world = World(seed=SEED, facts=FACTS)
    names, _, values = entities(world)
    other = namesake(world)
    assert sorted(other) == list(range(FACTS))  # everybody is the namesake of one
    families = Counter(names[:, 0])
    for one, two in enumerate(other):
        if families[names[one, 0]] > 1:
            assert one != two
            assert names[one, 0] == names[two, 0]
        else:
            assert families[names[two, 0]] == 1
    found = {tuple(name[:2]): i for i, name in enumerate(names.tolist())}
    checked = 0
    for row, place, _, foil, options in asked(evaluation_of("K", 60)):
        start = max(i for i in range(1, place) if 192 <= row[i] < 320 and not 192 <= row[i - 1] < 320)
        entity, attribute = found[row[start], row[start + 1]], (row[place - 1] - 480) % 4
        assert row[place] == values[entity, attribute]
        wrong = values[other[entity], attribute]
        assert foil == (wrong if wrong != row[place] else -1)
        assert foil < 0 or foil in options
        checked += 1
    assert checked > 1000


def test_namesakes_go_round_in_worlds_of_any_size():
    for facts in (1, 2, 3, 40, 16384):
        other = namesake(World(seed=1, facts=facts))
        assert sorted(other) == list(range(facts))
    assert (other != np.arange(16384)).all()


def test_long_facts_take_the_same_namesake_for_every_token():
    world = World(seed=SEED, facts=FACTS)
    values, other = values_of_entities(world, 3), namesake(world)
    told = {tuple(v): i for i in range(FACTS) for v in values[i].tolist()}
    data = evaluation_of("K3", 30)
    for n in range(30):
        places = [s for s in np.flatnonzero(data.level_NS[n] == 1) if s + 3 < 128]
        for s in places:
            entity = told[tuple(data.tokens_NT[n, s + 1 : s + 4])]
            (attribute,) = (
                a for a in range(4) if (values[entity, a] == data.tokens_NT[n, s + 1 : s + 4]).all()
            )
            wrong, answer = values[other[entity], attribute], values[entity, attribute]
            np.testing.assert_array_equal(data.foil_NS[n, s : s + 3], np.where(wrong == answer, -1, wrong))


@pytest.mark.parametrize(("name", "digits"), [("M2", 1), ("M2l", 1), ("M23", 3)])
def test_sums_offer_the_result_without_the_last_term(name, digits):
    from test_data_graded_knobs import sums_in

    from wane.train.data import vocabulary

    tokens, level, foil = TASKS[name].generate(
        key.generator("options", 9), 60, 129, World(seed=0, facts=1), "evaluation"
    )
    seen = 0
    for row, level_T, foil_T in zip(tokens, level, foil, strict=True):
        assert (foil_T[level_T < 0] == -1).all()
        for form, numbers, signs, start in sums_in(row, digits):
            written = form == vocabulary.STEPS
            for n in range(1, len(signs) + 1) if written else [len(signs)]:
                for place in range(digits):
                    i = start + (n - 1) * written * digits + place
                    if i < len(row):
                        own = [number[place] - 32 for number in numbers]
                        short = (
                            sum((own[0], *(s * a for s, a in zip(signs[: n - 1], own[1:n], strict=True)))) % 7
                        )
                        assert foil_T[i] == (32 + short if 32 + short != row[i] else -1)
                        seen += foil_T[i] >= 0
    assert seen > 200
    data = evaluation_of(name, 30)
    for _, _, _, foil_of, options in asked(data):
        assert foil_of < 0 or foil_of in options


@pytest.mark.parametrize("name", TASKS)
def test_who_takes_the_commonest_option_is_not_better_for_it(name):
    """Frequencies of answers in other sequences, by kind of level where there are few."""
    if name in ("L2", "L0", "G", "I"):
        pytest.skip("two values, a skewed distribution, or kinds of a few values")
    other = Counter(row[place] for row, place, *_ in asked(evaluation_of(name, 150)))
    picked = []
    for row, place, _, _, options in asked(evaluation_of(name, 60)):
        most = max(other[o] for o in options)
        picked.append(share([o for o in options if other[o] == most], row[place]))
    assert np.mean(picked) < 0.34
