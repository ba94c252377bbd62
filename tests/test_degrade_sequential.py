"""The walk over blocks, with trivial solvers, against loops in numpy: dense and with experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.sequential import gram, rewrite
from wane.scaling.edit import SITES
from wane.scaling.shape import Shape


def second_moments(x_TI):
    return gram(x_TI), jnp.sum(jnp.any(x_TI != 0, axis=-1), dtype=jnp.int32)


def shrink(weights, statistics, inside):
    """Each input is scaled by its own root mean square: depends on every statistic."""
    moments, count = statistics
    size_I = jnp.sqrt(jnp.diagonal(moments) / jnp.maximum(count, 1))
    return {name: w_IO * (1.5 * size_I / (1 + size_I))[:, None] for name, w_IO in weights.items()}, {}


def in_numpy(params, tokens_NT, shape, chosen, true_sequential):
    """Blocks one by one: inputs of each site from a forward of the blocks as they stand, then shrink, by loops."""
    blocks = {name: np.array(leaf) for name, leaf in params["blocks"].items()}
    stages = [[site] for site in SITES] if true_sequential else [list(SITES)]
    for l in range(shape.n_layers):
        for stage in stages:
            now = {**params, "blocks": {name: jnp.asarray(leaf) for name, leaf in blocks.items()}}
            inner = forward_inner(now, tokens_NT[:, :-1], shape)
            for site in stage:
                for name in (n for n in SITES[site] if n in shape.matrices):
                    if l in chosen:
                        scale(blocks[name], l, site, name, inner, shape)
    return {name: blocks[name] for name in shape.matrices}


@functools.partial(jax.jit, static_argnames="shape")
def forward_inner(params, tokens_NS, shape):
    inner = model.apply(params, tokens_NS, shape).inner
    return {name: inner[name] for name in (*SITES, *(("route",) if shape.n_experts else ()))}


def scale(w, l, site, name, inner, shape):
    x = np.asarray(inner[site][l], np.float64)
    if len(shape.lead(name)) == 1:
        w[l] *= factors(x.reshape(-1, x.shape[-1]))[:, None]
        return
    for e in range(shape.n_experts):
        serves = np.asarray(inner["route"][l, ..., e]) > 0
        mine = x[serves] if site == "mlp_in" else x[serves][:, e]
        w[l, e] *= factors(mine)[:, None]


def factors(x_TI):
    size = np.sqrt((x_TI**2).sum(0) / max(len(x_TI), 1))
    return 1.5 * size / (1 + size)


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("name", ["mha-swiglu", "moe"])
def test_rewrite_is_a_loop_over_blocks_sites_and_experts(name, true_sequential):
    shape = SHAPES[name]
    params, tokens_NT, chosen = trained(shape), tokens(shape), {1}
    scope = Scope().weights(shape)

    @jax.jit
    def run(where):
        return rewrite(
            params, tokens_NT, shape, scope, where, measure=second_moments, solve=shrink,
            true_sequential=true_sequential,
        )[0]  # fmt: skip

    for where, chosen in ((Where.everywhere(shape), set(range(shape.n_layers))), (Where.only(shape, 1), {1})):
        expected = in_numpy(params, np.asarray(tokens_NT), shape, chosen, true_sequential)
        for matrix, w in run(where).items():
            np.testing.assert_allclose(w, expected[matrix], rtol=2e-4, atol=1e-6, err_msg=matrix)
    assert run._cache_size() == 1


def test_an_expert_that_serves_no_token_has_no_statistics():
    shape = SHAPES["moe"]
    params = trained(shape)
    blocks = {
        **params["blocks"],
        "router": jnp.zeros_like(params["blocks"]["router"]),
    }  # ties: experts 0 and 1
    params = {**params, "blocks": blocks}
    scope = Scope(matrices=("up", "down")).weights(shape)
    seen = rewrite(
        params, tokens(shape), shape, scope, Where.everywhere(shape), measure=second_moments, solve=shrink
    )[0]
    assert set(seen) == {"up", "down"}
    for w in seen.values():
        np.testing.assert_array_equal((np.asarray(w) != 0).any((2, 3)), [[True, True, False, False]] * 2)


@pytest.mark.parametrize("experts", [{}, {"n_experts": 4, "top_k": 2, "d_ff": 256}])
def test_memory_of_a_walk_over_ten_million_parameters(experts):
    """128 sequences of 256 tokens: the stream, one block's statistics and one batch, under 2 GiB."""
    shape = Shape(
        **{
            "d_model": 384,
            "n_layers": 6,
            "n_heads": 12,
            "head_dim": 32,
            "d_ff": 896,
            "vocab": 1024,
            "context": 256,
        }
        | experts
    )
    assert 9e6 < shape.param_counts()["non_embedding"] < 11.5e6
    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0), shape))
    tokens_NT = jax.ShapeDtypeStruct((128, 257), jnp.int32)

    def run(params, tokens_NT):
        return rewrite(
            params, tokens_NT, shape, Scope().weights(shape), Where.everywhere(shape),
            measure=second_moments, solve=shrink,
        )[0]  # fmt: skip

    stats = jax.jit(run).lower(params, tokens_NT).compile().memory_analysis()
    peak = stats.temp_size_in_bytes + stats.argument_size_in_bytes + stats.output_size_in_bytes
    stream = 128 * 256 * 384 * 4
    assert 2 * stream < peak < 2 * 2**30
