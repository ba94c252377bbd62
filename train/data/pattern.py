"""Which source a row of the training stream comes from: a fixed periodic pattern that mixes evenly."""

import numpy as np

PERIOD = 4096  # shares are multiples of 1/4096
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


class Pattern:
    """Rows 0, 1, 2, ... of the stream, dealt to sources in proportion to `weights`.

    Slot p of a period goes by the rank of p * golden ratio modulo 1: every source's rows are spread as
    evenly as possible (three-gap theorem), and every period holds exactly the same number of them.
    """

    def __init__(self, weights: list[float]):
        share = np.array(weights) / np.sum(weights) * PERIOD
        self.counts = np.maximum(np.floor(share).astype(np.int64), 1)
        while self.counts.sum() < PERIOD:  # what rounding left over goes to the largest remainders
            self.counts[np.argmax(share - self.counts)] += 1
        while self.counts.sum() > PERIOD:  # what raising to 1 took comes from the largest
            self.counts[np.argmax(self.counts)] -= 1
        spread = np.arange(PERIOD, dtype=np.uint64) * np.uint64(GOLDEN)
        rank = np.argsort(np.argsort(spread))
        self.source = np.searchsorted(np.cumsum(self.counts), rank, side="right")
        of_source = self.source == np.arange(len(weights))[:, None]
        self.before = np.cumsum(of_source, axis=1) - of_source  # [source, slot]

    def sources(self, rows: np.ndarray) -> np.ndarray:
        """The source of each row number."""
        return self.source[rows % PERIOD]

    def ordinals(self, rows: np.ndarray | int, source: int) -> np.ndarray:
        """How many rows before each of these row numbers come from `source`."""
        return rows // PERIOD * self.counts[source] + self.before[source, rows % PERIOD]
