"""Names by content: digests of configs and of arrays, and the versions of the code that computes numbers."""

import hashlib
from typing import Any

import jax
import numpy as np

from wane.scaling.config import canonical

# One integer per stage.  Raise a stage's when its numbers change (tests/test_identity.py holds golden numbers):
# cells of the old version are then computed again and never mixed with new ones.
VERSIONS = {"data": 3, "train": 2, "method": 6, "metric": 6}


def digest_of(value: Any) -> str:
    """16 hexadecimal digits that name a config, dict or any nesting of plain values."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=8).hexdigest()


def array_digest(array: Any) -> str:
    """32 hexadecimal digits of an array's dtype, shape and bytes."""
    host = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{host.dtype}{host.shape}".encode(), digest_size=16)
    digest.update(host.view(np.uint8).reshape(-1).data if host.size else b"")
    return digest.hexdigest()


def tree_digest(tree: Any) -> str:
    """16 hexadecimal digits of a pytree of arrays: every leaf's path and array digest."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return digest_of({jax.tree_util.keystr(path): array_digest(leaf) for path, leaf in leaves})
