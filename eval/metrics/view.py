"""What a metric sees: one batch under one edit.  What no metric asks for is never computed."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array

from wane.scaling.edit import Edit, Params
from wane.scaling.model import nll_of_logits, unembed
from wane.scaling.shape import Shape

T = TypeVar("T")


class Batch(NamedTuple):
    """B windows of T = S + 1 tokens.  scored: the tokens that count for accuracy; foil: the wrong answer of a
    forced choice, -1 where there is none; options: four that hold the answer, -1 for none; values: (first,
    count) of the tokens among which answers are, (0, 0) for text; bytes: UTF-8 bytes of each predicted token, 0
    where there are none; entropy: f32, nats of a scored token that nobody can predict, -1 where nobody told;
    counted_B: f32, 0 for a sequence that only fills the last batch; direction_BSD: that of noise on the embeddings
    or of an attack, where it is known; temperature_B: of what is said, None for 0."""

    tokens_BT: Array
    scored_BS: Array
    foil_BS: Array
    options_BSO: Array
    values_B2: Array
    bytes_BS: Array
    entropy_BS: Array
    counted_B: Array
    direction_BSD: Array | None = None
    temperature_B: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One batch.  x_BSD: the degraded residual stream behind the last block.  inside: what metrics read of the
    degraded blocks' intermediates, by the function that reads it (`Metric.inside`), [L, ...].  stream: the
    undegraded residual stream that enters every block and, last, that behind all of them [L + 1, B, S, D]; only the
    last where no metric reads the others, None where none reads any.  params, degraded: the trained parameters and
    those under the edit.  full: what metrics read of the undegraded model on this batch, by the function that tells
    it (`Metric.full`), where it was kept from point to point.  known: sums over all batches that metrics read of
    the undegraded model, by the function that gathers them (`Metric.known`)."""

    shape: Shape
    params: Params
    degraded: Params
    edit: Edit
    batch: Batch
    x_BSD: Array
    stream: Array | None
    inside: Mapping[Callable, Any] = dataclasses.field(default_factory=dict)
    full: Mapping[Callable, Any] = dataclasses.field(default_factory=dict)
    known: Mapping[Callable, Any] = dataclasses.field(default_factory=dict)

    @property
    def targets_BS(self) -> Array:
        return self.batch.tokens_BT[:, 1:]

    @property
    def scored_BS(self) -> Array:
        return self.batch.scored_BS

    @property
    def bytes_BS(self) -> Array:
        return self.batch.bytes_BS

    @property
    def full_x_BSD(self) -> Array:
        """The undegraded residual stream behind the last block.  Raises ValueError where no metric asks for it."""
        if self.stream is None:
            raise ValueError("a metric reads the undegraded model: its definition must say relative=True")
        return self.stream[-1]

    @cached_property
    def logits_BSV(self) -> Array:
        return unembed(self.degraded, self.x_BSD, self.shape)

    @cached_property
    def full_BSV(self) -> Array:
        """Logits of the undegraded model on the same tokens."""
        return self.of_full(full_logits)

    def of_full(self, f: Callable[["View"], T]) -> T:
        """f(view), of a function that reads nothing but the undegraded model (`Metric.full`)."""
        return self.full[f] if f in self.full else f(self)

    @cached_property
    def nll_BS(self) -> Array:
        return nll_of_logits(self.logits_BSV, self.targets_BS)

    @cached_property
    def weight_BS(self) -> Array:
        """f32: 1 for every token, 0 for those of a sequence that only fills the last batch."""
        return jnp.broadcast_to(self.batch.counted_B[:, None], self.targets_BS.shape)


def full_logits(view: View) -> Array:
    """Of the undegraded model, [B, S, V]."""
    return unembed(view.params, view.full_x_BSD, view.shape)
