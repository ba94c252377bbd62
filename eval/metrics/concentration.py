"""How few units a model depends on: the concentration of the effects of their ablation.

effects: harm of taking out one unit (head, layer, neuron), of all units that are compared; where taking one out
helps, it counts as 0.
"""

import numpy as np


def _harm(effects: np.ndarray) -> np.ndarray:
    harm = np.maximum(np.asarray(effects, np.float64).ravel(), 0)
    if not harm.size or not np.isfinite(harm).all():
        raise ValueError(f"effects = {effects}: must be finite numbers, at least one")
    return harm


def gini(effects: np.ndarray) -> float:
    """Gini coefficient times n / (n - 1) (Deltas 2003, Review of Economics and Statistics 85): 0 where all effects
    are equal, 1 where one of n units has all, so that models of few and of many units compare; nan where none harms
    and where there is one unit."""
    harm = np.sort(_harm(effects))
    n, total = len(harm), harm.sum()
    if total == 0 or n == 1:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ harm / ((n - 1) * total))


def effective_number(effects: np.ndarray) -> float:
    """exp of the entropy of the shares of all harm: n where all n effects are equal, 1 where one unit has all
    (Hill 1973, Ecology 54, number of order 1); nan where none harms."""
    harm = _harm(effects)
    share = harm[harm > 0] / harm.sum() if harm.any() else np.full(1, np.nan)
    return float(np.exp(-np.sum(share * np.log(share))))
