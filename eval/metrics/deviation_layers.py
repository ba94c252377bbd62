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


@once
def alone(view: View) -> Alone:
    """They cost a forward pass of either model, but for what the stream tells of the trained one: half of few
    sequences is looked at."""
    at_bn, S = read_positions(view), looked_at(view.targets_BS.shape[1])

    def one(trained_l, degraded_l, edit_l, x_bSD, end_bSD) -> Alone:
        _, trained, _ = block(trained_l, x_bSD, view.shape)
        new_end_bSD, degraded, _ = block(degraded_l, x_bSD, view.shape, edit_l)
        added = _updates(trained, end_bSD)
        updates = geometry(added, _updates(degraded, new_end_bSD))
        mid, end, new_mid = (
            jnp.take_along_axis(x, at_bn[..., None], axis=1)
            for x in (trained["mid"], end_bSD, degraded["mid"])
        )
        new_end, _ = behind_mlp(degraded_l, mid, view.shape, edit_l)
        energy = jnp.sum(added * added, axis=-1)
        return Alone(updates, energy, jnp.stack([mid, end]), jnp.stack([new_mid, new_end]))

    blocks, stream = (view.params["blocks"], view.degraded["blocks"]), view.stream[:, ::EVERY, :S]
    # All layers at once: a loop over them would be of products too small to be worth their calls.
    return jax.vmap(one)(*blocks, view.edit.per_layer(), stream[:-1], stream[1:])


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
        version=4,
    ),
)
