"""AWQ against the numbers of llm-awq and qwix, and against a plain numpy search."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK, SHAPES, tokens, trained

from wane.scaling import model
from wane.scaling.degrade.awq import awq, mean_activity, stride
from wane.scaling.degrade.awq_block import every
from wane.scaling.degrade.awq_search import (
    Search,
    Target,
    best_scales,
    clip_limits,
    diagonal_losses,
    group_grams,
    linear_losses,
    losses_of,
    round_scaled,
    spread,
)
from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.degrade.rtn import rtn
from wane.scaling.edit import merge
from wane.scaling.quantize import Scheme
from wane.scaling.shape import Shape

GOLDEN = Path(__file__).parent / "golden"
AWQ, QWIX = np.load(GOLDEN / "awq.npz"), np.load(GOLDEN / "awq_qwix.npz")
SIZE, BITS = int(AWQ["group_size"]), int(AWQ["n_bit"])
ASYMMETRIC = Scheme(convention="awq", symmetric=False, mse=False)
SEARCH = Search(scheme=ASYMMETRIC, group_size=SIZE, n_grid=int(AWQ["n_grid"]), objective="output")
LINEAR = {"o": ("Wo", "x_o"), "down": ("Wdown", "x_down")}


def target(name: str, bits: float = BITS) -> Target:
    return Target(AWQ[name].T, jnp.full((1, 1), float(bits)), jnp.ones((1, 1), bool))


def check_search(name: str, losses_K, activity_I):
    np.testing.assert_allclose(losses_K, AWQ[f"{name}_losses"], rtol=5e-3)
    np.testing.assert_allclose(activity_I, AWQ[f"{name}_act_scale"], rtol=1e-6)
    np.testing.assert_allclose(SEARCH.ratios[np.argmin(losses_K)], AWQ[f"{name}_best_ratio"])
    scales = best_scales(losses_K, activity_I, SEARCH.ratios)
    np.testing.assert_allclose(scales, AWQ[f"{name}_scales"], rtol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_scales_of_one_matrix(name):
    matrix, x_TI = LINEAR[name][0], AWQ[LINEAR[name][1]]

    @jax.jit
    def losses(x_TI):
        activity_I = jnp.abs(x_TI).mean(0)
        gram_II = jnp.matmul(x_TI.T, x_TI, precision="highest")
        return linear_losses(target(matrix), gram_II, activity_I, SEARCH), activity_I

    losses_K, activity_I = losses(x_TI)
    check_search(name, losses_K / (len(x_TI) * len(AWQ[matrix])), activity_I)


OUTPUTS = {
    "qkv": (("Wq", "Wk", "Wv"), "x_attn", lambda x, w: jnp.concatenate([x @ m for m in w.values()], -1)),
    "gateup": (
        ("Wgate", "Wup"),
        "x_mlp",
        lambda x, w: (jax.nn.silu(x @ w["Wgate"]) * (x @ w["Wup"])) @ AWQ["Wdown"].T,
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_scales_that_matrices_share(name):
    matrices, x_TI, output = OUTPUTS[name]
    x_TI = AWQ[x_TI]

    @jax.jit
    def losses(x_TI):
        activity_I = jnp.abs(x_TI).mean(0)
        weights = {m: jnp.asarray(AWQ[m].T) for m in matrices}
        rounded = lambda s_I: {m: round_scaled(target(m), s_I, SEARCH)[0] for m in matrices}  # noqa: E731
        f = functools.partial(output, x_TI)
        return losses_of(f, weights, rounded, activity_I, SEARCH.ratios), activity_I

    check_search(name, *losses(x_TI))


@pytest.mark.parametrize("name", LINEAR)
def test_ranges_are_clipped_as_the_output_of_each_group_asks(name):
    matrix, x_TI = LINEAR[name][0], AWQ[LINEAR[name][1]]
    x_TI = x_TI[:: len(x_TI) // int(AWQ["clip_n_sample_token"])]
    s_I = AWQ[f"{name}_scales"]

    @jax.jit
    def solve(x_TI):
        limit, error = clip_limits(target(matrix), s_I, group_grams(x_TI, SIZE), SEARCH)
        value, grid = round_scaled(target(matrix), s_I, SEARCH, spread(limit, len(s_I)))
        return limit, error, value, round_scaled(target(matrix), s_I, SEARCH)[0]

    limit, error, value, unclipped = solve(x_TI)
    same = np.isclose(limit[:, 0].T, AWQ[f"{name}_clip_max"][:, :, 0], rtol=1e-5)
    assert same.mean() >= 0.99
    errors = AWQ[f"{name}_clip_min_errs"][:, :, 0]
    np.testing.assert_allclose((error[:, 0].T / len(x_TI))[same], errors[same], rtol=1e-4)
    if name == "o":
        np.testing.assert_allclose(unclipped.T, AWQ["o_Wq_awq"], rtol=1e-6, atol=1e-7)
        same = np.isclose(value.T, AWQ["o_Wq_scale_clip"], rtol=1e-6, atol=1e-7)
        assert same.mean() >= 0.99


def test_the_diagonal_objective_is_qwix():
    scheme = Scheme(convention="qwix", symmetric=True, mse=False)
    search = Search(scheme=scheme, group_size=int(QWIX["group_size"]), n_grid=20, objective="diagonal")
    wo = Target(QWIX["Wo"].T, jnp.full((1, 1), 4.0), jnp.ones((1, 1), bool))

    @jax.jit
    def scales(x_TI):
        activity_I = search.activity(jnp.abs(x_TI).mean(0))
        return best_scales(diagonal_losses(wo, activity_I, search), activity_I, search.ratios)

    np.testing.assert_allclose(scales(QWIX["x_o"]), QWIX["scales"][0], rtol=1e-6)


def test_calibration_data_is_sampled_at_equal_strides():
    assert [stride(48, n) for n in (0, 5, 20, 48, 512)] == [1, 9, 2, 1, 1]


@pytest.mark.parametrize(("T", "stride"), [(12, 4), (10, 4), (3, 5), (7, 1)])
def test_every_so_manyth_row_over_batches(T, stride):
    x = np.random.default_rng(0).normal(size=(6, T, 2)).astype(np.float32)
    batches = np.concatenate([every(jnp.asarray(x_TI), stride, jnp.int32(n * T)) for n, x_TI in enumerate(x)])
    np.testing.assert_array_equal(batches[np.any(batches, axis=1)], x.reshape(-1, 2)[::stride])


def test_settings_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="n_grid = 0"):
        awq(SHAPES["mha-swiglu"], n_grid=0)
    with pytest.raises(ValueError, match="clip_tokens = -1"):
        awq(SHAPES["mha-swiglu"], clip_tokens=-1)
    with pytest.raises(ValueError, match="scale_tokens = -2"):
        awq(SHAPES["mha-swiglu"], scale_tokens=-2)


SHAPE = SHAPES["mha-swiglu"]
EXPERTS = Shape(
    d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16, vocab=32, context=8,
    n_experts=3, top_k=2,
)  # fmt: skip
SETTINGS = {"group_size": 8, "clip_tokens": 10, "n_grid": 5}


class Run:
    """AWQ of one shape, jitted once."""

    def __init__(self, shape: Shape):
        self.shape, self.params = shape, skewed(shape)
        self.method = awq(shape, **SETTINGS)
        self.fitted = jax.jit(self.method.fit, **QUICK)(self.params, tokens(shape), jax.random.key(0))
        self.run = jax.jit(self._run, **QUICK)

    def _run(self, severity, where):
        edit = self.method.apply(self.params, self.fitted, severity, where, jax.random.key(0))
        held = self.method.hold(merge(self.params, edit), edit)
        return edit, held, self.method.cost(self.params, edit, severity)

    def at(self, bits: float, where: Where | None = None):
        where = where or Where.everywhere(self.shape)
        return jax.tree.map(np.asarray, self.run(jnp.float32(severity_of(bits, "bits")), where))


def skewed(shape: Shape) -> dict:
    """Parameters whose norms make some inputs large, as in trained models."""
    params = trained(shape)
    gain = jnp.exp(jnp.linspace(-1.5, 1.5, shape.d_model))
    blocks = {n: w * gain if n.endswith("norm_scale") else w for n, w in params["blocks"].items()}
    return {**params, "blocks": blocks}


@functools.lru_cache
def run(shape: Shape) -> Run:
    return Run(shape)


def quant(w_IO: np.ndarray, bits: int, size: int) -> np.ndarray:
    """AWQ's asymmetric rounding of groups of inputs."""
    w = w_IO.reshape(-1, size, w_IO.shape[1])
    low, high, top = w.min(1, keepdims=True), w.max(1, keepdims=True), np.float32(2**bits - 1)
    scale = np.maximum(high - low, np.float32(1e-5)) / top
    zero = np.clip(-np.rint(low / scale), 0, top)
    return ((np.clip(np.rint(w / scale) + zero, 0, top) - zero) * scale).reshape(w_IO.shape)


