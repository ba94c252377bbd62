"""Groups of tokens over which a token metric is averaged: what the data, not the model, says about each token."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wane.train.data import EvalSet, Stream
from wane.train.data.source import TextSource

NGRAM = 4
CHUNK = 2**20  # training tokens looked at together


class Grouping(NamedTuple):
    """label_NS: the group of each predicted token, what rows tell as `at`; nan: in none.  axis: what it counts.
    common: a label means the same in every task, so that all of them together are a group too."""

    axis: str
    label_NS: np.ndarray
    common: bool


@functools.lru_cache(maxsize=4)
def level(evaluation: EvalSet, stream: Stream) -> Grouping:
    """The difficulty of each scored token of a graded task (Task.level)."""
    known = (
        evaluation.scored_NS & np.array([bool(t.level) for t in evaluation.tasks])[evaluation.task_N, None]
    )
    return Grouping("level", np.where(known, evaluation.level_NS, np.nan), common=False)


@functools.lru_cache(maxsize=4)
def position(evaluation: EvalSet, stream: Stream) -> Grouping:
    """How many tokens stand before, in octaves: 1, 2 to 3, 4 to 7, ..., told by the smallest."""
    before_S = 1 + np.arange(evaluation.scored_NS.shape[1])
    octave_S = 2.0 ** np.floor(np.log2(before_S))
    return Grouping("position", np.broadcast_to(octave_S, evaluation.scored_NS.shape), common=True)


@functools.lru_cache(maxsize=4)
def frequency(evaluation: EvalSet, stream: Stream) -> Grouping:
    """How often each token of text comes in the training text, in decades: 0 for 1 to 9 times, 1 for 10 to 99,
    ..; -1: never."""
    count_V = np.zeros(stream.vocab, np.int64)
    for source in texts(stream):
        train = source.packed.train
        for first in range(0, len(train), CHUNK):
            count_V[source.offset :] += np.bincount(
                train[first : first + CHUNK], minlength=stream.vocab - source.offset
            )
    # + .5: the logarithm of a power of ten may come out just below
    decade_V = np.where(count_V > 0, np.floor(np.log10(count_V + 0.5)), -1.0)
    label_NS = decade_V[evaluation.tokens_NT[:, 1:]]
    return Grouping("frequency", np.where(is_text(evaluation, stream), label_NS, np.nan), common=True)


@functools.lru_cache(maxsize=4)
def novelty(evaluation: EvalSet, stream: Stream) -> Grouping:
    """1 where a token of text and the 3 before it do not come in this order in the training text, 0 where they
    do; none where fewer than 3 stand before."""
    wanted_NM = ngrams(evaluation.tokens_NT, stream.vocab)
    wanted, place = np.unique(wanted_NM, return_inverse=True)
    seen = np.zeros(len(wanted), bool)
    for source in texts(stream):
        train = source.packed.train
        for first in range(0, len(train) - NGRAM + 1, CHUNK):
            tokens = train[first : first + CHUNK + NGRAM - 1].astype(np.int64) + source.offset
            seen |= np.isin(wanted, ngrams(tokens, stream.vocab))
    label_NS = np.full(evaluation.scored_NS.shape, np.nan)
    label_NS[:, NGRAM - 2 :] = ~seen[place].reshape(wanted_NM.shape)
    return Grouping("novelty", np.where(is_text(evaluation, stream), label_NS, np.nan), common=True)


def ngrams(tokens: np.ndarray, vocab: int) -> np.ndarray:
    """Every 4 neighbours along the last axis as one number modulo 2^64: its digits are the tokens, so that below
    2^16 of them none are confused; above, by accident only, for the base is odd."""
    base, width = np.uint64(vocab | 1), max(tokens.shape[-1] - NGRAM + 1, 0)
    number = np.zeros((*tokens.shape[:-1], width), np.uint64)
    for i in range(NGRAM):
        number = number * base + tokens[..., i : i + width].astype(np.uint64)
    return number


def texts(stream: Stream) -> list[TextSource]:
    return [source for source in stream.sources if isinstance(source, TextSource)]


def is_text(evaluation: EvalSet, stream: Stream) -> np.ndarray:
    """bool [N, 1]."""
    of_source = np.array([isinstance(source, TextSource) for source in stream.sources])
    return of_source[evaluation.task_N, None]


GROUPS: dict[str, Callable[[EvalSet, Stream], Grouping]] = {
    "level": level,
    "position": position,
    "frequency": frequency,
    "novelty": novelty,
}
