"""L1, L2, L3: the structure of language in three sizes: next symbol, agreement, nesting."""

from functools import lru_cache

import numpy as np

from wane.train.data import key
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import END, SYMBOL, TAGS, WORD, pack

STATES = 64
SUCCESSOR_P = (0.5, 0.25, 0.15, 0.1)  # entropy rate 1.208 nats


@lru_cache(maxsize=8)
def successors(world_seed: int) -> np.ndarray:
    """The four successors of every state [64, 4], all different.  Each column is a permutation, so the
    stationary distribution is exactly uniform and a unigram predictor is right 1 time in 64."""
    rng = key.generator("markov", world_seed)
    columns: list[np.ndarray] = []
    while len(columns) < len(SUCCESSOR_P):
        candidate = rng.permutation(STATES)
        if not any((candidate == column).any() for column in columns):
            columns.append(candidate)
    return np.stack(columns, axis=1)


def markov(rng: np.random.Generator, rows: int, length: int, world: World) -> np.ndarray:
    """States [rows, length] of the Markov chain, started in its stationary distribution."""
    flat = successors(world.seed).ravel()
    edges = np.cumsum(SUCCESSOR_P[:-1])
    choice_TB = np.searchsorted(edges, rng.random((length, rows)), side="right")
    state_TB = np.empty((length, rows), np.int64)
    state = rng.integers(STATES, size=rows)
    for t in range(length):  # the only loop over time: each state needs the one before it
        state_TB[t] = state
        state = flat.take(state * len(SUCCESSOR_P) + choice_TB[t])
    return state_TB.T


def bigram(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """One chain per row.  Scored: every symbol that has a predecessor."""
    tokens_BT = np.full((rows, length), TAGS["L1"])
    tokens_BT[:, 1:] = SYMBOL + markov(rng, rows, length - 1, world)
    level_BT = np.zeros((rows, length), np.int64)
    level_BT[:, :2] = -1
    return Rows.without_foil(tokens_BT, level_BT)


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
        ceiling=SUCCESSOR_P[0],
        scored="every symbol but the first",
        knobs="4 successors with p = .5, .25, .15, .1; entropy rate 1.208 nats",
        level="",
        answers=(SYMBOL, STATES),
        generate=bigram,
    ),
    GradedTask(
        name="L2",
        title="agreement: the verb's ending matches the first noun across nouns of the other number",
        chance=1 / 2,
        ceiling=1.0,
        scored="the ending of every verb",
        knobs="0..3 nouns in between; of random number in training, of the opposite number in evaluation",
        level="attractors",
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
        answers=(CLOSE, BRACKETS),
        generate=dyck,
        names=L3_NAMES,
    ),
)
