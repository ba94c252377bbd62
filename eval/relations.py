"""Relations between severity and harm, in print or plausible, fitted to curves and compared.

A relation predicts the excess loss of a curve (nats) from what was done, along an axis of its own: the fraction
removed, the bits left, or the noise that it amounts to.  Its parameters are all positive, and it is fitted in
logarithms, so that small harms count as much as large ones.  `wane.eval.selection` tells which one to believe.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import optimize

# Fraction removed; bits left; noise to signal of the stream behind the last block, or a mean over blocks of what
# each adds by itself; what the law of slices predicts, ln PPL0 s / (1 - s).
Axis = Literal["fraction", "bits", "stream noise", "block noise", "slices"]
STARTS, EVALUATIONS = 6, 100  # of the search, from points spread by a fixed generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relation:
    """excess(x, *parameters) -> predicted excess loss, x along the axis `of`.  start: typical values of the
    parameters, around which the search begins.  source: the formula and who proposed it.  below: where x reaches it
    there is no prediction."""

    name: str
    parameters: tuple[str, ...]
    excess: Callable[..., np.ndarray]
    start: tuple[float, ...]
    source: str
    below: float = math.inf
    of: Axis = "fraction"


def _power(x, a, b):
    return a * x**b


def _hill(s, a, b, c):
    return a * s**b / (c**b + s**b)


def _weibull(s, a, b, c):
    return a * -np.expm1(-((s / c) ** b))


def _logistic(s, a, b, c):
    return a / (1 + np.exp(-b * (np.log(s / (1 - s)) - np.log(c))))


def _three_regimes(s, a, b, c, d):
    def at(density):  # |(x - i c d) / (x - i c)|^b
        return ((density**2 + (c * d) ** 2) / (density**2 + c**2)) ** (b / 2)

    return a * (at(1 - s) - at(1.0))


def _sparse_scaling(s, a, b, c, d):
    left = 1 - s
    return a * (left ** (b - d) - 1) + c * (left**-d - 1)


SLICE_LAW = "1 - s"
RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            name="power", parameters=("a", "b"), start=(1.0, 2.0),
            excess=_power, source="a s^b",
        ),
        Relation(
            name="exponential", parameters=("a", "k"), start=(0.1, 4.0),
            excess=lambda s, a, k: a * np.expm1(k * s), source="a (e^(k s) - 1)",
        ),
        Relation(
            name="odds", parameters=("a",), start=(1.0,), below=1.0,
            excess=lambda s, a: a * s / (1 - s), source="a s / (1 - s), the noise of rescaled random pruning",
        ),
        Relation(
            name="hill", parameters=("a", "b", "c"), start=(4.0, 2.0, 0.6),
            excess=_hill, source="a s^b / (c^b + s^b), Hill 1910",
        ),
        Relation(
            name="weibull", parameters=("a", "b", "c"), start=(4.0, 2.0, 0.6),
            excess=_weibull, source="a (1 - exp(-(s / c)^b))",
        ),
        Relation(
            name="logistic", parameters=("a", "b", "c"), start=(4.0, 2.0, 1.0), below=1.0,
            excess=_logistic, source="a / (1 + exp(-b (logit s - ln c)))",
        ),
        Relation(
            name="three regimes", parameters=("a", "b", "c", "d"), start=(3.0, 1.0, 0.3, 2.0),
            excess=_three_regimes,
            source="a (f(1 - s) - f(1)), f(x) = |(x - i c d) / (x - i c)|^b, Rosenfeld et al. 2021",
        ),
        Relation(
            name="sparse scaling", parameters=("a", "b", "c", "d"), start=(0.5, 0.7, 1.5, 0.25), below=1.0,
            excess=_sparse_scaling,
            source="a ((1 - s)^(b - d) - 1) + c ((1 - s)^-d - 1): Frantar et al. 2024 of one dense model",
        ),
        # ln PPL0 is measured, so nothing is left to fit; "odds" is the same with a factor of its own.
        Relation(
            name=SLICE_LAW, parameters=(), start=(), of="slices",
            excess=lambda x: x, source="ln PPL0 s / (1 - s), that is ln PPL0 / ln PPL = 1 - s",
        ),
        Relation(
            name="bits exponential", parameters=("c", "k"), start=(10.0, 1.4), of="bits",
            excess=lambda b, c, k: c * np.exp(-k * b),
            source="c e^(-k b): A 2^(-2 gamma b) with gamma = k / ln 4, as of the noise of rounding, and "
            "C e^(-P / gamma) with gamma = 1 / k, Kumar et al. 2025",
        ),
        Relation(
            name="bits power", parameters=("c", "gamma"), start=(10.0, 4.0), of="bits",
            excess=lambda b, c, gamma: c * b**-gamma, source="C P^-gamma, P = b bits, Ouyang et al. 2024",
        ),
        Relation(
            name="stream noise power", parameters=("a", "b"), start=(1.0, 1.0), of="stream noise",
            excess=_power, source="a NSR^b, NSR = stream_noise_to_signal",
        ),
        Relation(
            name="block noise power", parameters=("a", "b"), start=(1.0, 1.0), of="block noise",
            excess=_power, source="a NSR^b, NSR = block_noise_to_signal, a mean over blocks",
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """parameters: name -> value.  error: root mean square of ln(predicted / measured) over the n points fitted.
    aicc: corrected information criterion (Hurvich & Tsai 1989), smaller is better; infinite where there are too few
    points for the number of parameters."""

    relation: Relation
    parameters: Mapping[str, float]
    error: float
    aicc: float
    n: int

    def excess(self, x: np.ndarray) -> np.ndarray:
        """At x, along the relation's axis."""
        return self.relation.excess(np.asarray(x, float), *self.parameters.values())


