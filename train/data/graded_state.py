"""M3: the state of a system after a sequence of moves: running products in the permutation groups S3 and S5."""

from functools import lru_cache
from itertools import permutations

import numpy as np

from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import DIRECT, EQUALS, STEPS, SYMBOL

DEGREES = (3, 5)  # S3 is solvable, S5 is the smallest symmetric group that is not (Merrill et al. 2024)
ELEMENTS = [element for degree in DEGREES for element in permutations(range(degree))]
SIZES = np.array([sum(len(element) == degree for element in ELEMENTS) for degree in DEGREES])  # 6, 120
FIRST = np.cumsum(SIZES) - SIZES
TYPES = tuple(range(SYMBOL + f, SYMBOL + f + n) for f, n in zip(FIRST.tolist(), SIZES.tolist(), strict=True))
SHORTEST, LONGEST = 4, 16
STEP_LEVEL = 50  # added to the level of a written step
NAMES = {SYMBOL + i: "".join(map(str, element)) for i, element in enumerate(ELEMENTS)}


@lru_cache(maxsize=1)
def products() -> np.ndarray:
    """Cayley tables of both groups on one diagonal [126, 126]: entry [p, x] is p followed by x, the permutation
    i -> x(p(i)); -1 between elements of different groups."""
    table = np.full((len(ELEMENTS), len(ELEMENTS)), -1)
    for degree, size, first in zip(DEGREES, SIZES, FIRST, strict=True):
        element = np.array(ELEMENTS[first : first + size])
        place = degree ** np.arange(degree)[::-1]  # elements stand in the order of their digits
        after = element[:, element].transpose(1, 0, 2)  # [p, x, i] = x(p(i))
        table[first : first + size, first : first + size] = first + np.searchsorted(
            element @ place, after @ place
        )
    return table


def state(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items of n = 4..16 elements of one group.  Half of them `STEPS x1 x2 p2 x3 p3 ... xn pn` with the product
    p after every factor, half `DIRECT x1 ... xn = pn`.  Scored: every p, from two factors on.  Foil: the last
    factor on the wrong side, what a predictor takes that cannot tell the order; none where the two commute."""
    shape = (rows, -(-(length - 1) // (SHORTEST + 3)))
    group, steps = rng.integers(len(DEGREES), size=shape), rng.integers(2, size=(*shape, 1))
    factors = rng.integers(SHORTEST, LONGEST + 1, size=(*shape, 1))
    x = FIRST[group][..., None] + rng.integers(SIZES[group][..., None], size=(*shape, LONGEST))
    product, swapped = x.copy(), x.copy()
    for k in range(1, LONGEST):
        product[..., k] = products()[product[..., k - 1], x[..., k]]
        swapped[..., k] = products()[x[..., k], product[..., k - 1]]
    nth = np.arange(1, LONGEST + 1)
    difficulty = 100 * np.array(DEGREES)[group][..., None] + nth + STEP_LEVEL * steps
    wrong = np.where(swapped == product, -1, SYMBOL + swapped)
    # Places: form, (x, p) x 16, =, the last p; `keep` leaves out what this item does not have.
    items, keep = np.full((2, *shape, 2 * LONGEST + 3), 1)
    items[..., 0] = np.where(steps[..., 0], STEPS, DIRECT)
    items[..., 1:-2:2], items[..., -2] = SYMBOL + x, EQUALS
    keep[..., 1:-2:2] = nth <= factors
    keep[..., 2:-2:2] = steps & (nth > 1) & (nth <= factors)
    keep[..., -2:] = 1 - steps
    level, foil = np.full((2, *items.shape), -1)
    for part, values in ((items, SYMBOL + product), (level, difficulty), (foil, wrong)):
        part[..., 2:-2:2] = values
        part[..., -1:] = np.take_along_axis(values, factors - 1, axis=-1)
    return tagged("M3", items, level, keep.astype(bool), length, foil)


TASKS = (
    GradedTask(
        name="M3",
        title="state tracking: the product of a sequence of permutations, direct and with written steps",
        # A guess inside the group, weighed by scored tokens: half are of S3, half of S5, for lengths and
        # forms are drawn alike.
        chance=float((1 / SIZES).mean()),
        chance_at=lambda level: 1 / SIZES[(np.asarray(level) // 100 == DEGREES[1]).astype(int)],
        ceiling=1.0,
        scored="every product of two factors and more",
        knobs="S3 and S5, 4..16 factors; half of the items direct, half with the product after every factor",
        level="100 x degree (3, 5) + factors so far; 50 more where steps are written",
        part=lambda level: f"S{level // 100}, {'written' if level % 100 > STEP_LEVEL else 'direct'}",
        answers=(SYMBOL, len(ELEMENTS)),
        types=TYPES,
        generate=state,
        mixed=False,
        names=NAMES,
    ),
)
