"""X: range crossed with entropy: one map, asked next to its answer or 32 tokens away, certain or by chance."""

from functools import lru_cache

import numpy as np

from wane.train.data import key
from wane.train.data.graded_context import fill
from wane.train.data.task import SUCCESSOR_P, GradedTask, Role, Rows, World, nats
from wane.train.data.vocabulary import EQUALS, SYMBOL, SYMBOLS, VALUE, VALUES, WORD, distinct

MOST_PAIRS = 31  # a far answer then stands 32 tokens after what it answers
STOCHASTIC = 100  # added to the level of an answer by chance
CELL = WORD  # announces the cell of the row: + 2 where far, + 1 where stochastic
NAMES = {
    CELL: "local:certain",
    CELL + 1: "local:chance",
    CELL + 2: "far:certain",
    CELL + 3: "far:chance",
}


@lru_cache(maxsize=8)
def images(world_seed: int) -> np.ndarray:
    """The four possible answers to every symbol [128, 4], all different, the most probable first.  Each column
    is a permutation, so every answer is equally frequent in all cells and a unigram predictor knows nothing."""
    rng = key.generator("range map", world_seed)
    place, image = rng.permutation(SYMBOLS), rng.permutation(VALUES)
    turn = rng.permutation(VALUES)[: len(SUCCESSOR_P)]
    return image[(place[:, None] + turn) % VALUES]


def entropy(level: np.ndarray | int) -> np.ndarray:
    """Nats of an answer, given the symbol and the cell, by its level: 0, or 1.208 where it is by chance.
    What a model's loss has above it is the excess, comparable between the four cells."""
    return np.where(np.asarray(level) >= STOCHASTIC, nats(SUCCESSOR_P), 0.0)


def cell(level: int) -> str:
    """The cell of an answer of a level; far lags differ between contexts."""
    chance, lag = divmod(level, STOCHASTIC)
    return f"{'far' if lag > 1 else 'local'}, {'by chance' if chance else 'certain'}"


def range_entropy(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items `CELL a1 f(a1) ... an f(an) =` (local, lag 1) or `CELL a1 ... an = f(a1) ... f(an)` (far, lag
    n + 1): the same tokens, only their order differs.  Scored: every f(a), the most probable image of a or an
    image drawn with the probabilities of L1's successors.  n is 31, or what fits a shorter row.

    One cell per row, so that knowing it asks for the same reach in local and in far rows.  A symbol comes
    once in a row as long as there are enough, so that no answer can be copied from an earlier item.
    """
    pairs = min(MOST_PAIRS, (length - 3) // 2)
    count = -(-(length - 1) // (2 * pairs + 2))
    far, stochastic = rng.integers(2, size=(2, rows, 1, 1))
    asked_BMP = distinct(rng, (rows,), count * pairs, SYMBOLS).reshape(rows, count, pairs)
    drawn = np.searchsorted(np.cumsum(SUCCESSOR_P[:-1]), rng.random(asked_BMP.shape), side="right")
    answer_BMP = VALUE + images(world.seed)[asked_BMP, drawn * stochastic]
    unscored = np.full(asked_BMP.shape, -1)
    items = arranged(SYMBOL + asked_BMP, answer_BMP, far, CELL + 2 * far + stochastic, EQUALS)
    lag = np.where(far, pairs + 1, 1) + STOCHASTIC * stochastic
    level = arranged(unscored, np.broadcast_to(lag, unscored.shape), far, -1, -1)
    return fill("X", items, level, length)


def arranged(asked_BMP, answer_BMP, far, cell, separator) -> np.ndarray:
    """Items [B, M, 2 P + 2]: cell, pairs, separator, or where `far` cell, what is asked, separator, answers."""
    rows, count, pairs = asked_BMP.shape
    first, middle = (np.broadcast_to(one, (rows, count, 1)) for one in (cell, separator))
    adjacent = np.stack([asked_BMP, answer_BMP], axis=-1).reshape(rows, count, 2 * pairs)
    return np.where(
        far,
        np.concatenate([first, asked_BMP, middle, answer_BMP], axis=-1),
        np.concatenate([first, adjacent, middle], axis=-1),
    )


TASKS = (
    GradedTask(
        name="X",
        title="range x entropy: one map, its answers adjacent or 32 tokens away, certain or by chance",
        chance=1 / VALUES,
        ceiling=(1 + SUCCESSOR_P[0]) / 2,  # half of the rows certain, half by chance
        ceiling_at=lambda level: np.where(level >= STOCHASTIC, SUCCESSOR_P[0], 1.0),
        scored="the answer to every symbol",
        knobs="lag 1 or 32 (shorter rows: what fits) x certain or with p = .5, .25, .15, .1; one cell per row",
        level="lag (certain), 100 + lag (by chance)",
        part=cell,
        entropy=entropy,
        answers=(VALUE, VALUES),
        generate=range_entropy,
        names=NAMES,
    ),
)
