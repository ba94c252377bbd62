"""What the model loses when one unit is taken out: each alone, measured against the trained model."""

from collections.abc import Callable
from typing import Literal

from jax import Array, lax

from wane.scaling.degrade.similarity import cosine, scored
from wane.scaling.degrade.stream import over_batches
from wane.scaling.edit import Edit, Params
from wane.scaling.model import apply, nll
from wane.scaling.shape import Shape

Criterion = Literal["loss", "final_state"]


def ablation_effects(
    params: Params, tokens_NT: Array, shape: Shape, edit_of: Callable[[Array], Edit], units_U: Array,
    criterion: Criterion, at_once: int = 1,
) -> Array:  # fmt: skip
    """[U] f32: mean over calibration tokens of what edit_of(unit) changes, for each of units_U, `at_once` together.

    loss: the edited model's negative log-likelihood in nats minus the trained model's.  final_state: 1 - cosine of
    the residual streams after the last block.  The difference is taken token by token before anything is summed,
    so that an effect far below the rounding of the total loss is not lost.
    """

    def outcome(tokens_BT: Array, edit: Edit | None) -> Array:
        x_BSD = apply(params, tokens_BT[:, :-1], shape, edit).x_BSD
        if criterion == "final_state":
            return x_BSD
        return nll(params, x_BSD, tokens_BT, shape)

    def change(edited: Array, trained: Array) -> Array:
        return 1 - cosine(edited, trained) if criterion == "final_state" else edited - trained

    def of_batch(tokens_BT: Array) -> Array:
        trained = outcome(tokens_BT, None)
        return lax.map(
            lambda unit: change(outcome(tokens_BT, edit_of(unit)), trained).sum(), units_U, batch_size=at_once
        )

    return over_batches(of_batch, tokens_NT) / scored(tokens_NT)
