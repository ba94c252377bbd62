"""Pruning of weights and units: what is removed, what stands in for it, what calibration sees."""

from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, Case, bench, tokens, trained

from wane.scaling import model
from wane.scaling.degrade import build
from wane.scaling.degrade.calibrate import input_statistics
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.rank import count_as
from wane.scaling.edit import SITES
from wane.scaling.shape import Shape

JAXPRUNER = np.load(Path(__file__).parent / "golden" / "magnitude_jaxpruner.npz")
NAMES = list(SHAPES)


@pytest.mark.parametrize(("normalise", "word"), [(False, "plain"), (True, "normalised")])
def test_global_magnitude_is_that_of_jaxpruner(normalise, word):
    shape = Shape(
        d_model=48, n_layers=1, n_heads=1, head_dim=2, d_ff=64, vocab=2, context=2, activation="gelu"
    )
    method = Case.of("magnitude_weights", group="global", normalise=normalise).build(
        shape, Scope(matrices=("up", "down"))
    )
    params = {"blocks": {"up": JAXPRUNER["W"][None], "down": JAXPRUNER["W2"][None]}}
    fitted = method.fit(params, None, jax.random.key(0))
    edit = method.apply(params, fitted, jnp.float32(0.5), Where.everywhere(shape), jax.random.key(0))
    for name, golden in (("up", "W"), ("down", "W2")):
        kept = JAXPRUNER[f"mask_keep_global_{word}_50_{golden}"]
        np.testing.assert_array_equal(edit.params["blocks"][name][0] != 0, kept)


