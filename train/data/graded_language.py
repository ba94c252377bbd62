"""L1, L2, L3: the structure of language in three sizes: next symbol, agreement, nesting."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from wane.train.data import key
from wane.train.data.task import SUCCESSOR_P, GradedTask, Role, Rows, World, nats
from wane.train.data.vocabulary import END, SYMBOL, TAGS, WORD, pack

STATES = 64
ORDER = {"L1": 1, "L1o2": 2}  # on how many states before it the next one depends
TABLE = {1: "markov", 2: "markov of order 2"}  # what their tables are drawn by


@lru_cache(maxsize=8)
def successors(world_seed: int, order: int = 1) -> np.ndarray:
    """The four successors, all different, of every context of `order` states [64^order, 4]; that of a and
    then b is number 64 a + b.  For given later states each column is a permutation of the earliest, so the
    stationary distribution of contexts is exactly uniform, and a predictor that does not see the earliest is
    right 1 time in 64."""
    rng = key.generator(TABLE[order], world_seed)
    return np.stack([table(rng) for _ in range(STATES ** (order - 1))], axis=1).reshape(-1, len(SUCCESSOR_P))


def table(rng: np.random.Generator) -> np.ndarray:
    """Four permutations of the states that differ everywhere [64, 4]."""
    columns: list[np.ndarray] = []
    while len(columns) < len(SUCCESSOR_P):
        candidate = rng.permutation(STATES)
        if not any((candidate == column).any() for column in columns):
            columns.append(candidate)
    return np.stack(columns, axis=1)


def markov(
    rng: np.random.Generator,
    rows: int,
    length: int,
    world: World,
    order: int = 1,
    p: Sequence[float] = SUCCESSOR_P,
) -> np.ndarray:
    """States [rows, length] of the Markov chain, started in its stationary distribution.  p: of the successors."""
    later = STATES ** (order - 1)  # contexts without their earliest state
    contexts = np.arange(STATES * later)[:, None]
    onward = (contexts % later * STATES + successors(world.seed, order)).ravel()
    edges = np.cumsum(p[:-1])
    choice_TB = np.searchsorted(edges, rng.random((length, rows)), side="right")
    context_TB = np.empty((length, rows), np.int64)
    context = rng.integers(STATES * later, size=rows)
    for t in range(length):  # the only loop over time: each state needs those before it
        context_TB[t] = context
        context = onward.take(context * len(p) + choice_TB[t])
    return context_TB.T // later


def chain(rng, rows: int, length: int, world: World, role: Role, *, task: str) -> Rows:
    """One Markov chain per row.  Scored: every symbol that has as many predecessors as it depends on."""
    tokens_BT = np.full((rows, length), TAGS[task])
    tokens_BT[:, 1:] = SYMBOL + markov(rng, rows, length - 1, world, ORDER[task], world.successors)
    level_BT = np.zeros((rows, length), np.int64)
    level_BT[:, : 1 + ORDER[task]] = -1
    return Rows.without_foil(tokens_BT, level_BT)


def bounds_of_chain(world: World) -> Mapping[str, Any]:
    """Who knows the context always says its likeliest successor, and has lost what the successors leave open."""
    rate = nats(world.successors)
    return {"ceiling": world.successors[0], "entropy": lambda level: np.full(np.shape(level), rate)}


DEFAULT = World(seed=0, facts=1)

# L2: nouns are 32 lemmas x {sg, pl}; a verb is one of 32 stems and one of two endings.
LEMMAS, NOUN, VERB, ENDING = 32, SYMBOL, SYMBOL + 64, SYMBOL + 96
DETERMINER, PREPOSITION = WORD + 16, WORD + 24
ATTRACTORS = 3
L2_NAMES = (
    {NOUN + i: f"noun{i}" for i in range(LEMMAS)}
    | {NOUN + LEMMAS + i: f"noun{i}s" for i in range(LEMMAS)}
    | {VERB + i: f"verb{i}" for i in range(LEMMAS)}
    | {ENDING: "-SG", ENDING + 1: "-PL"}
    | {DETERMINER + i: f"the{i}" for i in range(8)}
    | {PREPOSITION + i: f"of{i}" for i in range(8)}
)


def agreement(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Sentences Det N (P Det N)^k V ending END.  The stem of the verb is free; its ending, the scored token,
    agrees with the first noun.  Nouns in between have a random number in training, where a fixed opposite
    number would let the last noun give the answer away, and the opposite number in evaluation."""
    count = -(-(length - 1) // 5)
    shape = (rows, count)
    attractors = rng.integers(ATTRACTORS + 1, size=shape)
    number = rng.integers(2, size=shape)
    noun_number = np.repeat(1 - number[..., None], ATTRACTORS + 1, axis=-1)
    if role == "train":
        noun_number = rng.integers(2, size=noun_number.shape)
    noun_number[..., 0] = number
    phrase = np.empty((*shape, ATTRACTORS + 1, 3), np.int64)  # Det N P; the last preposition is not used
    phrase[..., 0] = DETERMINER + rng.integers(8, size=noun_number.shape)
    phrase[..., 1] = NOUN + LEMMAS * noun_number + rng.integers(LEMMAS, size=noun_number.shape)
    phrase[..., 2] = PREPOSITION + rng.integers(8, size=noun_number.shape)
    width = 3 * (ATTRACTORS + 1)
    items = np.zeros((*shape, width + 2), np.int64)
    items[..., :width] = phrase.reshape(*shape, width)
    verb = 3 * attractors + 2  # the place of the stem: where the next preposition would stand
    at = np.arange(items.shape[-1])
    stem, ending, end = (at == verb[..., None] + i for i in range(3))
    items = np.where(stem, VERB + rng.integers(LEMMAS, size=shape)[..., None], items)
    items = np.where(ending, ENDING + number[..., None], items)
    items = np.where(end, END, items)
    level = np.where(ending, attractors[..., None], -1)
    foil = np.where(ending, ENDING + 1 - number[..., None], -1)
    keep = at <= verb[..., None] + 2
    return tagged("L2", items, level, keep, length, foil)


def tagged(task: str, items_BMW, level_BMW, keep_BMW, length: int, foil_BMW=None) -> Rows:
    """Rows of `length` tokens: the tag of the task, then its items packed without gaps."""
    rows = Rows(*(np.full((len(items_BMW), length), first) for first in (TAGS[task], -1, -1)))
    parts = items_BMW, level_BMW, np.full_like(items_BMW, -1) if foil_BMW is None else foil_BMW
    for row_BT, part_BMW in zip(rows, parts, strict=True):
        row_BT[:, 1:] = pack(part_BMW, keep_BMW, length - 1)
    return rows


BRACKETS, DEPTH = 8, 4
OPEN, CLOSE = WORD, WORD + BRACKETS
L3_NAMES = {OPEN + i: f"({i}" for i in range(BRACKETS)} | {CLOSE + i: f"{i})" for i in range(BRACKETS)}


def dyck(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Well-nested brackets of 8 types, at most 4 deep, opening with p = 1/2 wherever both are possible.
    Scored: the type of every closing bracket (also the most probable token there).  Level: how far back
    its partner is.

    The depth is a free random walk folded into [0, 4]: forced turns at the walls are the same process.
    """
    steps = length - 1
    walk_BT = np.cumsum(rng.integers(2, size=(rows, steps)) * 2 - 1, axis=1)
    depth_BT = np.abs((walk_BT + DEPTH) % (2 * DEPTH) - DEPTH)  # after each bracket
    before_BT = np.concatenate([np.zeros((rows, 1), np.int64), depth_BT[:, :-1]], axis=1)
    opens_BT = depth_BT > before_BT
    time = np.arange(steps)
    partner_BT = np.zeros((rows, steps), np.int64)
    for depth in range(DEPTH):  # a bracket closing to `depth` belongs to the last one opened from there
        opened = np.maximum.accumulate(np.where(opens_BT & (before_BT == depth), time, 0), axis=1)
        partner_BT = np.where(~opens_BT & (depth_BT == depth), opened, partner_BT)
    type_BT = rng.integers(BRACKETS, size=(rows, steps))
    closing_BT = np.take_along_axis(type_BT, partner_BT, axis=1)
    tokens_BT = np.full((rows, length), TAGS["L3"])
    tokens_BT[:, 1:] = np.where(opens_BT, OPEN + type_BT, CLOSE + closing_BT)
    level_BT = np.full((rows, length), -1)
    level_BT[:, 1:] = np.where(opens_BT, -1, time - partner_BT)
    return Rows.without_foil(tokens_BT, level_BT)


TASKS = (
    GradedTask(
        name="L1",
        title="bigram: the next symbol of a 64-state Markov chain",
        chance=1 / STATES,
        **bounds_of_chain(DEFAULT),
        scored="every symbol but the first",
        knobs="4 successors with p = data.successors: .5, .25, .15, .1; entropy rate 1.208 nats",
        level="",
        answers=(SYMBOL, STATES),
        generate=partial(chain, task="L1"),
        follows=bounds_of_chain,
    ),
    GradedTask(
        name="L2",
        title="agreement: the verb's ending matches the first noun across nouns of the other number",
        chance=1 / 2,
        ceiling=1.0,
        scored="the ending of every verb",
        knobs="0..3 nouns in between; of random number in training, of the opposite number in evaluation",
        level="attractors",
        part=lambda attractors: f"{attractors} attractors",
        answers=(ENDING, 2),
        generate=agreement,
        names=L2_NAMES,
    ),
    GradedTask(
        name="L3",
        title="Dyck-(8, 4): the type of a closing bracket",
        chance=1 / BRACKETS,
        ceiling=1.0,
        scored="every closing bracket",
        knobs="8 types, depth at most 4, opening probability 1/2",
        level="distance",
        part=lambda distance: (
            "adjacent" if distance == 1 else "nested"
        ),  # the last one opened is not the last bracket
        answers=(CLOSE, BRACKETS),
        generate=dyck,
        names=L3_NAMES,
    ),
    GradedTask(
        name="L1o2",
        title="trigram: the next symbol of a chain of 64 states that looks back at two",
        chance=1 / STATES,
        **bounds_of_chain(DEFAULT),
        scored="every symbol but the first two",
        knobs="4 successors of two states with p = data.successors: .5, .25, .15, .1; entropy rate 1.208 nats",
        level="",
        answers=(SYMBOL, STATES),
        mixed=False,
        generate=partial(chain, task="L1o2"),
        follows=bounds_of_chain,
    ),
)
