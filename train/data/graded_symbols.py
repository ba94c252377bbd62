"""L0, L4: symbols without structure, for calibration, and the composition of two of them."""

from functools import lru_cache

import numpy as np

from wane.train.data import key
from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World, nats
from wane.train.data.vocabulary import SYMBOL, TAGS, VALUE, distinct

KINDS = 64  # symbols of L0
ZIPF_P = (1 / np.arange(1, KINDS + 1)) / (1 / np.arange(1, KINDS + 1)).sum()
ZIPF_ENTROPY = nats(ZIPF_P.tolist())  # nats: no predictor has a lower mean NLL

SIDE = 16  # first and second symbols of L4
CLASSES = 8  # of either, two symbols each: 8 x 8 pairs of classes name the 64 answers
FIRST, SECOND = SYMBOL, SYMBOL + SIDE
L4_NAMES = {FIRST + i: f"a{i}" for i in range(SIDE)} | {SECOND + i: f"b{i}" for i in range(SIDE)}


def unigram(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Independent symbols, the i-th with a probability proportional to 1/i (Zipf).  Scored: every symbol.
    There is nothing to learn but the distribution: the NLL above its entropy is a fault of calibration."""
    tokens_BT = np.full((rows, length), TAGS["L0"])
    uniform_BT = rng.random((rows, length - 1))
    tokens_BT[:, 1:] = SYMBOL + np.searchsorted(np.cumsum(ZIPF_P)[:-1], uniform_BT, side="right")
    level_BT = np.zeros((rows, length), np.int64)
    level_BT[:, 0] = -1
    return Rows.without_foil(tokens_BT, level_BT)


@lru_cache(maxsize=8)
def composition(world_seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """f1 [16] and f2 [16], the classes of first and second symbols; h [8, 8], the value of two classes, every
    value once; held_out [16, 16], the pairs of evaluation only.

    Of the four pairs of symbols with the same two classes one is held out: the other three tell its value to
    whoever has found the classes, and every value is asked of new pairs as often as any other.
    """
    rng = key.generator("composition", world_seed)
    f1, f2 = (rng.permutation(SIDE) % CLASSES for _ in range(2))
    h = rng.permutation(CLASSES * CLASSES).reshape(CLASSES, CLASSES)
    # argsort by class lists the two members of each class side by side.
    members_1, members_2 = (np.argsort(f, kind="stable").reshape(CLASSES, 2) for f in (f1, f2))
    chosen = rng.integers(2, size=(2, CLASSES, CLASSES))
    held_out = np.zeros((SIDE, SIDE), bool)
    one, two = np.ogrid[:CLASSES, :CLASSES]
    held_out[members_1[one, chosen[0]], members_2[two, chosen[1]]] = True
    return f1, f2, h, held_out


def compose(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items a b g(a, b) with g(a, b) = h(f1(a), f2(b)), a table of the world.  Scored: g.  Training draws
    from three quarters of the 16 x 16 pairs, evaluation from all.  No pair comes twice in a row while there
    are enough of them, so nothing is read off the context.  Foil: g(a, b') of a b' of another class, as good
    to a predictor that looks at the first symbol only."""
    f1, f2, h, held_out = composition(world.seed)
    pairs = np.argwhere(~held_out) if role == "train" else np.argwhere(np.ones_like(held_out))
    drawn = distinct(rng, (rows,), -(-(length - 1) // 3), len(pairs))
    a, b = np.moveaxis(pairs[drawn], -1, 0)
    other_class = (f2[b] + rng.integers(1, CLASSES, size=drawn.shape)) % CLASSES
    items = np.stack([FIRST + a, SECOND + b, VALUE + h[f1[a], f2[b]]], axis=-1)
    level, foil = np.full((2, *items.shape), -1)
    level[..., 2] = held_out[a, b]
    foil[..., 2] = VALUE + h[f1[a], other_class]
    return tagged("L4", items, level, np.ones(items.shape, bool), length, foil)


TASKS = (
    GradedTask(
        name="L0",
        title="unigram: independent symbols of one skewed distribution",
        chance=1 / KINDS,
        ceiling=float(ZIPF_P[0]),
        scored="every symbol",
        knobs=f"64 symbols, the i-th with p proportional to 1/i; entropy {ZIPF_ENTROPY:.3f} nats",
        level="",
        entropy=lambda level: np.full(np.shape(level), ZIPF_ENTROPY),
        answers=(SYMBOL, KINDS),
        mixed=False,
        generate=unigram,
    ),
    GradedTask(
        name="L4",
        title="composition: the value of two adjacent symbols, inferred for pairs that were never seen",
        chance=1 / CLASSES**2,
        ceiling=1.0,
        scored="the value, 1 token in 3",
        knobs="16 x 16 pairs in 8 x 8 classes, a quarter of the pairs kept for evaluation",
        level="0 a pair of training, 1 a held-out pair",
        part=lambda level: "held out" if level else "seen",
        answers=(VALUE, CLASSES**2),
        mixed=False,
        generate=compose,
        names=L4_NAMES,
    ),
)
