"""G: a topic that colours a whole row: told at its start, or hidden and to be inferred from the symbols so far."""

from functools import lru_cache

import numpy as np

from wane.train.data import key
from wane.train.data.task import SUCCESSOR_P, GradedTask, Role, Rows, World
from wane.train.data.vocabulary import SYMBOL, TAGS, WORD

# Symbols are counted on a ring of 64.  Topic z owns 8z .. 8z + 7 and draws 8z + j, j = 0..3, with SUCCESSOR_P[j];
# the chain that all topics share goes on by one of 8 steps, equally likely.  Every topic is the same up to a
# turn of the ring, so what follows holds for each.  The world renames the symbols: no order shows.
STATES, TOPICS = 64, 8
BLOCK = STATES // TOPICS
TOPIC_P = 0.4  # of a symbol drawn from the topic
CHAIN_STEPS = np.array([3, 9, 16, 22, 31, 37, 52, 58])
OWN_V = np.pad(SUCCESSOR_P, (0, STATES - len(SUCCESSOR_P)))  # of a symbol that is drawn from topic 0
TOPIC, HIDDEN = WORD, WORD + TOPICS
NAMES = {TOPIC + z: f"topic{z}:" for z in range(TOPICS)} | {HIDDEN: "topic?:"}


@lru_cache(maxsize=1)
def stationary() -> np.ndarray:
    """How often each symbol [64] comes in a row of topic 0, at every place: the fixed point of one step, which
    forgets its start by a factor of .6 (.6^100 is below one unit of rounding)."""
    share_V = OWN_V
    for _ in range(100):
        chained_V = np.mean([np.roll(share_V, step) for step in CHAIN_STEPS], axis=0)
        share_V = TOPIC_P * OWN_V + (1 - TOPIC_P) * chained_V
    return share_V


# Who knows the topic always guesses its first symbol: .4 x .5 = .2, against at most .4 x .25 + .6 / 8 = .175
# for any other.  So the ceiling is how often that symbol comes.  Hidden rows have the same from 16 symbols on
# (.171 at the 4th, .199 at the 8th, .2045 at the 16th).  The eight successors of a symbol stand at all eight
# places of a block: blind to the topic, the best guess is right with .6 / 8 + .4 x .5 / 8 = .1 everywhere.
CEILING = float(stationary()[0])
KNOWN_OCTAVE = 4


def known_and_blind() -> tuple[float, float]:
    """Nats of a symbol behind another, in a row of topic 0: to who knows the topic, and to who knows all else and
    takes every topic for equally likely."""
    chain_V = np.zeros(STATES)
    chain_V[CHAIN_STEPS] = 1 / len(CHAIN_STEPS)
    chain_XV = np.stack([np.roll(chain_V, x) for x in range(STATES)])
    any_V = np.mean([np.roll(OWN_V, BLOCK * z) for z in range(TOPICS)], axis=0)
    known_XV, blind_XV = (TOPIC_P * topic_V + (1 - TOPIC_P) * chain_XV for topic_V in (OWN_V, any_V))
    joint_XV = stationary()[:, None] * known_XV
    seen = joint_XV > 0
    return tuple(-float((joint_XV[seen] * np.log(p_XV[seen])).sum()) for p_XV in (known_XV, blind_XV))


KNOWN_NATS, BLIND_NATS = known_and_blind()


def topic(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """TOPIC, then symbols: from the topic with p = .4, else the next one of the chain after the symbol before.
    In half of the rows the topic token is hidden.  Scored: every symbol that has a predecessor.  Foil, where
    the answer is one of the four of the topic: its like in another topic, equally frequent in the language."""
    steps = length - 2
    topic_B1, hidden_B1 = rng.integers(TOPICS, size=(rows, 1)), rng.integers(2, size=(rows, 1))
    own_BT = np.searchsorted(np.cumsum(SUCCESSOR_P[:-1]), rng.random((rows, steps)), side="right")
    drawn_BT = rng.random((rows, steps)) < TOPIC_P
    first_B = np.searchsorted(np.cumsum(stationary()[:-1]), rng.random(rows), side="right")
    own_BT[:, 0], drawn_BT[:, 0] = first_B, True
    # The chain only adds, so a symbol is the latest drawn one plus all steps since.
    walked_BT = np.cumsum(CHAIN_STEPS[rng.integers(len(CHAIN_STEPS), size=(rows, steps))] * ~drawn_BT, axis=1)
    latest_BT = np.maximum.accumulate(np.where(drawn_BT, np.arange(steps), 0), axis=1)
    since_BT = np.take_along_axis(own_BT - walked_BT, latest_BT, axis=1)
    place_BT = (since_BT + walked_BT) % STATES  # within the ring as topic 0 sees it
    another_BT = topic_B1 + rng.integers(1, TOPICS, size=(rows, steps))
    name = SYMBOL + key.generator("topics", world.seed).permutation(STATES)
    tokens_BT = np.full((rows, length), TAGS["G"])
    tokens_BT[:, 1:2] = np.where(hidden_B1, HIDDEN, TOPIC + topic_B1)
    tokens_BT[:, 2:] = name[(place_BT + BLOCK * topic_B1) % STATES]
    level_BT, foil_BT = np.full((2, rows, length), -1)
    octave = np.log2(np.arange(2, length - 1)).astype(np.int64)  # of the count of symbols, this one included
    level_BT[:, 3:] = 10 * octave + hidden_B1
    foil = name[(place_BT + BLOCK * another_BT) % STATES]
    foil_BT[:, 3:] = np.where(place_BT < len(SUCCESSOR_P), foil, -1)[:, 1:]
    return Rows(tokens_BT, level_BT, foil_BT)


TASKS = (
    GradedTask(
        name="G",
        title="global topic: symbols from a topic told at the start of the row, or to be inferred",
        chance=1 / STATES,
        ceiling=CEILING,
        ceiling_at=lambda level: np.where((level % 10 == 1) & (level // 10 < KNOWN_OCTAVE), np.nan, CEILING),
        scored="every symbol but the first",
        knobs="8 topics, each 4 symbols with p = .4; else one of 8 successors; told or hidden; 2.364 nats",
        level="10 x octave of the place + (0 told, 1 hidden)",
        part=lambda level: "hidden" if level % 10 else "told",
        entropy=lambda level: np.where(np.asarray(level) % 10 == 0, KNOWN_NATS, -1),
        answers=(SYMBOL, STATES),
        generate=topic,
        mixed=False,
        names=NAMES,
    ),
)
