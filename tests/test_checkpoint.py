"""Checkpoints: every leaf comes back or is refused; newest whole one wins; old ones go, kept ones stay."""

import json
import logging
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wane.train import checkpoint


class Toy(NamedTuple):
    params: dict
    step: jax.Array
    mask: dict | None


def toy(step, mask=True):
    key = jax.random.key(step)
    params = {
        "blocks": {"q": jax.random.normal(key, (2, 3, 4, 5)), "b": jnp.full((2, 7), step, jnp.bfloat16)},
        "embed": jax.random.bits(key, (2, 300), jnp.uint8),
    }
    kept = {"q": jax.random.bernoulli(key, 0.5, (2, 3, 4, 5))} if mask else None
    return Toy(params, jnp.full(2, step, jnp.int32), kept)


def abstract(step, mask=True):
    return jax.eval_shape(lambda: toy(step, mask))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def data_files(directory, step):
    """The files that hold array data, largest first."""
    files = [p for p in (directory / str(step) / "state" / "ocdbt.process_0" / "d").iterdir() if p.is_file()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def flip(path, position, bit=3):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("mask", [True, False])
def test_every_leaf_comes_back(tmp_path, mask):
    checkpoint.save(tmp_path, 3, toy(3, mask))
    same(checkpoint.restore(tmp_path, 3, abstract(3, mask)), toy(3, mask))


def test_one_member_of_a_pack(tmp_path):
    checkpoint.save(tmp_path, 3, toy(3))
    params = checkpoint.load_params(tmp_path, 3, replica=1)
    same(params, jax.tree.map(lambda leaf: leaf[1], toy(3).params))
    one = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], toy(3, mask=False)))
    same(checkpoint.load_replica(tmp_path, 3, 1, one), jax.tree.map(lambda leaf: leaf[1], toy(3, mask=False)))
    other = one._replace(params={**one.params, "unembed": one.step})
    with pytest.raises(ValueError, match="has no params/unembed: another model"):
        checkpoint.load_replica(tmp_path, 3, 1, other)


def test_newest_two_and_kept_steps_stay(tmp_path):
    assert checkpoint.steps(tmp_path / "none") == []
    for step in (0, 2, 4, 6, 8):
        checkpoint.save(tmp_path, step, toy(step), keep={0, 4})
    assert checkpoint.steps(tmp_path) == [0, 4, 6, 8]
    assert checkpoint.restore_newest(tmp_path, abstract)[0] == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "4", "6", "8"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 1, toy(5))
    checkpoint.save(tmp_path, 1, toy(6))
    same(checkpoint.restore(tmp_path, 1, abstract(1)), toy(6))


def test_a_flipped_bit_is_refused_and_the_older_step_is_used(tmp_path, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, toy(step))
    newest = data_files(tmp_path, 2)[0]
    flip(newest, newest.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        step, state = checkpoint.restore_newest(tmp_path, abstract)
    assert step == 1
    same(state, toy(1))
    line = caplog.messages[-1]
    assert "checkpoint" in line
    assert "is damaged" in line
    assert "trying the next older one" in line
    assert "\n" not in line
    with pytest.raises(ValueError, match="is damaged .* delete it and run again"):
        checkpoint.restore(tmp_path, 2, abstract(2))
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load_params(tmp_path, 2, 0)


def test_a_flip_in_any_file_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    checkpoint.save(tmp_path, 1, toy(1))
    files = [p for p in sorted((tmp_path / "1").rglob("*")) if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    for path in files:
        position = rng.integers(0, path.stat().st_size)
        flip(path, position)
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.restore(tmp_path, 1, abstract(1))
        flip(path, position)
    same(checkpoint.restore(tmp_path, 1, abstract(1)), toy(1))


def test_arrays_that_are_not_what_training_had_are_refused(tmp_path):
    """Damage between memory and disk: the files agree with themselves, a leaf does not."""
    checkpoint.save(tmp_path, 1, toy(1))
    path = tmp_path / "1" / checkpoint.DIGESTS
    digests = json.loads(path.read_text())
    digests["leaves"]["step"] = "0" * 32
    path.write_text(json.dumps(digests))
    with pytest.raises(ValueError, match=r"is damaged \(digest of step does not match\)"):
        checkpoint.restore(tmp_path, 1, abstract(1))


def test_half_deleted_and_missing_steps(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, toy(step))
    data_files(tmp_path, 2)[0].unlink()
    (tmp_path / "3").mkdir()
    assert checkpoint.restore_newest(tmp_path, abstract)[0] == 1
    with pytest.raises(FileNotFoundError, match=r"9 does not exist: complete steps are \[1, 2, 3\]"):
        checkpoint.restore(tmp_path, 9, abstract(9))
    assert checkpoint.restore_newest(tmp_path / "none", abstract) is None


def test_remains_of_an_interrupted_save_are_cleared(tmp_path):
    for name in ("7.saving.orbax-checkpoint-tmp", "7.saving", "5.deleted"):
        (tmp_path / name).mkdir()
    checkpoint.save(tmp_path, 8, toy(8))
    assert [p.name for p in tmp_path.iterdir()] == ["8"]


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import jax, jax.numpy as jnp
from wane.train import checkpoint
directory = Path(sys.argv[1])
state = {"params": {"w": jax.random.normal(jax.random.key(0), (1, 100_000))}}
checkpoint.save(directory, 1, state)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    checkpoint.save(directory, 2, state)
except OSError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
checkpoint.load_params(directory, 1, 0)
checkpoint.save(directory, 3, state)
print(checkpoint.steps(directory))
"""


def test_a_failed_write_is_one_line_and_leaves_earlier_steps(tmp_path):
    """A real failing write: no file may grow beyond 50 kB."""
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    error, steps = done.stdout.splitlines()
    assert "could not be written" in error
    assert "free disk space and run again; steps [1] are complete" in error
    assert steps == "[1, 3]"