def fit(relation: Relation, x: Sequence[float], excess: Sequence[float], *, near: Fit | None = None) -> Fit:
    """The parameters of least squared error in ln(excess), over the points of positive x and excess; x along the
    relation's axis.  near: a fit to begin from, instead of several points.

    Raises ValueError where no point is left, or fewer than the relation has parameters.
    """
    x, y = (np.asarray(values, float) for values in (x, excess))
    usable = (x > 0) & (x < relation.below) & (y > 0) & np.isfinite(y)
    x, y = x[usable], y[usable]
    k = len(relation.parameters)
    if len(x) < max(k, 1):
        raise ValueError(
            f"{relation.name}: {len(x)} points of positive {relation.of} and excess for {k} parameters"
        )

    def residuals(logs: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            predicted = relation.excess(x, *np.exp(np.clip(logs, -50, 50)))
            off = np.log(np.maximum(predicted, 1e-300)) - np.log(y)
        return np.where(np.isfinite(off), off, 1e3)

    starts = _starts(relation) if near is None else [np.log(list(near.parameters.values()))]
    logs = _search(residuals, starts) if k else np.empty(0)
    squares = max(float(np.sum(residuals(logs) ** 2)), 1e-300)
    values = dict(zip(relation.parameters, np.exp(np.clip(logs, -50, 50)).tolist(), strict=True))
    return Fit(
        relation=relation, parameters=values, error=math.sqrt(squares / len(x)),
        aicc=_aicc(squares, len(x), k + 1), n=len(x),
    )  # fmt: skip


def _search(residuals: Callable[[np.ndarray], np.ndarray], starts: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithms of the parameters where the squared residuals are least, from any of the starts."""
    # Where two parameters do nearly the same the search creeps: 400 evaluations find errors 1 % smaller.
    solutions = [
        optimize.least_squares(residuals, start, method="lm", max_nfev=EVALUATIONS) for start in starts
    ]
    return min(solutions, key=lambda solution: solution.cost).x


def _starts(relation: Relation) -> list[np.ndarray]:
    """Logarithms of the parameters from which the search begins."""
    first = np.log(relation.start)
    return [first, *(first + np.random.default_rng(0).normal(0, 1, (STARTS - 1, len(first))))]


def _aicc(squares: float, n: int, k: int) -> float:
    """Of a least-squares fit with k parameters, the variance among them."""
    if n <= k + 1:
        return math.inf
    return n * math.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """y = intercept + slope s, with standard errors; intercept_error 0 where the intercept was given."""

    slope: float
    intercept: float
    slope_error: float
    intercept_error: float


def slice_law(severity: Sequence[float], loss: Sequence[float], *, intercept: float | None = None) -> Line:
    """ln PPL0 / ln PPL = loss(0) / loss(s) against the sliced fraction s: the law in print says 1 - s, that is
    slope -1 and intercept 1.  The first loss is that of severity 0.  intercept: given (1: through the dense model)
    or fitted.  A model of which nothing is left, s = 1, is for the caller to leave out.  Raises ValueError where
    the first severity is another."""
    s, y = np.asarray(severity, float), np.asarray(loss, float)
    if s[0] != 0:
        raise ValueError(f"severity[0] = {s[0]}: the first point must be the undegraded model")
    return line(s, y[0] / y, intercept=intercept)


def slice_law_misses(
    severity: Sequence[float], loss: Sequence[float], *, intercept: float | None = None
) -> float:
    """Root mean square of predicted - measured ln PPL0 / ln PPL at each severity above 0, from the `slice_law` of
    the others."""
    s, loss = np.asarray(severity, float), np.asarray(loss, float)
    missed = []
    for i in range(1, len(s)):
        seen = slice_law(np.delete(s, i), np.delete(loss, i), intercept=intercept)
        missed.append(seen.intercept + seen.slope * s[i] - loss[0] / loss[i])
    return float(np.sqrt(np.mean(np.square(missed))))


def line(x: Sequence[float], y: Sequence[float], *, intercept: float | None = None) -> Line:
    """Least squares, with or without a given intercept."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    columns = [x] if intercept is not None else [x, np.ones_like(x)]
    design = np.stack(columns, axis=1)
    target = y - (intercept or 0.0)
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    freedom = len(x) - len(solution) - (1 if intercept is not None else 0)
    noise = np.sum((target - design @ solution) ** 2) / max(freedom, 1)
    errors = np.sqrt(np.diag(noise * np.linalg.inv(design.T @ design)))
    if intercept is not None:
        return Line(
            slope=float(solution[0]), intercept=intercept, slope_error=float(errors[0]), intercept_error=0.0
        )
    return Line(
        slope=float(solution[0]), intercept=float(solution[1]),
        slope_error=float(errors[0]), intercept_error=float(errors[1]),
    )  # fmt: skip
