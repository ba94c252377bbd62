"""How stable answers are: over samples at a temperature, over other wordings of a question (task K), and over
draws of a random degradation.

Who always says the same agrees with himself.  So beside the agreement stands that of answers about other
entities, or to other items, which is what agreement is by chance (`wane.eval.stability.beyond_chance`).  The stream
asks for the same fact again in other rows; the pairs are those within a batch, fewer the more facts there
are: a row's count tells how many.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.answers import among_values, has_values, preferred
from wane.eval.metrics.contract import DrawMetric, Place, SequenceMetric, per_sequence
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape
from wane.train.data import Task
from wane.train.data.graded_facts import ATTRIBUTE_WORD, ATTRIBUTES, TEMPLATES
from wane.train.data.options import values_of
from wane.train.data.vocabulary import KEY, KEYS, VALUE, VALUES

TEMPERATURES = (0.3, 0.5, 1.0, 1.5)
ROOT = 3.0  # a whole multiple of each
PARTS = ("other wording", "another entity")
NOT_A_NUMBER = float("inf")  # nan is no answer at all


def of_samples(view: View) -> tuple[Array, Array]:
    """sum_v p_v^2 over the task's values, p = softmax(z / T): the probability that two independent samples
    are the same, exact.  [B, 4] as TEMPERATURES."""
    counted_BS = has_values(view)
    # text has no values: there all logits would be -inf
    logits_BSM = jnp.where(counted_BS[..., None], among_values(view), 0.0)
    below_BSM = logits_BSM - logits_BSM.max(axis=-1, keepdims=True)

    root_BSM = jnp.exp(below_BSM / ROOT)  # one exponential for all temperatures: the others are its powers

    def at(temperature: float) -> tuple[Array, Array]:
        size_BSM = root_BSM ** round(ROOT / temperature)
        same_BS = jnp.square(size_BSM).sum(axis=-1) / jnp.square(size_BSM.sum(axis=-1))
        return per_sequence(lambda view: (same_BS, counted_BS))(view)

    sums, counts = zip(*(at(temperature) for temperature in TEMPERATURES), strict=True)
    return jnp.stack(sums, axis=1), jnp.stack(counts, axis=1)


def sample_places(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(axis="temperature", at=temperature) for temperature in TEMPERATURES)


def sample_bounds(task: Task) -> tuple[float | None, float | None]:
    """Of a flat distribution, and of one that is sure."""
    values = values_of(task)[1]
    return (1 / values, 1.0) if values else (None, None)


def questions(view: View) -> tuple[Array, Array, Array, Array]:
    """Which entity (by the two keys that are its own), attribute and template every token of task K asks
    about, int [B, S], and whether it does.  A name begins where a key stands behind what is none."""
    tokens_BS = view.batch.tokens_BT[:, :-1]
    key_BS = (tokens_BS >= KEY) & (tokens_BS < KEY + KEYS)
    begins_BS = key_BS & ~jnp.pad(key_BS[:, :-1], ((0, 0), (1, 0)))
    start_BS = lax.cummax(jnp.where(begins_BS, jnp.arange(tokens_BS.shape[1]), 0), axis=1)
    first_BS, second_BS = (
        jnp.take_along_axis(tokens_BS, start_BS + i, axis=1, mode="clip") - KEY for i in (0, 1)
    )
    template_BS, attribute_BS = jnp.divmod(tokens_BS - ATTRIBUTE_WORD, ATTRIBUTES)
    return (
        first_BS * KEYS + second_BS,
        attribute_BS,
        template_BS,
        view.scored_BS & is_task(view, "K")[:, None],
    )


def as_many(key_Q: Array, asked_Q: Array) -> Array:
    """How many questions have the key of each, itself included [Q].  By sorting: all pairs of a batch would
    cost more than the model.  Keys are not negative."""
    key_Q = jnp.where(asked_Q, key_Q, -1)
    ordered_Q = jnp.sort(key_Q)
    first_Q, end_Q = (jnp.searchsorted(ordered_Q, key_Q, side=side) for side in ("left", "right"))
    return end_Q - first_Q


def of_wordings(view: View) -> tuple[Array, Array]:
    """Sums and counts [B, 2], 2 as PARTS, over pairs of a row's questions with questions of the batch about
    the same attribute in the words of another template: is the same value the most likely one?"""
    asked = questions(view)
    none = jnp.zeros((len(asked[-1]), len(PARTS)))
    return lax.cond(asked[-1].any(), lambda: _of_wordings(view, *asked), lambda: (none, none))


def _of_wordings(
    view: View, entity_BS: Array, attribute_BS: Array, template_BS: Array, asked_BS: Array
) -> tuple[Array, Array]:
    """`of_wordings` of a batch that holds questions: sorting costs more than a block, and few batches hold any."""
    asked = entity_BS, attribute_BS, template_BS, asked_BS
    entity_Q, attribute_Q, template_Q, asked_Q = (a.ravel() for a in asked)
    answer_Q = (preferred(view, "values") - VALUE).ravel()

    def partners(*same: tuple[Array, int]) -> Array:
        """How many questions of another template agree with each in the attribute and in these [Q]."""
        key_Q = attribute_Q
        for part_Q, size in same:
            key_Q = key_Q * size + part_Q
        return as_many(key_Q, asked_Q) - as_many(key_Q * TEMPLATES + template_Q, asked_Q)

    entity, answer = (entity_Q, KEYS * KEYS), (answer_Q, VALUES)
    fact_Q, attribute_only_Q = partners(entity), partners()
    alike_Q, alike_only_Q = partners(entity, answer), partners(answer)
    pairs_Q2 = jnp.stack([fact_Q, attribute_only_Q - fact_Q], axis=-1)
    agree_Q2 = jnp.stack([alike_Q, alike_only_Q - alike_Q], axis=-1)
    B, S = view.scored_BS.shape
    # not a number is no answer, but all of them would agree
    lost_Q = jnp.isnan(view.nll_BS).ravel()
    agree_Q2 = jnp.where(lost_Q[:, None], jnp.nan, agree_Q2)
    counts, sums = (
        jnp.where(asked_Q[:, None], of_Q2, 0).reshape(B, S, len(PARTS)).sum(axis=1)
        for of_Q2 in (pairs_Q2, agree_Q2)
    )
    return sums, counts.astype(jnp.float32)


def wording_places(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in PARTS)


def answered(view: View) -> tuple[Array, Array]:
    """The token that is the most likely one of the task's values [B, S]."""
    answer_BS = preferred(view, "values")
    return jnp.where(jnp.isnan(view.nll_BS), NOT_A_NUMBER, answer_BS), has_values(view)


