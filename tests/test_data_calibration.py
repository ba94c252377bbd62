"""Calibration sequences: from training, one task, other shares, other text, no text at all."""

import numpy as np
import pytest

from wane.train.data import Data, open_data
from wane.train.data.calibration import calibration, check_calibration
from wane.train.data.vocabulary import SIZE, TAGS

GRADED = Data(sources="graded", context=32, facts=16)


def opened(data):
    return open_data(data, steps=1, batch_size=4)


def test_one_task_and_shares_of_tasks():
    stream = opened(GRADED)
    tokens = calibration("task:L2", stream, 8, 0)
    assert tokens.shape == (8, 33)
    assert (tokens[:, 0] == TAGS["L2"]).all()
    mixed = calibration("tasks:L2=1,S=3", stream, 400, 0)
    assert set(np.unique(mixed[:, 0])) == {TAGS["L2"], TAGS["S"]}
    assert not np.array_equal(calibration("task:L2", stream, 8, 1), tokens)
    np.testing.assert_array_equal(calibration("task:L2", stream, 8, 0), tokens)
    np.testing.assert_array_equal(calibration("same", stream, 8, 3), stream.calibration(8, 3))


def test_random_tokens_are_uniform():
    tokens = calibration("random", opened(GRADED), 600, 0)
    counts = np.bincount(tokens.ravel(), minlength=SIZE)
    assert len(counts) == SIZE
    assert abs(counts / counts.mean() - 1).max() < 0.8
    assert counts.std() == pytest.approx(counts.mean() ** 0.5, rel=0.2)


def test_other_text_has_the_tokens_of_the_studys_tokenizer(tmp_path):
    for name, word in (("a", b"alpha beta "), ("b", b"gamma delta ")):
        for i in range(6):
            (tmp_path / f"{name}{i}.txt").write_bytes(word * (30 + i))
    stream = opened(Data(sources=f"text:{tmp_path}/a*.txt", context=16, held_out=0.3))
    tokens = calibration(f"text:{tmp_path}/b*.txt", stream, 4, 0)
    text = bytes(t for t in tokens.ravel() if t < 256)
    assert b"gamma" in text
    assert b"alpha" not in text
    both = opened(Data(sources={"graded": 1.0, f"text:{tmp_path}/a*.txt": 1.0}, context=32, held_out=0.3))
    shifted = calibration(f"text:{tmp_path}/b*.txt", both, 4, 0)
    assert shifted.min() >= SIZE
    assert b"gamma" in bytes(t - SIZE for t in shifted.ravel() if t - SIZE < 256)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("other", "degradations.calibration = 'other': must be same, random"),
        ("task:L9", "'L9' is no task"),
        ("tasks:L2=0", "'L2=0' is no task with a share above 0"),
        ("tasks:L2=x", "'L2=x' is no task with a share above 0"),
    ],
)
def test_a_wrong_source_is_named(source, words):
    with pytest.raises(ValueError, match=words):
        check_calibration(source)


def test_a_source_that_the_vocabulary_does_not_have(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_bytes(b"some text %d " % i * 40)
    with pytest.raises(ValueError, match="has no text"):
        calibration("python", opened(GRADED), 2, 0)
    text = opened(Data(sources=f"text:{tmp_path}/*.txt", context=16, held_out=0.5))
    with pytest.raises(ValueError, match="no graded tasks"):
        calibration("task:L2", text, 2, 0)
