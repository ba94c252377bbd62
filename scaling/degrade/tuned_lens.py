"""Tuned lens: an affine translator per exit that makes the last states of a shortened model fit the final norm."""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from wane.scaling.degrade.similarity import hidden_states, scored
from wane.scaling.degrade.stream import batched, over_batches
from wane.scaling.edit import Lens, Params
from wane.scaling.model import unembed
from wane.scaling.shape import Shape


def tuned_lens(params: Params, tokens_NT: Array, shape: Shape, *, steps: int, learning_rate: float) -> Lens:
    """Translators for the exits after 0 .. L blocks, stacked: map [L + 1, D, D], bias [L + 1, D]; the last is the
    identity.

    Each minimises KL(full model || exit) over the calibration tokens, from the identity on (Belrose et al. 2023,
    arXiv 2303.08112, section 3).  All exits are fitted together, by Adam with a rate that falls linearly to 0;
    step i reads batch i of the calibration set, round and round.
    """
    batches = batched(tokens_NT)
    size_L = stream_sizes(params, tokens_NT, shape)
    optimizer = optax.adam(optax.linear_schedule(learning_rate, 0.0, steps))

    def scaled(delta: Lens) -> Lens:
        # Biases in units of the stream's size, which is .01 behind the embedding and 1 at the end: Adam's steps
        # are of one size for all.
        return Lens(delta.map_DD, delta.bias_D * size_L[:, None])

    def divergence(delta: Lens, tokens_BT: Array) -> Array:
        h_PBSD = hidden_states(params, tokens_BT, shape).astype(jnp.float32)
        full_BSV = jax.nn.log_softmax(unembed(params, h_PBSD[-1], shape))

        @jax.checkpoint  # one exit's logits in memory
        def of_exit(exit: tuple[Array, Lens]) -> Array:
            h_BSD, (map_DD, bias_D) = exit
            exit_BSV = jax.nn.log_softmax(unembed(params, h_BSD + h_BSD @ map_DD + bias_D, shape))
            return jnp.sum(jnp.exp(full_BSV) * (full_BSV - exit_BSV), axis=-1).mean()

        return lax.map(of_exit, (h_PBSD[:-1], scaled(delta))).sum()

    def step(state, i):
        delta, moments = state
        gradient = jax.grad(divergence)(delta, batches[i % len(batches)])
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(delta, updates), moments), None

    L, D = shape.n_layers, shape.d_model
    untouched = Lens(jnp.zeros((L, D, D)), jnp.zeros((L, D)))
    (delta, _), _ = lax.scan(step, (untouched, optimizer.init(untouched)), jnp.arange(steps))
    map_LDD, bias_LD = scaled(delta)
    with_full = Lens(jnp.zeros((L + 1, D, D)).at[:L].set(map_LDD), jnp.zeros((L + 1, D)).at[:L].set(bias_LD))
    return with_full._replace(map_DD=with_full.map_DD + jnp.eye(D))


def stream_sizes(params: Params, tokens_NT: Array, shape: Shape) -> Array:
    """[L]: root mean square of the residual stream's entries before each block."""

    def of_batch(tokens_BT: Array) -> Array:
        return jnp.square(hidden_states(params, tokens_BT, shape)[:-1].astype(jnp.float32)).sum((1, 2, 3))

    return jnp.sqrt(over_batches(of_batch, tokens_NT) / (scored(tokens_NT) * shape.d_model))
