"""The 512 tokens of the graded task language: which range means what, and how to print them."""

from collections.abc import Mapping

import numpy as np

SIZE = 512
DIGIT, DIGITS = 32, 32
SYMBOL, SYMBOLS = 64, 128
KEY, KEYS = 192, 128
VALUE, VALUES = 320, 128
WORD, WORDS = 448, 64

# A tag opens a sequence and says which task follows; 0 is never produced.  Those of the tasks outside the usual
# mixture are digits from 16 on, which no task counts to, and one that the control tokens leave.
TAGS = {"L1": 1, "L2": 2, "L3": 3, "S": 4, "K": 5, "R1": 6, "R2": 7, "M1": 8, "M2": 9, "X": 28}
TAGS |= {
    task: DIGIT + 16 + i for i, task in enumerate(("M3", "I", "T1", "T2", "E", "L0", "L4", "G", "P", "B"))
}
TAGS |= {task: DIGIT + 26 + i for i, task in enumerate(("L1o2", "M1d", "M2l", "K3", "R23", "M23"))} | {
    "T13": 29
}
END, EQUALS, PLUS, MINUS, DIRECT, STEPS, UNDEFINED = range(10, 17)
REPEAT = {2: 17, 3: 18, 4: 19}  # S: answer with the token that many back
MAP = {2: 20, 3: 21, 4: 22}  # S: answer with its image
HOP = {0: 23, 1: 24, 2: 25, 4: 26, 8: 27}  # M1

_CONTROL = {
    **{token: f"<{task}>" for task, token in TAGS.items()},
    **{END: ".", EQUALS: "=", PLUS: "+", MINUS: "-", DIRECT: "direct:", STEPS: "steps:", UNDEFINED: "?"},
    **{token: f"repeat{lag}" for lag, token in REPEAT.items()},
    **{token: f"map{lag}" for lag, token in MAP.items()},
    **{token: f"hop{hops}:" for hops, token in HOP.items()},
}


def word(token: int, names: Mapping[int, str]) -> str:
    """How `token` is printed; a task's own `names` come first."""
    if token in names:
        return names[token]
    if token < DIGIT or token in _CONTROL:
        return _CONTROL.get(token, f"<{token}>")
    ranges = ((WORD, "w"), (VALUE, "v"), (KEY, "k"), (SYMBOL, "s"), (DIGIT, ""))
    first, prefix = next((first, prefix) for first, prefix in ranges if token >= first)
    return f"{prefix}{token - first}"


def pack(items_BMW: np.ndarray, keep_BMW: np.ndarray, length: int) -> np.ndarray:
    """Concatenate, row by row, the kept tokens of M items into the first `length` places [B, length].
    Every row must keep at least `length` tokens; the last item is cut off at the end."""
    rows, items, width = items_BMW.shape
    keep = keep_BMW.reshape(rows, items * width)
    keep = keep & (np.cumsum(keep, axis=1) <= length)
    return items_BMW.reshape(rows, items * width)[keep].reshape(rows, length)


def distinct(rng: np.random.Generator, rows: tuple[int, ...], count: int, population: int) -> np.ndarray:
    """`count` integers below `population` per row, all different when count <= population.

    One draw from each of `count` equal strata, shuffled and rotated by a common random amount: every
    integer is equally likely at every place, at the price of one small sort.
    """
    stratum = np.argsort(rng.random((*rows, count), dtype=np.float32), axis=-1)
    low, high = stratum * population // count, (stratum + 1) * population // count
    inside = (rng.random((*rows, count)) * (high - low)).astype(np.int64)
    return (low + inside + rng.integers(population, size=(*rows, 1))) % population
