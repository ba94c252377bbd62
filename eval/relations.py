"""Relations between severity and harm, in print or plausible, fitted to curves and compared.

A relation predicts the excess loss of a curve (nats) from its severity, with parameters that are all positive; it
is fitted in logarithms, so that small harms count as much as large ones.  `compare` tells which relation predicts
best what it has not seen: severities left out one at a time, and the strong ones from the mild ones.  The slice
law has nothing to fit and stands among them where the loss of the undegraded model is known.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import optimize

MILD, STRONG = 0.3, 0.5  # extrapolation: fitted up to the one, asked at the other
STARTS, EVALUATIONS = 6, 400  # of the search, from points spread by a fixed generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relation:
    """excess(s, *parameters) -> predicted excess loss.  start: typical values of the parameters, around which the
    search begins.  source: the formula and who proposed it.  below: severities from there on have no prediction."""

    name: str
    parameters: tuple[str, ...]
    excess: Callable[..., np.ndarray]
    start: tuple[float, ...]
    source: str
    below: float = math.inf


def _hill(s, a, b, c):
    return a * s**b / (c**b + s**b)


def _weibull(s, a, b, c):
    return a * -np.expm1(-((s / c) ** b))


def _logistic(s, a, b, c):
    return a / (1 + np.exp(-b * (np.log(s / (1 - s)) - np.log(c))))


def _three_regimes(s, a, b, c, d):
    density, top = 1 - np.asarray(s) + 0j, 1 + 0j
    shape = lambda x: np.abs((x - 1j * c * d) / (x - 1j * c)) ** b  # noqa: E731
    return a * (shape(density) - shape(top))


def _sparse_scaling(s, a, b, c, d):
    left = 1 - s
    return a * (left ** (b - d) - 1) + c * (left**-d - 1)


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            name="power", parameters=("a", "b"), start=(1.0, 2.0),
            excess=lambda s, a, b: a * s**b, source="a s^b; also of a noise-to-signal ratio",
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
    )
}  # fmt: skip


SLICE_LAW = "1 - s"


def slice_relation(undegraded: float) -> Relation:
    """ln PPL0 / ln PPL = 1 - s as excess loss; `undegraded`, ln PPL0 in nats, is measured: nothing is left to fit.
    The relation "odds" is the same with a factor of its own."""
    return Relation(
        name=SLICE_LAW, parameters=(), start=(), below=1.0,
        excess=lambda s: undegraded * s / (1 - s), source="ln PPL0 s / (1 - s), that is ln PPL0 / ln PPL = 1 - s",
    )  # fmt: skip


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

    def excess(self, severity: np.ndarray) -> np.ndarray:
        return self.relation.excess(np.asarray(severity, float), *self.parameters.values())


def fit(
    relation: Relation, severity: Sequence[float], excess: Sequence[float], *, near: Fit | None = None
) -> Fit:
    """The parameters of least squared error in ln(excess), over the points of positive severity and excess.
    near: a fit to begin from, instead of several points.

    Raises ValueError where no point is left, or fewer than the relation has parameters.
    """
    s, y = (np.asarray(x, float) for x in (severity, excess))
    usable = (s > 0) & (s < relation.below) & (y > 0) & np.isfinite(y)
    s, y = s[usable], y[usable]
    k = len(relation.parameters)
    if len(s) < max(k, 1):
        raise ValueError(
            f"{relation.name}: {len(s)} points of positive severity and excess for {k} parameters"
        )

    def residuals(logs: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            predicted = relation.excess(s, *np.exp(np.clip(logs, -50, 50)))
            off = np.log(np.maximum(predicted, 1e-300)) - np.log(y)
        return np.where(np.isfinite(off), off, 1e3)

    starts = _starts(relation) if near is None else [np.log(list(near.parameters.values()))]
    logs = _search(residuals, starts) if k else np.empty(0)
    squares = max(float(np.sum(residuals(logs) ** 2)), 1e-300)
    values = dict(zip(relation.parameters, np.exp(np.clip(logs, -50, 50)).tolist(), strict=True))
    return Fit(
        relation=relation, parameters=values, error=math.sqrt(squares / len(s)),
        aicc=_aicc(squares, len(s), k + 1), n=len(s),
    )  # fmt: skip


def _search(residuals: Callable[[np.ndarray], np.ndarray], starts: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithms of the parameters where the squared residuals are least, from any of the starts."""
    solutions = [optimize.least_squares(residuals, start, max_nfev=EVALUATIONS) for start in starts]
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
class Comparison:
    """left_out: root mean square of ln(predicted / measured) at severities that the fit had not seen, one at a
    time; extrapolated: the same at severities from STRONG on, fitted up to MILD; nan where it cannot be told."""

    fit: Fit
    left_out: float
    extrapolated: float


