"""In-context copying: how much better a passage of text is predicted the second time (as in Olsson et al.
2022, arXiv 2209.11895, who repeat random tokens).

The first half of a window of text is read twice over, x_0 .. x_{H-1} x_0 .. x_{H-1}, and each token but the
first is predicted in both places.  That is one more forward pass, of one window of SOME.
"""

import jax.numpy as jnp
from jax import Array, lax

from wane.eval.metrics.contract import SequenceMetric
from wane.eval.metrics.largest import is_largest
from wane.eval.metrics.once import once
from wane.eval.metrics.task_rows import is_text
from wane.eval.metrics.view import View
from wane.scaling.model import apply, nll_of_logits, unembed

SOME = 8


@once
def twice(view: View) -> tuple[Array, Array]:
    """Loss [2, b, H - 1] of the H - 1 later tokens of the passage, the first time and the second, and whether
    each is the most likely one, of one sequence of SOME; zeros where a batch holds no text, which is not read."""
    H = view.batch.tokens_BT.shape[1] // 2
    passage_bH = view.batch.tokens_BT[::SOME, :H]

    def read() -> tuple[Array, Array]:
        read_bS = jnp.concatenate([passage_bH, passage_bH[:, :-1]], axis=1)
        x_bSD = apply(view.params, read_bS, view.shape, view.edit).x_BSD
        x_2bHD = jnp.stack([x_bSD[:, : H - 1], x_bSD[:, H:]])  # nothing tells that the passage begins again
        logits_2bHV = unembed(view.degraded, x_2bHD, view.shape)
        targets_2bH = jnp.stack([passage_bH[:, 1:]] * 2)
        return nll_of_logits(logits_2bHV, targets_2bH), is_largest(logits_2bHV, targets_2bH)

    size = (2, len(passage_bH), H - 1)
    return lax.cond(is_text(view).any(), read, lambda: (jnp.zeros(size), jnp.zeros(size, bool)))


def of_text(view: View, value_bH: Array) -> tuple[Array, Array]:
    """Sums and counts [B] of the rows that are text and looked at."""
    text_B, nothing_B = is_text(view), jnp.zeros(len(view.batch.tokens_BT))
    parts = value_bH.sum(axis=1), float(value_bH.shape[1])
    return tuple(nothing_B.at[::SOME].set(jnp.where(text_B[::SOME], part, 0.0)) for part in parts)


def change(view: View) -> tuple[Array, Array]:
    (first_bH, second_bH), _ = twice(view)
    return of_text(view, second_bH - first_bH)


def hit(view: View) -> tuple[Array, Array]:
    _, (_, second_bH) = twice(view)
    return of_text(view, second_bH.astype(jnp.float32))


_TEXT = "; text only, one sequence of eight"

METRICS = (
    SequenceMetric(
        name="copying_loss_change",
        unit="nats/token",
        meaning="loss of a passage that is read again less that of the same tokens the first time" + _TEXT,
        better="lower",
        version=2,
        measure=change,
    ),
    SequenceMetric(
        name="copying_accuracy",
        unit="fraction",
        meaning="share of tokens of a passage that are predicted when it is read again" + _TEXT,
        better="higher",
        version=2,
        measure=hit,
    ),
)
