"""Corruption of the input: tokens substituted or deleted, embeddings moved at random or against the loss.

The first token of a sequence is never touched: it says what the sequence is (a tag, or the start of a text).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SUBSTITUTE, DELETE, NOISE = range(3)  # independent random numbers for each
HASH_BASE = np.uint32(0x9E3779B1)  # odd, so that no position is lost modulo 2^32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
    """None = untouched; every rate and size is a traced scalar.

    key: of the random choices, typed or as its data (an attack needs none); a sequence's corruption follows from
    it and the sequence, not from its batch.  direction_BSD: that of the noise or of the attack on this batch, as
    `halved`, where it is known (of one of them); None: it is found.
    """

    key: Array | None = None
    substitute: Array | None = None  # probability of each token after the first
    delete: Array | None = None  # probability of each token after the first
    noise: Array | None = None  # root mean square over that of the sequence's embeddings
    attack: Array | None = None  # norm over that of the sequence's embeddings, along the gradient of its loss
    direction_BSD: Array | None = None


def corrupt_tokens(tokens_BS: Array, corruption: Corruption | None, vocab: int) -> tuple[Array, Array | None]:
    """Tokens after substitution and deletion, and for each original position the corrupted position from which
    its next token is predicted (None: the same)."""
    source_BS = None
    if corruption is None:
        return tokens_BS, source_BS
    clean_BS = tokens_BS  # randomness follows the clean sequence
    if corruption.substitute is not None:
        replace = functools.partial(_substitute, rate=corruption.substitute, vocab=vocab)
        tokens_BS = jax.vmap(replace)(_keys(corruption.key, SUBSTITUTE, clean_BS), tokens_BS)
    if corruption.delete is not None:
        compact = functools.partial(_delete, rate=corruption.delete)
        tokens_BS, source_BS = jax.vmap(compact)(_keys(corruption.key, DELETE, clean_BS), tokens_BS)
    return tokens_BS, source_BS


def corrupt_embeddings(
    x_BSD: Array, tokens_BS: Array, corruption: Corruption | None, loss_B: Callable[[Array], Array]
) -> Array:
    """Embeddings with noise, then moved one step up the gradient of loss_B(x_BSD), each sequence's loss (the fast
    gradient method of Miyato et al. 2017, arXiv 1605.07725, eq. 5).  tokens_BS: before corruption."""
    if corruption is None:
        return x_BSD
    known_BSD = corruption.direction_BSD
    if corruption.noise is not None:
        normal_BSD = isotropic(corruption.key, tokens_BS, x_BSD.shape[-1]) if known_BSD is None else known_BSD
        x_BSD = _move(x_BSD, normal_BSD, corruption.noise)
    if corruption.attack is not None:
        found = known_BSD is None
        up_BSD = halved(jax.grad(lambda x_BSD: loss_B(x_BSD).sum())(x_BSD)) if found else known_BSD
        x_BSD = _move(x_BSD, up_BSD, corruption.attack)
    return x_BSD


def isotropic(key: Array, tokens_BS: Array, d_model: int) -> Array:
    """The direction of noise on embeddings [B, S, D], `halved`; key as in `Corruption`."""
    keys = _keys(key, NOISE, tokens_BS)
    return halved(jax.vmap(lambda key: jax.random.normal(key, (tokens_BS.shape[1], d_model)))(keys))


def halved(direction_BSD: Array) -> Array:
    """A direction in half precision, its largest entry 1.  A sweep keeps those of all its sequences: this halves
    their memory and turns each by an angle of about 1e-4."""
    d = direction_BSD.astype(jnp.float32)
    largest = jnp.max(jnp.abs(d), axis=(1, 2), keepdims=True)
    return (d / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)).astype(jnp.float16)


def _substitute(key: Array, tokens_S: Array, rate: Array, vocab: int) -> Array:
    """Each token with probability `rate` becomes one of the others; at a larger rate the same tokens and more."""
    chosen_S = _chosen(key, len(tokens_S), rate)
    shift_S = jax.random.randint(jax.random.fold_in(key, 0), tokens_S.shape, 1, vocab)
    return jnp.where(chosen_S, (tokens_S + shift_S) % vocab, tokens_S)


def _delete(key: Array, tokens_S: Array, rate: Array) -> tuple[Array, Array]:
    """Survivors moved to the front (deleted tokens stand behind them, where no survivor attends to them), and the
    new position of the last survivor at or before each old one."""
    kept_S = ~_chosen(key, len(tokens_S), rate)
    order_S = jnp.argsort(~kept_S, stable=True)
    return tokens_S[order_S], jnp.cumsum(kept_S) - 1


def _chosen(key: Array, length: int, rate: Array) -> Array:
    """bool [S]: each position after the first with probability `rate`, nested in it."""
    return (jax.random.uniform(key, (length,)) < rate).at[0].set(False)


def _move(x_BSD: Array, direction_BSD: Array, size: Array) -> Array:
    """x plus a step of norm size |x| along a direction, sequence by sequence; a constant to the gradient."""
    x, d = x_BSD.astype(jnp.float32), direction_BSD.astype(jnp.float32)
    norm_x, norm_d = (jnp.sqrt(jnp.sum(jnp.square(a), axis=(1, 2), keepdims=True)) for a in (x, d))
    nothing = jnp.finfo(jnp.float32).tiny  # where no direction lowers the loss, none is taken
    step = lax.stop_gradient(size * norm_x * d / jnp.maximum(norm_d, nothing)).astype(x_BSD.dtype)
    return jnp.where(size > 0, x_BSD + step, x_BSD)


def _keys(key: Array, purpose: int, tokens_BS: Array) -> Array:
    """One key per sequence, from its own tokens: another batch or order of the sequences changes nothing."""
    key = jax.random.fold_in(key, purpose)
    powers_S = np.cumprod(np.full(tokens_BS.shape[1], HASH_BASE), dtype=np.uint32)
    hash_B = jnp.sum((tokens_BS.astype(jnp.uint32) + 1) * powers_S, axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, hash_B)
