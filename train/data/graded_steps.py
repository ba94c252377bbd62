"""M1, M2 and their variants: answers that need several steps: hops through the context, sums modulo 7."""

from functools import partial
from typing import NamedTuple

import numpy as np

from wane.train.data import several
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

ALPHABET = 4
MODULUS = 7
STEP_LEVEL = 10  # level of the i-th written step of M2: 10 + i; of a direct answer: its number of terms


class Hops(NamedTuple):
    hops: tuple[int, ...]
    symbols: int


# How often who knows the number of hops and the symbol that is asked, and nothing before it, is right: 0 hops are
# that symbol, 1 hop is one of the 3 others; the further ones are measured.  A look at one symbol more is worth .51
# for 1 hop, since the answer often stands between two of the symbol that is asked, and nothing for others.
LONE_GUESS = {0: 1, 1: 1 / 3, 2: 0.51, 4: 0.35, 8: 0.27}


def lone_guess(hops: np.ndarray) -> np.ndarray:
    return np.array([LONE_GUESS[int(k)] for k in hops])


HOPS = {"M1": Hops((0, 1, 2), 31), "M1d": Hops((0, 1, 2, 4, 8), 100)}


def answerable(hops: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Those of `hops` that have an answer somewhere in every row of `length` tokens.

    In any item 4 places at most have no hop to go, the first of each symbol.  No two places hop to the same
    one and none to the first place, so 3 at most can go exactly h >= 1 hops.  Of n symbols, n - 1 - 3 k or
    more can go k >= 1 hops.
    """
    symbols = (length - 2) // 2
    return tuple(k for k in hops if symbols >= 2 + (ALPHABET - 1) * k)


def hop(rng, rows: int, length: int, world: World, role: Role, *, task: str) -> Rows:
    """k-hop induction (Sanford et al. 2024) as a language: HOP_k, then so many times a symbol and its answer.

    One hop goes from a symbol to the token after its latest earlier occurrence.  The answer is the symbol
    reached after k hops, as a value token, so that answers are no occurrences; UNDEFINED, never scored,
    where a hop has nowhere to go.  Neighbours differ: a symbol never follows itself.
    """
    choices, symbols = answerable(HOPS[task].hops, length), HOPS[task].symbols
    shape = (rows, -(-(length - 1) // (1 + 2 * symbols)))
    turn = rng.integers(1, ALPHABET, size=(*shape, symbols))
    turn[..., 0] = rng.integers(ALPHABET, size=shape)
    x_BMS = np.cumsum(turn, axis=-1) % ALPHABET
    hops = np.array(choices)[rng.integers(len(choices), size=shape)]
    target_BMS = after_latest(x_BMS)
    reached = np.broadcast_to(np.arange(symbols), x_BMS.shape)
    for step in range(1, max(choices) + 1):
        onward = np.where(reached < 0, -1, np.take_along_axis(target_BMS, np.maximum(reached, 0), axis=-1))
        reached = np.where(step <= hops[..., None], onward, reached)
    answer = np.take_along_axis(x_BMS, np.maximum(reached, 0), axis=-1)
    items = np.empty((*shape, 1 + 2 * symbols), np.int64)
    items[..., 0] = np.array([HOP[k] for k in choices])[np.searchsorted(choices, hops)]
    items[..., 1::2] = SYMBOL + x_BMS
    items[..., 2::2] = np.where(reached < 0, UNDEFINED, VALUE + answer)
    level = np.full(items.shape, -1)
    level[..., 2::2] = np.where(reached < 0, -1, hops[..., None])
    return fill(task, items, level, length)


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


class Sums(NamedTuple):
    terms: int  # at most
    digits: int = 1  # of every number; each place sums on its own


SUMS = {"M2": Sums(3), "M2l": Sums(6), "M23": Sums(3, digits=several.LONG)}


def modular(rng, rows: int, length: int, world: World, role: Role, *, task: str) -> Rows:
    """x0 ± a1 ± ... ± an modulo 7, n = 1..terms.  Half of the items are `DIRECT x0 op a1 ... = r_n`, half
    are `STEPS x0 op a1 ... = r_1 ... r_n` with the result after every term.  Scored: all results.  Numbers of
    several digits are added digit by digit, without carry: no digit of a result tells another.  Foil: the result
    without the last term, none where that is 0."""
    terms, digits = SUMS[task]
    shape = (rows, -(-(length - 1) // (3 + 3 * digits)))
    term, steps = rng.integers(1, terms + 1, size=shape), rng.integers(2, size=shape)
    x = rng.integers(MODULUS, size=(*shape, 1 + terms, digits))
    sign = rng.integers(2, size=(*shape, terms, 1)) * 2 - 1
    result = (x[..., :1, :] + np.cumsum(sign * x[..., 1:, :], axis=-2)) % MODULUS
    nth = np.arange(1, terms + 1)
    used = nth <= term[..., None]
    told = np.where(steps[..., None], used, nth == term[..., None])
    # Places: form, x0, (op, a) x terms, =, r x terms; `keep` leaves out what this item does not have.
    last = 1 + digits + terms * (1 + digits)
    items = np.full((*shape, last + 1 + terms * digits), EQUALS)
    keep, level = np.full(items.shape, True), np.full(items.shape, -1)
    items[..., 0], items[..., 1 : 1 + digits] = np.where(steps, STEPS, DIRECT), DIGIT + x[..., 0, :]
    term_BMNC = np.concatenate([np.where(sign > 0, PLUS, MINUS), DIGIT + x[..., 1:, :]], axis=-1)
    items[..., 1 + digits : last] = term_BMNC.reshape(*shape, last - 1 - digits)
    items[..., last + 1 :] = DIGIT + result.reshape(*shape, terms * digits)
    keep[..., 1 + digits : last] = np.repeat(used, 1 + digits, axis=-1)
    keep[..., last + 1 :] = np.repeat(told, digits, axis=-1)
    before = np.concatenate([x[..., :1, :], result[..., :-1, :]], axis=-2)
    foil = np.full(items.shape, -1)
    foil[..., last + 1 :] = DIGIT + np.where(before == result, -1 - DIGIT, before).reshape(
        *shape, terms * digits
    )
    step_level = several.levels(np.where(steps[..., None], STEP_LEVEL + nth, nth), digits)
    level[..., last + 1 :] = step_level.reshape(*shape, terms * digits)
    return tagged(task, items, level, keep, length, np.where(level < 0, -1, foil))


def form_of_sum(level: int) -> str:
    """A sum of one term is no chain, and a written step needs no more than the one before it."""
    return "written" if level > STEP_LEVEL else "one term" if level == 1 else "chain"


HOP_NAMES = {VALUE + i: f"->s{i}" for i in range(ALPHABET)}
TASKS = (
    GradedTask(
        name="M1",
        title="k-hop induction: follow k times the token after the latest earlier occurrence",
        chance=1 / ALPHABET,
        chance_at=lone_guess,
        ceiling=1.0,
        scored="the answer after each symbol, where it is defined",
        knobs="k = 0, 1, 2; alphabet of 4 without repeated neighbours; 31 symbols",
        level="hops",
        part=lambda hops: f"{hops} hops",
        answers=(VALUE, ALPHABET),
        generate=partial(hop, task="M1"),
        names=HOP_NAMES,
    ),
    GradedTask(
        name="M1d",
        title="deep k-hop induction: M1 with up to 8 hops in longer items",
        chance=1 / ALPHABET,
        chance_at=lone_guess,
        ceiling=1.0,
        scored="the answer after each symbol, where it is defined",
        knobs="k = 0, 1, 2, 4 and, where 26 symbols fit, 8; alphabet of 4; 100 symbols, or what fits",
        level="hops",
        part=lambda hops: f"{hops} hops",
        answers=(VALUE, ALPHABET),
        mixed=False,
        generate=partial(hop, task="M1d"),
        names=HOP_NAMES,
    ),
    GradedTask(
        name="M2",
        title="chain of additions and subtractions modulo 7, direct and with written steps",
        chance=1 / MODULUS,
        ceiling=1.0,
        scored="every result",
        knobs="1..3 terms; half of the items direct, half with the result after every term",
        level="terms (direct), 10 + step (written steps)",
        part=form_of_sum,
        answers=(DIGIT, MODULUS),
        generate=partial(modular, task="M2"),
    ),
    GradedTask(
        name="M2l",
        title="long chain of additions and subtractions modulo 7, direct and with written steps",
        chance=1 / MODULUS,
        ceiling=1.0,
        scored="every result",
        knobs="1..6 terms; half of the items direct, half with the result after every term",
        level="terms (direct), 10 + step (written steps)",
        part=form_of_sum,
        answers=(DIGIT, MODULUS),
        mixed=False,
        generate=partial(modular, task="M2l"),
    ),
    GradedTask(
        name="M23",
        title="three chains modulo 7 at once: M2 with numbers and answers of 3 digits, without carry",
        chance=1 / MODULUS,
        ceiling=1.0,
        scored="the 3 digits of every result",
        knobs="1..3 terms; half of the items direct, half with the result after every term; 3 digits, "
        "each by chance right 1 time in 7, all of them 1 in 343",
        level="10 x (terms (direct), 10 + step (written steps)) + 1, 2, 3 which digit of the result",
        part=lambda level: form_of_sum(level // several.PLACE),
        answers=(DIGIT, MODULUS),
        mixed=False,
        generate=partial(modular, task="M23"),
    ),
)
