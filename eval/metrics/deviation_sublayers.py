"""What one degraded sublayer does by itself: the undegraded stream behind it against the same with that sublayer
degraded and fed what the undegraded one is fed, so that nothing accumulates.

Both are read by the trained final norm and unembedding, as if nothing came behind (a logit lens: nostalgebraist
2020), so the spaces are those of the final state.  A few tokens of few sequences: the unembedding, of every
sublayer, is what costs.  Layer 0 and layer n_layers - 1 are apart from the others in most models: compare them
separately.
"""

from collections.abc import Callable
from operator import itemgetter

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Place, Statistic, Sums, Weights
from wane.eval.metrics.deviation_layers import EVERY, alone, trained_alone
from wane.eval.metrics.deviation_quantities import QUANTITIES, Quantity
from wane.eval.metrics.deviation_spaces import compare, in_spaces, noise_key
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape

SUBLAYERS = ("attention", "mlp")
TEMPERATURES = (1.0,)


def at_sublayers(parts: tuple[str, ...]) -> Callable[[Shape], tuple[Place, ...]]:
    def places(shape: Shape) -> tuple[Place, ...]:
        return tuple(
            Place("layer", float(l), part=f"{sublayer}, {part}")
            for part in parts
            for l in range(shape.n_layers)
            for sublayer in SUBLAYERS
        )

    return places


def sublayer_by_sublayer(x: Array) -> Array:
    """[L, 2, b, n, D] as [2 L, b n, D]."""
    return x.reshape(len(x) * len(SUBLAYERS), -1, x.shape[-1])


def undegraded(view: View) -> tuple[Array, ...]:
    """The stream behind each trained sublayer, `in_spaces`."""
    _, before = view.of_full(trained_alone)
    return in_spaces(view.params, sublayer_by_sublayer(before), view.shape)


def sublayer_sums(view: View) -> Sums:
    """Number of tokens, and sums over them of every quantity, [P, 2 L]."""
    found = alone(view)
    n = found.before.shape[-2]
    after = sublayer_by_sublayer(found.after)
    weight_N = jnp.repeat(view.batch.counted_B[::EVERY], n)
    models, vectors = (view.params, view.params), view.of_full(undegraded)
    told = compare(models, vectors, after, noise_key(view), view.shape, TEMPERATURES)
    sums = {q.name: q.read(told) @ weight_N for q in QUANTITIES}
    return sums | {"n": weight_N.sum()}


def of_sublayers(quantity: Quantity) -> Statistic:
    def values(sums: Sums, weights: Weights) -> Array:
        return sums[quantity.name] / sums["n"]

    return Statistic(
        name=f"{quantity.name}_by_sublayer",
        version=2,
        unit=quantity.unit,
        meaning=f"{quantity.meaning}; behind one sublayer that alone is degraded, read as the final state",
        better=quantity.better,
        gather=sublayer_sums,
        count=itemgetter("n"),
        values=values,
        places=at_sublayers(tuple(place.part for place in quantity.places(TEMPERATURES))),
        relative=True,
        streams=True,
        full=(trained_alone, undegraded),
    )


METRICS = tuple(of_sublayers(quantity) for quantity in QUANTITIES if quantity.name != "deviation_parallel")
