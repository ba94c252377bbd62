"""Two methods one after the other: against applying them by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade import build
from wane.scaling.degrade.compose import compose
from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.edit import fold, merge

SHAPE = SHAPES["mha-swiglu"]
WHERE = Where.everywhere(SHAPE)
BITS4 = severity_of(4, "bits")


def run(first, second, severity):
    """(edit, cost) of both, in one jitted call."""
    method = compose(first, second, SHAPE)
    fitted = method.fit(trained(SHAPE), tokens(SHAPE), jax.random.key(1))

    @jax.jit
    def point(severity):
        edit = method.apply(trained(SHAPE), fitted, severity, WHERE, jax.random.key(2))
        return edit, method.cost(trained(SHAPE), edit, severity)

    return [jax.tree.map(np.asarray, point(jnp.float32(s))) for s in severity], point


def alone(method, params, severity):
    fitted = method.fit(params, tokens(SHAPE), jax.random.key(1))
    return method.apply(params, fitted, jnp.float32(severity), WHERE, jax.random.key(2))


def logits(edit):
    params = trained(SHAPE)
    x_BSD = model.apply(params, tokens(SHAPE)[:, :-1], SHAPE, edit).x_BSD
    return model.unembed(merge(params, edit), x_BSD, SHAPE)


def test_pruning_then_rounding_is_rounding_what_is_left():
    prune, rtn = build("magnitude_weights", SHAPE), build("rtn", SHAPE)
    (both,), point = run(prune, rtn, [(0.5, BITS4)])
    pruned = merge(trained(SHAPE), alone(prune, trained(SHAPE), 0.5))
    expected = merge(pruned, alone(rtn, pruned, BITS4))
    for name in SHAPE.matrices:
        np.testing.assert_allclose(both[0].params["blocks"][name], expected["blocks"][name], rtol=1e-6)
    assert point._cache_size() == 1


def test_what_the_first_removed_stays_removed():
    """Noise on all weights would bring removed ones back."""
    prune, noise = build("magnitude_weights", SHAPE), build("gaussian_noise", SHAPE)
    (both,), _ = run(prune, noise, [(0.5, 0.3)])
    for name, w in fold(trained(SHAPE), alone(prune, trained(SHAPE), 0.5), SHAPE).items():
        after = both[0].params["blocks"][name]
        assert (after[np.asarray(w) == 0] == 0).all()
        assert (after[np.asarray(w) != 0] != np.asarray(w)[np.asarray(w) != 0]).mean() > 0.9


@pytest.mark.parametrize("severity", [(0.0, 0.0), (0.5, 0.0), (0.0, BITS4)])
def test_one_severity_at_0_is_the_other_method_alone(severity):
    prune, rtn = build("random_neurons", SHAPE), build("rtn", SHAPE)
    (both,), _ = run(prune, rtn, [severity])
    key, later = jax.random.split(jax.random.key(1))
    fitted = prune.fit(trained(SHAPE), tokens(SHAPE), key)
    edit = prune.apply(trained(SHAPE), fitted, jnp.float32(severity[0]), WHERE, key)
    if severity[1]:
        edit = alone(rtn, trained(SHAPE), severity[1])
    np.testing.assert_allclose(logits(both[0]), logits(edit), atol=1e-6)


def test_deployed_bits_are_those_of_the_rounded_rest_and_the_indices():
    prune = build("magnitude_weights", SHAPE, settings={"group": "row"})
    rtn = build("rtn", SHAPE, settings={"group_size": 8})
    for pair in ((prune, rtn), (rtn, prune)):
        severity = (0.5, BITS4) if pair[0] is prune else (BITS4, 0.5)
        (both,), _ = run(*pair, [severity])
        # half of the weights in 4 bits, one 16-bit scale per 8 of them, one bit of index each
        assert both[1].bits_per_weight == pytest.approx(0.5 * (4 + 16 / 8) + 1, rel=0.03)
        assert both[1].removed_fraction >= 0.5


def test_units_then_layers_and_activations_join():
    heads, layers = build("random_heads", SHAPE), build("remove_layers", SHAPE)
    (both,), _ = run(heads, layers, [(0.5, 0.34)])
    assert (both[0].attn_L == 0).sum() == 1
    assert both[0].head_LH is None  # folded into the weights that the second method saw
    assert (both[0].params["blocks"]["o"] == 0).all(2).sum() == 6 * SHAPE.head_dim
    some = build("activations", SHAPE, Scope(matrices=("down",)))
    rest = build("activations", SHAPE, Scope(matrices=("o",)))
    (both,), _ = run(some, rest, [(BITS4, BITS4)])
    assert set(both[0].activation_bits) == {"down_in", "o_in"}
    with pytest.raises(ValueError, match="both methods act on activation_bits"):
        run(some, some, [(BITS4, BITS4)])
