"""Whether a text that the model writes by itself keeps to the topic that it was given (task G).

A row of G is one answer from its second symbol on (`wane.eval.metrics.generation`): the model reads tag,
topic and one symbol, and then what it says.  A topic owns 4 of the 64 symbols.  Which, the world says and not
the tokens; but symbols of the topic have a foil and others have none.  Those of all rows of the evaluation with
the same topic are taken together, since a row alone may lack one.  Rows whose topic is hidden are left out.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Kept, SequenceMetric
from wane.eval.metrics.generation import said
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.train.data import Task
from wane.train.data.graded_topic import STATES, TOPIC, TOPICS
from wane.train.data.task import SUCCESSOR_P
from wane.train.data.vocabulary import SYMBOL


class Told(NamedTuple):
    """Of every sequence: its topic, 0 where none is told, which of the STATES symbols it shows to be the told
    topic's, and what was said, which counts where a topic is told and an answer scored."""

    topic_B: Array
    own_BX: Array
    said_BS: Array
    counted_BS: Array


def told(view: View) -> Told:
    topic_B = view.batch.tokens_BT[:, 1] - TOPIC
    told_B = is_task(view, "G") & (topic_B >= 0) & (topic_B < TOPICS)
    marked_BS = told_B[:, None] & (view.batch.foil_BS >= 0)
    rows_B1 = jnp.arange(len(topic_B))[:, None]
    own_BX = jnp.zeros((len(topic_B), STATES), bool)
    own_BX = own_BX.at[rows_B1, view.targets_BS - SYMBOL].max(marked_BS, mode="drop")
    return Told(jnp.where(told_B, topic_B, 0), own_BX, said(view), view.scored_BS & told_B[:, None])


def kept(whole: Kept) -> tuple[Array, Array]:
    topic_N, own_NX, said_NS, counted_NS = whole.of
    own_KX = jnp.zeros((TOPICS, STATES), bool).at[topic_N].max(own_NX)
    symbol_NS = said_NS - SYMBOL  # what is said of logits that are no numbers is no symbol either
    among_NS = (symbol_NS >= 0) & (symbol_NS < STATES)
    inside_NS = jnp.take_along_axis(own_KX[topic_N], jnp.clip(symbol_NS, 0, STATES - 1), axis=1) & among_NS
    right_NS = inside_NS & counted_NS
    return right_NS.sum(axis=1).astype(jnp.float32), counted_NS.sum(axis=1).astype(jnp.float32)


def bounds(task: Task) -> tuple[float | None, float | None]:
    """Chance is any of the symbols; who always says the topic's most frequent one, as the best guess is, has
    1."""
    return len(SUCCESSOR_P) / STATES, 1.0


METRICS = (
    SequenceMetric(
        name="topic_kept",
        unit="fraction",
        meaning="share of tokens, said free-running behind a told topic, that are of that topic (task G)",
        better="higher",
        version=2,
        keeps=told,
        measure=kept,
        free_running=True,
        bounds=bounds,
    ),
)
