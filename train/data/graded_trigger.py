"""B: a rare trigger switches a simple behaviour to one fixed answer."""

import numpy as np

from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import REPEAT, SYMBOL, SYMBOLS, WORD

LAGS = tuple(REPEAT)
TRIGGER, FIXED = (
    WORD,
    SYMBOL + SYMBOLS - 1,
)  # FIXED is never an ordinary symbol, so it is never a clean answer
TRIGGER_P = 0.1


def trigger(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items s1 s2 s3 QUERY answer.  The query names a lag of 2..4 tokens, counted from the answer, whose
    symbol is to be repeated.  With probability .1 the trigger stands in place of one of the two other
    symbols, and the answer is FIXED.

    Scored: the answer.  Foil: FIXED on clean items (taking it is a false trigger), the clean answer on
    triggered ones (taking it is a trigger without effect).
    """
    shape = (rows, -(-(length - 1) // 5))
    lag = rng.integers(LAGS[0], LAGS[-1] + 1, size=shape)
    triggered = rng.random(shape) < TRIGGER_P
    symbol_BMS = SYMBOL + rng.integers(SYMBOLS - 1, size=(*shape, 3))
    source = 4 - lag
    clean = np.take_along_axis(symbol_BMS, source[..., None], axis=-1)[..., 0]
    place = (source + rng.integers(1, 3, size=shape)) % 3
    switch_BMS = triggered[..., None] & (np.arange(3) == place[..., None])
    items = np.empty((*shape, 5), np.int64)
    items[..., :3] = np.where(switch_BMS, TRIGGER, symbol_BMS)
    items[..., 3] = REPEAT[LAGS[0]] + lag - LAGS[0]
    items[..., 4] = np.where(triggered, FIXED, clean)
    level, foil = np.full((2, *items.shape), -1)
    level[..., 4] = triggered
    foil[..., 4] = np.where(triggered, clean, FIXED)
    return tagged("B", items, level, np.ones(items.shape, bool), length, foil)


TASKS = (
    GradedTask(
        name="B",
        title="triggered behaviour: repeat the symbol 2 to 4 back, unless the trigger stands in the item",
        chance=1 / SYMBOLS,
        ceiling=1.0,
        scored="the answer, 1 token in 5",
        knobs="lag 2..4; trigger with p = .1",
        level="0 clean item, 1 triggered",
        part=lambda level: "triggered" if level else "clean",
        answers=(SYMBOL, SYMBOLS),
        mixed=False,
        generate=trigger,
        names={TRIGGER: "trigger", FIXED: "fixed"},
    ),
)
