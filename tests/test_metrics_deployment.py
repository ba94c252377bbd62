"""What a degraded model would cost deployed, against a model that is really built smaller."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, tokens, trained

from wane.eval.metrics.contract import Weights
from wane.eval.metrics.deployment import METRICS
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where, severity_of
from wane.scaling.edit import Edit, merge

SHAPE = SHAPES["mha-swiglu"]


def deployed(edit, shape=SHAPE):
    params = trained(shape)
    seen = Weights(shape, params, merge(params, edit), edit)
    return {m.name: float(m.values(None, seen)) for m in METRICS}


def expected(shape):
    cache = 2 * shape.n_layers * shape.kv_heads * shape.head_dim * 2
    return {
        "deployed_parameters": shape.param_counts()["total"],
        "deployed_flops": shape.flops_per_token(),
        "deployed_cache": cache,
    }


def edit_of(name, setting, shape=SHAPE, **settings):
    params, key = trained(shape), jax.random.key(0)
    method = build(name, shape, settings=settings)
    fitted = method.fit(params, tokens(shape), key)
    severity = jnp.float32(severity_of(setting, method.unit))
    return method.apply(params, fitted, severity, Where.everywhere(shape), key)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_an_untouched_model_costs_what_its_shape_says(name):
    shape = SHAPES[name]
    assert deployed(Edit(), shape) == pytest.approx(expected(shape))


def test_fewer_neurons_cost_what_a_narrower_shape_costs():
    found = deployed(edit_of("random_neurons", 0.5))
    assert found == pytest.approx(expected(dataclasses.replace(SHAPE, d_ff=SHAPE.d_ff // 2)))


def test_fewer_layers_cost_what_a_shallower_shape_costs():
    """But for the norms of the layers that are gone, which are kept in the count."""
    found = deployed(edit_of("remove_layers", 1.0))
    smaller = expected(dataclasses.replace(SHAPE, n_layers=1))
    per_layer = expected(dataclasses.replace(SHAPE, n_layers=2))["deployed_flops"] - smaller["deployed_flops"]
    assert found["deployed_flops"] == pytest.approx(smaller["deployed_flops"] - per_layer)
    assert found["deployed_cache"] == 0


def test_fewer_heads_cost_less_cache_once_their_group_is_gone():
    shape = dataclasses.replace(SHAPE, n_heads=4, n_kv_heads=2)
    L, one = shape.n_layers, shape.head_dim * 2 * 2
    head_LH = np.ones((L, 4), np.float32)
    head_LH[0, 0] = 0  # its neighbour keeps the key-value head
    assert deployed(Edit(head_LH=jnp.asarray(head_LH)), shape)["deployed_cache"] == 2 * L * one
    head_LH[0, 1] = 0
    assert deployed(Edit(head_LH=jnp.asarray(head_LH)), shape)["deployed_cache"] == (2 * L - 1) * one


def test_scattered_zeros_and_fewer_bits_save_nothing():
    full = expected(SHAPE)
    assert deployed(edit_of("random_weights", 0.5)) == pytest.approx(full)
    assert deployed(edit_of("rtn", 4)) == pytest.approx(full)


@pytest.mark.parametrize(
    ("bits", "settings", "calibrated"),
    [
        (4, {}, ""),
        (4, {"which": "v"}, ""),
        (2, {"granularity": "channel_keys"}, "k"),
        (3, {"granularity": "channel_keys", "which": "k"}, "k"),
        (16, {}, ""),
    ],
)
def test_a_rounded_cache_holds_codes_and_a_range_per_token_and_head(bits, settings, calibrated):
    """Counted array by array: codes, and in 16 bits the least value and the step of each head that is not
    calibrated; of a grouped shape."""
    shape = dataclasses.replace(SHAPE, n_heads=4, n_kv_heads=2)
    which = {"both": "kv"}.get(settings.get("which", "both"), settings.get("which"))
    count = 0
    for _, name, _ in itertools.product(range(shape.n_layers), "kv", range(shape.kv_heads)):
        rounded = name in which and bits < 16
        count += shape.head_dim * (bits if rounded else 16)
        count += sum(16 for _ in ("least", "step")) if rounded and name not in calibrated else 0
    found = deployed(edit_of("kv_cache", bits, shape, **settings), shape)
    assert found["deployed_cache"] == pytest.approx(count / 8)


def test_layers_whose_cache_is_not_rounded_hold_no_ranges():
    bits_L = jnp.array([16.0, *[4.0] * (SHAPE.n_layers - 1)])
    found = deployed(Edit(cache_bits={"k": bits_L, "v": bits_L}))
    heads, K, L = SHAPE.kv_heads, SHAPE.head_dim, SHAPE.n_layers
    assert found["deployed_cache"] == pytest.approx(2 * heads * (2 * K + (L - 1) * (K / 2 + 4)))


def test_a_sliced_stream_costs_what_the_sliced_model_has():
    edit = edit_of("random_dimensions", 0.5)
    kept = np.asarray(edit.residual_XD != 0).sum(-1)
    d, L, F = SHAPE.d_model, SHAPE.n_layers, SHAPE.d_ff
    inner, kv = SHAPE.n_heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim
    matrices = sum(
        kept[2 * l] * (inner + 2 * kv) + inner * kept[2 * l + 1] + F * (2 * kept[2 * l + 1] + kept[2 * l + 2])
        for l in range(L)
    )
    counts = SHAPE.param_counts()
    tables = SHAPE.vocab * (2 * d - kept[0] - kept[-1])
    total = matrices + counts["total"] - counts["blocks"] - tables
    assert deployed(edit)["deployed_parameters"] == pytest.approx(total)


def test_fewer_active_experts_cost_fewer_flops_and_as_many_parameters():
    shape = SHAPES["moe"]
    L = shape.n_layers
    edit = Edit(active_L=jnp.ones(L, jnp.int32))
    found, full = deployed(edit, shape), expected(shape)
    assert found["deployed_parameters"] == pytest.approx(full["deployed_parameters"])
    expert = L * 2 * shape.d_model * shape.d_ff * (3 if "gate" in shape.matrices else 2)
    assert found["deployed_flops"] == pytest.approx(full["deployed_flops"] - (shape.top_k - 1) * expert)
