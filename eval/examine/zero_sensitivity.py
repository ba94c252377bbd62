"""Single weights and groups of weights set to zero: the distribution of what that costs, beside its first-order
estimate."""

import dataclasses
import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.eval.examine.contract import Examination, Examined, Finding, Tick
from wane.eval.examine.losses import Losses
from wane.eval.examine.tasks import OVERLAP, overlaps
from wane.eval.examine.weights import Chosen, drawn, first_order, nothing, set_to_zero
from wane.eval.metrics.contract import Metric, Place, Weights
from wane.eval.metrics.structure import every_matrix, weight_entropy
from wane.eval.redundancy import rank_correlation
from wane.scaling.edit import Edit
from wane.scaling.program import Program
from wane.scaling.shape import Shape

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """weights, groups: how many of each are drawn in every matrix of every layer, small or large, so that in means,
    quantiles and shares over all matrices each counts as its matrix is large; share: of the matrix's weights in one
    group."""

    weights: int = 8
    groups: int = 4
    share: float = 1 / 64

    def __post_init__(self):
        for field in ("weights", "groups"):
            if getattr(self, field) < 0:
                raise ValueError(f"examinations.settings.{field} = {getattr(self, field)}: must be 0 or more")
        if self.weights + self.groups == 0:
            raise ValueError(
                "examinations.settings.weights = 0: with groups = 0 there is nothing to set to zero"
            )
        if not 0 < self.share <= 1:
            raise ValueError(
                f"examinations.settings.share = {self.share}: must be a share of a matrix, above 0 and at most 1"
            )


def forwards(shape: Shape, settings: Settings) -> int:
    return 1 + shape.n_layers * len(shape.matrices) * (settings.weights + settings.groups)


def run(examined: Examined, settings: Settings, tick: Tick) -> Iterator[Finding]:
    shape, rng = examined.shape, np.random.default_rng(examined.seed)
    chosen = {
        "weight": drawn(shape, settings.weights, 0, rng),
        "group": drawn(shape, settings.groups, settings.share, rng),
    }
    width = max(len(one.index_K) for found in chosen.values() for one in found)
    losses = Losses(examined, set_to_zero, nothing(width), tick)
    estimates = [_estimate(examined, index_N) for index_N in losses.sequences]
    for part, found in chosen.items():
        if not found:
            continue
        rise_UJ = np.stack([losses.rise(one.removal(width), one.layer) for one in found])
        first_UJ = np.stack(
            [
                losses.in_all([each[one.matrix][one.index_K].sum(dtype=np.float64) for each in estimates])
                for one in found
            ]
        )
        of_U = np.array([one.of for one in found])
        for task, rise_U, first_U in zip(losses.tasks, rise_UJ.T, first_UJ.T, strict=True):
            yield from _distribution("zero_sensitivity", rise_U, of_U, part, task)
            yield from _signs(rise_U, of_U, part, task)
            yield from _distribution("zero_sensitivity_first_order", first_U, of_U, part, task)
            yield from _correlation("first_order_agreement", rise_U, first_U, part, task)
            yield from _slope(rise_U, first_U, part, task)
        yield from overlaps(rise_UJ, losses.tasks, part)
        if part == "weight":
            yield from _of_matrices(examined, found, rise_UJ[:, 0])


def _estimate(examined: Examined, index_N: np.ndarray) -> dict[str, np.ndarray]:
    """Matrix name -> what it costs these sequences to first order to set each weight to zero, layers laid flat."""
    told = first_order(examined.shape, examined.precision)
    found = told(examined.params, examined.evaluation.tokens_NT[index_N])
    return {name: np.asarray(each).ravel() for name, each in found.items()}


def _distribution(
    metric: str, rise_U: np.ndarray, of_U: np.ndarray, part: str, task: str
) -> Iterator[Finding]:
    """The mean, and quantiles on an axis of their own: the smallest value that a share q does not exceed.  of_U:
    what each draw counts as."""
    n = len(rise_U)
    yield Finding(metric, np.average(rise_U, weights=of_U), n, Place(part=part), task)
    for q in QUANTILES:
        finite = np.isfinite(rise_U).all()
        value = np.quantile(rise_U, q, weights=of_U, method="inverted_cdf") if finite else np.nan
        yield Finding(metric, float(value), n, Place(axis="quantile", at=q, part=part), task)


