"""What several metrics read of one batch, or of what was kept of all, is traced once."""

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

V = TypeVar("V")
T = TypeVar("T")


def once(f: Callable[[V], T]) -> Callable[[V], T]:
    """f, remembered for as long as its view (or `Kept`) lives.  XLA would merge equal arithmetic, but not equal
    loops, and every metric would trace and compile it anew."""
    known: weakref.WeakKeyDictionary[V, T] = weakref.WeakKeyDictionary()

    @functools.wraps(f)
    def remembered(view: V) -> T:
        if view not in known:
            known[view] = f(view)
        return known[view]

    return remembered