def search(weights, x_TI, output, bits, clip_x_TI, activity_I=None):
    """name -> rounded weights: the published search, matrix by matrix and group by group."""
    activity_I = np.abs(x_TI).mean(0) if activity_I is None else activity_I
    want, best = output(weights), (np.inf, None)
    for ratio in np.arange(SETTINGS["n_grid"]) / SETTINGS["n_grid"]:
        s = np.maximum(activity_I**ratio, 1e-4)
        s = (s / np.sqrt(s.max() * s.min())).astype(np.float32)[:, None]
        loss = np.mean((output({n: quant(w * s, bits, 8) / s for n, w in weights.items()}) - want) ** 2)
        best = min(best, (loss, s), key=lambda pair: pair[0])
    return {n: clipped(w, best[1], n, bits, clip_x_TI) for n, w in weights.items()}


def clipped(w_IO, s, name, bits, x_TI):
    if name in "qk":
        return quant(w_IO * s, bits, 8) / s
    out = w_IO * s
    for i in range(0, len(w_IO), 8):
        group = slice(i, i + 8)
        w, x = out[group].copy(), x_TI[:, group] / s[group, 0]
        least = np.full(w.shape[1], np.inf)
        for k in range(10):
            limit = np.abs(w).max(0) * np.float32(1 - k / 20)
            tried = np.clip(w, -limit, limit)
            error = np.mean((x @ (quant(tried, bits, 8) - w)) ** 2, axis=0)
            out[group] = np.where(error < least, tried, out[group])
            least = np.minimum(least, error)
    return quant(out, bits, 8) / s


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["mha", "gqa-moe"])
def test_a_model_is_rounded_by_the_searches_on_the_trained_models_inputs(shape):
    r, bits = run(shape), 3
    blocks = r.at(bits)[0].params["blocks"]
    inner = jax.jit(lambda p, t: model.apply(p, t, shape).inner)(r.params, tokens(shape)[:, :-1])
    block = jax.jit(lambda p, x: model.block(p, x, shape)[1])
    for layer in range(shape.n_layers):
        params = jax.tree.map(lambda a, layer=layer: np.asarray(a[layer]), r.params["blocks"])
        here = {name: np.asarray(x[layer]) for name, x in inner.items()}
        sampled = {n: x.reshape(48, *x.shape[2:])[::4] for n, x in here.items() if n.endswith("_in")}

        def output(weights, site, params=params, here=here):
            return np.asarray(block({**params, **weights}, here["block_in"])[site])

        flat = here["attn_in"].reshape(-1, shape.d_model)
        qkv = search(
            {n: params[n] for n in "qkv"}, flat, lambda w: output(w, "attn_out"), bits, sampled["attn_in"]
        )
        for name, expected in qkv.items():
            agree(blocks[name][layer], expected, params[name], flat)
        x = here["o_in"].reshape(48, -1)
        if shape is SHAPE:
            o = search({"o": params["o"]}, x, lambda w, x=x: x @ w["o"], bits, sampled["o_in"])["o"]
            flat = here["mlp_in"].reshape(48, -1)
            mlp = search(
                {n: params[n] for n in ("gate", "up")},
                flat,
                lambda w: output(w, "mlp_out"),
                bits,
                sampled["mlp_in"],
            )
            for name, expected in mlp.items():
                agree(blocks[name][layer], expected, params[name], flat)
        else:  # the grouped values could not take up 1 / s
            o = clipped(params["o"], np.ones((16, 1), np.float32), "o", bits, sampled["o_in"])
            serves = np.asarray(here["route"]).reshape(48, -1) > 0
            for e in range(3):
                seen = here["down_in"].reshape(48, 3, -1)[:, e] * serves[:, e : e + 1]
                down = {"down": params["down"][e]}
                expected = search(
                    down, seen, lambda w, x=seen: x @ w["down"], bits, seen[::4],
                    np.abs(seen).sum(0) / serves[:, e].sum(),
                )  # fmt: skip
                agree(blocks["down"][layer, e], expected["down"], params["down"][e], seen)
        agree(blocks["o"][layer], o, params["o"], x)