@pytest.mark.parametrize("group", ["row", "layer", "global"])
def test_magnitude_removes_the_smallest_of_each_group(group):
    b = bench(Case.of("magnitude_weights", group=group), "mha-swiglu")
    degraded = b.at(0.4)[0].params["blocks"]
    before = {name: np.abs(np.asarray(b.params["blocks"][name])) for name in degraded}
    if group == "global":
        pairs = [tuple(np.concatenate([x[n].ravel() for n in before]) for x in (before, degraded))]
    elif group == "layer":
        pairs = [(x.ravel(), y.ravel()) for n in before for x, y in zip(before[n], degraded[n], strict=True)]
    else:
        pairs = [
            (x[:, o], y[:, o])
            for n in before
            for x, y in zip(before[n], degraded[n], strict=True)
            for o in range(x.shape[1])
        ]
    for size, after in pairs:
        smallest = np.argsort(size, kind="stable")[: size.size * 4 // 10]
        np.testing.assert_array_equal(np.flatnonzero(after == 0), np.sort(smallest))


def test_random_weights_are_uniform():
    """Each weight of a matrix goes in about half of 200 draws: five standard deviations of room."""
    b = bench(Case.of("random_weights"), "mha-swiglu")
    ranks = jax.jit(jax.vmap(lambda key: b.method.fit(b.params, None, key)["rank"]["up"]))
    rank = np.asarray(ranks(jax.random.split(jax.random.key(0), 200)))
    share = (rank < rank[0, 0].size // 2).mean(0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(200)


@pytest.mark.parametrize("shape", NAMES)
def test_heads_are_drawn_over_all_layers_together(shape):
    """By default layers lose different numbers of heads; with group layer the same."""
    b = bench(Case.of("random_heads"), shape)
    counts = set()
    for seed in range(6):
        fitted = b.fit(b.params, tokens(b.shape), jax.random.key(seed))
        counts |= {tuple((b.at(0.5, fitted=fitted)[0].head_LH == 0).sum(1))}
    assert any(len(set(c)) > 1 for c in counts)
    assert all(sum(c) == b.shape.n_layers * b.shape.n_heads // 2 for c in counts)


RESCALED = [
    (Case.of("random_weights", group="row", replace="rescale"), 0.3),
    (Case.of("random_neurons", group="global", replace="rescale"), 0.5),
    (Case.of("random_heads", group="layer", replace="rescale"), 0.7),
]


@pytest.mark.parametrize(("case", "severity"), RESCALED, ids=str)
def test_rescaling_keeps_the_sum_of_multipliers(case, severity):
    """Survivors over the fraction really left: the mean multiplier of a ranking group is 1."""
    b = bench(case, "mha-swiglu")
    edit = b.at(severity)[0]
    if case.method == "random_weights":
        for name, w_LIO in edit.params["blocks"].items():
            multiplier = w_LIO / np.asarray(b.params["blocks"][name])
            np.testing.assert_allclose(multiplier.mean(1), 1, rtol=1e-5)
    elif case.method == "random_neurons":
        np.testing.assert_allclose(edit.neuron_LF.mean(), 1, rtol=1e-5)
    else:
        np.testing.assert_allclose(edit.head_LH.mean(1), 1, rtol=1e-5)


MEANS = [
    Case.of("random_weights", group="global", replace="mean"),
    Case.of("random_neurons", replace="mean"),
    Case.of("random_heads", replace="mean"),
]


@pytest.mark.parametrize("severity", [0.5, 1.0])
@pytest.mark.parametrize("case", MEANS, ids=str)
def test_mean_replacement_keeps_the_mean_output_of_every_matrix(case, severity):
    b = bench(case, "mha-swiglu")
    edit, folded, _ = b.at(severity)
    inner = model.apply(b.params, tokens(b.shape)[:, :-1], b.shape).inner
    assert edit.bias
    for name, b_LO in edit.bias.items():
        site = next(site for site, names in SITES.items() if name in names)
        x_LNI = np.float64(inner[site]).reshape(b.shape.n_layers, -1, b.shape.matrices[name][0])
        dense = np.einsum("lni,lio->lo", x_LNI, b.params["blocks"][name]) / x_LNI.shape[1]
        now = np.einsum("lni,lio->lo", x_LNI, folded[name]) / x_LNI.shape[1] + b_LO
        np.testing.assert_allclose(now, dense, atol=1e-6)
        assert np.abs(b_LO).max() > 1e-5


@pytest.mark.parametrize("n", [1, 6, 8, 16])
def test_statistics_do_not_depend_on_batches(n):
    shape = SHAPES["gqa-gelu"]
    tokens_NT = jax.random.randint(jax.random.key(n), (n, 9), 0, shape.vocab)
    got = jax.jit(input_statistics, static_argnums=2)(trained(shape), tokens_NT, shape)
    inner = model.apply(trained(shape), tokens_NT[:, :-1], shape).inner
    for site in SITES:
        x = np.float64(inner[site])
        np.testing.assert_allclose(got[site].mean, x.mean((1, 2)), atol=1e-6)
        np.testing.assert_allclose(got[site].absmax_L, np.abs(x).max((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "order", "severity", "expected"),
    [
        ("block", "first", 0.4, ([0, 1, 1], [0, 1, 1])),
        ("attention", "last", 0.7, ([1, 0, 0], None)),
        ("mlp", "first", 0.3334, (None, [0, 1, 1])),
    ],
)
def test_layers_go_in_order(part, order, severity, expected):
    edit = bench(Case.of("remove_layers", part=part, order=order), "mha-swiglu").at(severity)[0]
    for gate_L, gates in zip((edit.attn_L, edit.mlp_L), expected, strict=True):
        assert (gate_L is None) == (gates is None)
        if gates is not None:
            np.testing.assert_array_equal(gate_L, gates)


def test_removed_layers_are_passed_by():
    b = bench(Case.of("remove_layers"), "mha-swiglu")
    edit = b.at(1.0)[0]
    x_BSD = model.apply(b.params, tokens(b.shape)[:, :-1], b.shape, edit).x_BSD
    np.testing.assert_array_equal(x_BSD, model.embed(b.params, tokens(b.shape)[:, :-1], b.shape))


WANDA = np.load(Path(__file__).parent / "golden" / "magnitude.npz")


def removed_by(W_OI, severity, **settings):
    """bool [O, I]: what the method removes of one matrix, here `up` of a model with one layer."""
    I, O = W_OI.T.shape
    shape = Shape(d_model=I, n_layers=1, n_heads=1, head_dim=2, d_ff=O, vocab=4, context=4)
    method = build("magnitude_weights", shape, Scope(matrices=("up",)), settings)
    params = {"blocks": {name: jnp.ones(shape.full(name)) for name in shape.matrices}}
    params["blocks"]["up"] = jnp.asarray(W_OI.T)[None]
    fitted = method.fit(params, jnp.zeros((1, 5), jnp.int32), jax.random.key(0))
    edit = method.apply(params, fitted, jnp.float32(severity), Where.everywhere(shape), jax.random.key(0))
    return np.asarray(edit.params["blocks"]["up"][0] == 0).T


@pytest.mark.parametrize(("name", "severity", "settings"), [
    ("row_30", 0.3, {"group": "row"}), ("row_50", 0.5, {"group": "row"}),
    ("2_4", 0.5, {"group": "n:4"}), ("4_8", 0.5, {"group": "n:8"}),
    ("layer_30", 0.3, {"convention": "one_more"}), ("layer_50", 0.5, {"convention": "one_more"}),
])  # fmt: skip
def test_masks_are_those_of_wandas_code(name, severity, settings):
    np.testing.assert_array_equal(removed_by(WANDA["W"], severity, **settings), WANDA[f"mask_{name}"])


@pytest.mark.parametrize(("name", "severity", "settings"), [
    ("unstructured_30", 0.3, {}), ("unstructured_50", 0.5, {}), ("unstructured_75", 0.75, {}),
    ("2_4", 0.5, {"group": "n:4"}), ("channel_out_50", 0.5, {"tile": (0, 1)}),
    ("channel_in_50", 0.5, {"tile": (1, 0)}), ("block_4x8_50", 0.5, {"tile": (8, 4)}),
])  # fmt: skip
def test_masks_are_those_of_jaxpruner(name, severity, settings):
    kept = ~removed_by(JAXPRUNER["W"], severity, convention="keep_one", **settings)
    np.testing.assert_array_equal(kept, JAXPRUNER[f"mask_keep_{name}"].astype(bool))


def test_jaxpruner_keeps_the_lower_of_equal_scores_and_one_weight_at_least():
    ties = JAXPRUNER["ties_scores"]
    kept = ~removed_by(ties.T + 1, 0.5, convention="keep_one").T  # its kernels are [in, out], as ours
    np.testing.assert_array_equal(kept, JAXPRUNER["ties_mask_keep_50"].astype(bool))
    assert (~removed_by(WANDA["W"], 1.0, convention="keep_one")).sum() == 1
    assert not removed_by(WANDA["W"], 0.0, convention="keep_one").any()
    assert not removed_by(WANDA["W"], 0.0, convention="one_more").any()


@pytest.mark.parametrize("severity", [0.05, 0.123, 0.25, 0.375, 0.5, 0.625, 0.9999])
def test_counts_of_other_conventions_against_exact_arithmetic(severity):
    share = Fraction(round(severity * 10_000), 10_000)
    for n in (4, 7, 8, 100, 12_345, 2_000_001):
        got = {c: int(count_as(n, jnp.float32(severity), c)) for c in ("one_more", "keep_one")}
        assert got["one_more"] == min(int(n * share) + 1, n)
        assert got["keep_one"] == n - max(1, round(n * (1 - share)))


def test_a_tile_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"tile = \(5, 1\): must divide"):
        removed_by(WANDA["W"], 0.5, tile=(5, 1))
    with pytest.raises(ValueError, match="acts on whole matrices"):
        removed_by(WANDA["W"], 0.5, tile=(2, 1), group="n:4")
