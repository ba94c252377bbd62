"""Whether a text that the model writes by itself keeps to the topic that it was given (task G).

A row of G is one answer from its second symbol on (`wane.eval.metrics.generation`): the model reads tag,
topic and one symbol, and then what it says.  A topic owns 4 of the 64 symbols.  Which, the world says and not
the tokens; but symbols of the topic have a foil and others have none.  Those of all rows of the batch with
the same topic are taken together, since a row alone may lack one.  Rows whose topic is hidden are left out.
"""

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import SequenceMetric, per_sequence
from wane.eval.metrics.generation import said
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.train.data import Task
from wane.train.data.graded_topic import STATES, TOPIC, TOPICS
from wane.train.data.task import SUCCESSOR_P


def owned(view: View) -> tuple[Array, Array]:
    """Which tokens belong to the topic of each row, bool [B, V], and whether a topic is told, bool [B]."""
    topic_B = view.batch.tokens_BT[:, 1]
    told_B = is_task(view, "G") & (topic_B >= TOPIC) & (topic_B < TOPIC + TOPICS)
    marked_BS = (told_B[:, None] & (view.batch.foil_BS >= 0)).astype(jnp.float32)
    rows_B1 = jnp.arange(len(topic_B))[:, None]
    seen_BV = jnp.zeros((len(topic_B), view.shape.vocab)).at[rows_B1, view.targets_BS].max(marked_BS)
    same_BB = (topic_B[:, None] == topic_B).astype(jnp.float32)
    return same_BB @ seen_BV > 0, told_B


def kept(view: View) -> tuple[Array, Array]:
    owned_BV, told_B = owned(view)
    # what is said of logits that are no numbers is beyond the last token, which no topic owns either
    inside_BS = jnp.take_along_axis(owned_BV, said(view), axis=1, mode="clip")
    return inside_BS.astype(jnp.float32), view.scored_BS & told_B[:, None]


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
        measure=per_sequence(kept),
        free_running=True,
        bounds=bounds,
    ),
)
