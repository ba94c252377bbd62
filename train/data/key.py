"""Random generators named by a path of words and numbers: one name, one stream, on every machine."""

import hashlib
from functools import lru_cache

import numpy as np


def generator(*path: str | int) -> np.random.Generator:
    """The generator of this path.  Paths that differ anywhere give unrelated streams, so training,
    evaluation and calibration never share one.  Philox is keyed with a 128-bit digest of the path."""
    words = tuple(part if isinstance(part, str) else int(part) for part in path)  # np.int64(1) is 1 here
    digest = hashlib.blake2b(repr(words).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@lru_cache(maxsize=8)
def permutation(size: int, *path: str | int) -> np.ndarray:
    """A read-only random order of range(size), cached: an epoch asks for the same one at every step."""
    order = generator("permutation", *path).permutation(size)
    order.flags.writeable = False
    return order
