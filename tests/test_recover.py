"""Recovery: what was taken stays taken while the rest is trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where, severity_of
from wane.scaling.edit import fold, merge
from wane.train.config import Train
from wane.train.recover import advance, begin, recovered

SHAPE = SHAPES["mha-swiglu"]
TRAIN = Train(lr=2**-6, weight_decay=0.0, schedule="wsd", warmup_fraction=0.0, final_lr_fraction=1.0)
TOKENS_nBT = jnp.stack([tokens(SHAPE)] * 12)


@functools.lru_cache
def programs(name, severity):
    method = build(name, SHAPE)
    params = trained(SHAPE)
    fitted = method.fit(params, tokens(SHAPE), jax.random.key(1))
    edit = method.apply(params, fitted, jnp.float32(severity), Where.everywhere(SHAPE), jax.random.key(2))
    go_on = jax.jit(functools.partial(advance, hold=method.hold, shape=SHAPE, train=TRAIN))
    return method, edit, go_on


def loss(edit, params=None):
    params = trained(SHAPE) if params is None else params
    x_BSD = model.apply(params, tokens(SHAPE)[:, :-1], SHAPE, edit).x_BSD
    return float(model.nll(merge(params, edit), x_BSD, tokens(SHAPE), SHAPE).mean())


CASES = [
    ("magnitude_weights", 0.5),
    ("random_neurons", 0.5),
    ("random_heads", 0.5),
    ("rtn", severity_of(3, "bits")),
]


@pytest.mark.parametrize(("name", "severity"), CASES)
def test_recovery_lowers_the_loss_and_gives_nothing_back(name, severity):
    method, edit, go_on = programs(name, severity)
    start = begin(trained(SHAPE), edit, SHAPE, TRAIN)
    before = recovered(start, edit, method.hold)
    assert loss(before) == pytest.approx(loss(edit), abs=1e-5)
    after = recovered(go_on(start, edit, TOKENS_nBT, jnp.int32(12)), edit, method.hold)
    assert loss(after) < loss(edit) - 0.05
    for matrix, w in fold(trained(SHAPE), edit, SHAPE).items():
        held = np.asarray(after.params["blocks"][matrix])
        if method.promises.exact_count:
            assert (held[np.asarray(w) == 0] == 0).all()
        else:  # on the lattice of the plain degraded model: no level that was not there
            for column in range(held.shape[-1]):
                levels = len(np.unique(held[0, :, column]))
                assert levels <= 2**3
        assert (held != np.asarray(before.params["blocks"][matrix])).any()


def test_the_number_of_updates_is_traced_and_goes_on():
    _, edit, go_on = programs("magnitude_weights", 0.5)
    start = begin(trained(SHAPE), edit, SHAPE, TRAIN)
    at_5 = go_on(start, edit, TOKENS_nBT, jnp.int32(5))
    resumed = go_on(at_5, edit, TOKENS_nBT, jnp.int32(9))
    at_once = go_on(start, edit, TOKENS_nBT, jnp.int32(9))
    assert int(at_5.step) == 5
    for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(at_once.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert go_on._cache_size() == 1


def test_tokens_without_a_score_count_as_they_did_in_training():
    method, edit, _ = programs("magnitude_weights", 0.5)
    scored = np.zeros(TOKENS_nBT.shape, bool)
    scored[:, :, :5] = True
    marked = jnp.where(scored, TOKENS_nBT, ~TOKENS_nBT)
    other = jnp.where(scored, TOKENS_nBT, ~jnp.roll(TOKENS_nBT, 1, axis=1))  # read by nothing that is scored
    start = begin(trained(SHAPE), edit, SHAPE, TRAIN)

    def tuned(weight, batches):
        train = dataclasses.replace(TRAIN, unscored_weight=weight)
        return advance(start, edit, batches, jnp.int32(2), hold=method.hold, shape=SHAPE, train=train).params

    np.testing.assert_array_equal(tuned(0.0, marked)["embed"], tuned(0.0, other)["embed"])
    assert not np.array_equal(tuned(0.5, marked)["embed"], tuned(0.5, other)["embed"])
    np.testing.assert_array_equal(tuned(1.0, marked)["embed"], tuned(1.0, TOKENS_nBT)["embed"])
