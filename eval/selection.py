"""Which relation a curve follows: the one that predicts best what it has not seen.

Left out are severities one at a time, whole models (seeds) one at a time, and the strong severities, asked of a
fit to the mild ones.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from wane.eval.relations import RELATIONS, Axis, Fit, fit
from wane.scaling.quantize import IDENTITY_BITS

# Severities of extrapolation, by unit: fitted up to the one, asked from the other on.  Of bits, 4 and 3.
MILD = {"fraction": 0.3, "bits": 1 - 4 / IDENTITY_BITS}
STRONG = {"fraction": 0.5, "bits": 1 - 3 / IDENTITY_BITS}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """A curve of one model, or of a mean over several; arrays [Q].  excess: loss above the undegraded one, nats.
    unit: of what severity was set in.  undegraded: that loss; stream_noise, block_noise: noise to signal at each
    severity; None where they are not known."""

    severity: np.ndarray
    excess: np.ndarray
    unit: Literal["fraction", "bits"] = "fraction"
    undegraded: float | None = None
    stream_noise: np.ndarray | None = None
    block_noise: np.ndarray | None = None

    def along(self, axis: Axis) -> np.ndarray | None:
        """The curve's abscissa for relations of this axis, None where it has none."""
        s = np.asarray(self.severity, float)
        if axis == "bits":
            return IDENTITY_BITS * (1 - s) if self.unit == "bits" else None
        if axis in ("stream noise", "block noise"):
            noise = self.stream_noise if axis == "stream noise" else self.block_noise
            return None if noise is None else np.asarray(noise, float)
        if self.unit != "fraction":
            return None
        if axis == "fraction":
            return s
        return None if self.undegraded is None else self.undegraded * s / (1 - s)

    def usable(self) -> "Points":
        """Its points between no degradation and all of it that cost something: the same for all relations."""
        s, y = np.asarray(self.severity, float), np.asarray(self.excess, float)
        chosen = (s > 0) & (s < 1) & (y > 0) & np.isfinite(y)
        arrays = {
            "severity": s,
            "excess": y,
            "stream_noise": self.stream_noise,
            "block_noise": self.block_noise,
        }
        kept = {name: None if a is None else np.asarray(a, float)[chosen] for name, a in arrays.items()}
        return dataclasses.replace(self, **kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Root mean squares of ln(predicted / measured), nan where they cannot be told.  misses: at each severity, from
    a fit to the others; seed_misses: of each member, from a fit to all the others together, () where there are
    fewer than two; extrapolated: at severities from STRONG on, fitted up to MILD."""

    fit: Fit
    misses: tuple[float, ...]
    seed_misses: tuple[float, ...]
    extrapolated: float

    @property
    def left_out(self) -> float:
        return _root_mean_square(self.misses)

    @property
    def seed_left_out(self) -> float:
        return _root_mean_square(self.seed_misses)


def compare(curve: Points, members: Sequence[Points] = ()) -> list[Comparison]:
    """All relations that the points allow, that of the smallest `left_out` first.

    curve: what is fitted.  members: the curves of single models, for what is left out by seed.
    """
    curve, members = curve.usable(), [member.usable() for member in members]
    found = []
    for relation in RELATIONS.values():
        x, y = curve.along(relation.of), curve.excess
        if x is None or not (x > 0).all() or len(y) < len(relation.parameters) + 1:
            continue
        whole = fit(relation, x, y)
        s, mild, strong = curve.severity, MILD[curve.unit], STRONG[curve.unit]
        alone = [_miss(whole, x[s != one], y[s != one], x[s == one], y[s == one]) for one in np.unique(s)]
        extrapolated = _miss(whole, x[s <= mild], y[s <= mild], x[s >= strong], y[s >= strong])
        found.append(
            Comparison(
                fit=whole,
                misses=tuple(alone),
                seed_misses=_seed_misses(whole, members),
                extrapolated=extrapolated,
            )
        )
    return sorted(found, key=lambda c: c.left_out)


def best_by(
    found: Sequence[Comparison], score: Literal["misses", "seed_misses", "aicc"]
) -> Comparison | None:
    """The relation to believe; None where none can be told.

    By what it misses, of all that are within one standard error of the one that misses least the one of fewest
    parameters (Breiman et al. 1984): a family that contains the truth fits as well as the truth.  AICc counts
    parameters itself.
    """
    if score == "aicc":
        return min((c for c in found if math.isfinite(c.fit.aicc)), key=lambda c: c.fit.aicc, default=None)
    known = [(np.square(getattr(c, score)), c) for c in found if len(getattr(c, score))]
    known = [(squares, c) for squares, c in known if np.isfinite(squares).all()]
    if not known:
        return None
    least, _ = min(known, key=lambda one: one[0].mean())
    error = least.std(ddof=1) / math.sqrt(len(least)) if len(least) > 1 else 0.0
    close = [(squares, c) for squares, c in known if squares.mean() <= least.mean() + error]
    return min(close, key=lambda one: (len(one[1].fit.parameters), one[0].mean()))[1]


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(np.mean(np.square(values))) if len(values) else math.nan


def _seed_misses(whole: Fit, members: Sequence[Points]) -> tuple[float, ...]:
    told = [(member.along(whole.relation.of), member.excess) for member in members]
    if len(told) < 2 or any(x is None or not len(x) or not (x > 0).all() for x, _ in told):
        return ()
    missed = []
    for i, (x, y) in enumerate(told):
        others = told[:i] + told[i + 1 :]
        seen = (np.concatenate(parts) for parts in zip(*others, strict=True))
        missed.append(_miss(whole, *seen, x, y))
    return tuple(missed)


def _miss(whole: Fit, seen_x, seen_y, asked_x, asked_y) -> float:
    """Root mean square of ln(predicted / measured) of the points asked, fitted on those seen."""
    if len(seen_x) < len(whole.parameters) or not len(asked_x):
        return math.nan
    # Where nothing is fitted nothing has to be seen.
    told = fit(whole.relation, seen_x, seen_y, near=whole) if whole.parameters else whole
    return _root_mean_square(np.log(np.maximum(told.excess(asked_x), 1e-300) / asked_y))
