"""K: facts about entities, learnt from many statements and asked in a form that was never seen."""

from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np

from wane.train.data import key
from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import KEY, KEYS, VALUE, VALUES, WORD, distinct

ATTRIBUTES, TEMPLATES, ATTRIBUTE_VALUES = 4, 4, 64
LONGEST_NAME = 4
ATTRIBUTE_WORD = WORD + 32  # 16 words: which attribute, as each template calls it
ORDERS = np.array(list(permutations(range(ATTRIBUTES))))
MOST_FACTS = KEYS * KEYS  # the first two tokens of a name are its own

# Template t never states its attributes in the orders o with o % 4 = t: those 24 of the 96 forms are asked.
HELD_OUT = np.array([[o % TEMPLATES == t for o in range(len(ORDERS))] for t in range(TEMPLATES)])
FORMS = {"train": np.argwhere(~HELD_OUT), "evaluation": np.argwhere(HELD_OUT)}
NAMES = {
    ATTRIBUTE_WORD + t * ATTRIBUTES + a: f"attribute{a}/{t}"
    for t in range(TEMPLATES)
    for a in range(ATTRIBUTES)
}


@lru_cache(maxsize=8)
def entities(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names [facts, 4] as tokens, their lengths [facts] (2..4), and attribute values [facts, 4] as tokens.
    Attributes 0 and 2 take values in the first half of the value tokens, 1 and 3 in the second."""
    rng = key.generator("entities", world.seed)
    first_two = rng.permutation(MOST_FACTS)[: world.facts]
    rest = rng.integers(KEYS, size=(world.facts, LONGEST_NAME - 2))
    names = KEY + np.column_stack([first_two // KEYS, first_two % KEYS, rest])
    lengths = rng.integers(2, LONGEST_NAME + 1, size=world.facts)
    values = rng.integers(ATTRIBUTE_VALUES, size=(world.facts, ATTRIBUTES))
    return names, lengths, VALUE + values + np.arange(ATTRIBUTES) % 2 * ATTRIBUTE_VALUES


def facts(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Statements: a name, then (attribute word, value) four times, in the words of one of 4 templates and
    some order.  Scored: the values.  Evaluation uses only the forms (template, order) that training never
    does.  No entity comes twice in a row while there are enough of them, so nothing is read off the context."""
    names, name_lengths, values = entities(world)
    count = -(-(length - 1) // (2 + 2 * ATTRIBUTES))
    entity = distinct(rng, (rows,), count, world.facts)
    form = FORMS[role][rng.integers(len(FORMS[role]), size=entity.shape)]
    template, order = form[..., 0, None], ORDERS[form[..., 1]]
    items = np.empty((*entity.shape, LONGEST_NAME + 2 * ATTRIBUTES), np.int64)
    items[..., :LONGEST_NAME] = names[entity]
    items[..., LONGEST_NAME::2] = ATTRIBUTE_WORD + template * ATTRIBUTES + order
    items[..., LONGEST_NAME + 1 :: 2] = np.take_along_axis(values[entity], order, axis=-1)
    level = np.full(items.shape, -1)
    level[..., LONGEST_NAME + 1 :: 2] = 0
    at = np.arange(items.shape[-1])
    keep = (at >= LONGEST_NAME) | (at < name_lengths[entity][..., None])
    return tagged("K", items, level, keep, length)


class Exposure(NamedTuple):
    """What a training asks of K.  load: bits of facts per parameter; exposures: how often each is stated.  Their
    product depends only on the token budget and the share of K: a load is feasible where the exposures that are
    left are enough, about 100 for 1 bit per parameter and 1000 for 2 (Allen-Zhu & Li 2024, arXiv 2404.05405)."""

    load: float
    exposures: float

    @property
    def product(self) -> float:
        return self.load * self.exposures


def exposure(facts: int, params: int, statements: float) -> Exposure:
    """Of `facts` entities in so many statements, for a model of so many parameters."""
    bits = facts * ATTRIBUTES * np.log2(ATTRIBUTE_VALUES)
    return Exposure(load=float(bits / params), exposures=statements / facts)


TASKS = (
    GradedTask(
        name="K",
        title="facts: an attribute of an entity, known from training only",
        chance=1 / ATTRIBUTE_VALUES,
        ceiling=1.0,
        scored="the 4 attribute values of each statement",
        knobs="data.facts entities of 4 x 6 bits; 4 templates x 24 orders, a quarter kept for evaluation",
        level="",
        answers=(VALUE, VALUES),
        generate=facts,
        names=NAMES,
    ),
)
