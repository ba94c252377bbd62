"""The structure of weights: how many directions a matrix uses, how its energy and its entries are spread, and
how far it is from the trained one.

Of every block matrix of every layer as a plain model would hold it (`wane.scaling.edit.fold`: removed units
are zeros), once per point and from the weights alone.  Experts are averaged.  Raw ranks compare sizes, not
matrices (a square Gaussian matrix has .80 of its side, a 1:4 one .97): the ratios to a random matrix and to the
initial one stand beside them.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.metrics.contract import Place, Statistic, Weights
from wane.scaling.degrade.effective_rank import rank_of_spectrum
from wane.scaling.degrade.rounding import lift
from wane.scaling.edit import fold
from wane.scaling.shape import Shape

TOP = 0.1  # share of the directions whose energy is told
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the directions, along the spectrum
BINS, REACH = (
    256,
    4.0,
)  # of the histogram of weights: so many bins over so many standard deviations to each side
DIRECTIONS = 4096  # singular values of random matrices behind one yardstick


def every_matrix(shape: Shape) -> tuple[Place, ...]:
    """One value for each block matrix of each layer."""
    return tuple(
        Place(axis="layer", at=float(layer), part=name)
        for name in shape.matrices
        for layer in range(shape.n_layers)
    )


def along_spectra(shape: Shape) -> tuple[Place, ...]:
    """A value for each of SHARES, for each block matrix of each layer."""
    return tuple(place._replace(at_2=share) for share in SHARES for place in every_matrix(shape))


def folded(weights: Weights) -> dict[str, Array]:
    """Matrix name -> degraded matrix [L, I, O] or [L, E, I, O]."""
    return fold(weights.trained, weights.edit, weights.shape)


def in_places(per_matrix: dict[str, Array], shape: Shape) -> Array:
    """Matrix name -> [L] or [L, E] as the values of `every_matrix`; experts averaged."""
    by_layer = [per_matrix[name].reshape(shape.n_layers, -1).mean(1) for name in shape.matrices]
    return jnp.concatenate(by_layer)


def share_of(part: Array, whole: Array) -> Array:
    """part / whole; 0 of nothing is 0, something of nothing is not defined, nan: noise where there was no signal is
    not no noise."""
    of_nothing = jnp.where(part == 0, 0.0, jnp.nan)
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), of_nothing)


def spectra(weights: Weights) -> dict[str, Array]:
    """Matrix name -> singular values [L, K] or [L, E, K], K = min(I, O), largest first.

    Matrices of one size, transposed or not, go through one batched decomposition.  Not through the
    eigenvalues of the smaller Gram matrix: in f32 they know no singular value below 3e-4 of the largest, and
    95 that should be 0 make an effective rank of 1.06 out of 1.
    """
    shape, matrices = weights.shape, folded(weights)
    of_size: dict[tuple[int, ...], list[str]] = {}
    for name, size in shape.matrices.items():
        of_size.setdefault(tuple(sorted(size)), []).append(name)
    found = {}
    for (small, large), names in of_size.items():
        wide = [w if w.shape[-2] == small else jnp.swapaxes(w, -2, -1) for w in map(matrices.get, names)]
        flat = jnp.concatenate([w.reshape(-1, small, large) for w in wide])
        counts = [math.prod(shape.lead(name)) for name in names]
        values = jnp.split(jnp.linalg.svd(flat, compute_uv=False), list(itertools.accumulate(counts))[:-1])
        found |= {name: v.reshape(*shape.lead(name), small) for name, v in zip(names, values, strict=True)}
    return found


def of_spectra(measure: Callable[[Array], Array]) -> Callable[[None, Weights], Array]:
    """Values of a statistic that follows from the singular values [K] of a matrix.  All such statistics of a
    point share one decomposition: it stands in the program once for each, and XLA keeps one."""

    def values(sums: None, weights: Weights) -> Array:
        found = spectra(weights)
        measured = {name: lift(measure, v.ndim - 1)(v) for name, v in found.items()}
        return in_places(measured, weights.shape)

    return values


class Ranks(NamedTuple):
    """Mean ranks of random matrices."""

    effective: float
    stable: float


@functools.cache
def random_ranks(small: int, large: int) -> Ranks:
    """Of Gaussian matrices [small, large]: the yardstick.  It averages about DIRECTIONS singular values: the
    effective rank of one 16 by 16 matrix varies by 3 % and its stable rank by 10 %, which would pass for an effect
    of width."""
    rng = np.random.default_rng([small, large])
    draws = max(1, DIRECTIONS // small)
    effective, stable = [], []
    for _ in range(draws):
        values = np.linalg.svd(rng.standard_normal((small, large)), compute_uv=False)
        share = values / values.sum()
        effective.append(np.exp(-np.sum(share * np.log(share))))
        stable.append(np.sum(np.square(values / values[0])))
    return Ranks(float(np.mean(effective)), float(np.mean(stable)))


effective_rank = of_spectra(rank_of_spectrum)


@of_spectra
def stable_rank(values: Array) -> Array:
    return share_of(jnp.sum(jnp.square(values)), jnp.square(values[0]))


def over_random(rank: str, sums: None, weights: Weights) -> Array:
    """One of the `Ranks` of every matrix over that of random ones of its size."""
    shape, measure = weights.shape, {"effective": effective_rank, "stable": stable_rank}[rank]
    random = [getattr(random_ranks(*sorted(size)), rank) for size in shape.matrices.values()]
    return measure(sums, weights) / np.repeat(np.float32(random), shape.n_layers)


@of_spectra
def largest(values: Array) -> Array:
    return values[0]


def energy_of(values: Array, top: float) -> Array:
    """Share of the energy of singular values, largest first, in a share of them, rounded up."""
    energy = jnp.square(values)
    return share_of(jnp.sum(energy[: math.ceil(top * len(energy))]), jnp.sum(energy))


top_energy = of_spectra(functools.partial(energy_of, top=TOP))


def spectrum(sums: None, weights: Weights) -> Array:
    each = (of_spectra(functools.partial(energy_of, top=share)) for share in SHARES)
    return jnp.concatenate([measure(sums, weights) for measure in each])


def entropy(w_IO: Array) -> Array:
    """Nats, of the histogram of all entries in BINS bins of one width over REACH standard deviations to each
    side of the mean; what lies beyond is in the outer bins.  0 where all entries are equal.

    With the correction of Miller (1955), (bins in use - 1) / (2 entries): without it the entropy of 32 by 32
    Gaussian weights is .09 nats below that of 96 by 96 ones, with it .02.
    """
    centred = w_IO - jnp.mean(w_IO)
    deviation = jnp.std(w_IO)
    place = (centred / jnp.where(deviation > 0, deviation, 1.0) / REACH + 1) * (BINS / 2)
    bin_IO = jnp.clip(jnp.floor(place), 0, BINS - 1).astype(jnp.int32)
    count = jnp.zeros(BINS, jnp.int32).at[bin_IO].add(1)
    share = count / w_IO.size
    plain = -jnp.sum(jnp.where(count > 0, share * jnp.log(jnp.where(count > 0, share, 1.0)), 0.0))
    return plain + (jnp.sum(count > 0) - 1) / (2 * w_IO.size)


def weight_entropy(sums: None, weights: Weights) -> Array:
    entropies = {name: lift(entropy, w.ndim - 2)(w) for name, w in folded(weights).items()}
    return in_places(entropies, weights.shape)


def weight_error(sums: None, weights: Weights) -> Array:
    trained, shape = weights.trained["blocks"], weights.shape

    def energy(w: Array) -> Array:  # of a layer, experts together
        return jnp.sum(jnp.square(w).reshape(shape.n_layers, -1), axis=1)

    lost = {
        name: share_of(energy(w - trained[name]), energy(trained[name]))
        for name, w in folded(weights).items()
    }
    return in_places(lost, shape)


METRICS = (
    Statistic(
        name="effective_rank",
        unit="directions",
        meaning="exp of the entropy of a degraded matrix's singular values (Roy & Vetterli 2007)",
        better="neither",
        values=effective_rank,
        places=every_matrix,
    ),
    Statistic(
        name="relative_effective_rank",
        unit="ratio",
        meaning="effective rank of a matrix over the mean of Gaussian matrices of its size",
        better="neither",
        values=functools.partial(over_random, "effective"),
        places=every_matrix,
    ),
    Statistic(
        name="effective_rank_of_initial",
        unit="ratio",
        meaning="effective rank of a matrix over that of the same matrix before training, as it was drawn",
        better="neither",
        values=effective_rank,
        places=every_matrix,
        over_initial=True,
    ),
    Statistic(
        name="stable_rank",
        unit="directions",
        meaning="squared Frobenius norm of a matrix over its squared largest singular value",
        better="neither",
        values=stable_rank,
        places=every_matrix,
    ),
    Statistic(
        name="relative_stable_rank",
        unit="ratio",
        meaning="stable rank of a matrix over the mean of Gaussian matrices of its size",
        better="neither",
        values=functools.partial(over_random, "stable"),
        places=every_matrix,
    ),
    Statistic(
        name="stable_rank_of_initial",
        unit="ratio",
        meaning="stable rank of a matrix over that of the same matrix before training, as it was drawn",
        better="neither",
        values=stable_rank,
        places=every_matrix,
        over_initial=True,
    ),
    Statistic(
        name="largest_singular_value",
        unit="",
        meaning="largest singular value of a matrix",
        better="neither",
        values=largest,
        places=every_matrix,
    ),
    Statistic(
        name="top_energy",
        unit="fraction",
        meaning="share of a matrix's squared singular values in its 10 % strongest directions, rounded up",
        better="neither",
        values=top_energy,
        places=every_matrix,
    ),
    Statistic(
        name="spectrum",
        unit="fraction",
        meaning="share of a matrix's squared singular values in its strongest directions; at_2: the share of the "
        "directions, rounded up",
        better="neither",
        values=spectrum,
        places=along_spectra,
    ),
    Statistic(
        name="weight_entropy",
        unit="nats",
        meaning="entropy of a matrix's entries in 256 bins over 4 standard deviations to each side of their "
        "mean, with Miller's correction",
        better="neither",
        values=weight_entropy,
        places=every_matrix,
    ),
    Statistic(
        name="weight_error",
        unit="fraction",
        version=2,
        meaning="squared norm of w - w' over squared norm of w, of each matrix of each layer; none where w is 0 "
        "and w' is not",
        better="lower",
        values=weight_error,
        places=every_matrix,
        relative=True,
    ),
)
