"""K, K3: facts about entities, learnt from many statements and asked in a form that was never seen."""

from functools import lru_cache, partial
from itertools import permutations
from typing import NamedTuple

import numpy as np

from wane.train.data import key, several
from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import KEY, KEYS, VALUE, VALUES, WORD, distinct

ATTRIBUTES, TEMPLATES, ATTRIBUTE_VALUES = 4, 4, 64
LONGEST_NAME = 4
ATTRIBUTE_WORD = WORD + 32  # 16 words: which attribute, as each template calls it
ORDERS = np.array(list(permutations(range(ATTRIBUTES))))
MOST_FACTS = KEYS * KEYS  # the first two tokens of a name are its own
TOKENS = {"K": 1, "K3": several.LONG}  # of an attribute's value
FIRST_VALUE = VALUE + np.arange(ATTRIBUTES) % 2 * ATTRIBUTE_VALUES  # of each attribute
TYPES = tuple(range(first, first + ATTRIBUTE_VALUES) for first in FIRST_VALUE[:2].tolist())  # of values

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
    return names, lengths, values + FIRST_VALUE


@lru_cache(maxsize=8)
def values_of_entities(world: World, tokens: int) -> np.ndarray:
    """Attribute values [facts, 4, tokens], every token uniform over its attribute's 64.  Those of a value of
    several are independent of each other and of the value of one token: what K teaches about an entity says
    nothing about K3, and a first token tells the others only where no other entity has it."""
    if tokens == 1:
        return entities(world)[2][..., None]
    rng = key.generator("long values", world.seed)
    number = rng.integers(ATTRIBUTE_VALUES, size=(world.facts, ATTRIBUTES, tokens))
    return number + FIRST_VALUE[:, None]


@lru_cache(maxsize=8)
def namesake(world: World) -> np.ndarray:
    """Of every entity the next one [facts] whose name has the same first token, the last being followed by the
    first: what comes of reading half of a name.  Those that are alone take the next one that is alone.  Every
    entity is the namesake of one, so that values are as frequent as foils as they are as answers."""
    first = entities(world)[0][:, 0]
    alone = np.bincount(first)[first] == 1
    family = np.where(alone, -1, first)
    order = np.argsort(family, kind="stable")
    starts = np.flatnonzero(np.diff(family[order], prepend=-2))
    follows = np.roll(order, -1)
    follows[np.append(starts[1:], len(order)) - 1] = order[starts]
    found = np.empty_like(order)
    found[order] = follows
    return found


def facts(rng, rows: int, length: int, world: World, role: Role, *, task: str) -> Rows:
    """Statements: a name, then (attribute word, value) four times, in the words of one of 4 templates and
    some order.  Scored: the values.  Evaluation uses only the forms (template, order) that training never
    does.  No entity comes twice in a row while there are enough of them, so nothing is read off the context.
    Foil: the value of the same attribute of a `namesake`, none where it is the same."""
    names, name_lengths, _ = entities(world)
    values, width = values_of_entities(world, TOKENS[task]), 1 + TOKENS[task]
    count = -(-(length - 1) // (2 + width * ATTRIBUTES))
    entity = distinct(rng, (rows,), count, world.facts)
    form = FORMS[role][rng.integers(len(FORMS[role]), size=entity.shape)]
    template, order = form[..., 0, None], ORDERS[form[..., 1]]
    said = np.empty((*order.shape, width), np.int64)
    said[..., 0] = ATTRIBUTE_WORD + template * ATTRIBUTES + order
    said[..., 1:] = np.take_along_axis(values[entity], order[..., None], axis=-2)
    said = said.reshape(*entity.shape, ATTRIBUTES * width)
    items = np.concatenate([names[entity], said], axis=-1)
    level_W = np.append(-1, several.levels(0, TOKENS[task]))  # of a word and its value
    level_I = np.append(np.full(LONGEST_NAME, -1), np.tile(level_W, ATTRIBUTES))
    at = np.arange(items.shape[-1])
    keep = (at >= LONGEST_NAME) | (at < name_lengths[entity][..., None])
    other = np.full_like(said, -1).reshape(*order.shape, width)
    other[..., 1:] = np.take_along_axis(values[namesake(world)[entity]], order[..., None], axis=-2)
    foil = np.full_like(items, -1)
    foil[..., LONGEST_NAME:] = other.reshape(said.shape)
    return tagged(
        task, items, np.broadcast_to(level_I, items.shape), keep, length, np.where(foil == items, -1, foil)
    )


def told_by(world: World, *, task: str) -> dict[str, int]:
    """How much there is to be known."""
    return {"stored": world.facts * ATTRIBUTES * TOKENS[task]}


# Exposures -> the bits per parameter that can be known after so many (Allen-Zhu & Li 2024, arXiv 2404.05405).
CAPACITY = {100: 1.0, 1000: 2.0}


class Exposure(NamedTuple):
    """What a training asks of K or K3.  load: bits of facts per parameter; exposures: how often each is stated.
    Their product depends only on the token budget and the task's share."""

    load: float
    exposures: float

    @property
    def product(self) -> float:
        return self.load * self.exposures

    @property
    def most(self) -> float:
        """The largest load that is feasible with this budget, bits per parameter: as many as a model can hold
        after the exposures that are then left (CAPACITY)."""
        return max(min(bits, self.product / exposures) for exposures, bits in CAPACITY.items())


def exposure(task: str, facts: int, params: int, scored: float) -> Exposure:
    """Of `facts` entities in so many scored tokens of the task, for a model of so many parameters."""
    values = ATTRIBUTES * TOKENS[task]  # of an entity, told in every statement
    bits = facts * values * np.log2(ATTRIBUTE_VALUES)
    return Exposure(load=float(bits / params), exposures=scored / values / facts)


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
        types=TYPES,
        generate=partial(facts, task="K"),
        follows=partial(told_by, task="K"),
        names=NAMES,
    ),
    GradedTask(
        name="K3",
        title="facts in three tokens: K with longer values, for the effect of an answer's length",
        chance=1 / ATTRIBUTE_VALUES,
        ceiling=1.0,
        scored="the 3 tokens of the 4 attribute values of each statement",
        knobs="data.facts entities of 4 x 18 bits; 3 tokens of 64, by chance all right 1 in 64^3; "
        "4 templates x 24 orders, a quarter kept for evaluation",
        level="1, 2, 3: which token of the value",
        part=several.part,
        answers=(VALUE, VALUES),
        types=TYPES,
        mixed=False,
        generate=partial(facts, task="K3"),
        follows=partial(told_by, task="K3"),
        names=NAMES,
    ),
)
