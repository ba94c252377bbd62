"""A peer: a process of its own that builds pieces of work and repeats them when told to.

Peers share no threads, no memory and no compiler, so what one leaves behind does not slow the other; the parent
lets one work at a time.
"""

import dataclasses
import functools
import importlib
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from wane.launch.bench.timing import Timed

# Does the work so many times and returns when all is finished; a number that it returns stands for the seconds.
Run = Callable[[int], float | None]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a peer can do, by name.  facts: plain numbers and texts about it."""

    runs: Mapping[str, Run]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Peer:
    """What `build`, "module:function", makes of the arguments, in a process of its own; a context manager.

    Raises RuntimeError with the peer's own words when it fails.
    """

    def __init__(self, build: str, **arguments: Any):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # peers share an accelerator's memory
        context = multiprocessing.get_context("spawn")  # a fork would take half of XLA's threads along
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pipe.close()  # on which it ends by itself, and lets go of what it holds
        self._process.join(10)
        self._process.terminate()
        self._process.join()

    def timed(self, name: str) -> Timed:
        """One of its pieces of work."""
        return functools.partial(self._ask, name)

    def peak_memory(self) -> int:
        """The most memory that it has held so far, bytes."""
        return self._ask(None, 0)

    def _ask(self, name: str | None, repetitions: int) -> Any:
        self._pipe.send((name, repetitions))
        return self._receive()

    def _receive(self) -> Any:
        try:
            value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a peer ended by itself, exit code {self._process.exitcode}") from None
        if isinstance(value, _Failure):
            raise RuntimeError(value.text)
        return value


@dataclasses.dataclass(frozen=True)
class _Failure:
    text: str


def _serve(pipe: Any, build: str, arguments: dict[str, Any]) -> None:
    """The peer's side: build, then answer until it is ended."""
    try:
        module, _, function = build.partition(":")
        work: Work = getattr(importlib.import_module(module), function)(**arguments)
        pipe.send(work.facts)
        while True:
            name, repetitions = pipe.recv()
            if name is None:
                pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
                continue
            started = time.perf_counter()
            told = work.runs[name](repetitions)
            pipe.send(time.perf_counter() - started if told is None else told)
    except EOFError:  # the parent is gone
        return
    except Exception:
        pipe.send(_Failure(traceback.format_exc()))
