"""From a data config to its stream: open the sources, share one tokenizer, deal out the rows."""

import dataclasses
import hashlib
import json
from pathlib import PurePath

from wane.train.data import vocabulary
from wane.train.data.corpus import open_corpus
from wane.train.data.graded import TASKS
from wane.train.data.packed import open_packed, open_tokenizer
from wane.train.data.pattern import Pattern
from wane.train.data.source import GradedSource, TextSource
from wane.train.data.spec import Data
from wane.train.data.stream import Stream
from wane.train.data.task import Task, World


def open_data(config: Data, *, steps: int, batch_size: int) -> Stream:
    """Read, tokenise and cache what the config names.

    The rows of graded tasks are dealt in proportion to share / scored tokens per row, so that every task has
    its share of the scored tokens: over one period of the pattern (4096 rows) to one row, and to what is known of
    their mean per row.
    Raises ValueError, FileNotFoundError or OSError in one line.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} = {value}: must be at least 1")
    text_weights = {spec: weight for spec, weight in config.source_weights.items() if spec != "graded"}
    graded, weights = _open_graded(config)
    text, tokenizer_digest, text_vocab = _open_text(config, list(text_weights))
    first = vocabulary.SIZE if graded else 0
    made_from = {
        "config": dataclasses.asdict(config) | {"sources": None, "tfds_data_dir": None},
        "weights": [*weights, *text_weights.values()],
        "text": [source.packed.digest for source in text],
        "tokenizer": tokenizer_digest,
        "batch_size": batch_size,
        "steps": steps if config.unique_fraction < 1 else None,
    }
    return Stream(
        config=config,
        steps=steps,
        batch_size=batch_size,
        vocab=first + text_vocab,
        digest=hashlib.blake2b(json.dumps(made_from, sort_keys=True).encode(), digest_size=16).hexdigest(),
        sources=(*graded, *text),
        pattern=Pattern([*weights, *text_weights.values()]),
    )


def _open_graded(config: Data) -> tuple[list[GradedSource], list[float]]:
    """One source per graded task, and its weight among all rows."""
    if not config.graded:
        return [], []
    total, shares = config.source_weights["graded"], config.shares
    world = World(
        seed=config.world_seed, facts=config.facts, successors=config.successors, exceptions=config.exceptions
    )
    sources = [
        GradedSource(task=task.in_world(world), world=world, length=config.context + 1)
        for name, task in TASKS.items()
        if name in shares
    ]
    rows = [shares[source.task.name] / source.scored_per_row for source in sources]
    return sources, [total * row / sum(rows) for row in rows]


def _open_text(config: Data, specs: list[str]) -> tuple[list[TextSource], str, int]:
    """One source per text corpus, the digest of their common tokenizer and its vocabulary."""
    if not specs:
        return [], "", 0
    corpora = [open_corpus(spec, config) for spec in specs]
    tokenizer = open_tokenizer(corpora, config)
    sources: list[TextSource] = []
    for corpus, name in zip(corpora, _names(specs), strict=True):
        packed = open_packed(corpus, tokenizer, config)
        for part, tokens, remedy in (
            ("training", packed.train, "lower data.held_out"),
            ("held-out", packed.held_out, "raise data.held_out"),
        ):
            if len(tokens) < config.context + 1:
                raise ValueError(
                    f"data.context = {config.context}: the {part} part of {corpus.spec} has {len(tokens)} tokens, "
                    f"fewer than one window of {config.context + 1}; give more text, {remedy} or lower data.context"
                )
        sources.append(
            TextSource(
                task=_text_task(name),
                packed=packed,
                tokenizer=tokenizer,
                length=config.context + 1,
                offset=vocabulary.SIZE if config.graded else 0,
            )
        )
    return sources, tokenizer.digest, tokenizer.vocab


def _names(specs: list[str]) -> list[str]:
    """Task names of text sources: their specs without folders, so that no table holds a path; numbered where
    two would be the same."""
    names: list[str] = []
    for spec in specs:
        short = f"text:{PurePath(spec).name}" if spec.startswith("text:") else spec
        again = sum(name.split("#")[0] == short for name in names)
        names.append(f"{short}#{again + 1}" if again else short)
    return names


def _text_task(name: str) -> Task:
    """Text as a task."""
    return Task(
        name=name,
        title=f"next token of {name}",
        chance=None,
        ceiling=None,
        scored="every token",
        knobs="",
        level="",
    )
