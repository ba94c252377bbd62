"""Four options for every scored answer: the same items as multiple choice."""

from collections.abc import Sequence

import numpy as np

from wane.train.data import key
from wane.train.data.task import GradedTask, Task, World
from wane.train.data.vocabulary import SIZE

OPTIONS = 4


def values_of(task: Task) -> tuple[int, int]:
    """(first, count) of the tokens among which a task's answers are; (0, 0) for text, where any token may come."""
    return task.answers if isinstance(task, GradedTask) else (0, 0)


def types_of(task: Task) -> list[np.ndarray]:
    """The tokens of each kind of answer of a task: by the format of an item only one kind can be right.  All
    values are of one kind where a task names none."""
    first, count = values_of(task)
    named = task.types if isinstance(task, GradedTask) else ()
    return [np.array(kind) for kind in named or (range(first, first + count),)]


def options(
    tokens_NT: np.ndarray,
    level_NS: np.ndarray,
    foil_NS: np.ndarray,
    task: Task,
    seed: int,
    world: World | None = None,
) -> np.ndarray:
    """The answer and 3 wrong tokens of its kind (`types_of`) in random order, int32 [N, S, 4]; -1 where
    nothing is scored, in text, and in place of the options that a task with fewer values lacks.

    Wrong options are, as far as there are any: those that the task names for the item (`GradedTask.beside`), the
    foil, what else stands in the item (`GradedTask.item`), and tokens drawn as often as they are answers.  In L0,
    where there is nothing to know but frequency, they leave nothing to know.
    """
    scored_NS = level_NS >= 0
    options_NSO = np.full((*level_NS.shape, OPTIONS), -1, np.int32)
    if not values_of(task)[1]:
        return options_NSO
    rng = key.generator("options", task.name, seed)
    answer_NS = np.where(scored_NS, tokens_NT[:, 1:], -1)
    for kind in types_of(task):
        of_kind_NS = np.isin(answer_NS, kind)
        number_V = np.full(SIZE + 1, -1)  # of a token within its kind; the last is that of no token, -1
        number_V[kind] = np.arange(len(kind))
        answer_M, level_M = number_V[answer_NS[of_kind_NS]], level_NS[of_kind_NS]
        ranks = [number_V[foil_NS[of_kind_NS]][:, None]]
        if task.item:
            item_MW = items(tokens_NT, level_NS, of_kind_NS, task)
            ranks.append(number_V[item_MW])
            if task.beside:
                ranks.insert(0, number_V[task.beside(rng, world, item_MW, level_M)])
        found_MO = drawn(rng, answer_M, ranks, np.bincount(answer_M, minlength=len(kind)))
        options_NSO[of_kind_NS] = np.where(found_MO < 0, -1, kind[found_MO])
    return options_NSO


def items(tokens_NT: np.ndarray, level_NS: np.ndarray, chosen_NS: np.ndarray, task: GradedTask) -> np.ndarray:
    """The tokens [M, W] of the items of M chosen answers that stand before them; -1 from the answer on.  Items
    follow each other behind the tag of the row."""
    row_M, place_M = np.nonzero(chosen_NS)  # of the answer behind the tag: place_M + 1 in tokens_NT
    length_M = task.item(level_NS[chosen_NS], tokens_NT.shape[1])
    start_M = place_M - place_M % length_M
    place_MW = start_M[:, None] + np.arange(length_M.max(initial=1))
    before_MW = place_MW < place_M[:, None]
    return np.where(before_MW, tokens_NT[row_M[:, None], np.where(before_MW, 1 + place_MW, 0)], -1)


def drawn(rng: np.random.Generator, answer_M, ranks: Sequence[np.ndarray], count_V: np.ndarray) -> np.ndarray:
    """Options [M, 4], -1 for those that fewer than 4 values lack, in random order: the answers, below V, and three
    different wrong values.  First come those of ranks[0] [M, ..], -1 for none, then those of ranks[1], .., then
    any; of equal rank one is drawn as often as it is among the answers (count_V), so that no frequency tells an
    answer from what stands beside it; what is never an answer comes last."""
    M, V = len(answer_M), len(count_V)
    row_M = np.arange(M)
    # The smallest of exponential times over weights are a draw without replacement with these weights.
    with np.errstate(divide="ignore"):
        wait_MV = rng.standard_exponential((M, V)) / count_V
    wait_MV = np.where(count_V > 0, 1 - np.exp(-wait_MV / V), 1 + rng.random((M, V)))
    place_MV = np.full((M, V), len(ranks))
    for rank, value_MW in reversed(list(enumerate(ranks))):
        known = value_MW >= 0
        place_MV[np.nonzero(known)[0], value_MW[known]] = rank
    place_MV[row_M, answer_M] = -1
    found_MO = np.argsort(2 * place_MV + wait_MV, axis=1)[:, :OPTIONS]
    found_MO = np.pad(found_MO, ((0, 0), (0, OPTIONS - found_MO.shape[1])), constant_values=-1)
    return rng.permuted(found_MO, axis=1)
