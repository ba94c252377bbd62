"""Answers that the degraded model gives when it hears itself: free-running, beside teacher-forced ones of the same
items.

An answer is a run of scored tokens.  Inside it the model reads what it said; before it, and again behind it, the
true tokens: errors spread within an answer and not to the next.  It says the most likely token, or one drawn at the
study's temperature (`Evaluation.temperature`) with noise that follows from row and place alone, the same for
every model (`saying.py`).  It goes token by token with a key-value cache, once for the truth and once for what is
said, and costs several forward passes.

Letters: R readouts (`answers.READOUTS`), each of which hears itself.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.answers import READOUTS, certain
from wane.eval.metrics.contract import TokenMetric
from wane.eval.metrics.loss import all_tokens, task_bounds
from wane.eval.metrics.once import once
from wane.eval.metrics.saying import noise_at, noise_keys
from wane.eval.metrics.view import View
from wane.scaling.generate import empty_caches, extend
from wane.train.data import Task

RESTRICTED = ("options", "values")


@once
def said(view: View) -> Array:
    """What the model says at every position, [B, S]: behind the true tokens and, inside an answer, its own."""
    return decoded(view, ("vocabulary",))[0]


@once
def said_among(view: View) -> dict[str, Array]:
    """The same where it may only say one of the options, or one of the task's values: readout -> [B, S].  Both go
    together, so that the truth is read once."""
    return dict(zip(RESTRICTED, decoded(view, RESTRICTED), strict=True))


def decoded(view: View, readouts: tuple[str, ...]) -> Array:
    """`said` by each of these readouts, [R, B, S]."""
    batch, tokens_BS = view.batch, view.batch.tokens_BT[:, :-1]
    (B, S), V = tokens_BS.shape, view.shape.vocab
    # The token that is read was itself an answer, to every readout.
    inside_BS = jnp.pad(_counted(view, readouts)[:, :-1], ((0, 0), (1, 0)))
    noise = _noise(view, V)

    def step(state: tuple, read: tuple) -> tuple[tuple, Array]:
        caches, last_RB = state
        place, token_B, inside_B, *options_BO = read
        # The first B rows read the truth, the others what was said; outside answers these forget what they said.
        caches = jax.tree.map(lambda a: _restored(a, inside_B, len(readouts)), caches)
        read_RB = jnp.concatenate([token_B[None], jnp.where(inside_B, last_RB, token_B)])
        logits, caches = extend(view.degraded, read_RB.reshape(-1, 1), caches, view.shape, view.edit)
        noisy_RB1V = logits[B:].reshape(len(readouts), B, 1, V) + noise(place)
        options_B1O = options_BO[0][:, None] if options_BO else None
        last_RB = jnp.stack(
            [
                READOUTS[readout].best(z_B1V, options_B1O, batch.values_B2)[:, 0]
                for readout, z_B1V in zip(readouts, noisy_RB1V, strict=True)
            ]
        )
        return (caches, last_RB), last_RB

    state = (
        empty_caches((1 + len(readouts)) * B, S, view.shape),
        jnp.zeros((len(readouts), B), tokens_BS.dtype),
    )
    reads = jnp.arange(S), tokens_BS.T, inside_BS.T
    if "options" in readouts:
        reads += (jnp.moveaxis(batch.options_BSO, 1, 0),)
    _, said_SRB = lax.scan(step, state, reads)
    return jnp.moveaxis(said_SRB, 0, -1)


def _counted(view: View, readouts: tuple[str, ...]) -> Array:
    counted = [READOUTS[readout].counted(view) for readout in readouts]
    return jnp.all(jnp.stack(counted), axis=0)


def _noise(view: View, V: int):
    """place -> temperature x Gumbel noise, [B, 1, V] or 0.  Nothing is drawn where all temperatures are 0."""
    temperature_B = view.batch.temperature_B
    if temperature_B is None:
        return lambda place: 0.0
    key_B = noise_keys(view.batch.tokens_BT)

    def at(place: Array) -> Array:
        drawn = lambda: temperature_B[:, None] * noise_at(key_B, place, V)  # noqa: E731
        return lax.cond(jnp.any(temperature_B > 0), drawn, lambda: jnp.zeros((len(key_B), V)))[:, None]

    return at


def _restored(leaf: Array, inside_B: Array, readouts: int) -> Array:
    """Keys or values [L, (1 + R) B, ...]: those of what was said are the true ones again where no answer is going
    on."""
    if leaf.ndim < 3:  # the length
        return leaf
    true, *own = jnp.split(leaf, 1 + readouts, axis=1)
    keep = inside_B.reshape(1, -1, *[1] * (leaf.ndim - 2))
    return jnp.concatenate([true, *(jnp.where(keep, one, true) for one in own)], axis=1)


def hit(view: View) -> tuple[Array, Array]:
    return (said(view) == view.targets_BS).astype(jnp.float32), view.scored_BS


def whole_bounds(task: Task) -> tuple[float | None, float | None]:
    """Chance of a whole answer depends on its length."""
    return None, certain(task)


METRICS = (
    TokenMetric(
        name="accuracy_free_running_by_level",
        unit="fraction",
        better="higher",
        measure=hit,
        free_running=True,
        by="level",
        bounds=task_bounds,
        among=all_tokens,
        meaning="accuracy_free_running at each difficulty",
    ),
)
