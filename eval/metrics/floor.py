"""Floors: what is left of a value where a model knows how often each token occurs in the evaluated sequences of a
task, and nothing else.  They are measured on the tokens of the curve itself."""

import numpy as np

from wane.train.data import EvalSet


def most_frequent(evaluation: EvalSet, mine_N: np.ndarray) -> float | None:
    """Accuracy of who always gives the most frequent answer of these sequences; None without answers."""
    scored_NS = evaluation.scored_NS & mine_N[:, None]
    frequency = np.bincount(evaluation.tokens_NT[:, 1:][scored_NS])
    return float(frequency.max() / frequency.sum()) if frequency.size else None


def unigram_loss(evaluation: EvalSet, mine_N: np.ndarray) -> float:
    """Nats per token of who predicts every token of these sequences by its frequency among them."""
    frequency = np.bincount(evaluation.tokens_NT[mine_N, 1:].ravel())
    share = frequency[frequency > 0] / frequency.sum()
    return float(-(share * np.log(share)).sum())
