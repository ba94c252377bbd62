"""What the degraded model says by itself behind the first half of a window, beside what the undegraded one says:
greedily (temperature 0) and sampled with the same noise (`saying.py`).

Costs the prompt once more for both models, and U rows per window through as many steps as a continuation has: on a
CPU core, of windows of 256 tokens, as much as thirteen forward passes, and a fourth of `generation.py`.
Letters as in `saying.py`: C tokens of the continuation, U temperatures.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.contract import Place, SequenceMetric
from wane.eval.metrics.once import once
from wane.eval.metrics.saying import Begun, Said, begin, noise_keys, say
from wane.eval.metrics.view import View
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

LONGEST = 32  # tokens of a continuation; a window's second half where that is shorter
TEMPERATURES = (0.0, 0.7, 1.0)
NGRAM = 4  # of repetition
OCTAVES = tuple(2**i for i in range(LONGEST.bit_length()))  # of decoding steps, told by the first
MODELS = ("dense", "degraded")


def halves(S: int) -> tuple[int, int]:
    """(tokens of the prompt, tokens of the continuation) of a window that predicts S tokens."""
    return S // 2, min(LONGEST, S - S // 2)


def model_of(view: View, name: str) -> tuple[Params, Edit]:
    """Merged parameters and edit of one of MODELS."""
    return {"dense": (view.params, Edit()), "degraded": (view.degraded, view.edit)}[name]


@once
def begun(view: View) -> dict[str, Begun]:
    """Both models behind the first half of every window."""
    P, C = halves(view.targets_BS.shape[1])

    def of(name: str) -> Begun:
        params, edit = model_of(view, name)
        return begin(params, view.batch.tokens_BT[:, :P], C, view.shape, edit)

    return {name: of(name) for name in MODELS}


@once
def said(view: View) -> dict[str, Said]:
    """What both models say there."""
    P, C = halves(view.targets_BS.shape[1])
    key_B = noise_keys(view.batch.tokens_BT[:, :P])

    def of(name: str) -> Said:
        params, edit = model_of(view, name)
        return say(params, begun(view)[name], key_B, C, view.shape, edit, TEMPERATURES)

    return {name: of(name) for name in MODELS}


def same(view: View) -> Array:
    """Whether both models say the same token, bool [U, B, C]."""
    return said(view)["dense"].tokens_UBC == said(view)["degraded"].tokens_UBC


def first_divergence(view: View) -> tuple[Array, Array]:
    together_UB = jnp.cumprod(same(view), axis=-1).sum(axis=-1)
    return together_UB.T.astype(jnp.float32), jnp.ones(together_UB.T.shape, jnp.float32)


def by_octave(value_BUC: Array) -> tuple[Array, Array]:
    """(sum, count) [B, U x octaves] over decoding steps 1, 2 to 3, 4 to 7, ..; count 0 of those not reached."""
    B, U, C = value_BUC.shape
    octave_OC = np.floor(np.log2(1 + np.arange(C))) == np.arange(len(OCTAVES))[:, None]
    sum_BUO = jnp.where(octave_OC, value_BUC[:, :, None], 0).sum(axis=-1)
    counts = jnp.asarray(np.tile(octave_OC.sum(axis=-1), (B, U)), jnp.float32)
    return sum_BUO.reshape(B, -1).astype(jnp.float32), counts


def agreement(view: View) -> tuple[Array, Array]:
    return by_octave(jnp.moveaxis(same(view), 1, 0))


def said_before(tokens_UBC: Array, n: int) -> Array:
    """Whether each run of n tokens came before in the same row, bool [U, B, C - n + 1]."""
    M = max(tokens_UBC.shape[-1] - n + 1, 0)
    runs_UBMn = jnp.stack([tokens_UBC[..., i : i + M] for i in range(n)], axis=-1)
    equal_UBMM = jnp.all(runs_UBMn[..., :, None, :] == runs_UBMn[..., None, :, :], axis=-1)
    return jnp.any(equal_UBMM & np.tri(M, k=-1, dtype=bool), axis=-1)


def share_of_runs(n: int, before: bool) -> Callable[[View], tuple[Array, Array]]:
    """(sum, count) [B, U] of the runs of n tokens that came before in the degraded model's continuation, or not."""

    def measure(view: View) -> tuple[Array, Array]:
        return told(said_before(said(view)["degraded"].tokens_UBC, n) == before)

    return measure


def output_entropy(view: View) -> tuple[Array, Array]:
    return told(said(view)["degraded"].entropy_UBC)


def told(value_UBC: Array) -> tuple[Array, Array]:
    """(sum, count) [B, U] over the last axis."""
    total_BU = value_UBC.astype(jnp.float32).sum(axis=-1).T
    return total_BU, jnp.full(total_BU.shape, value_UBC.shape[-1], jnp.float32)


def temperatures(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place("temperature", temperature) for temperature in TEMPERATURES)


def steps(shape: Shape) -> tuple[Place, ...]:
    return tuple(
        Place("step", float(step), part=f"temperature {temperature:g}")
        for temperature in TEMPERATURES
        for step in OCTAVES
    )


def _distinct(n: int) -> SequenceMetric:
    runs = "tokens" if n == 1 else f"runs of {n} tokens"
    return SequenceMetric(
        name=f"distinct_{n}",
        unit="fraction",
        meaning=f"{runs} of a continuation that differ, over all of its {runs}",
        better="neither",
        measure=share_of_runs(n, before=False),
        places=temperatures,
        free_running=True,
    )


METRICS = (
    SequenceMetric(
        name="first_divergence",
        unit="tokens",
        meaning=f"tokens of a continuation before it parts from the undegraded model's; at most {LONGEST}",
        better="higher",
        measure=first_divergence,
        places=temperatures,
        free_running=True,
        relative=True,
    ),
    SequenceMetric(
        name="agreement_by_step",
        unit="fraction",
        meaning="share of continuations with the undegraded model's token at a decoding step, in octaves of steps",
        better="higher",
        measure=agreement,
        places=steps,
        free_running=True,
        relative=True,
    ),
    SequenceMetric(
        name="repetition",
        unit="fraction",
        meaning=f"share of a continuation's runs of {NGRAM} tokens that came before in it",
        better="neither",
        measure=share_of_runs(NGRAM, before=True),
        places=temperatures,
        free_running=True,
    ),
    *(_distinct(n) for n in (1, 2, 3)),
    SequenceMetric(
        name="output_entropy",
        unit="nats/token",
        meaning="entropy of the next-token distribution, at temperature 1, along the continuation",
        better="neither",
        measure=output_entropy,
        places=temperatures,
        free_running=True,
    ),
)
