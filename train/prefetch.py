"""Batches made ahead of the device, in one background thread."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], first: int, last: int, depth: int) -> Iterator[tuple[int, T]]:
    """(step, make(step)) for steps first .. last - 1, `depth` of them made ahead.  An error of `make` is raised
    at its step."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        ahead = deque(pool.submit(make, step) for step in range(first, min(first + depth, last)))
        for step in range(first, last):
            batch = ahead.popleft().result()
            if step + depth < last:
                ahead.append(pool.submit(make, step + depth))
            yield step, batch
