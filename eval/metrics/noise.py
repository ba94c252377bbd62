"""How much noise any degradation is, told from outputs: what it does to weights, activations, caches, sublayers or
inputs then has one axis.

Of a block, alone on the undegraded stream that enters it, and of the stream that enters every block under all that
came before:

    noise to signal = E |f'(x) - f(x)|^2 / E |f(x)|^2        or E |x' - x|^2 / E |x|^2

The first is above 0 for whatever acts inside blocks, the second for whatever acts before.  Of the sequences and
tokens that `deviation_layers` looks at, whose work both share.
"""

from operator import itemgetter

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import Place, Statistic, Weights, layers
from wane.eval.metrics.deviation import Geometry
from wane.eval.metrics.deviation_layers import (
    PARTS,
    alone,
    entering,
    parts_of_layers,
    some_entering,
    trained_alone,
)
from wane.eval.metrics.deviation_spaces import at_sampled, sample
from wane.eval.metrics.few import EVERY
from wane.eval.metrics.structure import share_of
from wane.eval.metrics.view import View
from wane.scaling.shape import Shape


def parts_and_mean(shape: Shape) -> tuple[Place, ...]:
    """Every part of every layer and, last, the mean of the blocks over layers."""
    return (*parts_of_layers(shape), Place(part="block"))


def block_energies(view: View) -> tuple[Array, Array, Array]:
    """Sums over tokens of |f'(x) - f(x)|^2 and |f(x)|^2, [L, 3] each; their number."""
    found, counted_b1 = alone(view), view.batch.counted_B[::EVERY, None]
    sums = (jnp.sum(e * counted_b1, axis=(-2, -1)) for e in _energies(found.updates, found.energy))
    return *sums, counted_b1.sum() * found.energy.shape[-1]


def stream_energies(view: View) -> tuple[Array, Array, Array]:
    """Sums over tokens of |x' - x|^2 and |x|^2 of the stream that enters every block, [L] each; their number."""
    full_LBnD = at_sampled(view.stream[:-1]).astype(jnp.float32)
    signal_LBn = jnp.sum(full_LBnD * full_LBnD, axis=-1)
    weight_Bn = view.batch.counted_B[:, None] * sample(*view.targets_BS.shape).weight_Bn
    sums = (jnp.sum(e * weight_Bn, axis=(-2, -1)) for e in _energies(entering(view), signal_LBn))
    return *sums, view.batch.counted_B.sum() * weight_Bn.shape[1]


def _energies(moved: Geometry, signal: Array) -> tuple[Array, Array]:
    """Energy of a change, from its lengths over that of the vector, and of the vector."""
    return (jnp.square(moved.parallel) + jnp.square(moved.orthogonal)) * signal, signal


def block_ratios(sums: tuple[Array, Array, Array], weights: Weights) -> Array:
    ratio_LP = share_of(*sums[:2])
    return jnp.append(ratio_LP.ravel(), ratio_LP[:, PARTS.index("block")].mean())


def stream_ratios(sums: tuple[Array, Array, Array], weights: Weights) -> Array:
    return share_of(*sums[:2])


METRICS = (
    Statistic(
        name="block_noise_to_signal",
        version=4,
        unit="ratio",
        meaning="energy of the change of what a sublayer or block adds to the undegraded stream, over the energy of"
        " what it adds; above 0 for whatever acts inside blocks; none where only the change is above 0; without a"
        " layer: a mean over blocks; tokens as of update_cosine",
        better="lower",
        gather=block_energies,
        count=itemgetter(2),
        values=block_ratios,
        places=parts_and_mean,
        relative=True,
        streams=True,
        full=(trained_alone,),
    ),
    Statistic(
        name="layer_noise_to_signal",
        version=2,
        unit="ratio",
        meaning="energy of the change of the stream that enters a block, over the energy of the stream, token by"
        " token; at the first block of what is done to the input; none where only the change is above 0",
        better="lower",
        gather=stream_energies,
        count=itemgetter(2),
        values=stream_ratios,
        places=layers,
        relative=True,
        streams=True,
        inside=some_entering,
    ),
)
