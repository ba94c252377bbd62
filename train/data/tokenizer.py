"""Tokenizers of text: bytes, and byte-level BPE (Sennrich et al. 2016) trained on the training documents."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """encode: UTF-8 documents to token ids.  decode: ids to text, U+FFFD where they are not UTF-8, nothing for the
    end of a document, which is `vocab - 1`.  bytes_V: how many bytes each token stands for, 0 for that end."""

    digest: str
    vocab: int
    bytes_V: np.ndarray
    encode: Callable[[list[bytes]], list[np.ndarray]]
    decode: Callable[[Sequence[int]], str]


def byte_tokenizer() -> Tokenizer:
    """One token per byte: 256 and the end of a document."""
    return Tokenizer(
        digest="bytes",
        vocab=257,
        bytes_V=np.array([1] * 256 + [0], np.int32),
        encode=lambda documents: [np.frombuffer(document, np.uint8) for document in documents],
        decode=lambda ids: bytes(i for i in ids if i < 256).decode(errors="replace"),
    )


def train_bpe(documents: Iterable[bytes], vocab: int) -> str:
    """The JSON of a byte-level BPE with at most `vocab - 1` tokens (fewer when the text has no more pairs
    to merge).  The same documents in the same order give the same JSON."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator((document.decode() for document in documents), trainer)
    return model.to_str()


def bpe_tokenizer(json: str) -> Tokenizer:
    """The tokenizer that `train_bpe` wrote."""
    from tokenizers import Tokenizer as Model

    model = Model.from_str(json)
    tokens = model.get_vocab()
    bytes_V = np.zeros(len(tokens) + 1, np.int32)
    for token, index in tokens.items():
        bytes_V[index] = len(token)  # byte-level BPE writes every byte as one character

    def encode(documents: list[bytes]) -> list[np.ndarray]:
        encodings = model.encode_batch_fast([document.decode() for document in documents])
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(ids: Sequence[int]) -> str:
        return model.decode([i for i in ids if i < len(tokens)])

    digest = hashlib.blake2b(json.encode(), digest_size=16).hexdigest()
    return Tokenizer(digest=digest, vocab=len(bytes_V), bytes_V=bytes_V, encode=encode, decode=decode)
