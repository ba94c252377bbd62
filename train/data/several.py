"""Answers of several tokens: the items of another task whose answer is longer, every token of it scored."""

import numpy as np

LONG = 3  # tokens of a long answer
PLACE = 10  # level of a token of a long answer: 10 x the level of the item, + 1 for the first, 2, 3


def part(level: int) -> str:
    """The token of a long answer: the later ones may be read off the first."""
    return f"token {level % PLACE}"


def levels(level: np.ndarray | int, tokens: int) -> np.ndarray:
    """Levels [..., tokens] of the tokens of answers of level [...], which is theirs where an answer is one
    token; -1, not scored, of answers that are not."""
    level = np.asarray(level)[..., None]
    if tokens == 1:
        return level
    return np.where(level < 0, -1, PLACE * level + np.arange(1, tokens + 1))
