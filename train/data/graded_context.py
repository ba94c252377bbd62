"""S, R1, R2, R23: answers that stand in the context: a few tokens back, far back, under a key."""

from functools import lru_cache, partial

import numpy as np

from wane.train.data import key, several
from wane.train.data.graded_language import markov
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import (
    KEY,
    KEYS,
    MAP,
    REPEAT,
    SYMBOL,
    SYMBOLS,
    TAGS,
    VALUE,
    VALUES,
    WORD,
    WORDS,
    distinct,
)

LAGS = tuple(REPEAT)
MOTIF, CUE = 8, 2
PAIRS = (4, 8, 16, 32)
TOKENS = {"R2": 1, "R23": several.LONG}  # of a value
GAP_POWER = 0.01  # gap g has probability proportional to g^(a - 1), Zoology (Arora et al. 2024)


@lru_cache(maxsize=8)
def symbol_map(world_seed: int) -> np.ndarray:
    """The map of S: a permutation of the 128 symbols without fixed points (a random cycle)."""
    cycle = key.generator("symbol map", world_seed).permutation(SYMBOLS)
    image = np.empty(SYMBOLS, np.int64)
    image[cycle] = np.roll(cycle, -1)
    return image


def fill(task: str, items_BMW: np.ndarray, level_BMW: np.ndarray, length: int, foil_BMW=None) -> Rows:
    """Rows of `length` tokens: the tag, then items of one common length, the last one cut off."""
    shape = len(items_BMW), items_BMW.shape[1] * items_BMW.shape[2]
    rows = Rows(*(np.full((shape[0], length), first) for first in (TAGS[task], -1, -1)))
    parts = items_BMW, level_BMW, np.full_like(items_BMW, -1) if foil_BMW is None else foil_BMW
    for row_BT, part_BMW in zip(rows, parts, strict=True):
        row_BT[:, 1:] = part_BMW.reshape(shape)[:, : length - 1]
    return rows


