"""How far the residual stream has moved at every layer, and how much of it each block does by itself."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Place, SequenceMetric, layers
from wane.eval.metrics.deviation import Geometry, geometry
from wane.eval.metrics.deviation_spaces import at_sampled, noise_key, summed
from wane.eval.metrics.few import EVERY, of_few
from wane.eval.metrics.once import once
from wane.eval.metrics.view import View
from wane.scaling.model import Inner, behind_mlp, block
from wane.scaling.shape import Shape

PARTS = ("attention", "mlp", "block")
READ = 1  # tokens of every sequence that is looked at whose state is read behind every sublayer
COMPARED = 2  # of what a block adds there, one token of each run of so many


class Alone(NamedTuple):
    """Every degraded block on the undegraded stream that enters it.  updates: what its sublayers and the block add
    against what those of the trained one do, [L, 3, b, n]; energy: of the latter, |f(x)|^2.  before, after: the
    stream behind each sublayer, undegraded and with that sublayer alone degraded, at few tokens [L, 2, b, READ, D].
    """

    updates: Geometry
    energy: Array
    before: Array
    after: Array


def parts_of_layers(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(axis="layer", at=float(l), part=part) for l in range(shape.n_layers) for part in PARTS)


def some_entering(inner: Inner) -> Array:
    """The residual stream that enters a block, at the sampled tokens [B, n, D]."""
    return at_sampled(inner["block_in"])


@once
def entering(view: View) -> Geometry:
    """The degraded residual stream that enters every block against the undegraded one, at the sampled tokens,
    [L, B, n]."""
    return geometry(at_sampled(view.stream[:-1]), view.inside[some_entering])


def _updates(inner: Inner, end: Array) -> Array:
    """What the sublayers of a block and the block add to the stream that enters it, the edit's multipliers and maps
    included, at the tokens that are compared [3, b, n, D]: the order of PARTS.  end: the stream behind it."""
    start, mid, end = (
        at_sampled(x, COMPARED).astype(jnp.float32) for x in (inner["block_in"], inner["mid"], end)
    )
    return jnp.stack([mid - start, end - mid, end - start])


def read_positions(view: View) -> Array:
    """At random, as the tokens say: a few fixed places would see few places of a task's layout. [b, READ]."""
    B, S = view.targets_BS.shape
    return jax.random.randint(noise_key(view), (len(range(0, B, EVERY)), READ), 0, looked_at(S))


def looked_at(S: int) -> int:
    """Tokens that blocks run on alone: the first half of a sequence, which does not depend on the other."""
    return -(-S // 2)


def entering_some(view: View) -> Array:
    """The undegraded stream at the tokens and in the sequences that blocks run on alone, [L + 1, b, S, D]."""
    return view.stream[:, ::EVERY, : looked_at(view.targets_BS.shape[1])]


def trained_alone(view: View) -> tuple[Array, Array]:
    """What the sublayers of every trained block and the block add [L, 3, b, n, D], and `Alone.before`."""
    at_bn, stream = read_positions(view), entering_some(view)

    def one(trained_l, x_bSD, end_bSD) -> tuple[Array, Array]:
        _, inner, _ = block(trained_l, x_bSD, view.shape)
        mid, end = (jnp.take_along_axis(x, at_bn[..., None], axis=1) for x in (inner["mid"], end_bSD))
        return _updates(inner, end_bSD), jnp.stack([mid, end])

    # All layers at once: a loop over them would be of products too small to be worth their calls.
    return jax.vmap(one)(view.params["blocks"], stream[:-1], stream[1:])


@once
def alone(view: View) -> Alone:
    """It costs a forward pass of half of few sequences."""
    at_bn = read_positions(view)

    def one(degraded_l, edit_l, x_bSD, added, before) -> Alone:
        end_bSD, inner, _ = block(degraded_l, x_bSD, view.shape, edit_l)
        updates, energy = geometry(added, _updates(inner, end_bSD)), jnp.sum(added * added, axis=-1)
        mid = jnp.take_along_axis(inner["mid"], at_bn[..., None], axis=1)
        end, _ = behind_mlp(degraded_l, before[0], view.shape, edit_l)
        return Alone(updates, energy, before, jnp.stack([mid, end]))

    blocks, entering = (view.degraded["blocks"], view.edit.per_layer()), entering_some(view)[:-1]
    return jax.vmap(one)(*blocks, entering, *view.of_full(trained_alone))


def by_layer(field: str) -> Callable[[View], tuple[Array, Array]]:
    """(sum, count) over the sampled tokens of one field of `Geometry`, [B, L]."""

    def measure(view: View) -> tuple[Array, Array]:
        return summed(getattr(entering(view), field), length=view.targets_BS.shape[1])

    return measure


def by_part(field: str) -> Callable[[View], tuple[Array, Array]]:
    """(sum, count) over tokens of one field of `Geometry`, [B, 3 L]; count 0 where a sequence is not looked at."""

    def measure(view: View) -> tuple[Array, Array]:
        value_LPbn = getattr(alone(view).updates, field)
        *_, b, n = value_LPbn.shape
        return of_few(value_LPbn.sum(axis=-1).reshape(-1, b), n, len(view.targets_BS))

    return measure


METRICS = (
    SequenceMetric(
        name="layer_cosine",
        unit="",
        meaning="cosine of the residual stream that enters a block to that of the undegraded model",
        better="higher",
        measure=by_layer("cosine"),
        places=layers,
        relative=True,
        streams=True,
        inside=some_entering,
        version=3,
    ),
    SequenceMetric(
        name="layer_orthogonal",
        unit="",
        meaning="length of the stream's change across the undegraded stream that enters a block, over its length",
        better="lower",
        measure=by_layer("orthogonal"),
        places=layers,
        relative=True,
        streams=True,
        inside=some_entering,
        version=3,
    ),
    SequenceMetric(
        name="update_cosine",
        unit="",
        meaning="cosine of what a block adds to the undegraded stream to what the undegraded block adds; mlp:"
        " behind the block's own attention; every second token of the first half of one sequence of twenty",
        better="higher",
        measure=by_part("cosine"),
        places=parts_of_layers,
        relative=True,
        streams=True,
        full=(trained_alone,),
        version=4,
    ),
    SequenceMetric(
        name="update_orthogonal",
        unit="",
        meaning="length of the change of what a block adds, across the undegraded addition, over its length;"
        " otherwise as update_cosine",
        better="lower",
        measure=by_part("orthogonal"),
        places=parts_of_layers,
        relative=True,
        streams=True,
        full=(trained_alone,),
        version=4,
    ),
)
