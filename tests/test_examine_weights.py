"""Examinations that change weights: zeroed ones beside their first-order estimate, and planted redundancy of
neurons that a restricted transformation recovers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_examine import EXPERTS, SHAPE, examined_of, findings, params_of, slow_rise, values, with_weights

from wane.eval.examine import EXAMINATIONS, settings_of, zero_sensitivity
from wane.eval.examine.losses import Losses, token_losses
from wane.eval.examine.restricted import REPLACED, Removal, activity
from wane.eval.examine.transformation import PARTS, transformations
from wane.eval.examine.weights import drawn, first_order, nothing, set_to_zero
from wane.eval.metrics.structure import entropy, every_matrix
from wane.eval.redundancy import overlap_of_least_sensitive, rank_correlation
from wane.scaling.model import apply


def zeroed(params, one):
    """Parameters with the chosen weights at 0."""
    w = np.array(params["blocks"][one.matrix])
    w.reshape(-1)[one.index_K] = 0
    return with_weights(params, **{one.matrix: w})


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_weights_that_are_drawn_lie_in_their_layer_and_are_of_the_asked_share(shape):
    for share in (0, 1 / 8):
        found = drawn(shape, 2, share, np.random.default_rng(0))
        assert len(found) == 2 * shape.n_layers * len(shape.matrices)
        for one in found:
            in_layer = np.prod(shape.full(one.matrix)) // shape.n_layers
            assert len(set(one.index_K)) == len(one.index_K) == max(1, round(share * in_layer))
            assert set(one.index_K // in_layer) == {one.layer}
            assert one.of == in_layer / len(one.index_K)


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_zeroed_weights_against_float64(shape):
    examined, rng = examined_of(shape), np.random.default_rng(3)
    token_losses.cache_clear()  # another test may have used the program on other sequences
    losses = Losses(examined, set_to_zero, nothing(40), lambda n: None)
    chosen = drawn(shape, 1, 1 / 16, rng)[:: shape.n_layers + 1]
    assert {one.matrix for one in chosen} >= {"q", "down"} or len(chosen) > 3
    largest = 0
    for one in chosen:
        rise_J = losses.rise(one.removal(40), one.layer)
        expected = slow_rise(examined, zeroed(examined.params, one))
        assert dict(zip(losses.tasks, rise_J, strict=True)) == pytest.approx(expected, abs=2e-4)
        largest = max(largest, *abs(rise_J))
    assert largest > 0.01
    assert token_losses(shape, set_to_zero, "highest").executables() == 1


def test_the_first_order_estimate_is_that_of_small_changes():
    """Of a weight, -w g is the slope of the float64 loss on the way to 0."""
    examined = examined_of()
    estimate = first_order(SHAPE, "highest")(examined.params, examined.evaluation.tokens_NT)
    for one in drawn(SHAPE, 1, 1 / 16, np.random.default_rng(1))[::5]:
        w, step = np.array(examined.params["blocks"][one.matrix], np.float64), 1e-4
        w.reshape(-1)[one.index_K] *= 1 - step
        params = jax.device_get(examined.params)
        params = params | {"blocks": params["blocks"] | {one.matrix: w}}
        expected = slow_rise(examined, params)["all"] / step
        told = np.asarray(estimate[one.matrix]).ravel()[one.index_K].sum()
        assert told == pytest.approx(expected, rel=2e-2, abs=2e-5)


def test_rows_of_zero_sensitivity_are_of_the_drawn_weights():
    examined = examined_of()
    settings = {"weights": 2, "groups": 1, "share": 1 / 16}
    found, ticks = findings("zero_sensitivity", examined, **settings)
    assert ticks == EXAMINATIONS["zero_sensitivity"].forwards(
        SHAPE, settings_of("zero_sensitivity", settings)
    )
    rng = np.random.default_rng(examined.seed)
    chosen = {"weight": drawn(SHAPE, 2, 0, rng), "group": drawn(SHAPE, 1, 1 / 16, rng)}
    losses = Losses(examined, set_to_zero, nothing(24), lambda n: None)
    evaluation, estimates = examined.evaluation, {}
    for task in losses.tasks:
        mine = [task in ("all", evaluation.tasks[i].name) for i in evaluation.task_N]
        estimates[task] = first_order(SHAPE, "highest")(examined.params, evaluation.tokens_NT[mine])
    whole, *single = estimates.values()  # tasks of equal size
    np.testing.assert_allclose(np.mean([each["up"] for each in single], axis=0), whole["up"], atol=1e-6)
    assert len({u.of for u in chosen["weight"]}) > 1
    for part, units in chosen.items():
        size_U = [int(u.of) for u in units]  # all choices, as the drawn ones tell them

        def summary(value_U, size_U=size_U):
            every = np.repeat(value_U, size_U)
            quantiles = np.quantile(every, (0.05, 0.25, 0.5, 0.75, 0.95), method="inverted_cdf")
            return sorted([every.mean(), *quantiles])

        rise_UJ = np.stack([losses.rise(one.removal(24), one.layer) for one in units])
        for j, task in enumerate(losses.tasks):
            first_U = [np.float64(estimates[task][u.matrix]).ravel()[u.index_K].sum() for u in units]
            first = {
                p: v for p, v in values(found, "zero_sensitivity_first_order", task).items() if p.part == part
            }
            assert sorted(first.values()) == pytest.approx(summary(first_U), abs=1e-7)
            (agreement,) = [
                v for p, v in values(found, "first_order_agreement", task).items() if p.part == part
            ]
            assert agreement == pytest.approx(rank_correlation(rise_UJ[:, j], first_U), abs=1e-6)
            (slope,) = [v for p, v in values(found, "first_order_slope", task).items() if p.part == part]
            fit = np.linalg.lstsq(np.reshape(first_U, (-1, 1)), rise_UJ[:, j], rcond=None)[0].item()
            assert slope == pytest.approx(fit, abs=1e-6)
            # many weights at once are far from first order; of a task there are two sequences
            assert agreement > 0.5 or part == "group" or task != "all"
            told = {p: v for p, v in values(found, "zero_sensitivity", task).items() if p.part == part}
            assert sorted(told.values()) == pytest.approx(summary(rise_UJ[:, j]), abs=1e-9)
            assert {p.at for p in told} == {None, 0.05, 0.25, 0.5, 0.75, 0.95}
            for metric, share in (("harmed_share", rise_UJ > 0), ("helped_share", rise_UJ < 0)):
                (value,) = [v for p, v in values(found, metric, task).items() if p.part == part]
                assert value == pytest.approx(np.repeat(share[:, j], size_U).mean())
        overlap = overlap_of_least_sensitive(*abs(rise_UJ[:, 1:3].T))
        told = values(found, "least_sensitive_overlap", f"{losses.tasks[1]} and {losses.tasks[2]}")
        assert [v for p, v in told.items() if p.part == part] == [overlap.jaccard]
        if part == "weight":
            sizes = values(found, "matrix_sensitivity")
            assert list(sizes) == list(every_matrix(SHAPE))
            for place, size in sizes.items():
                mine = [i for i, u in enumerate(units) if (u.matrix, u.layer) == (place.part, place.at)]
                assert size == pytest.approx(abs(rise_UJ[mine, 0]).mean())
            entropies = [
                float(entropy(examined.params["blocks"][p.part][int(p.at)])) for p in every_matrix(SHAPE)
            ]
            (told,) = values(found, "sensitivity_entropy_correlation").values()
            assert told == pytest.approx(rank_correlation(list(sizes.values()), entropies), abs=1e-6)


def test_weights_that_are_zero_already_cost_exactly_nothing():
    params = params_of(SHAPE)
    dead = with_weights(params, **{n: 0 * params["blocks"][n] for n in SHAPE.matrices})
    found, _ = findings("zero_sensitivity", examined_of(params=dead), weights=1, groups=1)
    told = {f.metric: f.value for f in found if f.metric in ("harmed_share", "helped_share")}
    assert told == {"harmed_share": 0, "helped_share": 0}
    assert {f.value for f in found if f.metric.startswith("zero_sensitivity")} == {0.0}
    relations = {"first_order_agreement", "first_order_slope", "sensitivity_entropy_correlation"}
    assert not {f.metric for f in found} & relations


def test_a_matrix_counts_as_it_has_many_weights():
    """Of two matrices of 100 and 900 weights 50 are drawn each: one in two of the small one's helps by 1, of the
    large one's one in ten, and all others harm by 1."""
    small, large = np.repeat([-1.0, 1.0], 25), np.repeat([-1.0, 1.0], [5, 45])
    rise_U, of_U = np.concatenate([small, large]), np.repeat([100.0, 900.0], 50)
    told = {f.metric: f.value for f in zero_sensitivity._signs(rise_U, of_U, "weight", "all")}
    assert told == pytest.approx({"harmed_share": 0.86, "helped_share": 0.14})  # 50 and 90 of 1000 help
    found = list(zero_sensitivity._distribution("zero_sensitivity", rise_U, of_U, "weight", "all"))
    assert [f.value for f in found] == pytest.approx([0.72, -1, 1, 1, 1, 1])
    lost = zero_sensitivity._distribution("m", np.append(rise_U[1:], np.nan), of_U, "weight", "all")
    assert all(np.isnan(f.value) for f in lost)


