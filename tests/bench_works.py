"""Pieces of work for the tests of peers; a peer imports them by name."""

import os
import time

from wane.launch.bench.peers import Work


def sleeping(*, seconds: float) -> Work:
    return Work({"sleep": lambda n: time.sleep(n * seconds)}, {"pid": os.getpid()})


def failing() -> Work:
    raise ValueError("no such thing")


def dying() -> Work:
    return Work({"end": lambda n: os._exit(3)})
