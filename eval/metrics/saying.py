"""What a model says behind a prompt, token by token with a key-value cache, at several temperatures at once.

A token is the largest of logits + temperature x Gumbel noise: at temperature 0 the most likely one, else drawn from
softmax(logits / temperature) (Maddison et al. 2014, arXiv 1411.0030, section 2).  The noise follows from the prompt
and the step alone: it is the same for every model and temperature, and whatever else is in the batch.  What differs
between two continuations is then the model.

Letters: P tokens of the prompt, C of the continuation, U temperatures, R = U x B rows, those of one temperature
together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.deviation import entropy
from wane.eval.metrics.largest import choice
from wane.scaling.edit import Edit, Params
from wane.scaling.generate import advance, empty_caches, extend
from wane.scaling.model import Cache, unembed
from wane.scaling.shape import Shape

NOISE_SEED = 0
MULTIPLIER = 2654435761  # odd: no digit of the number that a prompt is made into is lost


class Begun(NamedTuple):
    """A model behind its prompts: the residual stream behind the last block and the logits of their next token,
    caches with room for the continuation."""

    x_BD: Array
    logits_BV: Array
    caches: Cache


class Said(NamedTuple):
    """tokens_UBC; entropy_UBC: of the distribution, at temperature 1, that each token was taken from, nats."""

    tokens_UBC: Array
    entropy_UBC: Array


def begin(params: Params, prompt_BP: Array, room: int, shape: Shape, edit: Edit) -> Begun:
    """A model that has read the prompts.  params: merged with the edit's; room: how many tokens may follow.

    Raises ValueError for an edit of the input tokens, as `extend` does.
    """
    B, P = prompt_BP.shape
    x_BPD, caches = advance(params, prompt_BP, empty_caches(B, P + room, shape), shape, edit)
    return Begun(x_BPD[:, -1], unembed(params, x_BPD[:, -1:], shape)[:, 0], caches)


def noise_keys(prompt_BP: Array) -> Array:
    """One random key per prompt [B], made of its tokens."""
    power_P = np.cumprod(np.full(prompt_BP.shape[1], MULTIPLIER, np.uint32), dtype=np.uint32)
    number_B = jnp.sum(prompt_BP.astype(jnp.uint32) * power_P, axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(NOISE_SEED), number_B)


def noise_at(key_B: Array, step: Array | int, vocab: int) -> Array:
    """Gumbel noise [B, V] of one decoding step."""
    return jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), (vocab,)))(key_B)


def say(
    params: Params,
    begun: Begun,
    key_B: Array,
    length: int,
    shape: Shape,
    edit: Edit,
    temperatures: Array | Sequence[float],
) -> Said:
    """`length` tokens behind the prompts at every temperature [U].  params: merged with the edit's."""
    (B, V), U = begun.logits_BV.shape, len(temperatures)
    temperature_U11 = jnp.asarray(temperatures, jnp.float32)[:, None, None]

    def step(state: tuple[Array, Cache], at: Array) -> tuple[tuple[Array, Cache], Said]:
        logits_UBV, caches = state
        token_UB = choice(logits_UBV + temperature_U11 * noise_at(key_B, at, V))
        logits_R1V, caches = extend(params, token_UB.reshape(U * B, 1), caches, shape, edit)
        return (logits_R1V.reshape(U, B, V), caches), Said(token_UB, entropy(logits_UBV))

    state = jnp.broadcast_to(begun.logits_BV, (U, B, V)), repeated(begun.caches, U)
    _, said = lax.scan(step, state, jnp.arange(length))
    return Said(*(jnp.moveaxis(a, 0, -1) for a in said))


def repeated(caches: Cache, times: int) -> Cache:
    """Keys and values [L, B, ..] as [L, times x B, ..], all rows one time after the other; the length as it is."""
    return jax.tree.map(lambda a: jnp.concatenate([a] * times, axis=1) if a.ndim > 1 else a, caches)
