"""Masks as files: written, read, applied, trained under."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, tokens, trained

from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where
from wane.scaling.degrade.given_mask import read_mask, write_mask
from wane.scaling.edit import fold
from wane.train.config import Train
from wane.train.mask import degradation_mask
from wane.train.step import init_state, train_step

SHAPE = SHAPES["mha-swiglu"]


@pytest.fixture
def exported(tmp_path):
    """(file, the mask that pruning half of each row makes)."""
    method = build("magnitude_weights", SHAPE, settings={"group": "row"})
    keys_R = jax.random.key(0)[None]
    mask = degradation_mask(method, SHAPE, tokens(SHAPE), 0.5, keys_R)(trained(SHAPE), jnp.int32(0))
    write_mask(tmp_path / "half.npz", mask)
    return str(tmp_path / "half.npz"), jax.tree.map(np.asarray, mask)


def test_the_file_holds_the_mask(exported):
    file, mask = exported
    again = read_mask(file, SHAPE)
    assert again.keys() == mask.keys() == SHAPE.matrices.keys()
    for name in mask:
        np.testing.assert_array_equal(again[name], mask[name])
        assert mask[name].mean() == 0.5


def test_severity_1_is_the_mask_and_less_is_a_part_of_it(exported):
    file, mask = exported
    method = build("given_mask", SHAPE, settings={"file": file})
    other = trained(SHAPE, seed=3)
    fitted = method.fit(other, tokens(SHAPE), jax.random.key(0))
    for severity, share in ((1.0, 1.0), (0.3, 0.3), (0.0, 0.0)):
        edit = method.apply(other, fitted, jnp.float32(severity), Where.everywhere(SHAPE), jax.random.key(0))
        gone = {name: np.asarray(w) == 0 for name, w in fold(other, edit, SHAPE).items()}
        assert all((gone[name] <= ~mask[name]).all() for name in mask)
        total = sum((~keep).sum() for keep in mask.values())
        assert sum(g.sum() for g in gone.values()) == int(share * total)


def test_training_from_scratch_under_a_mask_from_a_file(exported):
    file, mask = exported
    method = build("given_mask", SHAPE, settings={"file": file})
    params = trained(SHAPE, seed=4)
    given = degradation_mask(method, SHAPE, tokens(SHAPE), 1.0, jax.random.key(0)[None])(params, jnp.int32(0))
    train = Train(tokens=100, tokens_per_param=None)
    state = init_state(jax.random.key(5), SHAPE, train, given)
    step = jax.jit(lambda s: train_step(s, tokens(SHAPE), 0.01, shape=SHAPE, train=train, steps=9)[0])
    start = state.params
    for _ in range(4):
        state = step(state)
    for name, keep in mask.items():
        after, before = (np.asarray(p["blocks"][name]) for p in (state.params, start))
        assert (after[~keep] == 0).all()
        assert (after[keep] != 0).all()
        assert (after[keep] != before[keep]).mean() > 0.99


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"q": np.ones((3, 16, 17), bool)}, r"q is bool \[3, 16, 17\]; must be bool \[3, 16, 16\]"),
        ({"q": np.ones((3, 16, 16))}, r"q is float64"),
        ({"w": np.ones(3, bool)}, r"w is bool \[3\]; .* has q, k, v"),
    ],
)
def test_a_mask_of_another_shape_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        build("given_mask", SHAPE, settings={"file": str(tmp_path / "m.npz")})


def test_no_file_or_no_mask_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; `wane mask` writes one"):
        build("given_mask", SHAPE, settings={"file": str(tmp_path / "none.npz")})
    (tmp_path / "text.npz").write_text("no array")
    with pytest.raises(ValueError, match="not an .npz of masks"):
        build("given_mask", SHAPE, settings={"file": str(tmp_path / "text.npz")})
