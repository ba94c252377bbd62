"""What a run is trained and evaluated on, as one frozen value."""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from wane.train.data.graded import SHORTEST_CONTEXT, TASKS
from wane.train.data.graded_facts import MOST_FACTS
from wane.train.data.graded_truth import MOST_EXCEPTIONS
from wane.train.data.task import SUCCESSOR_P

Weights = tuple[tuple[str, float], ...]
FORMS = "graded, python, text:PATH|GLOB, tfds:NAME[/CONFIG][:VERSION]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Sources and their shares of the rows, and how they become windows of T = context + 1 tokens.

    `sources` and `task_shares` may be given as one name, a mapping or pairs; they are kept as pairs, so that
    the value is hashable and `dataclasses.asdict` gives what JSON can hold and this class accepts again.
    Raises ValueError naming the field.
    """

    sources: Weights | Mapping[str, float] | str = (("graded", 1.0),)  # several: a mixture by weight
    context: int = 128  # S, positions that predict
    tokenizer: Literal["bytes", "bpe"] = "bytes"  # of all text sources together
    bpe_vocab: int = 1024  # tokens of a bpe tokenizer, the end of a document included
    held_out: float = 0.1  # fraction of documents that are never trained on
    unique_fraction: float = 1.0  # the same token count from fewer documents or sequences, repeated
    task_shares: Weights | Mapping[str, float] | None = (
        None  # of scored graded tokens; None: the mixed ones, equal
    )
    facts: int = 256  # entities of tasks K, T1 and T2
    successors: tuple[float, ...] = SUCCESSOR_P  # of L1 and L1o2, the likeliest first: what their entropy is
    exceptions: float = 0.2  # share of the entities of T1 and T13 whose value is not their category's
    world_seed: int = 0  # Markov tables, maps, facts: what is true, whatever the data seed
    tfds_split: str = "train"
    tfds_feature: str = "text"
    tfds_data_dir: str | None = None

    def __post_init__(self):
        sources = {self.sources: 1.0} if isinstance(self.sources, str) else self.sources
        object.__setattr__(self, "sources", _weights("sources", sources))
        for spec in self.source_weights:
            _check_source(spec)
        if self.task_shares is not None:
            shares = _weights("task_shares", self.task_shares)
            for task, _ in shares:
                _check_name("task_shares", task, list(TASKS))
            in_order = sorted(shares, key=lambda pair: list(TASKS).index(pair[0]))
            object.__setattr__(self, "task_shares", tuple(in_order))
        object.__setattr__(self, "successors", _numbers("successors", self.successors))
        for field in ("held_out", "unique_fraction", "exceptions"):
            object.__setattr__(self, field, float(getattr(self, field)))  # 1 and 1.0 are one config
        _check_name("tokenizer", self.tokenizer, ["bytes", "bpe"])
        shortest = SHORTEST_CONTEXT if self.graded else 1
        allowed = {
            "context": (
                self.context >= shortest,
                f"at least {shortest}" + " with graded tasks" * self.graded,
            ),
            "bpe_vocab": (
                257 <= self.bpe_vocab <= 2**31,
                "at least 257: 256 bytes and the end of a document",
            ),
            "held_out": (0 < self.held_out < 1, "between 0 and 1, both excluded: evaluation needs text too"),
            "unique_fraction": (0 < self.unique_fraction <= 1, "above 0, at most 1"),
            "facts": (1 <= self.facts <= MOST_FACTS, f"1..{MOST_FACTS}"),
            "successors": (
                _are_successors(self.successors),
                f"{len(SUCCESSOR_P)} numbers from 0 up that sum to 1, none above the one before it",
            ),
            "exceptions": (
                0 <= self.exceptions < MOST_EXCEPTIONS,
                f"at least 0, below {MOST_EXCEPTIONS}: the category's value must be the most frequent",
            ),
        }
        for field, (good, rule) in allowed.items():
            if not good:
                raise ValueError(f"data.{field} = {getattr(self, field)}: must be {rule}")

    @property
    def source_weights(self) -> dict[str, float]:
        """`sources` as a mapping."""
        return dict(cast(Weights, self.sources))

    @property
    def shares(self) -> dict[str, float]:
        """`task_shares` as a mapping."""
        if self.task_shares is None:
            return {name: 1.0 for name, task in TASKS.items() if task.mixed}
        return dict(cast(Weights, self.task_shares))

    @property
    def graded(self) -> bool:
        """Whether the graded task language is one of the sources."""
        return "graded" in self.source_weights


def _weights(field: str, given: Mapping[str, float] | Weights) -> Weights:
    try:
        pairs = given.items() if isinstance(given, Mapping) else given
        weights = tuple((str(name), float(weight)) for name, weight in pairs)
    except (TypeError, ValueError):
        raise ValueError(f"data.{field} = {given!r}: must map names to numbers") from None
    names = [name for name, _ in weights]
    if not weights or len(set(names)) < len(names):
        raise ValueError(f"data.{field} = {given!r}: must name at least one, and each only once")
    for name, weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"data.{field}[{name!r}] = {weight}: must be above 0; leave the name out instead"
            )
    return weights


def _numbers(field: str, given: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in given)
    except (TypeError, ValueError):
        raise ValueError(f"data.{field} = {given!r}: must be numbers") from None


def _are_successors(p: tuple[float, ...]) -> bool:
    falling = all(a >= b >= 0 for a, b in itertools.pairwise(p))
    return len(p) == len(SUCCESSOR_P) and falling and math.isclose(sum(p), 1, abs_tol=1e-6)


def _check_source(spec: str) -> None:
    kind, colon, rest = spec.partition(":")
    if not (spec in ("graded", "python") or (kind in ("text", "tfds") and colon and rest)):
        raise ValueError(f"data.sources: {spec!r} is not a source; the forms are {FORMS}")


def _check_name(field: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ValueError(f"data.{field}: {name!r} is not known; allowed are {', '.join(known)}{hint}")
