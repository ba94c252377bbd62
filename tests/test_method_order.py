"""The known order of methods on trained members, paired over three seeds."""

import functools
from pathlib import Path

import numpy as np
import pytest
from method_order_cases import ORDER, POINTS, losses, margins, setting, table

from wane.train.config import Train
from wane.train.data import Data

RECORD = Path(__file__).parents[1] / "docs" / "method_order.md"


@functools.cache
def small():
    """164 thousand block parameters on the standard library's source."""
    train = Train(tokens=1_800_000, tokens_per_param=None, batch_size=32, lr=2**-6)
    dimensions = {"d_model": 64, "n_layers": 4, "n_heads": 4, "head_dim": 16, "d_ff": 128}
    return losses(setting(Data(sources="python", context=64), train, **dimensions), range(3))


def check(found):
    for (better, worse), margin in margins(found).items():
        assert margin.mean() > 0, (better, worse, margin)
    strict = [pair for *pair, may_be_equal in ORDER if not may_be_equal]
    for pair in strict:
        assert (margins(found)[tuple(pair)] > 0).all(), pair


def test_the_known_order_on_small_members():
    found = small()
    assert found.keys() == {"trained", *POINTS}
    check(found)


def test_every_degraded_member_is_worse_than_the_trained_one():
    found = small()
    for name, values in found.items():
        if name != "trained":
            assert np.mean(values) > np.mean(found["trained"]) - 1e-3, name


@pytest.mark.slow
def test_the_known_order_at_five_million_parameters():
    """Writes docs/method_order.md."""
    train = Train(tokens=2_000_000, tokens_per_param=None, batch_size=32)
    dimensions = {"d_model": 256, "n_layers": 8, "n_heads": 8, "head_dim": 32, "d_ff": 512}
    data = Data(sources="python", context=64)
    found = losses(setting(data, train, evaluation=1024, **dimensions), range(3))
    RECORD.write_text(
        "# The order of methods, measured\n\n"
        "Three members of 5.2 million block parameters (d_model 256, 8 layers), bytes of the standard\n"
        "library's source, 2 million tokens, 128 calibration and 1024 evaluation sequences of 64 tokens; written\n"
        f"by `pytest -m slow tests/test_method_order.py`.\n\n{table(found)}\n"
    )
    check(found)
