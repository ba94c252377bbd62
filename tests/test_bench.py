"""The arithmetic of `wane bench`: where a learning rate is best."""

import math

import numpy as np
import pytest

from wane.launch.bench import optimum

LRS = [0.001 * 2.0**i for i in range(7)]


@pytest.mark.parametrize("best", [0.0021, 0.004, 0.0113, 0.02])
def test_the_optimum_of_a_parabola_in_log_lr_is_found(best):
    losses = [3 + 0.2 * math.log2(lr / best) ** 2 for lr in LRS]
    assert optimum(LRS, losses) == pytest.approx(best)


def test_rates_that_diverged_do_not_count():
    losses = [3.0, 2.5, 2.0, 2.5, math.nan, math.inf, math.nan]
    assert optimum(LRS, losses) == pytest.approx(LRS[2])
    assert optimum(LRS, [3.0, 2.5, 2.0, math.nan, math.nan, math.nan, math.nan]) == LRS[2]


def test_an_optimum_at_the_end_of_the_grid_is_not_extrapolated():
    assert optimum(LRS, list(np.arange(7.0))) == LRS[0]
    assert optimum(LRS, list(-np.arange(7.0))) == LRS[-1]