def test_the_share_of_weights_that_do_something_is_that_of_their_matrices():
    """Where the MLP is dead no weight of it does anything, and every one of attention does."""
    params = params_of(SHAPE)
    dead = with_weights(params, **{n: 0 * params["blocks"][n] for n in ("gate", "up", "down")})
    found, _ = findings("zero_sensitivity", examined_of(params=dead), weights=3, groups=0)
    share = sum(f.value for f in found if f.metric in ("harmed_share", "helped_share") and f.task == "all")
    sizes = {name: np.prod(SHAPE.full(name)) for name in SHAPE.matrices}
    assert share == pytest.approx(sum(sizes[n] for n in "qkvo") / sum(sizes.values()))
    assert abs(share - 4 / 7) > 0.05  # what it would be if each matrix counted alike


def test_an_estimate_ten_times_too_large_shows_in_the_slope_and_not_in_the_ranks(monkeypatch):
    """In a model whose stream is so large that one weight hardly matters: there the first order is exact."""
    params = jax.tree.map(lambda w: w / 3, params_of(SHAPE))
    examined = examined_of(params=params | {"embed": 30 * params["embed"]}, sequences=8)

    def told():
        found, _ = findings("zero_sensitivity", examined, weights=4, groups=2)
        return {
            metric: {
                (p.part, task): v for task in ("all", "L1") for p, v in values(found, metric, task).items()
            }
            for metric in ("first_order_slope", "first_order_agreement")
        }

    before = told()
    assert before["first_order_slope"]["weight", "all"] == pytest.approx(1, abs=0.25)

    def too_large(shape, precision):
        estimate = first_order(shape, precision)
        return lambda params, tokens_NT: jax.tree.map(lambda x: 10 * x, estimate(params, tokens_NT))

    monkeypatch.setattr(zero_sensitivity, "first_order", too_large)
    after = told()
    assert after["first_order_agreement"] == before["first_order_agreement"]
    for place, slope in before["first_order_slope"].items():
        assert after["first_order_slope"][place] == pytest.approx(slope / 10)


