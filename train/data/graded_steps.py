"""M1, M2: answers that need several steps: hops through the context, sums modulo 7."""

import numpy as np

from wane.train.data.graded_context import fill
from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import (
    DIGIT,
    DIRECT,
    EQUALS,
    HOP,
    MINUS,
    PLUS,
    STEPS,
    SYMBOL,
    UNDEFINED,
    VALUE,
)

ALPHABET, HOP_SYMBOLS = 4, 31
HOPS = (0, 1, 2)
MODULUS, TERMS = 7, 3
STEP_LEVEL = 10  # level of the i-th written step of M2: 10 + i; of a direct answer: its number of terms


def hop(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """k-hop induction (Sanford et al. 2024) as a language: HOP_k, then 31 times a symbol and its answer.

    One hop goes from a symbol to the token after its latest earlier occurrence.  The answer is the symbol
    reached after k hops, as a value token, so that answers are no occurrences; UNDEFINED, never scored,
    where a hop has nowhere to go.  Neighbours differ: a symbol never follows itself.
    """
    shape = (rows, -(-(length - 1) // (1 + 2 * HOP_SYMBOLS)))
    turn = rng.integers(1, ALPHABET, size=(*shape, HOP_SYMBOLS))
    turn[..., 0] = rng.integers(ALPHABET, size=shape)
    x_BMS = np.cumsum(turn, axis=-1) % ALPHABET
    hops = np.array(HOPS)[rng.integers(len(HOPS), size=shape)]
    target_BMS = after_latest(x_BMS)
    reached = np.broadcast_to(np.arange(HOP_SYMBOLS), x_BMS.shape)
    for step in range(1, max(HOPS) + 1):
        onward = np.where(reached < 0, -1, np.take_along_axis(target_BMS, np.maximum(reached, 0), axis=-1))
        reached = np.where(step <= hops[..., None], onward, reached)
    answer = np.take_along_axis(x_BMS, np.maximum(reached, 0), axis=-1)
    items = np.empty((*shape, 1 + 2 * HOP_SYMBOLS), np.int64)
    items[..., 0] = np.array([HOP[k] for k in HOPS])[np.searchsorted(HOPS, hops)]
    items[..., 1::2] = SYMBOL + x_BMS
    items[..., 2::2] = np.where(reached < 0, UNDEFINED, VALUE + answer)
    level = np.full(items.shape, -1)
    level[..., 2::2] = np.where(reached < 0, -1, hops[..., None])
    return fill("M1", items, level, length)


def after_latest(x_BMS: np.ndarray) -> np.ndarray:
    """For every place, the place after the latest earlier occurrence of its symbol; -1 where it is new."""
    place = np.arange(x_BMS.shape[-1])
    target = np.full(x_BMS.shape, -1)
    for letter in range(ALPHABET):
        here = x_BMS == letter
        latest = np.maximum.accumulate(np.where(here, place, -1), axis=-1)
        earlier = np.concatenate([np.full((*latest.shape[:-1], 1), -1), latest[..., :-1]], axis=-1)
        target = np.where(here & (earlier >= 0), earlier + 1, target)
    return target


def modular(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """x0 ± a1 ± ... ± an modulo 7, n = 1..3.  Half of the items are `DIRECT x0 op a1 ... = r_n`, half are
    `STEPS x0 op a1 ... = r_1 ... r_n` with the result after every term.  Scored: all results."""
    shape = (rows, -(-(length - 1) // 6))
    terms, steps = rng.integers(1, TERMS + 1, size=shape), rng.integers(2, size=shape)
    x = rng.integers(MODULUS, size=(*shape, 1 + TERMS))
    sign = rng.integers(2, size=(*shape, TERMS)) * 2 - 1
    result = (x[..., :1] + np.cumsum(sign * x[..., 1:], axis=-1)) % MODULUS
    nth = np.arange(1, TERMS + 1)
    used = nth <= terms[..., None]
    # Places: form, x0, (op, a) x 3, =, r1, r2, r3; `keep` leaves out what this item does not have.
    items, keep = np.empty((2, *shape, 3 + 3 * TERMS), np.int64)
    level = np.full(items.shape, -1)
    last = 2 + 2 * TERMS
    items[..., 0], items[..., 1] = np.where(steps, STEPS, DIRECT), DIGIT + x[..., 0]
    items[..., 2:last:2], items[..., 3:last:2] = np.where(sign > 0, PLUS, MINUS), DIGIT + x[..., 1:]
    items[..., last], items[..., last + 1 :] = EQUALS, DIGIT + result
    keep[..., :2] = keep[..., last] = 1
    keep[..., 2:last] = np.repeat(used, 2, axis=-1)
    keep[..., last + 1 :] = np.where(steps[..., None], used, nth == terms[..., None])
    level[..., last + 1 :] = np.where(steps[..., None], STEP_LEVEL + nth, nth)
    return tagged("M2", items, level, keep.astype(bool), length)


TASKS = (
    GradedTask(
        name="M1",
        title="k-hop induction: follow k times the token after the latest earlier occurrence",
        chance=1 / ALPHABET,
        ceiling=1.0,
        scored="the answer after each symbol, where it is defined",
        knobs="k = 0, 1, 2; alphabet of 4 without repeated neighbours; 31 symbols",
        level="hops",
        answers=(VALUE, ALPHABET),
        generate=hop,
        names={VALUE + i: f"->s{i}" for i in range(ALPHABET)},
    ),
    GradedTask(
        name="M2",
        title="chain of additions and subtractions modulo 7, direct and with written steps",
        chance=1 / MODULUS,
        ceiling=1.0,
        scored="every result",
        knobs="1..3 terms; half of the items direct, half with the result after every term",
        level="terms (direct), 10 + step (written steps)",
        answers=(DIGIT, MODULUS),
        generate=modular,
    ),
)