def _signs(rise_U: np.ndarray, of_U: np.ndarray, part: str, task: str) -> Iterator[Finding]:
    finite_U = np.isfinite(rise_U)
    for metric, sign_U in (("harmed_share", rise_U > 0), ("helped_share", rise_U < 0)):
        share = np.average(np.where(finite_U, sign_U, np.nan), weights=of_U)
        yield Finding(metric, share, len(rise_U), Place(part=part), task)


def _correlation(
    metric: str, a: np.ndarray, b: np.ndarray, part: str, task: str = "all"
) -> Iterator[Finding]:
    """Spearman's; nothing where it is not defined: one of them constant, or fewer than two values."""
    value = rank_correlation(a, b) if np.isfinite([a, b]).all() else np.inf
    if not np.isnan(value):
        yield Finding(metric, value, len(a), Place(part=part), task)


def _slope(rise_U: np.ndarray, first_U: np.ndarray, part: str, task: str) -> Iterator[Finding]:
    """Through the origin, of the exact rise on the estimate: of the two it is the exact one that has rounding.
    Nothing where all estimates are 0."""
    finite = np.isfinite([rise_U, first_U]).all()
    if not finite or first_U.any():
        value = rise_U @ first_U / (first_U @ first_U) if finite else np.nan
        yield Finding("first_order_slope", value, len(rise_U), Place(part=part), task)


def _of_matrices(examined: Examined, found: list[Chosen], rise_U: np.ndarray) -> Iterator[Finding]:
    """Mean size of the effect of a weight of each matrix of each layer, and whether it goes with entropy."""
    shape = examined.shape
    places = every_matrix(shape)
    of_place = [
        [i for i, one in enumerate(found) if (one.matrix, one.layer) == (p.part, p.at)] for p in places
    ]
    size_P = np.array([np.abs(rise_U[index]).mean() for index in of_place])
    for place, size, index in zip(places, size_P, of_place, strict=True):
        yield Finding("matrix_sensitivity", size, len(index), place)
    entropy_P = np.asarray(_entropies(shape, examined.precision)(examined.params), np.float64)
    yield from _correlation("sensitivity_entropy_correlation", size_P, entropy_P, "weight")


@functools.lru_cache(maxsize=32)
def _entropies(shape: Shape, precision: str) -> Program:
    """params -> weight entropy of the trained matrices, in the order of `every_matrix`."""

    def entropies(params) -> Array:
        return jnp.ravel(weight_entropy(None, Weights(shape, params, params, Edit())))

    return Program(entropies, precision)


EXAMINATION = Examination(
    name="zero_sensitivity",
    meaning="sampled weights and groups of weights set to zero: what it costs, exactly and to first order",
    source="first order: Molchanov et al. 2017, arXiv 1611.06440, signed",
    settings=Settings,
    metrics=(
        Metric(
            name="zero_sensitivity",
            unit="nats/token",
            meaning="rise of the loss when a weight, or a group, drawn is set to zero: mean and quantiles, "
            "matrices weighed by size",
            better="neither",
        ),
        Metric(
            name="harmed_share",
            unit="fraction",
            meaning="share of weights, or groups, drawn whose zeroing raises the loss, matrices weighed by size",
            better="neither",
        ),
        Metric(
            name="helped_share",
            unit="fraction",
            meaning="share of weights, or groups, drawn whose zeroing lowers the loss, matrices weighed by size",
            better="neither",
        ),
        Metric(
            name="zero_sensitivity_first_order",
            unit="nats/token",
            meaning="-w g summed over the weights set to zero, g the gradient of the loss on the same sequences",
            better="neither",
        ),
        Metric(
            name="first_order_agreement",
            unit="",
            meaning="rank correlation of the exact and the first-order rise over the weights, or groups, drawn",
            better="neither",
        ),
        Metric(
            name="first_order_slope",
            unit="ratio",
            meaning="least-squares slope through 0 of the exact rise on the first-order one, over the weights, or "
            "groups, drawn: 1 where the estimate has the right size, .1 where it is ten times too large",
            better="neither",
        ),
        OVERLAP,
        Metric(
            name="matrix_sensitivity",
            unit="nats/token",
            meaning="mean absolute change of the loss when one weight of a matrix is set to zero",
            better="neither",
        ),
        Metric(
            name="sensitivity_entropy_correlation",
            unit="",
            meaning="rank correlation, over all matrices, of matrix_sensitivity with weight_entropy",
            better="neither",
        ),
    ),
    forwards=forwards,
    run=run,
    version=3,
)