def slow_maps(h_TU, w_UD, keep_U, rank):
    """The best maps from the activations themselves."""
    rest, full = (h_TU * keep_U) @ w_UD, h_TU @ w_UD
    one = np.eye(w_UD.shape[1])
    scalar = np.linalg.lstsq(rest.reshape(-1, 1), full.ravel(), rcond=None)[0].item()
    columns = [np.linalg.lstsq(rest[:, [d]], full[:, d], rcond=None)[0].item() for d in range(len(one))]
    ordinary = np.linalg.lstsq(rest, full - rest, rcond=None)[0]
    _, _, leading = np.linalg.svd(rest @ ordinary)
    low = one + ordinary @ leading[:rank].T @ leading[:rank]
    units = np.flatnonzero(keep_U)
    alone = [np.outer(h_TU[:, u], w_UD[u]).ravel() for u in units]
    scale_U = np.zeros(len(keep_U))
    scale_U[units] = np.linalg.lstsq(np.stack(alone, axis=1), full.ravel(), rcond=None)[0]
    maps = [(keep_U, each) for each in (one, scalar * one, np.diag(columns), low)]
    return dict(zip(PARTS, [*maps, (scale_U, one)], strict=True))


def test_transformations_from_moments_are_those_from_the_activations():
    rng = np.random.default_rng(0)
    h_TU, w_UD = np.abs(rng.normal(size=(200, 12))), rng.normal(size=(12, 5))
    keep_U = np.float32(rng.permutation(12) >= 4)
    found = transformations(h_TU.T @ h_TU, w_UD, keep_U, 2)
    expected = slow_maps(h_TU, w_UD, keep_U, 2)
    missing = {}
    for part in PARTS:
        scale_U, map_DD = found[part]
        np.testing.assert_allclose(scale_U, expected[part][0], atol=1e-8, err_msg=part)
        np.testing.assert_allclose(map_DD, expected[part][1], atol=1e-8, err_msg=part)
        error = (h_TU * scale_U) @ w_UD @ map_DD - h_TU @ w_UD
        missing[part] = np.square(error).sum()
    assert missing["diagonal"] < missing["scalar"] < missing["none"]
    assert missing["low_rank"] < missing["none"]
    assert missing["per_unit"] < missing["scalar"]
    assert np.linalg.matrix_rank(found["low_rank"].map_DD - np.eye(5), tol=1e-8) == 2


