"""Tokens of training and which of them count as answers, in one array: a token t that is not scored stands as its
complement ~t = -1 - t.  Functions of int32 arrays of numpy and of jax alike."""

from typing import TypeVar

A = TypeVar("A")  # int32 [.., T], of numpy or jax


def marked(tokens: A, scored: A) -> A:
    """scored: bool, of the same shape."""
    return tokens ^ (scored.astype(tokens.dtype) - 1)  # x ^ -1 is ~x


def is_scored(marked: A) -> A:
    """bool; True everywhere for tokens without marks."""
    return marked >= 0


def unmarked(marked: A) -> A:
    """The tokens; those without marks as they are."""
    return marked ^ (marked >> 31)
