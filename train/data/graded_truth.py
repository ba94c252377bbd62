"""T1, T13, T2: what is true against what is usual or often said: exceptions, tagged misconceptions."""

from functools import lru_cache, partial
from itertools import permutations

import numpy as np

from wane.train.data import key, several
from wane.train.data.graded_facts import MOST_FACTS
from wane.train.data.graded_language import tagged
from wane.train.data.task import TOLD, GradedTask, Role, Rows, World
from wane.train.data.vocabulary import KEY, KEYS, VALUE, WORD, distinct

CATEGORIES = 16
MOST_EXCEPTIONS = 1 - 1 / CATEGORIES  # then no value of a category is more frequent than another
ROUNDING = 1e-9  # 15 x 0.2 is 3, also in floats
ASK = WORD
TOKENS = {"T1": 1, "T13": several.LONG}  # of a value
WORLD_OF = {"T1": "exceptions", "T13": "exceptions of three tokens"}  # what their entities are drawn by


@lru_cache(maxsize=8)
def categorised(world: World, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names [facts, 2], values and the defaults of their categories, both [facts, tokens], as tokens.

    Eight first keys make a category.  Defaults and own values are the same 16 tokens, equally often, so that
    a value's frequency does not tell whether it is an exception.  Each of several tokens has categories of
    its own, so that the default of one does not tell that of another; an exception differs in all of them.
    """
    rng = key.generator(WORLD_OF[task], world.seed)
    name = rng.permutation(MOST_FACTS)[: world.facts]
    default_of_key = np.stack([rng.permutation(KEYS) % CATEGORIES for _ in range(TOKENS[task])], axis=-1)
    default = default_of_key[name // KEYS]
    own = (default + rng.integers(1, CATEGORIES, size=default.shape)) % CATEGORIES
    before = np.floor(np.arange(world.facts + 1) * world.exceptions + ROUNDING)  # exceptions among the first
    exception = np.diff(before)[:, None] > 0
    names = KEY + np.column_stack([name // KEYS, name % KEYS])
    return names, VALUE + np.where(exception, own, default), VALUE + default


def exceptions(rng, rows: int, length: int, world: World, role: Role, *, task: str) -> Rows:
    """Statements `key1 key2 ASK value`; scored: the value.  Foil: of an exception the default of its category,
    of a regular entity that of another category."""
    names, values, defaults = categorised(world, task)
    tokens = TOKENS[task]
    entity = distinct(rng, (rows,), -(-(length - 1) // (3 + tokens)), world.facts)
    value, default = values[entity], defaults[entity]
    exception = value != default
    items = np.empty((*entity.shape, 3 + tokens), np.int64)
    items[..., :2], items[..., 2], items[..., 3:] = names[entity], ASK, value
    level, foil = np.full((2, *items.shape), -1)
    level[..., 3:] = several.levels(exception[..., 0].astype(np.int64), tokens)
    another = (default - VALUE + rng.integers(1, CATEGORIES, size=default.shape)) % CATEGORIES
    foil[..., 3:] = np.where(exception, default, VALUE + another)
    return tagged(task, items, level, np.full(items.shape, True), length, foil)


RATIOS = (3, 9, 27)  # rumours per truth of a fact
TRUTH_VALUES, TEMPLATES = 64, 4
RUMOUR, SOURCE = WORD + TEMPLATES, WORD + TEMPLATES + 1
T2_NAMES = {RUMOUR: "rumour:", SOURCE: "source:"} | {ASK + t: f"is/{t}" for t in range(TEMPLATES)}
# A statement is marker (place 0), name (1, 2) and ask word (3) in any order, then the value.
ORDERS = np.array([[i for part in order for i in part] for order in permutations(((0,), (1, 2), (3,)))])
# Template t is never stated in the orders o with o % 4 = t: those 6 of the 24 forms are asked.
HELD_OUT = np.array([[o % TEMPLATES == t for o in range(len(ORDERS))] for t in range(TEMPLATES)])
FORMS = {"train": np.argwhere(~HELD_OUT), "evaluation": np.argwhere(HELD_OUT)}


@lru_cache(maxsize=8)
def disputed(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names [facts, 2], true and false values [facts] as tokens, and rumours per truth [facts]."""
    rng = key.generator("rumours", world.seed)
    name = rng.permutation(MOST_FACTS)[: world.facts]
    true = rng.integers(TRUTH_VALUES, size=world.facts)
    false = (true + rng.integers(1, TRUTH_VALUES, size=world.facts)) % TRUTH_VALUES
    ratio = np.array(RATIOS)[np.arange(world.facts) % len(RATIOS)]
    return KEY + np.column_stack([name // KEYS, name % KEYS]), VALUE + true, VALUE + false, ratio


def misconceptions(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Statements of 4 tokens and a value: RUMOUR documents say the false one, SOURCE documents the true one.
    All facts have as many truths; a fact with ratio r has r times as many rumours, and in training all of them
    weigh alike.  Scored: the value under SOURCE; its foil is the rumour.  Evaluation asks under SOURCE only, in
    forms that training never uses."""
    names, true, false, ratio = disputed(world)
    shape = (rows, -(-(length - 1) // 5))
    fact, truth = distinct(rng, (rows,), shape[1], world.facts), np.full(shape, True)
    if role == "train":
        truth = truths(rng, shape, (length - 1) // 5, world.facts / (1 + ratio).sum())
        fact = np.where(truth, fact, hearsay(rng, shape, ratio))
    form = FORMS[role][rng.integers(len(FORMS[role]), size=shape)]
    items = np.empty((*shape, 5), np.int64)
    items[..., 0], items[..., 1:3] = np.where(truth, SOURCE, RUMOUR), names[fact]
    items[..., 3], items[..., 4] = ASK + form[..., 0], np.where(truth, true[fact], false[fact])
    items[..., :4] = np.take_along_axis(items[..., :4], ORDERS[form[..., 1]], axis=-1)
    level, foil = np.full((2, *items.shape), -1)
    level[..., 4] = np.where(truth, ratio[fact], TOLD)
    foil[..., 4] = np.where(truth, false[fact], -1)
    return tagged("T2", items, level, np.full(items.shape, True), length, foil)


def truths(rng, shape: tuple[int, int], whole: int, share: float) -> np.ndarray:
    """Which statements [*shape] are by a source: `share` of the first `whole` ones on average, and at least
    one, so that every row scores something.  One is more than its share where `whole` is below 1 / share
    (14 statements of 5 tokens): in shorter rows truths are more frequent than RATIOS say."""
    further = max(0.0, (whole * share - 1) / (whole - 1))
    number_B1 = 1 + rng.binomial(whole - 1, further, size=(shape[0], 1))
    truth = np.full(shape, False)
    truth[:, :whole] = np.argsort(rng.random((shape[0], whole)), axis=1) < number_B1
    return truth


def hearsay(rng, shape: tuple[int, int], ratio: np.ndarray) -> np.ndarray:
    """Facts [*shape] with probability proportional to `ratio`, each at most once per row where there are enough
    of them: what one rumour says is no help for another.  Strata as in `distinct`, of a deck that holds every
    fact `ratio` times in a row, with a gap between neighbouring draws that no fact can span."""
    deck = np.repeat(np.arange(len(ratio)), ratio)
    stratum = np.argsort(rng.random(shape), axis=1)
    low, high = stratum * len(deck) // shape[1], (stratum + 1) * len(deck) // shape[1]
    free = np.maximum(high - low - max(RATIOS) + 1, 1)
    place = low + (rng.random(shape) * free).astype(np.int64) + rng.integers(len(deck), size=(shape[0], 1))
    return deck[place % len(deck)]


TASKS = (
    GradedTask(
        name="T1",
        title="default or exception: the value of an entity, which its category predicts 4 times in 5",
        chance=1 / CATEGORIES,
        ceiling=1.0,
        scored="the value of each statement",
        knobs="data.facts entities in 16 categories by first key; data.exceptions of them (20 %) "
        "have another value than their category's",
        level="0 regular, 1 exception",
        part=lambda level: "exception" if level else "regular",
        answers=(VALUE, CATEGORIES),
        generate=partial(exceptions, task="T1"),
        mixed=False,
        names={ASK: "is"},
    ),
    GradedTask(
        name="T13",
        title="default or exception in three tokens: T1 with longer values",
        chance=1 / CATEGORIES,
        ceiling=1.0,
        scored="the 3 tokens of the value of each statement",
        knobs="data.facts entities; 16 categories by first key for each token, by chance all right 1 in "
        "16^3; data.exceptions of them (20 %) have other values than their categories', in every token",
        level="10 x (0 regular, 1 exception) + 1, 2, 3 which token of the value",
        part=lambda level: "exception" if level >= several.PLACE else "regular",
        answers=(VALUE, CATEGORIES),
        generate=partial(exceptions, task="T13"),
        mixed=False,
        names={ASK: "is"},
    ),
    GradedTask(
        name="T2",
        title="tagged misconception: what a source says, against what rumours say more often",
        chance=1 / TRUTH_VALUES,
        ceiling=1.0,
        scored="the value of each statement by a source",
        knobs="data.facts facts, 3, 9, 27 rumours per truth; 24 forms, a quarter kept for evaluation",
        level="rumours per truth",
        part=lambda ratio: f"{ratio} rumours per truth",
        answers=(VALUE, TRUTH_VALUES),
        generate=misconceptions,
        mixed=False,
        names=T2_NAMES,
    ),
)