def test_a_neuron_makes_good_for_its_removed_copy():
    """Of 16 kinds in pairs that share what they write: no map of the output can tell kinds apart, a number per
    neuron can, until a whole pair is gone."""
    rng = np.random.default_rng(1)
    h_TU, w_UD = np.repeat(np.abs(rng.normal(size=(400, 16))), 2, axis=1), rng.normal(size=(16, 8))
    w_UD = np.repeat(w_UD, 2, axis=0) / 2
    keep_U = np.ones(32, np.float32)
    keep_U[[0, 3, 8, 15]] = 0
    full_TD, missing = h_TU @ w_UD, {}
    for part, (scale_U, map_DD) in transformations(h_TU.T @ h_TU, w_UD, keep_U, 4).items():
        missing[part] = np.square((h_TU * scale_U) @ w_UD @ map_DD - full_TD).sum()
    assert missing["per_unit"] < 1e-10 * missing["none"]
    assert min(missing[part] for part in ("scalar", "diagonal", "low_rank")) > 0.2 * missing["none"]
    keep_U[1] = 0
    scale_U, _ = transformations(h_TU.T @ h_TU, w_UD, keep_U, 4)["per_unit"]
    assert np.square((h_TU * scale_U) @ w_UD - full_TD).sum() > 0.1 * missing["none"]


def test_neurons_that_are_all_silent_leave_the_identity():
    found = transformations(np.zeros((4, 4)), np.ones((4, 3)), np.float32([1, 1, 0, 0]), 1)
    for part in PARTS:
        np.testing.assert_array_equal(found[part].scale_U, [1, 1, 0, 0])
        np.testing.assert_array_equal(found[part].map_DD, np.eye(3))


def in_two_kinds(shape, kinds_F):
    """A model whose neurons of every layer are copies of as many neurons as there are kinds; kind k writes only
    into its own part of the dimensions."""
    params = params_of(shape)
    first = np.unique(kinds_F, return_index=True)[1]
    copies = {name: np.array(params["blocks"][name])[..., first[kinds_F]] for name in ("gate", "up")}
    down = np.array(params["blocks"]["down"])[:, first[kinds_F]]
    writes = np.arange(shape.d_model) * (kinds_F.max() + 1) // shape.d_model
    down *= writes[None, :] == kinds_F[:, None]
    return with_weights(params, down=down, **copies)


