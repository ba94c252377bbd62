"""How stable answers are: over samples at a temperature, over other wordings of a question (task K), and over
draws of a random degradation.

Who always says the same agrees with himself.  So beside the agreement stands that of answers about other
entities, or to other items, which is what agreement is by chance: (agreement - chance) / (1 - chance) is what is
beyond it, Fleiss' kappa (1971, Psychol. Bull. 76, 378).  The stream asks for the same fact again in other rows; the
pairs are those of the evaluation set, fewer the more facts there are: a row's count tells how many.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.answers import cut_to_values, has_values, preferred
from wane.eval.metrics.contract import DrawMetric, Place, SequenceMetric, SetMetric
from wane.eval.metrics.ranks import SOME
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape
from wane.train.data import EvalSet, Task
from wane.train.data.graded_facts import ATTRIBUTE_WORD, ATTRIBUTES
from wane.train.data.options import values_of
from wane.train.data.vocabulary import KEY, KEYS

TEMPERATURES = (0.3, 0.5, 1.0, 1.5)
ROOT = 3.0  # a whole multiple of each
PARTS = ("other wording", "another entity")
NOT_A_NUMBER = float("inf")  # nan is no answer at all


def of_samples(view: View) -> tuple[Array, Array]:
    """sum_v p_v^2 over the task's values, p = softmax(z / T): the probability that two independent samples
    are the same, exact.  Sums and counts [B, 4] as TEMPERATURES, 0 for sequences that are not read."""
    counted_bS = has_values(view)[::SOME]
    among_bSM, _ = cut_to_values(view.logits_BSV[::SOME], view.batch.values_B2[::SOME])
    # text has no values: there all logits would be -inf
    logits_bSM = jnp.where(counted_bS[..., None], among_bSM, 0.0)
    below_bSM = logits_bSM - logits_bSM.max(axis=-1, keepdims=True)

    root_bSM = jnp.exp(below_bSM / ROOT)  # one exponential for all temperatures: the others are its powers

    def at(temperature: float) -> Array:
        size_bSM = root_bSM ** round(ROOT / temperature)
        same_bS = jnp.square(size_bSM).sum(axis=-1) / jnp.square(size_bSM.sum(axis=-1))
        return jnp.where(counted_bS, same_bS, 0).sum(axis=1)

    none_B4 = jnp.zeros((len(view.scored_BS), len(TEMPERATURES)))
    total_b4 = jnp.stack([at(temperature) for temperature in TEMPERATURES], axis=1)
    return none_B4.at[::SOME].set(total_b4), none_B4.at[::SOME].set(counted_bS.sum(axis=1, keepdims=True))


def sample_places(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(axis="temperature", at=temperature) for temperature in TEMPERATURES)


def sample_bounds(task: Task) -> tuple[float | None, float | None]:
    """Of a flat distribution, and of one that is sure."""
    values = values_of(task)[1]
    return (1 / values, 1.0) if values else (None, None)


def questions(tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entity (by the two keys that are its own), attribute and template every token asks about in a row of
    task K, int [N, S].  A name begins where a key stands behind what is none."""
    tokens_NS = tokens_NT[:, :-1].astype(np.int64)
    key_NS = (tokens_NS >= KEY) & (tokens_NS < KEY + KEYS)
    begins_NS = key_NS & ~np.pad(key_NS[:, :-1], ((0, 0), (1, 0)))
    start_NS = np.maximum.accumulate(np.where(begins_NS, np.arange(tokens_NS.shape[1]), 0), axis=1)
    last = tokens_NS.shape[1] - 1
    first_NS, second_NS = (
        np.take_along_axis(tokens_NS, np.minimum(start_NS + i, last), axis=1) - KEY for i in (0, 1)
    )
    template_NS, attribute_NS = np.divmod(tokens_NS - ATTRIBUTE_WORD, ATTRIBUTES)
    return first_NS * KEYS + second_NS, attribute_NS, template_NS


def as_many(*parts_Q: np.ndarray) -> np.ndarray:
    """How many questions have the same parts as each, itself included [Q]."""
    _, which_Q, count = np.unique(np.stack(parts_Q), axis=1, return_inverse=True, return_counts=True)
    return count[which_Q.ravel()]


def over_wordings(answer_NS: np.ndarray, evaluation: EvalSet) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts [N, 2], 2 as PARTS, over pairs of a row's questions with questions of the evaluation set on
    the same attribute in the words of another template: is the same value the most likely one?"""
    of_facts = np.array([task.name == "K" for task in evaluation.tasks])
    asked_NS = evaluation.scored_NS & of_facts[evaluation.task_N][:, None]
    entity_Q, attribute_Q, template_Q = (part_NS[asked_NS] for part_NS in questions(evaluation.tokens_NT))
    answer_Q = answer_NS[asked_NS]

    def partners(*same_Q: np.ndarray) -> np.ndarray:
        """How many questions of another template agree with each in the attribute and in these [Q]."""
        return as_many(attribute_Q, *same_Q) - as_many(attribute_Q, template_Q, *same_Q)

    fact_Q, alike_Q = partners(entity_Q), partners(entity_Q, answer_Q)
    pairs_Q2 = np.stack([fact_Q, partners() - fact_Q], axis=-1)
    agree_Q2 = np.stack([alike_Q, partners(answer_Q) - alike_Q], axis=-1).astype(float)
    agree_Q2[~np.isfinite(answer_Q)] = np.nan  # no answer, but all of them would agree

    def of_rows(value_Q2: np.ndarray) -> np.ndarray:
        value_NS2 = np.zeros((*asked_NS.shape, len(PARTS)))
        value_NS2[asked_NS] = value_Q2
        return value_NS2.sum(axis=1)

    return of_rows(agree_Q2), of_rows(pairs_Q2)


def wording_places(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in PARTS)


def answered(view: View) -> tuple[Array, Array]:
    """The token that is the most likely one of the task's values [B, S]."""
    answer_BS = preferred(view, "values")
    return jnp.where(jnp.isnan(view.nll_BS), NOT_A_NUMBER, answer_BS), has_values(view)


def with_other_draws(mine_M: np.ndarray, others_RM: np.ndarray) -> tuple[float, float]:
    """The share of this draw's answers that another draw gives too, to the same item, and to one taken at
    random: mean over the other draws, which over all draws is that over pairs of draws."""
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
        version=2,
        unit="fraction",
        meaning="probability that two samples at a temperature are the same of the task's values, on scored"
        " tokens of one sequence of four",
        better="neither",
        places=sample_places,
        measure=of_samples,
        bounds=sample_bounds,
    ),
    SetMetric(
        name="agreement_of_wordings",
        version=2,
        unit="fraction",
        meaning="share of pairs of questions, in words of two templates, that are answered alike: about the same"
        " fact, and about the same attribute of another entity (task K)",
        better="neither",
        places=wording_places,
        measure=answered,
        over=over_wordings,
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
