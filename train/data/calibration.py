"""Calibration sequences from another place than the training distribution."""

import dataclasses

import numpy as np

from wane.train.data import key
from wane.train.data.assemble import open_data
from wane.train.data.corpus import open_corpus
from wane.train.data.graded import TASKS
from wane.train.data.packed import open_packed
from wane.train.data.source import TextSource
from wane.train.data.spec import FORMS, Data
from wane.train.data.stream import Stream

SOURCES = (
    "same, random, task:NAME, tasks:NAME=SHARE,..., or a text source (python, text:PATH|GLOB, tfds:NAME)"
)


def check_calibration(source: str) -> None:
    """Raises ValueError when `source` is not one of SOURCES."""
    kind, _, rest = source.partition(":")
    if source in ("same", "random", "python") or (kind in ("text", "tfds") and rest):
        return
    if kind in ("task", "tasks"):
        task_shares(source)
        return
    raise ValueError(f"degradations.calibration = {source!r}: must be {SOURCES}")


def task_shares(source: str) -> dict[str, float]:
    """The shares of `task:NAME` or `tasks:NAME=SHARE,...`.  Raises ValueError naming what is wrong."""
    _, _, rest = source.partition(":")
    shares = {}
    for part in rest.split(","):
        name, equals, share = part.partition("=")
        try:
            shares[name] = float(share) if equals else 1.0
        except ValueError:
            shares[name] = 0.0
        if name not in TASKS or not shares[name] > 0:
            raise ValueError(
                f"degradations.calibration = {source!r}: {part!r} is no task with a share above 0; "
                f"tasks are {', '.join(TASKS)}"
            )
    return shares


def calibration(source: str, stream: Stream, sequences: int, seed: int) -> np.ndarray:
    """Tokens int32 [N, T] in the vocabulary of `stream`.

    `same`: the stream's own training distribution; `random`: uniform over the vocabulary; `task:NAME` and
    `tasks:...`: graded tasks in other shares; a text source: other text, read with the stream's tokenizer.
    Raises ValueError where the stream's vocabulary has no such tokens.
    """
    check_calibration(source)
    config = stream.config
    if source == "same":
        return stream.calibration(sequences, seed)
    if source == "random":
        rng = key.generator("calibration", "random", seed)
        return rng.integers(stream.vocab, size=(sequences, config.context + 1)).astype(np.int32)
    if source.startswith("task"):
        if not config.graded:
            raise ValueError(
                f"degradations.calibration = {source!r}: data.sources has no graded tasks; add graded or use text"
            )
        other = dataclasses.replace(config, sources="graded", task_shares=task_shares(source))
        return open_data(other, steps=1, batch_size=1).calibration(sequences, seed)
    return _text(source, stream, config).calibration(sequences, seed)


def _text(source: str, stream: Stream, config: Data) -> TextSource:
    known = [s for s in stream.sources if isinstance(s, TextSource)]
    if not known:
        raise ValueError(
            f"degradations.calibration = {source!r}: data.sources has no text, so the model has no text tokens; "
            f"use task:NAME, tasks:... or random (sources are {FORMS})"
        )
    packed = open_packed(open_corpus(source, config), known[0].tokenizer, config)
    if len(packed.train) < config.context + 1:
        raise ValueError(
            f"degradations.calibration = {source!r}: {len(packed.train)} tokens are fewer than one window of "
            f"{config.context + 1}; give more text"
        )
    return dataclasses.replace(known[0], packed=packed)
