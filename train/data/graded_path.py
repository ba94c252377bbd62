"""P: path finding on a star graph, where the first step needs a look ahead to the goal."""

from typing import TypeVar

import numpy as np

from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import EQUALS, SYMBOL, SYMBOLS, WORD, distinct

OfSize = TypeVar("OfSize", int, np.ndarray)
SIZES = ((2, 2), (2, 4), (5, 5))  # (arms, depth)
QUERY = WORD


def item_width(arms: OfSize, depth: OfSize) -> OfSize:
    """Tokens of one item: pairs, QUERY start goal EQUALS, and a path of 1 + depth nodes."""
    return 2 * arms * depth + 4 + 1 + depth


def star_sizes(length: int) -> list[tuple[int, int]]:
    """The (arms, depth) whose item fits a row of `length` tokens."""
    return [size for size in SIZES if item_width(*size) <= length - 1]


def guess(level: np.ndarray) -> np.ndarray:
    """Chance: any of the centre's neighbours at the choice of the arm, any node but the centre behind it."""
    level = np.asarray(level)
    arms, depth, place = level // 100, level // 10 % 10, level % 10
    return 1 / np.where(place == 1, arms, arms * depth)


def path(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Path finding on a star (Bachmann and Nagarajan 2024, "The pitfalls of next-token prediction"): items of
    all edges in random order, as pairs that point away from the centre; QUERY start goal, the centre and the
    end of one arm; EQUALS and the nodes from start to goal.  One size of star per row.

    Scored: the path after the start; level: the size of the star and the place in the path.  Place 1 has to be
    found backwards from the goal; each later node stands in the edges behind the node before it.  Foil, at place
    1: the first node of another arm.
    """
    sizes = star_sizes(length)
    size_B = rng.integers(len(sizes), size=rows)
    out = Rows(*np.full((3, rows, length), -1))
    for number, (arms, depth) in enumerate(sizes):
        chosen = size_B == number
        shape = int(chosen.sum()), -(-(length - 1) // item_width(arms, depth))
        items, level, foil = star_items(rng, shape, arms, depth)
        part = tagged("P", items, level, np.ones(items.shape, bool), length, foil)
        for whole_BT, part_BT in zip(out, part, strict=True):
            whole_BT[chosen] = part_BT
    return out


def star_items(rng, shape: tuple[int, int], arms: int, depth: int) -> tuple[np.ndarray, ...]:
    """Items [*shape, width], their levels and foils.  The goal ends the first arm: names and order of the
    edges are random, so no arm differs from another."""
    node_BMN = SYMBOL + distinct(rng, shape, 1 + arms * depth, SYMBOLS)
    centre_BM1, arm_BMAD = node_BMN[..., :1], node_BMN[..., 1:].reshape(*shape, arms, depth)
    inner_BMA1 = np.broadcast_to(centre_BM1[..., None], (*shape, arms, 1))
    before_BMAD = np.concatenate([inner_BMA1, arm_BMAD[..., :-1]], axis=-1)
    edge_BME2 = np.stack([before_BMAD, arm_BMAD], axis=-1).reshape(*shape, arms * depth, 2)
    order_BME = np.argsort(rng.random((*shape, arms * depth)), axis=-1)
    edge_BME2 = np.take_along_axis(edge_BME2, order_BME[..., None], axis=-2)
    goal_BM1, query, equals = arm_BMAD[..., 0, -1:], *(np.full((*shape, 1), t) for t in (QUERY, EQUALS))
    edges = edge_BME2.reshape(*shape, 2 * arms * depth)
    parts = edges, query, centre_BM1, goal_BM1, equals, centre_BM1, arm_BMAD[..., 0, :]
    items = np.concatenate(parts, axis=-1)
    level, foil = np.full((2, *items.shape), -1)
    level[..., -depth:] = 100 * arms + 10 * depth + np.arange(1, depth + 1)
    foil[..., -depth] = arm_BMAD[..., 1, 0]
    return items, level, foil


TASKS = (
    GradedTask(
        name="P",
        title="path finding on a star graph: from the centre to the end of one arm",
        chance=1 / SYMBOLS,
        chance_at=guess,
        ceiling=1.0,
        scored="the nodes of the path after the start",
        knobs="2 arms of 2 or 4 nodes, 5 arms of 5, as far as the context allows; edges in random order",
        level="100 x arms + 10 x depth + place in the path; place 1 is the choice of the arm",
        part=lambda level: "choice of the arm" if level % 10 == 1 else "rest of the path",
        answers=(SYMBOL, SYMBOLS),
        mixed=False,
        item=lambda level, length: item_width(level // 100, level // 10 % 10),
        generate=path,
        names={QUERY: "from-to:"},
    ),
)
