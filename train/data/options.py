"""Four options for every scored answer: the same items as multiple choice."""

import numpy as np

from wane.train.data import key
from wane.train.data.task import GradedTask, Task
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
    tokens_NT: np.ndarray, level_NS: np.ndarray, foil_NS: np.ndarray, task: Task, seed: int
) -> np.ndarray:
    """The answer and 3 wrong tokens of its kind (`types_of`) in random order, int32 [N, S, 4]; -1 where
    nothing is scored, in text, and in place of the options that a task with fewer values lacks.  Where the answer
    is one of several in its item (`GradedTask.item`), wrong options are the others."""
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
        answer_M = number_V[answer_NS[of_kind_NS]]
        if task.item:
            item_MW = items(tokens_NT, level_NS, of_kind_NS, task)
            found_MO = drawn_beside(rng, answer_M, number_V[item_MW], len(kind))
        else:
            found_MO = drawn(rng, answer_M, number_V[foil_NS[of_kind_NS]], len(kind))
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


def drawn_beside(rng: np.random.Generator, answer_M, rival_MW, count: int) -> np.ndarray:
    """Options [M, 4] of answers below `count` (4 or more): three different ones of the rivals (-1 for none), each
    as likely as another, and where there are fewer, any others."""
    random_MV = rng.random((len(answer_M), count + OPTIONS))
    first_MV, turn_MO = random_MV[:, :count], random_MV[:, count:]
    row_M = np.arange(len(answer_M))
    rival = rival_MW >= 0
    seen_MV = np.zeros((len(answer_M), count))
    seen_MV[np.nonzero(rival)[0], rival_MW[rival]] = 1
    seen_MV[row_M, answer_M] = 2
    options_MO = np.argsort(-(first_MV + seen_MV), axis=1)[:, :OPTIONS]
    return np.take_along_axis(options_MO, np.argsort(turn_MO, axis=1), axis=1)


def drawn(rng: np.random.Generator, answer_M, foil_M, count: int, first: int = 0) -> np.ndarray:
    """Options [M, 4] of answers below `count`, `first` added.  The foil is one of the wrong ones where there is
    one (not below 0); the others are different values, uniform over all: where answers are equally frequent,
    no frequency tells them apart."""
    taken_MK = answer_M[:, None]
    while (known := taken_MK.shape[1]) < min(OPTIONS, count):
        other_M = rng.integers(count - known, size=len(taken_MK))
        for before_M in np.sort(taken_MK, axis=1).T:  # the n-th value that is not taken
            other_M += other_M >= before_M
        if known == 1:
            other_M = np.where(foil_M < 0, other_M, foil_M)
        taken_MK = np.column_stack([taken_MK, other_M])
    options_MO = np.full((len(taken_MK), OPTIONS), -1)
    options_MO[:, : taken_MK.shape[1]] = first + taken_MK
    return rng.permuted(options_MO, axis=1)
