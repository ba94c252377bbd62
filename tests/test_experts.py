"""A mixture of experts: which experts a token runs through, the balance loss of training, its sizes in a family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model as reference
from model_cases import forward, random_params, random_tokens, shape_of

from wane.scaling import model
from wane.scaling.edit import SITES, Edit
from wane.scaling.model import route

SHAPE = shape_of("experts")
PARAMS, TOKENS = random_params(SHAPE), random_tokens(SHAPE)
IDENTITY = np.eye(4, dtype=np.float32)  # of a router: the stream is the logits


def routed(logits, top_k, **edit):
    """Routing weights of tokens with these logits."""
    x_BSD = jnp.asarray(logits, jnp.float32)[None]
    return np.asarray(route(x_BSD, IDENTITY, top_k, Edit(**edit))[1][0])


def test_ties_go_to_the_lower_expert():
    np.testing.assert_array_equal(routed([[0, 0, 0, 0], [0, 1, 1, 1]], 1), [[1, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(
        routed([[1, 3, 1, 1], [-0.0, 0, 0, 0]], 2) > 0, [[1, 1, 0, 0], [1, 1, 0, 0]]
    )


def test_weights_are_the_softmax_over_the_chosen_experts_alone():
    e = np.e
    np.testing.assert_allclose(routed([[2, 0, 1, -9]], 2), [[e / (e + 1), 0, 1 / (e + 1), 0]], rtol=1e-6)
    np.testing.assert_allclose(
        routed([[500, -500, 499, 0]], 3)[0, [0, 2]], [e / (e + 1), 1 / (e + 1)], rtol=1e-6
    )
    probabilities = route(jnp.zeros((1, 1, 4)), IDENTITY, 2, Edit())[0]
    np.testing.assert_allclose(probabilities, np.full((1, 1, 4), 0.25))


def test_a_removed_expert_hands_its_tokens_to_the_next_best():
    logits, out = [[3, 2, 1, 0]], np.array([False, True, True, True])
    np.testing.assert_array_equal(routed(logits, 1, expert_LE=out), [[0, 1, 0, 0]])
    np.testing.assert_array_equal(routed(logits, 2, expert_LE=out) > 0, [[0, 1, 1, 0]])
    np.testing.assert_array_equal(routed(logits, 2, expert_LE=np.arange(4) == 3), [[0, 0, 0, 1]])
    np.testing.assert_array_equal(routed(logits, 2, expert_LE=np.zeros(4)), np.zeros((1, 4)))
    np.testing.assert_array_equal(routed(logits, 2, active_L=jnp.int32(0)), np.zeros((1, 4)))
    np.testing.assert_array_equal(routed(logits, 2, active_L=jnp.int32(3)) > 0, [[1, 1, 1, 0]])


def test_without_experts_the_mlp_adds_nothing_and_gradients_stay_finite():
    def loss(params, expert_LE):
        x_BSD = model.apply(params, TOKENS, SHAPE, Edit(expert_LE=expert_LE)).x_BSD
        return jnp.sum(model.unembed(params, x_BSD, SHAPE) ** 2), x_BSD

    step = jax.jit(jax.grad(loss, has_aux=True))
    gradient, x_BSD = step(PARAMS, jnp.zeros((SHAPE.n_layers, SHAPE.n_experts)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(gradient["blocks"]["up"], 0)
    _, plain = forward(PARAMS, TOKENS, SHAPE, Edit(mlp_L=jnp.zeros(SHAPE.n_layers)))
    np.testing.assert_allclose(x_BSD, plain.x_BSD, rtol=1e-6, atol=1e-6)


def test_the_router_reads_the_stream_before_it_is_rounded():
    """As deployed: a router stays in full precision (its matrix is no method's, so neither is its input)."""
    bits = {site: np.full(SHAPE.n_layers, 2, np.float32) for site in SITES}
    _, rounded = forward(PARAMS, TOKENS, SHAPE, Edit(activation_bits=bits))
    mid_BSD = np.asarray(rounded.inner["mid"][0], np.float64)
    x_BSD = reference.norm(mid_BSD, np.asarray(PARAMS["blocks"]["mlp_norm_scale"][0]), None, SHAPE.norm_eps)
    assert np.abs(x_BSD - rounded.inner["mlp_in"][0]).max() > 0.1
    logits = x_BSD @ np.asarray(PARAMS["blocks"]["router"][0], np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(rounded.inner["router"][0], expected, rtol=1e-4)


@pytest.mark.parametrize("d_model", [32, 128])
def test_router_logits_start_smaller_in_wider_models(d_model):
    """Standard deviation embed_std / m_N of the router's entries: it is an output weight."""
    shape = shape_of("experts", d_model=d_model, n_experts=64)
    router = jax.jit(model.init_params, static_argnums=1)(jax.random.key(0), shape)["blocks"]["router"]
    np.testing.assert_allclose(np.std(router), 0.02 / (d_model / 32), rtol=0.05)
