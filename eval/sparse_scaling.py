"""The scaling law of sparse models, fitted to a table of many of them."""

import dataclasses

import numpy as np
from scipy import optimize

STARTS = 6  # of the search


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