def short(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items s1 s2 s3 QUERY answer.  The query names a lag of 2..4 tokens, counted from the answer, and
    whether that token is to be repeated or mapped."""
    shape = (rows, -(-(length - 1) // 5))
    lag, mapped = rng.integers(LAGS[0], LAGS[-1] + 1, size=shape), rng.integers(2, size=shape)
    items = np.empty((*shape, 5), np.int64)
    items[..., :3] = rng.integers(SYMBOLS, size=(*shape, 3))
    source = np.take_along_axis(items, (4 - lag)[..., None], axis=-1)[..., 0]
    items[..., 4] = np.where(mapped, symbol_map(world.seed)[source], source)
    items += SYMBOL
    items[..., 3] = np.where(mapped, MAP[LAGS[0]], REPEAT[LAGS[0]]) + lag - LAGS[0]
    level = np.full(items.shape, -1)
    level[..., 4] = lag
    return fill("S", items, level, length)


def other_readings(rng, world: World, item_MW: np.ndarray, level_M: np.ndarray) -> np.ndarray:
    """S: what other queries ask for: the same symbol the other way, and another symbol of the item both ways.  Two
    of the four options are then repeated and two mapped, of two symbols: who does not know the lag, or not whether
    to map, is right in half of them."""
    row_M = np.arange(len(item_MW))
    symbol_M3, query_M = item_MW[:, :3] - SYMBOL, item_MW[:, 3]
    asked_M = 4 - level_M
    other_M = (asked_M + rng.integers(1, 3, size=len(row_M))) % 3
    mapped_M = query_M >= MAP[LAGS[0]]
    asked_M, other_M = symbol_M3[row_M, asked_M], symbol_M3[row_M, other_M]
    image = symbol_map(world.seed)
    same_M = np.where(mapped_M, asked_M, image[asked_M])
    return SYMBOL + np.stack([same_M, other_M, image[other_M]], axis=1)


def copy_distances(length: int) -> list[int]:
    """Distances from motif to cue that fit a row of `length` tokens: 16, 32, 64, 128, 224 where the row is
    long enough, and the longest that fits."""
    longest = min(224, length - 1 - MOTIF)
    return [d for d in (16, 32, 64, 128) if d < longest] + [longest]


def copy(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items: motif of 8 different symbols, Markov filler of function words, the first 2 symbols again as the
    cue, then the other 6, which are scored.  One distance per row, from the start of the motif to the cue."""
    distances = np.array(copy_distances(length))
    distance_B1 = distances[rng.integers(len(distances), size=(rows, 1))]
    item_B1 = distance_B1 + MOTIF
    time = np.arange(length - 1)
    index_BT, at_BT = time // item_B1, time % item_B1
    count = -(-(length - 1) // (distances[0] + MOTIF))
    motif_BN = distinct(rng, (rows, count), MOTIF, SYMBOLS).reshape(rows, count * MOTIF)
    again_BT = at_BT >= distance_B1
    place_BT = np.where(again_BT, at_BT - distance_B1, at_BT)
    motif_BT = np.take_along_axis(motif_BN, index_BT * MOTIF + np.minimum(place_BT, MOTIF - 1), axis=1)
    filler_BT = WORD + markov(rng, rows, length - 1, world)
    tokens_BT = np.full((rows, length), TAGS["R1"])
    tokens_BT[:, 1:] = np.where(place_BT < MOTIF, SYMBOL + motif_BT, filler_BT)
    level_BT = np.full((rows, length), -1)
    level_BT[:, 1:] = np.where(again_BT & (place_BT >= CUE), distance_B1, -1)
    return Rows.without_foil(tokens_BT, level_BT)


def recall(rng, rows: int, length: int, world: World, role: Role, *, task: str) -> Rows:
    """Multi-query associative recall: items of K key-value pairs, then 3 K slots as long as a pair.  Every
    key is asked once, in a slot at a power-law gap; the other slots hold function words.  Scored: the value
    after an asked key.  One K per row, of those with 8 K tokens in the row: what an item has with values of
    one token.  With values of 3 it has fewer slots where 3 K do not fit, K or more.  Foil: the value of the pair
    beside the one that is asked, pairs 0 and 1, 2 and 3, .. being beside each other; none where it is the same."""
    tokens = TOKENS[task]
    choices = [pairs for pairs in PAIRS if 8 * pairs <= length - 1]
    pairs_B = rng.choice(choices, size=rows)
    out = Rows(*np.empty((3, rows, length), np.int64))
    for pairs in choices:
        chosen = pairs_B == pairs
        slots = slots_of(pairs, tokens, length)
        count = -(-(length - 1) // ((1 + tokens) * (pairs + slots)))
        items, level, foil = recall_items(rng, (int(chosen.sum()), count), pairs, slots, tokens)
        for whole_BT, part_BT in zip(out, fill(task, items, level, length, foil), strict=True):
            whole_BT[chosen] = part_BT
    return out


def long_values(rng, shape: tuple[int, int], pairs: int) -> np.ndarray:
    """Values of 3 tokens [*shape, pairs, 3], below 128.  Every token stands under two keys of the item, and
    two keys never share more than one: after a token two could come next, so no value is copied on without
    its key or the tokens before.  Keys are dealt into fours, which first tokens pair as 01 23, second tokens
    as 02 13, third tokens as 03 12."""
    four, one = np.divmod(np.argsort(rng.random((*shape, pairs)), axis=-1), 4)
    halves = np.stack([one // 2, one % 2, one // 2 ^ one % 2], axis=-1)
    kinds = distinct(rng, shape, several.LONG * pairs // 2, VALUES).reshape(*shape, several.LONG, pairs // 2)
    return np.take_along_axis(kinds.swapaxes(-1, -2), 2 * four[..., None] + halves, axis=-2)


def neighbours(rng, world: World, item_MW: np.ndarray, level_M: np.ndarray, *, task: str) -> np.ndarray:
    """R2: the value of the pair beside the one that is asked, pairs being taken two by two as they stand, and both
    values of another two.  One place off is what an imprecise look takes; as the others are also neighbours, who
    sees the item and not the question cannot tell which two it is of."""
    tokens, row_M = TOKENS[task], np.arange(len(item_MW))
    pairs_M = level_M if tokens == 1 else level_M // several.PLACE
    at_M = np.zeros_like(level_M) if tokens == 1 else level_M % several.PLACE - 1  # which token of the value
    asked_M = asked_pair(item_MW, pairs_M, at_M, tokens)
    other_M = (asked_M // 2 + rng.integers(1, pairs_M // 2)) % (pairs_M // 2)
    pair_M3 = np.stack([asked_M ^ 1, 2 * other_M, 2 * other_M + 1], axis=1)
    return item_MW[row_M[:, None], pair_M3 * (1 + tokens) + 1 + at_M[:, None]]


def asked_pair(item_MW: np.ndarray, pairs_M: np.ndarray, at_M: np.ndarray, tokens: int) -> np.ndarray:
    """Which pair of its item is asked for [M]: the key stands before the answer, at_M tokens further back."""
    row_M, width = np.arange(len(item_MW)), 1 + tokens
    end_M = (item_MW >= 0).sum(axis=1)
    key_M1 = item_MW[row_M, end_M - 1 - at_M][:, None]
    place = np.arange(item_MW.shape[1])
    is_key_MW = (place % width == 0) & (place < width * pairs_M[:, None])
    return ((item_MW == key_M1) & is_key_MW).argmax(axis=1) // width


def item_of_recall(level: np.ndarray, length: int, *, task: str) -> np.ndarray:
    """Tokens of an item whose answers are of these levels, in rows of `length` tokens."""
    tokens = TOKENS[task]
    pairs = level if tokens == 1 else level // 10
    return (1 + tokens) * (pairs + slots_of(pairs, tokens, length))


def slots_of(pairs: np.ndarray | int, tokens: int, length: int) -> np.ndarray | int:
    """Slots for questions behind `pairs` pairs, in a row of `length` tokens."""
    return np.minimum(3 * pairs, (length - 1) // (1 + tokens) - pairs)


def recall_items(rng, shape: tuple[int, int], pairs: int, slots: int, tokens: int) -> tuple[np.ndarray, ...]:
    """Items [*shape, (1 + tokens) (pairs + slots)], their levels and foils."""
    key_BMK = KEY + distinct(rng, shape, pairs, KEYS)
    if tokens == 1:
        value_BMKA = VALUE + rng.integers(VALUES, size=(*shape, pairs, 1))
    else:
        value_BMKA = VALUE + long_values(rng, shape, pairs)
    width = 1 + tokens
    # The `pairs` smallest of E_j / w_j, E exponential, are a draw without replacement with weights w.
    weight = np.arange(1, slots + 1) ** (GAP_POWER - 1)
    drawn = np.argsort(rng.standard_exponential((*shape, slots)) / weight, axis=-1)[..., :pairs]
    asked = np.argsort(rng.random((*shape, pairs)), axis=-1)
    query = WORD + rng.integers(WORDS, size=(*shape, slots, width))
    level, foil = np.full((2, *shape, pairs + slots, width), -1)
    row, item, _ = np.ogrid[: shape[0], : shape[1], :1]
    pair = np.concatenate([key_BMK[..., None], value_BMKA], axis=-1)
    query[row, item, drawn] = np.take_along_axis(pair, asked[..., None], axis=-2)
    level[row, item, pairs + drawn, 1:] = several.levels(pairs, tokens)
    answer, beside = (np.take_along_axis(value_BMKA, k[..., None], axis=-2) for k in (asked, asked ^ 1))
    foil[row, item, pairs + drawn, 1:] = np.where(beside == answer, -1, beside)
    items = np.concatenate([pair, query], axis=-2)
    return tuple(part.reshape(*shape, width * (pairs + slots)) for part in (items, level, foil))


TASKS = (
    GradedTask(
        name="S",
        title="short context: repeat or map the symbol 2 to 4 back",
        chance=1 / SYMBOLS,
        ceiling=1.0,
        scored="the answer, 1 token in 5",
        knobs="lag 2..4, repeat or a fixed map, equally often",
        level="lag",
        answers=(SYMBOL, SYMBOLS),
        item=lambda lag, length: np.full_like(lag, 5),
        beside=other_readings,
        generate=short,
    ),
    GradedTask(
        name="R1",
        title="copy at a distance: continue a motif of 8 symbols from its first 2",
        chance=1 / SYMBOLS,
        ceiling=1.0,
        scored="6 symbols per motif",
        knobs="distance 16, 32, 64, 128, 224 as far as the context allows, and the longest that fits",
        level="distance",
        part=lambda distance: f"distance {distance}",  # near ones are most of what is scored
        answers=(SYMBOL, SYMBOLS),
        item=lambda distance, length: distance + MOTIF,
        generate=copy,
    ),
    GradedTask(
        name="R2",
        title="multi-query associative recall: the value that a key was given",
        chance=1 / VALUES,
        chance_at=lambda pairs: 1 / pairs,  # a guess among the values of the item
        ceiling=1.0,
        scored="the value after each asked key",
        knobs="4, 8, 16, 32 pairs where 8 times as many tokens fit; power-law gaps; in context 1 in so many "
        "pairs is right by chance",
        level="pairs",
        answers=(VALUE, VALUES),
        item=partial(item_of_recall, task="R2"),
        beside=partial(neighbours, task="R2"),
        generate=partial(recall, task="R2"),
    ),
    GradedTask(
        name="R23",
        title="recall of three tokens: R2 with longer values, for the effect of an answer's length",
        chance=1 / VALUES,
        chance_at=lambda level: 2 / (level // 10),  # every token stands under two keys
        ceiling=1.0,
        scored="the 3 tokens of the value after each asked key",
        knobs="4, 8, 16, 32 pairs where 8 times as many tokens fit; 3 tokens, by chance all right 1 in "
        "128^3; each stands under two keys of the item",
        level="10 x pairs + 1, 2, 3 which token of the value",
        part=several.part,
        answers=(VALUE, VALUES),
        item=partial(item_of_recall, task="R23"),
        beside=partial(neighbours, task="R23"),
        mixed=False,
        generate=partial(recall, task="R23"),
    ),
)