def test_sublayers_are_judged_on_the_sampled_sequences_alone():
    """In two sequences of six, scales are those that a search over these two finds."""
    r, bits = run(SHAPE), jnp.float32(severity_of(3, "bits"))
    where, key = Where.everywhere(SHAPE), jax.random.key(0)
    tokens_NT, activity = r.fitted

    def values(sequences: int, tokens_NT):
        method = awq(SHAPE, **SETTINGS | {"clip": False}, scale_tokens=sequences * SHAPE.context)
        run = jax.jit(lambda p, t: method.apply(p, (t, activity), bits, where, key), **QUICK)
        return run(r.params, tokens_NT).params["blocks"]

    sampled, alone, whole = values(2, tokens_NT), values(0, tokens_NT[::3]), values(0, tokens_NT)
    for name in ("q", "k", "v", "gate", "up"):
        np.testing.assert_array_equal(sampled[name], alone[name])
    assert any(np.any(sampled[name] != whole[name]) for name in ("q", "gate"))


def agree(got, expected, w_IO, x_TI):
    """Equal but for a few groups, and as good: the zero point of a range that is clipped on both sides is a
    rounding tie, which the last bit of a scale decides."""
    same = np.isclose(got, expected, rtol=1e-4, atol=1e-6)
    assert same.mean() > 0.8
    ours, theirs = (np.square(x_TI @ (rounded - w_IO)).sum() for rounded in (got, expected))
    assert ours == pytest.approx(theirs, rel=0.25)


