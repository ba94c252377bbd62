"""E: two renderings of one record, so that what the model holds at their ends can be compared."""

from itertools import permutations

import numpy as np

from wane.train.data.graded_facts import (
    ATTRIBUTE_VALUES,
    ATTRIBUTE_WORD,
    ATTRIBUTES,
    NAMES,
    ORDERS,
    TEMPLATES,
    TYPES,
)
from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import END, EQUALS, TAGS, VALUE, VALUES

RECORD_END, SAME = END, EQUALS
RENDERING = 2 * ATTRIBUTES + 1  # tokens of a rendering, RECORD_END included
ITEM = 2 * RENDERING + 1

# Each template has one successor that it is restated in during evaluation only: 4 of the 12 ordered pairs.
TEMPLATE_PAIRS = np.array(list(permutations(range(TEMPLATES), 2)))
HELD_OUT = (TEMPLATE_PAIRS[:, 0] + 1) % TEMPLATES == TEMPLATE_PAIRS[:, 1]
FORMS = {"train": TEMPLATE_PAIRS[~HELD_OUT], "evaluation": TEMPLATE_PAIRS[HELD_OUT]}


def restate(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items: a record of 4 random values, each after the word for its attribute; RECORD_END; SAME; the same
    record in the words of another template and another order; RECORD_END.  Scored: the values of the
    restatement.  Evaluation uses only pairs of templates that training never does.

    Foil: the record's value of the other attribute with the same value tokens (0 and 2, 1 and 3), right for
    who knows which values a word goes with, and not which of the two it asked for.
    """
    shape = (rows, -(-(length - 1) // ITEM))
    template = FORMS[role][rng.integers(len(FORMS[role]), size=shape)]
    first = rng.integers(len(ORDERS), size=shape)
    second = (first + rng.integers(1, len(ORDERS), size=shape)) % len(ORDERS)
    order_BM2A = ORDERS[np.stack([first, second], axis=-1)]
    number_BMA = rng.integers(ATTRIBUTE_VALUES, size=(*shape, ATTRIBUTES))
    value_BM1A = (VALUE + number_BMA + np.arange(ATTRIBUTES) % 2 * ATTRIBUTE_VALUES)[..., None, :]
    said_BM2A = np.take_along_axis(value_BM1A, order_BM2A, axis=-1)
    twin_BMA = np.take_along_axis(value_BM1A[..., 0, :], order_BM2A[..., 1, :] ^ 2, axis=-1)
    rendering = np.full((*shape, 2, RENDERING), RECORD_END)
    rendering[..., :-1:2] = ATTRIBUTE_WORD + template[..., None] * ATTRIBUTES + order_BM2A
    rendering[..., 1::2] = said_BM2A
    items = np.full((*shape, ITEM), SAME)
    items[..., :RENDERING], items[..., RENDERING + 1 :] = rendering[..., 0, :], rendering[..., 1, :]
    level, foil = np.full((2, *items.shape), -1)
    level[..., RENDERING + 2 :: 2] = 0
    foil[..., RENDERING + 2 :: 2] = np.where(twin_BMA == said_BM2A[..., 1, :], -1, twin_BMA)
    return tagged("E", items, level, np.ones(items.shape, bool), length, foil)


def pairs(tokens_BT: np.ndarray) -> np.ndarray:
    """Where the two renderings of every whole item end, int [B, M, 2]: the places of their RECORD_END.  A
    rendering is the RENDERING tokens up to there.  For retrieval, the state at [b, m, 0] is a query and those
    at [.., 1] are the pool; pools of several rows need no care, since no two records are the same by more
    than chance (64^-4).  Raises ValueError where a row is not of task E."""
    if not (tokens_BT[:, 0] == TAGS["E"]).all():
        raise ValueError("retrieval pairs: every row must be of task E")
    rows, length = tokens_BT.shape
    whole = (length - 1) // ITEM
    ends = np.nonzero(tokens_BT[:, : 1 + whole * ITEM] == RECORD_END)[1]
    return ends.reshape(rows, whole, 2)


TASKS = (
    GradedTask(
        name="E",
        title="retrieval: a record restated in the words of another template",
        chance=1 / ATTRIBUTE_VALUES,
        ceiling=1.0,
        scored="the 4 values of the restatement",
        knobs="4 attributes of 64 values; 12 pairs of templates, 4 of them kept for evaluation; 24 orders",
        level="",
        answers=(VALUE, VALUES),
        types=TYPES,
        mixed=False,
        generate=restate,
        names=NAMES | {SAME: "same:"},
    ),
)
