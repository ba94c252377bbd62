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


def fill(task: str, items_BMW: np.ndarray, level_BMW: np.ndarray, length: int) -> Rows:
    """Rows of `length` tokens: the tag, then items of one common length, the last one cut off."""
    rows, width = len(items_BMW), items_BMW.shape[1] * items_BMW.shape[2]
    tokens_BT = np.full((rows, length), TAGS[task])
    level_BT = np.full((rows, length), -1)
    tokens_BT[:, 1:] = items_BMW.reshape(rows, width)[:, : length - 1]
    level_BT[:, 1:] = level_BMW.reshape(rows, width)[:, : length - 1]
    return Rows.without_foil(tokens_BT, level_BT)


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
    one token.  With values of 3 it has fewer slots where 3 K do not fit, K or more."""
    tokens = TOKENS[task]
    choices = [pairs for pairs in PAIRS if 8 * pairs <= length - 1]
    pairs_B = rng.choice(choices, size=rows)
    tokens_BT, level_BT = np.empty((rows, length), np.int64), np.empty((rows, length), np.int64)
    for pairs in choices:
        chosen = pairs_B == pairs
        slots = slots_of(pairs, tokens, length)
        count = -(-(length - 1) // ((1 + tokens) * (pairs + slots)))
        items, level = recall_items(rng, (int(chosen.sum()), count), pairs, slots, tokens)
        tokens_BT[chosen], level_BT[chosen], _ = fill(task, items, level, length)
    return Rows.without_foil(tokens_BT, level_BT)


def long_values(rng, shape: tuple[int, int], pairs: int) -> np.ndarray:
    """Values of 3 tokens [*shape, pairs, 3], below 128.  Every token stands under two keys of the item, and
    two keys never share more than one: after a token two could come next, so no value is copied on without
    its key or the tokens before.  Keys are dealt into fours, which first tokens pair as 01 23, second tokens
    as 02 13, third tokens as 03 12."""
    four, one = np.divmod(np.argsort(rng.random((*shape, pairs)), axis=-1), 4)
    halves = np.stack([one // 2, one % 2, one // 2 ^ one % 2], axis=-1)
    kinds = distinct(rng, shape, several.LONG * pairs // 2, VALUES).reshape(*shape, several.LONG, pairs // 2)
    return np.take_along_axis(kinds.swapaxes(-1, -2), 2 * four[..., None] + halves, axis=-2)


def item_of_recall(level: np.ndarray, length: int, *, task: str) -> np.ndarray:
    """Tokens of an item whose answers are of these levels, in rows of `length` tokens."""
    tokens = TOKENS[task]
    pairs = level if tokens == 1 else level // 10
    return (1 + tokens) * (pairs + slots_of(pairs, tokens, length))


def slots_of(pairs: np.ndarray | int, tokens: int, length: int) -> np.ndarray | int:
    """Slots for questions behind `pairs` pairs, in a row of `length` tokens."""
    return np.minimum(3 * pairs, (length - 1) // (1 + tokens) - pairs)


def recall_items(rng, shape: tuple[int, int], pairs: int, slots: int, tokens: int) -> tuple[np.ndarray, ...]:
    """Items [*shape, (1 + tokens) (pairs + slots)] and their levels."""
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
    level = np.full((*shape, pairs + slots, width), -1)
    row, item, _ = np.ogrid[: shape[0], : shape[1], :1]
    pair = np.concatenate([key_BMK[..., None], value_BMKA], axis=-1)
    query[row, item, drawn] = np.take_along_axis(pair, asked[..., None], axis=-2)
    level[row, item, pairs + drawn, 1:] = several.levels(pairs, tokens)
    items = np.concatenate([pair, query], axis=-2)
    return items.reshape(*shape, width * (pairs + slots)), level.reshape(*shape, width * (pairs + slots))


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
        answers=(VALUE, VALUES),
        item=partial(item_of_recall, task="R23"),
        mixed=False,
        generate=partial(recall, task="R23"),
    ),
)
