"""In-context copying: how much better a passage of text is predicted the second time (as in Olsson et al.
2022, arXiv 2209.11895, who repeat random tokens).

The first half of every window of text is read twice over, x_0 .. x_{H-1} x_0 .. x_{H-1}, and each token but
the first is predicted in both places.  That is one more forward pass.
"""

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import SequenceMetric
from wane.eval.metrics.largest import is_largest
from wane.eval.metrics.once import once
from wane.eval.metrics.task_rows import is_text
from wane.eval.metrics.view import View
from wane.scaling.model import apply, nll_of_logits, unembed


@once
def twice(view: View) -> tuple[Array, Array]:
    """Loss [2, B, H - 1] of the H - 1 later tokens of the passage, the first time and the second, and whether
    each is the most likely one."""
    H = view.batch.tokens_BT.shape[1] // 2
    passage_BH = view.batch.tokens_BT[:, :H]
    read_BS = jnp.concatenate([passage_BH, passage_BH[:, :-1]], axis=1)
    x_BSD = apply(view.params, read_BS, view.shape, view.edit).x_BSD
    x_2BHD = jnp.stack([x_BSD[:, : H - 1], x_BSD[:, H:]])  # nothing tells that the passage begins again
    logits_2BHV = unembed(view.degraded, x_2BHD, view.shape)
    targets_2BH = jnp.stack([passage_BH[:, 1:]] * 2)
    return nll_of_logits(logits_2BHV, targets_2BH), is_largest(logits_2BHV, targets_2BH)


def of_text(view: View, value_BH: Array) -> tuple[Array, Array]:
    """Sums and counts [B] of the rows that are text."""
    text_B = is_text(view)
    return jnp.where(text_B, value_BH.sum(axis=1), 0.0), jnp.where(text_B, float(value_BH.shape[1]), 0.0)


def change(view: View) -> tuple[Array, Array]:
    (first_BH, second_BH), _ = twice(view)
    return of_text(view, second_BH - first_BH)


def hit(view: View) -> tuple[Array, Array]:
    _, (_, second_BH) = twice(view)
    return of_text(view, second_BH.astype(jnp.float32))


METRICS = (
    SequenceMetric(
        name="copying_loss_change",
        unit="nats/token",
        meaning="loss of a passage that is read again less that of the same tokens the first time; text only",
        better="lower",
        measure=change,
    ),
    SequenceMetric(
        name="copying_accuracy",
        unit="fraction",
        meaning="share of tokens of a passage that are predicted when it is read again; text only",
        better="higher",
        measure=hit,
    ),
)
