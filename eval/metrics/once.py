"""What several metrics read of one batch is traced once."""

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from wane.eval.metrics.view import View

T = TypeVar("T")


def once(f: Callable[[View], T]) -> Callable[[View], T]:
    """f, remembered for as long as its view lives.  XLA would merge equal arithmetic, but not equal loops, and
    every metric would trace and compile it anew."""
    known: weakref.WeakKeyDictionary[View, T] = weakref.WeakKeyDictionary()

    @functools.wraps(f)
    def remembered(view: View) -> T:
        if view not in known:
            known[view] = f(view)
        return known[view]

    return remembered