def compare(
    severity: Sequence[float], excess: Sequence[float], *, undegraded: float | None = None
) -> list[Comparison]:
    """All relations that the points allow, the one that predicts left-out severities best first.
    undegraded: loss before anything is taken (nats); with it the slice law is one of them."""
    s, y = (np.asarray(x, float) for x in (severity, excess))
    usable = (s > 0) & (s < 1) & (y > 0) & np.isfinite(y)  # the same points for all
    s, y = s[usable], y[usable]
    rivals = [*RELATIONS.values(), *([] if undegraded is None else [slice_relation(undegraded)])]
    found = []
    for relation in rivals:
        if len(s) < len(relation.parameters) + 1:
            continue
        whole = fit(relation, s, y)
        alone = [_miss(whole, s != one, s == one, s, y) for one in np.unique(s)]
        found.append(
            Comparison(
                fit=whole,
                left_out=math.sqrt(np.mean(np.square(alone))),
                extrapolated=_miss(whole, s <= MILD, s >= STRONG, s, y),
            )
        )
    return sorted(found, key=lambda c: c.left_out)


def _miss(whole: Fit, seen: np.ndarray, asked: np.ndarray, s: np.ndarray, y: np.ndarray) -> float:
    """Root mean square of ln(predicted / measured) of the points asked, fitted on those seen."""
    if seen.sum() < len(whole.parameters) or not asked.any():
        return math.nan
    # Where nothing is fitted nothing has to be seen.
    told = fit(whole.relation, s[seen], y[seen], near=whole) if whole.parameters else whole
    predicted = told.excess(s[asked])
    return math.sqrt(np.mean(np.square(np.log(np.maximum(predicted, 1e-300) / y[asked]))))


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
    or fitted.  Raises ValueError where the first severity is another."""
    s, y = np.asarray(severity, float), np.asarray(loss, float)
    if s[0] != 0:
        raise ValueError(f"severity[0] = {s[0]}: the first point must be the undegraded model")
    return line(s, y[0] / y, intercept=intercept)


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


@dataclasses.dataclass(frozen=True)
class SparseScaling:
    """Frantar et al. 2024 (arXiv 2309.08520), eq. 1: loss = (a (1 - S)^b + c) N^-d + e D^-f + g of sparsity S, N
    non-zero parameters and training amount D."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    g: float

    def loss(self, sparsity, nonzeros, amount):
        return (
            (self.a * (1 - sparsity) ** self.b + self.c) * nonzeros**-self.d
            + self.e * amount**-self.f
            + self.g
        )


def fit_sparse_scaling(sparsity, nonzeros, amount, loss, *, delta: float = 0.001) -> SparseScaling:
    """Huber loss of ln(loss) as in the study, from several starts.  Give nonzeros and amount in units that make
    them of order 1 to 1000: the exponents do not depend on them, the factors do."""
    S, N, D, y = (np.asarray(x, float) for x in (sparsity, nonzeros, amount, loss))

    def residuals(p: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            off = np.log(np.maximum(SparseScaling(*p).loss(S, N, D), 1e-300)) - np.log(y)
        return np.where(np.isfinite(off), off, 1e3)

    rng = np.random.default_rng(0)
    starts = rng.uniform(0.05, 1.5, (STARTS, 7))
    bounds = (np.full(7, 1e-6), np.full(7, 10.0))
    solutions = [
        optimize.least_squares(
            residuals,
            start,
            bounds=bounds,
            loss="huber",
            f_scale=delta,
            xtol=1e-12,
            ftol=1e-12,
            max_nfev=20_000,
        )
        for start in starts
    ]
    return SparseScaling(*min(solutions, key=lambda solution: solution.cost).x.tolist())
