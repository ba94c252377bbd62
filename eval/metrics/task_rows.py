"""Which rows of a batch are of a graded task."""

from jax import Array

from wane.eval.metrics.view import View
from wane.train.data.vocabulary import TAGS


def is_text(view: View) -> Array:
    """bool [B]: any token may come, there is no set of values."""
    return (view.batch.values_B2[:, 1] == 0) & (view.batch.counted_B > 0)


def is_task(view: View, name: str) -> Array:
    """bool [B]: the row opens with the tag of this task.  One that only fills the last batch is of none: what
    compares rows with each other would take it for a second one."""
    # Where there is text alone, its tokens begin at 0 and one of them is the tag's.
    tagged_B = (view.batch.tokens_BT[:, 0] == TAGS[name]) & (view.batch.values_B2[:, 1] > 0)
    return tagged_B & (view.batch.counted_B > 0)
