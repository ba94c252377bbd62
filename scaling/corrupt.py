"""Corruption of the input: tokens substituted or deleted, embeddings moved at random or against the loss."""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
    """None = untouched; every rate and size is a traced scalar.

    key: of the random choices; a sequence's corruption follows from it and the sequence, not from its batch.
    """

    key: Array
    substitute: Array | None = None  # share of tokens
    delete: Array | None = None  # share of tokens
    noise: Array | None = None  # root mean square over that of the embeddings
    attack: Array | None = None  # norm over that of the sequence's embeddings, along the gradient of its loss


def corrupt_tokens(tokens_BS: Array, corruption: Corruption | None, vocab: int) -> tuple[Array, Array | None]:
    """Tokens after substitution and deletion, and for each original position the corrupted position from which
    its next token is predicted (None: the same)."""
    return tokens_BS, None


def corrupt_embeddings(
    x_BSD: Array, tokens_BS: Array, corruption: Corruption | None, loss_B: Callable[[Array], Array]
) -> Array:
    """Embeddings with noise, then moved up the gradient of loss_B(x_BSD), each sequence's loss."""
    return x_BSD
