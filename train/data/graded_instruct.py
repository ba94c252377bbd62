"""I: answer in the form that an instruction names; scores of a generated answer, of its form and content."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from wane.train.data import key
from wane.train.data.graded_language import tagged
from wane.train.data.task import GradedTask, Role, Rows, World
from wane.train.data.vocabulary import DIGIT, END, EQUALS, SIZE, SYMBOL, WORD

FORMATS = ("copy", "reverse", "sort", "second", "count", "wrap", "twice", "class")
FEWEST, MOST = 4, 8  # arguments
ARGUMENTS, CLASSES = 64, 8
CLASS = SYMBOL + ARGUMENTS
BEGIN, CLOSE = CLASS + CLASSES, CLASS + CLASSES + 1  # what wrap puts around its copy
LONGEST = 2 * MOST + 1  # answer, END included

# Each format has one number of arguments, not the lowest nor the highest, that training never asks it for.
HELD_OUT_COUNTS = 5 + np.arange(len(FORMATS)) % 3
HELD_OUT = np.arange(FEWEST, MOST + 1) == HELD_OUT_COUNTS[:, None]
SEEN_FORMS, HELD_OUT_FORMS = (np.argwhere(held) + [0, FEWEST] for held in (~HELD_OUT, HELD_OUT))

# Where each token of an answer comes from: 0..7 an argument, else one of these.
FROM_BEGIN, FROM_CLOSE, FROM_COUNT, FROM_END, NOTHING = range(MOST, MOST + 5)
# What kind of token it is; END and what cannot stand in an answer are of kind 0.
KIND_SYMBOL, KIND_CLASS, KIND_DIGIT, KIND_BEGIN, KIND_CLOSE = range(1, 6)
KIND_V = np.zeros(SIZE, np.int64)
KIND_V[SYMBOL:CLASS], KIND_V[CLASS:BEGIN] = KIND_SYMBOL, KIND_CLASS
KIND_V[DIGIT : DIGIT + MOST + 1], KIND_V[BEGIN], KIND_V[CLOSE] = KIND_DIGIT, KIND_BEGIN, KIND_CLOSE

# Of answers.  EQUALS is never right; without it what marks the parts of an answer would be three options.
TYPES = (
    range(SYMBOL, CLASS),
    range(CLASS, BEGIN),
    range(DIGIT, DIGIT + MOST + 1),
    (END, EQUALS, BEGIN, CLOSE),
)


def _plan(form: str, count: int) -> list[int]:
    each = list(range(count))
    answer = {"reverse": each[::-1], "second": each[::2], "twice": each * 2}
    answer |= {"count": [FROM_COUNT], "wrap": [FROM_BEGIN, *each, FROM_CLOSE]}
    planned = [*answer.get(form, each), FROM_END]
    return planned + [NOTHING] * (LONGEST - len(planned))


PLAN = np.array(
    [[_plan(form, count) for count in range(MOST + 1)] for form in FORMATS]
)  # [format, count, 17]
ARGUMENT_KIND = np.where(np.array(FORMATS) == "class", KIND_CLASS, KIND_SYMBOL)[:, None, None]
OTHER_KIND = np.array([0] * MOST + [KIND_BEGIN, KIND_CLOSE, KIND_DIGIT, 0, 0])
KINDS = np.where(PLAN < MOST, ARGUMENT_KIND, OTHER_KIND[PLAN])


class Instruction(NamedTuple):
    """Instructions: form [...] into FORMATS, length [...] in arguments, argument [..., 8] as tokens, which
    from `length` on mean nothing."""

    form: np.ndarray
    length: np.ndarray
    argument: np.ndarray


@lru_cache(maxsize=8)
def classes(world_seed: int) -> np.ndarray:
    """The class of each of the 64 symbols [64], 8 symbols each."""
    return key.generator("classes", world_seed).permutation(ARGUMENTS) % CLASSES


def answers(asked: Instruction, world: World) -> np.ndarray:
    """The right answers [..., 17], END included, 0 after it."""
    form, length, argument = asked
    named = FORMATS.index
    used = np.arange(MOST) < length[..., None]
    in_order = np.sort(np.where(used, argument, SIZE), axis=-1)
    of_class = CLASS + classes(world.seed)[argument - SYMBOL]
    content = np.where(form[..., None] == named("sort"), in_order, argument)
    content = np.where(form[..., None] == named("class"), of_class, content)
    upper_half = (used & (argument >= SYMBOL + ARGUMENTS // 2)).sum(axis=-1)
    others = np.broadcast_to(np.array([BEGIN, CLOSE, DIGIT, END, 0]), (*form.shape, 5)).copy()
    others[..., FROM_COUNT - MOST] += upper_half
    return np.take_along_axis(np.concatenate([content, others], axis=-1), PLAN[form, length], axis=-1)


def instruct(rng, rows: int, length: int, world: World, role: Role) -> Rows:
    """Items FORMAT arguments EQUALS answer END with 4..8 symbols as arguments: copy them, reverse, sort by
    token, every second from the first, count those of the upper half of the symbols (not all of them, so that
    a number of arguments held out is not an answer held out), wrap in BEGIN .. CLOSE, say twice, name the
    class of each.  Scored: the answer and END.

    Training never asks a format for one number of arguments; evaluation asks for such forms in half of its
    items.  Level: 100 (1 + format) + 10 held-out + part, part 0 the first token of the answer, which decides
    compliance, 1 the others, 2 END.
    """
    shape = (rows, -(-(length - 1) // (FEWEST + 4)))
    seen_BM2 = SEEN_FORMS[rng.integers(len(SEEN_FORMS), size=shape)]
    new_BM2 = HELD_OUT_FORMS[rng.integers(len(HELD_OUT_FORMS), size=shape)]
    new = rng.integers(2, size=shape) * (role == "evaluation")
    form, count = np.moveaxis(np.where(new[..., None], new_BM2, seen_BM2), -1, 0)
    argument = SYMBOL + rng.integers(ARGUMENTS, size=(*shape, MOST))
    answer = answers(Instruction(form, count, argument), world)
    head = np.empty((*shape, MOST + 2), np.int64)
    head[..., 0], head[..., 1:-1], head[..., -1] = WORD + form, argument, EQUALS
    at = np.arange(LONGEST)
    part = np.where(answer == END, 2, at > 0)
    level = np.full((*shape, MOST + 2 + LONGEST), -1)
    level[..., MOST + 2 :] = (100 * (1 + form) + 10 * new)[..., None] + part
    keep_head = np.arange(MOST + 2) <= count[..., None]
    keep_head[..., -1] = True
    keep = np.concatenate([keep_head, answer > 0], axis=-1)
    return tagged("I", np.concatenate([head, answer], axis=-1), level, keep, length)


def instructions(tokens_BT: np.ndarray) -> tuple[Instruction, np.ndarray, np.ndarray]:
    """Every instruction in rows of this task, M in all; its row [M]; the place of its EQUALS [M], after which
    the answer begins."""
    time = np.arange(tokens_BT.shape[1])
    row_M, at_M = np.nonzero(tokens_BT == EQUALS)
    latest_BT = np.maximum.accumulate(np.where(tokens_BT >= WORD, time, 0), axis=1)
    start_M = latest_BT[row_M, at_M]
    place_MA = np.minimum(start_M[:, None] + 1 + np.arange(MOST), at_M[:, None] - 1)
    form_M = tokens_BT[row_M, start_M] - WORD
    asked = Instruction(form_M, at_M - start_M - 1, tokens_BT[row_M[:, None], place_MA])
    return asked, row_M, at_M


def compliance_strict(asked: Instruction, answer_MA: np.ndarray) -> np.ndarray:
    """Whether generated answers [M, A] (the tokens after EQUALS) have the form that was asked for, bool [M]:
    so many tokens, each of the right kind, markers where they belong, then END.  What they say is free."""
    end_M = np.argmax(answer_MA == END, axis=1)  # 0 where there is none: no right answer is empty
    return _formed(asked, answer_MA, 0, end_M)


def compliance_loose(asked: Instruction, answer_MA: np.ndarray) -> np.ndarray:
    """As `compliance_strict`, but an answer may end with any token that cannot stand in one, or where it was
    cut off, and may have one token too many at the front, at the back or at both (as IFEval's loose accuracy
    drops the first line, the last line or both; Zhou et al. 2023)."""
    end_M = _end(answer_MA)
    trims = [(front, end_M - back) for front in (0, 1) for back in (0, 1)]
    return np.logical_or.reduce([_formed(asked, answer_MA, front, end) for front, end in trims])


def content(asked: Instruction, answer_MA: np.ndarray, world: World, *, ordered: bool = True) -> np.ndarray:
    """Whether generated answers [M, A] say the right things, bool [M]: the right symbols, classes or digits
    in the right order (or, not `ordered`, in any order), whatever markers and END do."""
    said = _content(answer_MA, _end(answer_MA))
    right_MA = answers(asked, world)
    wanted = _content(right_MA, _end(right_MA))
    width = max(said.shape[1], wanted.shape[1])
    said, wanted = (
        np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=SIZE) for x in (said, wanted)
    )
    if not ordered:
        said, wanted = np.sort(said, axis=1), np.sort(wanted, axis=1)
    return (said == wanted).all(axis=1)


def _kind(tokens: np.ndarray) -> np.ndarray:
    """The kinds of tokens, which may be of a text beyond this language: of kind 0, as its last token is."""
    return KIND_V[np.minimum(tokens, SIZE - 1)]


def _end(answer_MA: np.ndarray) -> np.ndarray:
    """The place of the first token that cannot stand in an answer; A where there is none."""
    stops = _kind(answer_MA) == 0
    return np.where(stops.any(axis=1), np.argmax(stops, axis=1), answer_MA.shape[1])


def _formed(asked: Instruction, answer_MA: np.ndarray, front: int, end_M: np.ndarray) -> np.ndarray:
    """Whether the tokens from `front` to before `end_M` are as many and of such kinds as were asked for."""
    want_MA = KINDS[asked.form, asked.length]
    kind_MA = np.pad(_kind(answer_MA), ((0, 0), (0, LONGEST + 1)))[:, front : front + LONGEST]
    kind_MA = np.where(front + np.arange(LONGEST) < end_M[:, None], kind_MA, 0)
    return (end_M - front == (want_MA > 0).sum(axis=1)) & (kind_MA == want_MA).all(axis=1)


def _content(answer_MA: np.ndarray, end_M: np.ndarray) -> np.ndarray:
    """The tokens before `end_M` without markers, moved to the front, then SIZE."""
    kind_MA = _kind(answer_MA)
    says = (kind_MA > 0) & (kind_MA < KIND_BEGIN) & (np.arange(answer_MA.shape[1]) < end_M[:, None])
    front = np.argsort(~says, axis=1, kind="stable")
    return np.take_along_axis(np.where(says, answer_MA, SIZE), front, axis=1)


@lru_cache(maxsize=1)
def _chances() -> dict[int, float]:
    """That of `_chance` by level, for the numbers of arguments that are asked for at it."""
    guesses = 1 / np.array([1, ARGUMENTS, CLASSES, MOST + 1, 1, 1])
    found: dict[int, list[float]] = {}
    for new, forms in enumerate((SEEN_FORMS, HELD_OUT_FORMS)):
        for form, count in forms.tolist():
            for place, (source, kind) in enumerate(zip(PLAN[form, count], KINDS[form, count], strict=True)):
                if source != NOTHING:
                    part = 2 if source == FROM_END else min(place, 1)
                    found.setdefault(100 * (1 + form) + 10 * new + part, []).append(guesses[kind])
    return {level: float(np.mean(guess)) for level, guess in found.items()}


def chance_at(level: np.ndarray) -> np.ndarray:
    return np.array([_chances()[int(l)] for l in level])


def _chance() -> float:
    """A uniform guess among the tokens of the right kind; markers and END are certain, given the form."""
    guesses = 1 / np.array([1, ARGUMENTS, CLASSES, MOST + 1, 1, 1])
    right = scored = 0.0
    for forms in (SEEN_FORMS, HELD_OUT_FORMS):  # half of the evaluation each
        form, count = forms.T
        used = PLAN[form, count] != NOTHING
        right += (guesses[KINDS[form, count]] * used).sum(axis=1).mean()
        scored += used.sum(axis=1).mean()
    return right / scored


TASKS = (
    GradedTask(
        name="I",
        title="instruction: 4 to 8 symbols in the form that a word asks for",
        chance=_chance(),
        chance_at=chance_at,
        ceiling=1.0,
        scored="every token of the answer and its end",
        knobs="copy, reverse, sort, every second, count, wrap, twice, class of each; one length of each kept "
        "for evaluation, where it is half of the items",
        level="100 x format (1..8) + 10 where format x length is held out + 0 first token, 1 later, 2 end",
        part=lambda level: "held-out length" if level % 100 >= 10 else "length of training",
        answers=(END, CLOSE + 1 - END),
        types=TYPES,
        mixed=False,
        generate=instruct,
        names={WORD + i: f"{form}:" for i, form in enumerate(FORMATS)}
        | {CLASS + i: f"class{i}" for i in range(CLASSES)}
        | {BEGIN: "begin", CLOSE: "close"},
    ),
)
