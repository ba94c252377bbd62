"""Graded tasks beyond accuracy: by difficulty, as a forced choice, and one answer read out in several ways.

The readouts differ only in what the answer competes with: every token, the values of the task, four options, or the
foil.  Items are the same, so what they differ in is that competition.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.contract import SequenceMetric, TokenMetric, per_sequence
from wane.eval.metrics.floor import most_frequent
from wane.eval.metrics.largest import choice, lead
from wane.eval.metrics.loss import all_tokens, hit, task_bounds
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape
from wane.train.data import TASKS, Task
from wane.train.data.options import OPTIONS, values_of

MOST_VALUES = max(task.answers[1] for task in TASKS.values())


def logit_of(logits_BSV: Array, token_BS: Array) -> Array:
    """The logit of one token per position [B, S]; of token 0 where there is none (-1)."""
    return jnp.take_along_axis(logits_BSV, jnp.maximum(token_BS, 0)[..., None], axis=-1)[..., 0]


def cut_to_values(logits_BSV: Array, values_B2: Array) -> tuple[Array, Array]:
    """The logits of the task's values, -inf for other tokens [B, S, M], and the token that these M begin with
    [B, 1].  Without the rest of the vocabulary everything that is told of values costs a quarter."""
    V = logits_BSV.shape[-1]
    M = min(MOST_VALUES, V)
    first_B1, count_B1 = jnp.split(values_B2, 2, axis=1)
    start_B1 = jnp.minimum(first_B1, V - M)
    cut = jax.vmap(lambda logits_SV, start: lax.dynamic_slice_in_dim(logits_SV, start, M, axis=1))
    place_BM = start_B1 + jnp.arange(M) - first_B1
    is_value_BM = (place_BM >= 0) & (place_BM < count_B1)
    return jnp.where(is_value_BM[:, None], cut(logits_BSV, start_B1[:, 0]), -jnp.inf), start_B1


def among_values(view: View) -> Array:
    return cut_to_values(view.logits_BSV, view.batch.values_B2)[0]


def has_values(view: View) -> Array:
    return view.scored_BS & (view.batch.values_B2[:, 1:] > 0)


def any_token(logits_BSV: Array, options_BSO: Array, values_B2: Array) -> Array:
    return choice(logits_BSV)


def best_value(logits_BSV: Array, options_BSO: Array, values_B2: Array) -> Array:
    logits_BSM, start_B1 = cut_to_values(logits_BSV, values_B2)
    return start_B1 + choice(logits_BSM)


def best_option(logits_BSV: Array, options_BSO: Array, values_B2: Array) -> Array:
    """-1 where there is none.  Options stand in random order: which of equal logits is taken favours none."""
    logits_BSO = jnp.take_along_axis(logits_BSV, jnp.maximum(options_BSO, 0), axis=-1)
    best_BS1 = jnp.argmax(jnp.where(options_BSO < 0, -jnp.inf, logits_BSO), axis=-1)[..., None]
    return jnp.take_along_axis(options_BSO, best_BS1, axis=-1)[..., 0]


def among_options(view: View) -> Array:
    """The logits of the options, -inf where an item has fewer, and 0 where nothing is asked [B, S, O]."""
    options_BSO = view.batch.options_BSO
    logits_BSO = jnp.take_along_axis(view.logits_BSV, jnp.maximum(options_BSO, 0), axis=-1)
    none = jnp.where(has_values(view), -jnp.inf, 0.0)[..., None]
    return jnp.where(options_BSO < 0, none, logits_BSO)


def log_odds(view: View) -> tuple[Array, Array]:
    foil_BS = view.batch.foil_BS
    odds_BS = logit_of(view.logits_BSV, view.targets_BS) - logit_of(view.logits_BSV, foil_BS)
    return odds_BS, view.scored_BS & (foil_BS >= 0)


def forced_choice(view: View) -> tuple[Array, Array]:
    odds_BS, counted_BS = log_odds(view)
    # sign + 1 is 0, 1 or 2: a tie counts one half, and what is not finite stays so
    return (jnp.sign(odds_BS) + 1) / 2, counted_BS


def margin(view: View) -> tuple[Array, Array]:
    return lead(view.logits_BSV, view.targets_BS), view.scored_BS


def answer_entropy(view: View) -> tuple[Array, Array]:
    counted_BS = has_values(view)
    # text has no values: there all logits would be -inf
    logits_BSM = jnp.where(counted_BS[..., None], among_values(view), 0.0)
    logits_BSM = logits_BSM - logits_BSM.max(axis=-1, keepdims=True)
    p_BSM = jnp.exp(logits_BSM)  # before it is divided by its sum
    total_BS = p_BSM.sum(axis=-1)
    mean_BS = jnp.where(p_BSM > 0, p_BSM * logits_BSM, 0.0).sum(axis=-1) / total_BS
    return jnp.log(total_BS) - mean_BS, counted_BS


def level_loss(view: View) -> tuple[Array, Array]:
    return view.nll_BS, view.scored_BS


def certain(task: Task) -> float | None:
    """The ceiling among fewer tokens: known where nothing is by chance."""
    return 1.0 if task.ceiling == 1 else None


def option_bounds(task: Task) -> tuple[float | None, float | None]:
    return 1 / min(OPTIONS, values_of(task)[1]), certain(task)


def choice_bounds(task: Task) -> tuple[float | None, float | None]:
    return 1 / 2, certain(task)


def its_values(task: Task, shape: Shape) -> int | None:
    return values_of(task)[1] or None


def its_options(task: Task, shape: Shape) -> int | None:
    return min(OPTIONS, values_of(task)[1]) or None


def two(task: Task, shape: Shape) -> int:
    return 2


class Readout(NamedTuple):
    """What an answer competes with.  best(logits [B, S, V], options [B, S, O], values [B, 2]) -> the token that is
    preferred there [B, S]; counted: the tokens of a view that are answers of this kind; bounds, among: of one
    token."""

    best: Callable[[Array, Array, Array], Array]
    counted: Callable[[View], Array]
    bounds: Callable[[Task], tuple[float | None, float | None]]
    among: Callable[[Task, Shape], int | None]


READOUTS = {
    "options": Readout(best_option, has_values, option_bounds, its_options),
    "values": Readout(best_value, has_values, task_bounds, its_values),
    "vocabulary": Readout(any_token, lambda view: view.scored_BS, task_bounds, all_tokens),
}


def preferred(view: View, readout: str) -> Array:
    """The token that one of READOUTS takes behind the true tokens, [B, S]."""
    return READOUTS[readout].best(view.logits_BSV, view.batch.options_BSO, view.batch.values_B2)


def hit_of(readout: str) -> Callable[[View], tuple[Array, Array]]:
    def measure(view: View) -> tuple[Array, Array]:
        hit_BS = preferred(view, readout) == view.targets_BS
        return hit_BS.astype(jnp.float32), READOUTS[readout].counted(view)

    return measure


METRICS = (
    SequenceMetric(
        name="accuracy_of_values",
        unit="fraction",
        meaning="share of answers that are the most likely of the task's values",
        better="higher",
        measure=per_sequence(hit_of("values")),
        bounds=task_bounds,
        among=its_values,
        floor=most_frequent,
    ),
    SequenceMetric(
        name="accuracy_of_options",
        version=4,
        unit="fraction",
        meaning="share of answers that are the most likely of 4 options, the foil among them where there is one",
        better="higher",
        measure=per_sequence(hit_of("options")),
        bounds=option_bounds,
        among=its_options,
    ),
    SequenceMetric(
        name="forced_choice",
        version=2,
        unit="fraction",
        meaning="share of answers that are more likely than their foil (2AFC); ties count one half",
        better="higher",
        measure=per_sequence(forced_choice),
        bounds=choice_bounds,
        among=two,
    ),
    SequenceMetric(
        name="log_odds",
        version=2,
        unit="nats",
        meaning="log p(answer) - log p(foil)",
        better="higher",
        measure=per_sequence(log_odds),
    ),
    SequenceMetric(
        name="margin",
        unit="nats",
        meaning="logit of the answer minus the largest other logit, on scored tokens",
        better="higher",
        measure=per_sequence(margin),
    ),
    SequenceMetric(
        name="answer_entropy",
        unit="nats",
        meaning="entropy of the prediction among the task's values, where an answer is scored",
        better="neither",
        measure=per_sequence(answer_entropy),
    ),
    TokenMetric(
        usual=True,  # the competence gate asks for it
        name="accuracy_by_level",
        unit="fraction",
        meaning="accuracy at each difficulty of a graded task",
        better="higher",
        measure=hit,
        by="level",
        bounds=task_bounds,
        among=all_tokens,
    ),
    TokenMetric(
        name="loss_by_level",
        unit="nats/token",
        meaning="negative log-likelihood of answers at each difficulty of a graded task",
        better="lower",
        measure=level_loss,
        by="level",
    ),
    TokenMetric(
        name="forced_choice_by_level",
        version=2,
        unit="fraction",
        meaning="forced_choice at each difficulty of a graded task",
        better="higher",
        measure=forced_choice,
        by="level",
        bounds=choice_bounds,
        among=two,
    ),
    TokenMetric(
        name="log_odds_by_level",
        version=2,
        unit="nats",
        meaning="log_odds at each difficulty of a graded task",
        better="higher",
        measure=log_odds,
        by="level",
    ),
)