def with_other_draws(mine_M: np.ndarray, others_RM: np.ndarray) -> tuple[float, float]:
    """The share of this draw's answers that another draw gives too, to the same item, and to one taken at
    random: mean over the other draws, which over all draws is that over pairs (`stability.agreement`)."""
    if not (np.isfinite(mine_M).all() and np.isfinite(others_RM).all()):
        return float("nan"), float("nan")
    values = np.unique([mine_M, *others_RM])
    share_V, others_V = ((np.ravel(a)[:, None] == values).mean(axis=0) for a in (mine_M, others_RM))
    return float((mine_M == others_RM).mean()), float(share_V @ others_V)


def draw_places(shape: Shape) -> tuple[Place, ...]:
    return Place(part="same item"), Place(part="another item")


METRICS = (
    SequenceMetric(
        name="agreement_of_temperatures",
        unit="fraction",
        meaning="probability that two samples at a temperature are the same of the task's values, on scored"
        " tokens",
        better="neither",
        places=sample_places,
        measure=of_samples,
        bounds=sample_bounds,
    ),
    SequenceMetric(
        name="agreement_of_wordings",
        unit="fraction",
        meaning="share of pairs of questions in a batch, in words of two templates, that are answered alike:"
        " about the same fact, and about the same attribute of another entity (task K)",
        better="neither",
        places=wording_places,
        measure=of_wordings,
    ),
    DrawMetric(
        name="agreement_of_draws",
        unit="fraction",
        meaning="share of answers among the task's values that another draw of a random degradation gives too: to"
        " the same item, and to one taken at random",
        better="neither",
        places=draw_places,
        measure=answered,
        compare=with_other_draws,
    ),
)