@pytest.mark.parametrize(
    ("kinds", "recovers"), [(1, {"scalar", "diagonal", "per_neuron"}), (2, {"diagonal", "per_neuron"})]
)
def test_copied_neurons_are_recovered_by_what_can_scale_them(kinds, recovers):
    """Of copies of one neuron a scalar brings all back; of two kinds it takes one number per dimension, because
    not as many of both are gone."""
    shape = dataclasses.replace(SHAPE, n_layers=2, d_ff=16)
    kinds_F = np.arange(16) % kinds
    settings = {"sizes": (0.25, 0.5), "subsets": 2, "rank": 2}
    found, ticks = findings("restricted", examined_of(shape, in_two_kinds(shape, kinds_F)), **settings)
    assert ticks == EXAMINATIONS["restricted"].forwards(shape, settings_of("restricted", settings))
    left = {(p.at, p.at_2, p.part): v for p, v in values(found, "restricted_removal").items()}
    parts = [*PARTS[:-1], "per_neuron"]
    share = {(p.at, p.part): v for p, v in values(found, "functional_redundancy").items()}
    for size in (0.25, 0.5):
        outright = left[size, None, "none"]
        assert all(abs(left[size, layer, "none"]) > 1e-3 for layer in (None, 0.0, 1.0))
        for part in recovers:
            assert abs(left[size, None, part]) < 1e-4
        for part in parts:
            layers = [left[size, float(layer), part] for layer in range(2)]
            assert left[size, None, part] == pytest.approx(np.mean(layers))
            if part != "none" and outright > 1e-4:
                assert share[size, part] == pytest.approx(1 - left[size, None, part] / outright)
    for part in {"scalar", "diagonal", "per_neuron"} - recovers:
        assert max(abs(left[size, None, part]) for size in (0.25, 0.5)) > 1e-3
    assert set(share) == {(s, p) for s in (0.25, 0.5) for p in parts[1:] if left[s, None, "none"] > 1e-4}


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_a_restricted_removal_is_the_model_with_these_weights(shape):
    examined, rng = examined_of(shape), np.random.default_rng(0)
    token_losses.cache_clear()
    size_F = shape.full("down")[1:-1]
    start = Removal(np.int32(0), np.ones(size_F, np.float32), np.eye(16, dtype=np.float32))
    losses = Losses(examined, REPLACED["neuron"], start, lambda n: None)
    np.testing.assert_array_equal(losses.rise(start, 0), 0 * losses.rise(start, 0))
    keep_F = np.float32(rng.random(size_F) < 0.5)
    map_DD = np.float32(np.eye(16) + 0.3 * rng.normal(size=(16, 16)))
    down = np.array(examined.params["blocks"]["down"])
    down[1] = (keep_F[..., None] * down[1]) @ map_DD
    expected = slow_rise(examined, with_weights(examined.params, down=down))
    found = losses.rise(Removal(np.int32(1), keep_F, map_DD), 1)
    assert dict(zip(losses.tasks, found, strict=True)) == pytest.approx(expected, abs=2e-4)
    assert token_losses(shape, REPLACED["neuron"], "highest").executables() == 1


def test_values_are_means_over_the_subsets_that_were_drawn():
    shape = dataclasses.replace(SHAPE, n_layers=2, d_ff=16)  # as the copied neurons: one executable
    examined = examined_of(shape)
    found, _ = findings("restricted", examined, sizes=(0.25,), subsets=3)
    told = {p.at_2: v for p, v in values(found, "restricted_removal", "S").items() if p.part == "none"}
    rng, one = np.random.default_rng(examined.seed), np.eye(16, dtype=np.float32)
    losses = Losses(
        examined, REPLACED["neuron"], Removal(np.int32(0), np.ones(16, np.float32), one), lambda n: None
    )
    for layer in range(2):
        rises = []
        for _ in range(3):
            keep_F = np.ones(16, np.float32)
            keep_F[rng.permutation(16)[:4]] = 0
            rises.append(losses.rise(Removal(np.int32(layer), keep_F, one), layer)[losses.tasks.index("S")])
        assert told[layer] == pytest.approx(np.mean(rises))


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_moments_of_hidden_units_tell_the_output_of_the_layer(shape):
    """w^T gram w is the second moment of what the MLP adds to the stream, experts weighed as they are routed."""
    examined = examined_of(shape)
    tokens = jnp.asarray(examined.calibration_NT)
    gram_UU = np.float64(activity(shape, "neuron", "highest")(examined.params, tokens, np.int32(1)))
    w_UD = np.float64(examined.params["blocks"]["down"][1]).reshape(-1, 16)
    with jax.default_matmul_precision("highest"):
        inner = apply(examined.params, tokens[:, :-1], shape).inner
    y_TD = np.float64(inner["mlp_out"][1]).reshape(-1, 16)
    np.testing.assert_allclose(w_UD.T @ gram_UU @ w_UD, y_TD.T @ y_TD, rtol=1e-4, atol=1e-4 * y_TD.std() ** 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("restricted", {"sizes": (0.5, 1.0)}, "must be shares above 0 and below 1"),
        ("restricted", {"rank": 0}, "rank = 0: must be at least 1"),
        ("zero_sensitivity", {"weights": 0, "groups": 0}, "nothing to set to zero"),
        ("zero_sensitivity", {"groups": -1}, "groups = -1: must be 0 or more"),
        ("zero_sensitivity", {"share": 0.0}, "share = 0.0: must be a share"),
    ],
)
def test_settings_that_cannot_be_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of(name, settings)
