"""Text tokenised and packed once into memory-mapped arrays, one for training and one held out."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from wane.train.data import cache
from wane.train.data.corpus import Corpus
from wane.train.data.spec import Data
from wane.train.data.tokenizer import Tokenizer, bpe_tokenizer, byte_tokenizer, train_bpe

LAYOUT = 1  # of the cache entries; raise it when what is in them changes
CHUNK = 256  # documents tokenised at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Documents one after the other, each followed by the end-of-document token."""

    digest: str  # of both arrays
    train: np.ndarray  # 1-D, memory-mapped; after unique_fraction
    held_out: np.ndarray
    documents: dict[str, int]  # how many: train, unique (of those, used), held_out


def is_held_out(document: bytes, fraction: float) -> bool:
    """Decided by the content alone: stable when documents are added, and copies fall on the same side."""
    return _share(document, b"held out") < fraction


def open_tokenizer(corpora: list[Corpus], config: Data) -> Tokenizer:
    """The one tokenizer of all text sources; bpe is trained on all their training documents and cached."""
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    from tokenizers import __version__

    made_from = [corpus.digest for corpus in corpora], config.bpe_vocab, config.held_out, __version__

    def make() -> dict[str, Iterable[bytes]]:
        documents = (d for c in corpora for d in c.documents() if not is_held_out(d, config.held_out))
        return {"tokenizer.json": [train_bpe(documents, config.bpe_vocab).encode()]}

    folder, _ = cache.entry(f"bpe-{cache.key(LAYOUT, made_from)}", make)
    return bpe_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))


def open_packed(corpus: Corpus, tokenizer: Tokenizer, config: Data) -> Packed:
    """The packed corpus, from the cache where it is whole, else made and cached.
    Raises OSError naming the cache when it cannot be written."""
    made_from = corpus.digest, tokenizer.digest, config.held_out, config.unique_fraction
    folder, digests = cache.entry(
        f"pack-{cache.key(LAYOUT, made_from)}", lambda: _pack(corpus, tokenizer, config)
    )
    dtype = _dtype(tokenizer)
    return Packed(
        digest=cache.key(digests["train"], digests["held_out"]),
        train=_map(folder / "train", dtype),
        held_out=_map(folder / "held_out", dtype),
        documents=json.loads((folder / "documents.json").read_bytes()),
    )


def _pack(corpus: Corpus, tokenizer: Tokenizer, config: Data) -> dict[str, Iterable[bytes]]:
    """The files of a pack as chunks of bytes; the last one counts what the first two wrote."""
    train = (d for d in corpus.documents() if not is_held_out(d, config.held_out))
    ranks = sorted({_share(document, b"unique") for document in train})
    last = ranks[math.ceil(config.unique_fraction * len(ranks)) - 1] if ranks else 0.0
    count = {"train": 0, "unique": 0, "held_out": 0}

    def part(held_out: bool) -> Iterator[bytes]:
        for document in corpus.documents():
            if is_held_out(document, config.held_out) != held_out:
                continue
            count["held_out" if held_out else "train"] += 1
            if held_out or _share(document, b"unique") <= last:
                count["unique"] += not held_out
                yield document

    return {
        "train": _token_bytes(part(held_out=False), tokenizer),
        "held_out": _token_bytes(part(held_out=True), tokenizer),
        "documents.json": (json.dumps(count).encode() for _ in range(1)),
    }


def _token_bytes(documents: Iterator[bytes], tokenizer: Tokenizer) -> Iterator[bytes]:
    dtype = _dtype(tokenizer)
    end = np.array([tokenizer.vocab - 1], dtype).tobytes()
    while chunk := list(islice(documents, CHUNK)):
        for ids in tokenizer.encode(chunk):
            yield ids.astype(dtype).tobytes() + end


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab <= 2**16 else "<u4")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _share(document: bytes, purpose: bytes) -> float:
    """A number in [0, 1) that depends on the content only; one sequence of numbers per purpose."""
    digest = hashlib.blake2b(document, digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little") / 2**64