def test_experts_share_the_scales_of_their_common_inputs():
    """The ratio between the scales of two inputs of one output's grid is the same in all experts."""
    grid = run(EXPERTS).at(3)[0].weight_grid["gate"]
    relative = grid.scale[:, :, :8] / grid.scale[:, :, :1]  # within the first group: 1 / s up to a factor
    np.testing.assert_allclose(relative, np.broadcast_to(relative[:, :1, :, :1], relative.shape), rtol=1e-5)
    assert relative.std() > 0.01


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["mha", "gqa-moe"])
def test_identity_storage_hold_and_selection(shape):
    r = run(shape)
    edit, _, cost = r.at(16)
    for name, w in edit.params["blocks"].items():
        np.testing.assert_array_equal(w, r.params["blocks"][name])
    assert cost.bits_per_weight == 16
    edit, held, cost = r.at(3)
    np.testing.assert_allclose(cost.bits_per_weight, 3 + (16 + 3) / 8, rtol=1e-6)
    for name, w in edit.params["blocks"].items():
        np.testing.assert_array_equal(held["blocks"][name], w)
    some = r.at(3, Where.only(shape, 1))[0]
    for name, w in some.params["blocks"].items():
        np.testing.assert_array_equal(w[1], edit.params["blocks"][name][1])
        np.testing.assert_array_equal(w[0], r.params["blocks"][name][0])
    assert r.run._cache_size() == 1


def test_never_worse_than_rounding_on_its_own_objective():
    r, bits = run(SHAPE), 3
    rounding = rtn(SHAPE, symmetric=False, group_size=8, convention="awq")
    severity = jnp.float32(severity_of(bits, "bits"))
    plain = jax.jit(
        lambda p: rounding.apply(p, (), severity, Where.everywhere(SHAPE), jax.random.key(0)).params["blocks"]
    )(r.params)
    unclipped = awq(SHAPE, **SETTINGS, clip=False)
    best = jax.jit(
        lambda p: unclipped.apply(p, r.fitted, severity, Where.everywhere(SHAPE), jax.random.key(0)),
        **QUICK,
    )(r.params).params["blocks"]
    inner = jax.jit(lambda p, t: model.apply(p, t, SHAPE).inner)(r.params, tokens(SHAPE)[:, :-1])
    block = jax.jit(lambda p, x: model.block(p, x, SHAPE)[1])
    better = 0
    for layer in range(SHAPE.n_layers):
        trained_l = jax.tree.map(lambda a, layer=layer: a[layer], r.params["blocks"])
        x_BSD = inner["block_in"][layer]
        for names, site in ((("q", "k", "v"), "attn_out"), (("gate", "up"), "mlp_out"), ("o", "attn_out")):
            errors = [
                np.square(
                    block({**trained_l, **{n: w[n][layer] for n in names}}, x_BSD)[site] - inner[site][layer]
                ).mean()
                for w in (best, plain)
            ]
            assert errors[0] <= errors[1] * 1.0001
            better += errors[0] < errors[1]
    assert better > 5


def test_activity_of_an_expert_is_over_the_tokens_that_it_serves():
    params = skewed(EXPERTS)
    got = jax.jit(lambda p, t: mean_activity(p, t, EXPERTS))(params, tokens(EXPERTS))
    inner = jax.jit(lambda p, t: model.apply(p, t, EXPERTS).inner)(params, tokens(EXPERTS)[:, :-1])
    x, serves = np.asarray(inner["down_in"]), np.asarray(inner["route"]) > 0
    for layer in range(2):
        for e in range(3):
            expected = np.abs(x[layer, :, :, e][serves[layer, :, :, e]]).mean(0)
            np.testing.assert_allclose(got["down_in"][layer, e], expected, rtol=1e-5)
    np.testing.assert_allclose(got["mlp_in"], np.abs(inner["mlp_in"]).mean((1, 2)), rtol=1e-5)


def test_a_part_of_the_matrices_leaves_the_others_alone():
    method = awq(SHAPE, Scope(matrices=("k", "up")), **SETTINGS)
    r = run(SHAPE)
    severity, where = jnp.float32(severity_of(3, "bits")), Where.everywhere(SHAPE)
    edit = jax.eval_shape(lambda p: method.apply(p, r.fitted, severity, where, jax.random.key(0)), r.params)
    assert set(edit.params["blocks"]) == set(edit.weight_grid) == {"k", "up"}
