"""The known order of methods on trained members, paired over three seeds."""

import functools
from pathlib import Path

import numpy as np
import pytest
from method_order_cases import losses, margins, order, points, setting, table

from wane.train.config import Train
from wane.train.data import Data

RECORD = Path(__file__).parents[1] / "docs" / "method_order.md"


@functools.cache
def small():
    """164 thousand block parameters on the standard library's source."""
    train = Train(tokens=1_800_000, tokens_per_param=None, batch_size=32, lr=2**-6)
    dimensions = {"d_model": 64, "n_layers": 4, "n_heads": 4, "head_dim": 16, "d_ff": 128}
    return losses(setting(Data(sources="python", context=64), train, **dimensions), range(3))


def check(found, d_model):
    margin_of = margins(found, d_model)
    for better, worse, must in order(d_model):
        margin = margin_of[better, worse]
        assert must == "reported" or margin.mean() > 0, (better, worse, margin)
        assert must != "every" or (margin > 0).all(), (better, worse, margin)


def test_the_known_order_on_small_members():
    found = small()
    assert found.keys() == {"trained", *points(64)}
    check(found, 64)


def test_every_degraded_member_is_worse_than_the_trained_one():
    found = small()
    for name, values in found.items():
        if name != "trained":
            assert np.mean(values) > np.mean(found["trained"]) - 1e-3, name


@pytest.mark.slow
def test_the_known_order_at_five_million_parameters():
    """Writes docs/method_order.md."""
    train = Train(tokens=4_000_000, tokens_per_param=None, batch_size=32, lr=2**-6)
    dimensions = {"d_model": 256, "n_layers": 8, "n_heads": 8, "head_dim": 32, "d_ff": 512}
    found = losses(
        setting(Data(sources="python", context=64), train, evaluation=1024, **dimensions), range(3)
    )
    RECORD.write_text(record(found, 256))
    check(found, 256)


def record(found, d_model) -> str:
    return (
        "# The order of methods, measured\n\n"
        "Three members of 5.2 million block parameters (d_model 256, 8 layers), bytes of the standard library's\n"
        "source, 4 million tokens, 128 calibration and 1024 evaluation sequences of 64 tokens; written by\n"
        f"`pytest -m slow tests/test_method_order.py`.\n\n{table(found, d_model)}\n\n"
        "The order in print, with AWQ in groups of a quarter of the inputs. In groups of 16 AWQ gains nothing\n"
        "over rounding; that pair is reported and nothing is asked of it.\n"
    )
