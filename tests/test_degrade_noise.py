"""Controls: noise of the energy of another method's error, and shuffled weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.degrade.gaussian_noise import gaussian_noise
from wane.scaling.degrade.shuffle_weights import shuffle_weights
from wane.scaling.edit import fold

SHAPE = SHAPES["mha-swiglu"]


class Run:
    """A method, jitted once: the noisy matrices at a severity."""

    def __init__(self, method):
        self.method, self.params = method, trained(SHAPE)
        self.fitted = jax.jit(method.fit, **QUICK)(self.params, tokens(SHAPE), jax.random.key(1))
        self.run = jax.jit(self._run, **QUICK)

    def _run(self, severity, where):
        return fold(
            self.params,
            self.method.apply(self.params, self.fitted, severity, where, jax.random.key(7)),
            SHAPE,
        )

    def at(self, setting, where=None):
        severity = jnp.float32(severity_of(setting, self.method.unit))
        return jax.tree.map(np.asarray, self.run(severity, where or Where.everywhere(SHAPE)))

    def error(self, setting):
        """Matrix name -> (trained weights, what is added)."""
        weights = {name: np.asarray(self.params["blocks"][name]) for name in SHAPE.matrices}
        return {name: (w, self.at(setting)[name] - w) for name, w in weights.items()}


@functools.lru_cache
def noise(**settings) -> Run:
    return Run(gaussian_noise(SHAPE, **settings))


@functools.lru_cache
def other(name: str) -> Run:
    return Run(build(name, SHAPE))


def energy(x_LIO, size=0):
    """Sum of squares of each output, or of each group of inputs, in f64."""
    L, I, O = x_LIO.shape
    return np.square(np.float64(x_LIO)).reshape(L, -1, size or I, O).sum(2)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("kind", ["gaussian", "sign_preserving"])
def test_noise_has_the_asked_share_of_every_output(kind, sigma):
    for w, added in noise(kind=kind).error(sigma).values():
        np.testing.assert_allclose(energy(added), sigma**2 * energy(w), rtol=1e-4)


@pytest.mark.parametrize(
    ("match", "setting"), [("rtn", 4), ("rtn", 1.585), ("magnitude_weights", 0.5), ("random_heads", 0.5)]
)
@pytest.mark.parametrize("kind", ["gaussian", "sign_preserving"])
def test_noise_has_the_energy_of_another_methods_error(match, setting, kind):
    errors = other(match).error(setting)
    for name, (w, added) in noise(match=match, kind=kind).error(setting).items():
        wanted = energy(errors[name][1])
        np.testing.assert_allclose(energy(added), wanted, rtol=1e-3, atol=1e-9 * energy(w).max())
        if wanted.max() > 0:
            assert abs(np.corrcoef(added.ravel(), errors[name][1].ravel())[0, 1]) < 0.3


def test_noise_matches_groups_of_inputs_and_settings_of_the_matched_method():
    settings = {"group_size": 8, "symmetric": False}
    matched = Run(gaussian_noise(SHAPE, match="rtn", match_settings=settings, group_size=8))
    errors = Run(build("rtn", SHAPE, settings=settings)).error(3)
    for name, (_, added) in matched.error(3).items():
        np.testing.assert_allclose(energy(added, 8), energy(errors[name][1], 8), rtol=1e-3)


def test_a_random_matched_method_draws_apart_from_the_noise():
    """The mask of random_weights and the noise come from keys of their own."""
    errors = {n: e for n, (_, e) in other("random_weights").error(0.5).items()}
    for name, (_, added) in noise(match="random_weights").error(0.5).items():
        chosen = errors[name] != 0
        gap = added[chosen].mean() - added[~chosen].mean()
        assert abs(gap) < 5 * added.std() * np.sqrt(4 / added.size)


def test_sign_preserving_noise_multiplies_by_1_plus_or_minus_one_number_per_output():
    for w, added in noise(kind="sign_preserving").error(0.5).values():
        np.testing.assert_allclose(np.abs(added / w), 0.5, rtol=1e-3)
        assert 0.35 < (added * w > 0).mean() < 0.65
    for w, added in noise(kind="sign_preserving").error(3.0).values():  # no sign is given up
        assert ((w + added) * w >= -1e-6 * w * w).all()


def test_noise_is_gaussian_and_keeps_its_direction():
    w, added = noise().error(0.5)["up"]
    z = added / np.sqrt(energy(w) / w.shape[1])[:, 0:1] / 0.5
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    np.testing.assert_allclose(z.var(), 1, atol=0.01)
    np.testing.assert_allclose((z**4).mean(), 3, atol=0.6)
    np.testing.assert_allclose(noise().error(0.1)["up"][1], added / 5, rtol=1e-3, atol=1e-6)


def test_unit_and_grid_are_those_of_the_matched_method():
    method = gaussian_noise(SHAPE, match="rtn")
    assert (method.unit, method.severities) == ("bits", build("rtn", SHAPE).severities)
    assert gaussian_noise(SHAPE).unit == "sigma"


def test_settings_without_a_method_and_unknown_methods_are_refused():
    with pytest.raises(ValueError, match='match_settings = .* got match = "none"'):
        gaussian_noise(SHAPE, match_settings={"group_size": 8})
    with pytest.raises(ValueError, match="did you mean rtn"):
        gaussian_noise(SHAPE, match="rtm")
    with pytest.raises(ValueError, match="rtn.group: not a setting"):
        gaussian_noise(SHAPE, match="rtn", match_settings={"group": 8})


@functools.lru_cache
def shuffled() -> Run:
    return Run(shuffle_weights(SHAPE))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 1.0])
def test_a_share_of_each_outputs_weights_changes_places(share):
    for name, (w, added) in shuffled().error(share).items():
        I = w.shape[1]
        moving = int(share * I)
        np.testing.assert_array_equal((added != 0).sum(1), moving if moving > 1 else 0, err_msg=name)
        np.testing.assert_array_equal(np.sort(shuffled().at(share)[name], axis=1), np.sort(w, axis=1))


def test_who_moves_is_nested_and_differs_between_outputs():
    few, many = ({n: e != 0 for n, (_, e) in shuffled().error(s).items()} for s in (0.3, 0.7))
    for name in few:
        assert (many[name] | ~few[name]).all()
        assert len({tuple(column) for column in few[name][0].T}) > 1


def test_one_head_is_shuffled_among_itself():
    run = Run(shuffle_weights(SHAPE, Scope(head=1)))
    for name, (w, added) in ((n, run.error(1.0)[n]) for n in "qo"):
        inside = np.zeros(w.shape, bool)
        inside[(slice(None), slice(4, 8)) if name == "o" else (..., slice(4, 8))] = True
        np.testing.assert_array_equal(added != 0, inside)
        own = [np.sort(np.where(inside, x, 0), axis=1) for x in (w, run.at(1.0)[name])]
        np.testing.assert_array_equal(*own)
