"""What is lost beyond what nobody can know, and how much of what training told is known.

`excess_nll`: mean NLL of scored tokens minus their entropy, where a task says it (`Task.entropy`): the entropy rate
of L1 and L1o2, the unigram entropy of L0, that of G under a told topic, and of X 0 or 1.208 nats by cell, so that
near and far, certain and by chance are told on one scale.  A finite set may fall a little below 0.

`topic_gain_by_level`: what of G is gained over who knows all of the language but the topic of the row, by octave of
the place, and apart for topics that are told and those that have to be inferred.  Late in the row a told topic is
far away.

`recovered_bits` of K and K3: the lower bound of Allen-Zhu & Li 2024 (arXiv 2404.05405, "bit complexity") on what a
model stores, in its term of values: tokens of facts in the world x max(0, log2 64 - mean NLL / ln 2), over the
non-embedding parameters of the trained shape.  Names are not counted, since here they are asked and never said.
The mean is taken first, as there: cut off answer by answer, guesses that happen to be right would count.  It is
measured in forms that training never uses, so it is what can be extracted, not all that is stored.
"""

import math

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.answers import level_loss
from wane.eval.metrics.contract import SequenceMetric, TokenMetric, per_sequence
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape
from wane.train.data import Task
from wane.train.data.graded_topic import BLIND_NATS, KNOWN_NATS


def excess(view: View) -> tuple[Array, Array]:
    known_BS = view.scored_BS & (view.batch.entropy_BS >= 0)
    return jnp.where(known_BS, view.nll_BS - view.batch.entropy_BS, 0.0), known_BS


def gain(view: View) -> tuple[Array, Array]:
    return BLIND_NATS - view.nll_BS, view.scored_BS & is_task(view, "G")[:, None]


def gain_bounds(task: Task) -> tuple[float | None, float | None]:
    return 0.0, BLIND_NATS - KNOWN_NATS


def recovered(nll: float, task: Task, shape: Shape) -> float | None:
    if not task.stored:
        return None
    if not math.isfinite(nll):
        return math.nan
    bits = max(0.0, -math.log2(task.chance) - nll / math.log(2))
    return task.stored * bits / shape.param_counts()["non_embedding"]


METRICS = (
    SequenceMetric(
        name="excess_nll",
        unit="nats/token",
        meaning="negative log-likelihood of scored tokens above their entropy, in tasks whose entropy is known",
        better="lower",
        measure=per_sequence(excess),
    ),
    TokenMetric(
        name="excess_nll_by_level",
        unit="nats/token",
        meaning="excess_nll at each difficulty of a graded task: in X that of each cell",
        better="lower",
        measure=excess,
        by="level",
    ),
    TokenMetric(
        name="topic_gain_by_level",
        unit="nats/token",
        meaning="nats per symbol of task G gained over who knows all but the topic, by octave of the place and for "
        "topics that are told (0) or hidden (1)",
        better="higher",
        measure=gain,
        by="level",
        bounds=gain_bounds,
    ),
    SequenceMetric(
        name="recovered_bits",
        unit="bits/parameter",
        meaning="facts of K and K3 that the model can tell, in bits per non-embedding parameter (a lower bound)",
        better="higher",
        measure=per_sequence(level_loss),
        of_task=recovered,
    ),
)
