"""The structure of weights: known spectra and distributions, numpy, planted redundancy, a sweep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import EVALUATION, SHAPE, splits_of, subject_of

from wane.eval.cell import sweep
from wane.eval.metrics import METRICS, chosen
from wane.eval.metrics.contract import Weights
from wane.eval.metrics.structure import SHARES, along_spectra, entropy, every_matrix, random_ranks, share_of
from wane.eval.study import Degrade
from wane.eval.subject import Subject
from wane.scaling.edit import Edit, fold, merge
from wane.scaling.model import init_params
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

NAMES = tuple(name for name in chosen(("structure",)) if METRICS[name].places is every_matrix)
EXPERTS = Shape(
    d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=12, vocab=32, context=8, n_experts=3, top_k=2
)


def params_of(shape, seed=0):
    return init_params(jax.random.key(seed), shape)


def all_values(shape, params, edit):
    """Metric -> (part, layer) -> value."""

    @jax.jit
    def run(params, edit):
        weights = Weights(shape, params, merge(params, edit), edit)
        return {name: METRICS[name].values(None, weights) for name in NAMES}

    places = [(place.part, int(place.at)) for place in every_matrix(shape)]
    return {name: dict(zip(places, map(float, v), strict=True)) for name, v in run(params, edit).items()}


def slow(w, trained):
    """Of one matrix, in float64."""
    w, trained = np.float64(w), np.float64(trained)
    s = np.linalg.svd(w, compute_uv=False)
    p = s / s.sum()
    p = p[p > 1e-12]
    rank = np.exp(-(p * np.log(p)).sum())
    random, stable = random_ranks(*sorted(w.shape)), (s**2).sum() / s[0] ** 2
    top = int(np.ceil(0.1 * len(s)))
    edges = w.mean() + w.std() * np.linspace(-4, 4, 257)
    inside = np.clip(w, edges[0], edges[-1])
    counts = [((inside >= a) & (inside < b)).sum() for a, b in zip(edges[:-1], edges[1:], strict=True)]
    counts[-1] += (inside == edges[-1]).sum()
    used = [c / w.size for c in counts if c]
    return {
        "effective_rank": rank,
        "relative_effective_rank": rank / random.effective,
        "stable_rank": stable,
        "relative_stable_rank": stable / random.stable,
        "largest_singular_value": s[0],
        "top_energy": (s[:top] ** 2).sum() / (s**2).sum(),
        "weight_entropy": -sum(u * np.log(u) for u in used) + (len(used) - 1) / (2 * w.size),
        "weight_error": ((w - trained) ** 2).sum() / (trained**2).sum(),
    }


def test_every_matrix_against_numpy_with_multipliers_folded_in():
    shape = dataclasses.replace(SHAPE, n_kv_heads=1)
    params, rng = params_of(shape), np.random.default_rng(0)
    kept = {n: w * (rng.random(w.shape) < 0.7) for n, w in params["blocks"].items() if n in shape.matrices}
    neuron_LF = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (3, shape.d_ff)), jnp.float32)
    edit = Edit(params={"blocks": kept}, neuron_LF=neuron_LF)
    found, folded = all_values(shape, params, edit), fold(params, edit, shape)
    assert not np.array_equal(folded["down"], kept["down"])
    for name, w_LIO in folded.items():
        for layer, w_IO in enumerate(w_LIO):
            for metric, expected in slow(w_IO, params["blocks"][name][layer]).items():
                tolerance = 3e-3 if metric == "weight_entropy" else 1e-4  # an entry at the edge of a bin
                assert found[metric][name, layer] == pytest.approx(expected, rel=tolerance), (metric, name)


def test_values_of_experts_are_averaged_and_their_errors_are_of_all_together():
    params = params_of(EXPERTS)
    up = params["blocks"]["up"].at[:, 1].multiply(3.0).at[:, 2].multiply(0.0)
    found = all_values(EXPERTS, params, Edit(params={"blocks": {"up": up}}))
    for layer in range(2):
        before, each = params["blocks"]["up"][layer], [slow(up[layer, e], up[layer, e]) for e in (0, 1)]
        for name in ("stable_rank", "effective_rank", "largest_singular_value", "weight_entropy"):
            mean = sum(values[name] for values in each) / 3  # that of an expert of zeros is 0
            assert found[name]["up", layer] == pytest.approx(mean, rel=3e-3)
        error = 1 - (np.square(up[layer] - before).sum() - np.square(before).sum()) / -np.square(before).sum()
        assert found["weight_error"]["up", layer] == pytest.approx(error, rel=1e-5)


def test_low_rank_weights_have_the_ranks_of_their_spectrum():
    shape, rng = dataclasses.replace(SHAPE, d_model=24, d_ff=40), np.random.default_rng(1)
    spectrum = np.array([8.0, 4.0, 2.0, 1.0])
    left, right = (np.linalg.qr(rng.normal(size=(n, 4)))[0] for n in (24, 40))
    params = params_of(shape)
    up = params["blocks"]["up"].at[1].set(jnp.asarray((left * spectrum) @ right.T, jnp.float32))
    found = all_values(shape, params, Edit(params={"blocks": {"up": up}}))
    share = spectrum / 15
    expected = np.exp(-(share * np.log(share)).sum())
    assert found["effective_rank"]["up", 1] == pytest.approx(expected, rel=1e-3)
    assert found["stable_rank"]["up", 1] == pytest.approx(85 / 64, rel=1e-5)
    assert found["largest_singular_value"]["up", 1] == pytest.approx(8, rel=1e-5)
    assert found["top_energy"]["up", 1] == pytest.approx((64 + 16 + 4) / 85, rel=1e-5)  # 3 of 24 directions
    for metric in ("relative_effective_rank", "relative_stable_rank"):
        assert found[metric]["up", 0] > 3 * found[metric]["up", 1]


def test_the_spectrum_tells_the_energy_of_the_strongest_directions():
    """Of a planted spectrum, of random weights, and of a layer that is gone."""
    shape, rng = dataclasses.replace(SHAPE, d_model=24, d_ff=40), np.random.default_rng(4)
    values = np.sort(rng.exponential(size=24))[::-1]
    left, right = (np.linalg.qr(rng.normal(size=(n, 24)))[0] for n in (24, 40))
    params = params_of(shape)
    down = params["blocks"]["down"].at[1].set(jnp.asarray((left * values) @ right.T, jnp.float32).T)
    edit = Edit(params={"blocks": {"down": down}}, attn_L=jnp.array([1.0, 1.0, 0.0]))
    run = jax.jit(lambda p: METRICS["spectrum"].values(None, Weights(shape, p, merge(p, edit), edit)))
    told = dict(zip(along_spectra(shape), np.asarray(run(params)), strict=True))
    energies = {("down", 1): values**2}
    energies |= {("up", 0): np.linalg.svd(np.float64(params["blocks"]["up"][0]), compute_uv=False) ** 2}
    for (part, layer), energy in energies.items():
        for share, count in zip(SHARES, (2, 3, 6, 12), strict=True):
            place = every_matrix(shape)[0]._replace(part=part, at=float(layer), at_2=share)
            assert told[place] == pytest.approx(energy[:count].sum() / energy.sum(), rel=1e-5)
    assert {value for place, value in told.items() if place.at == 2 and place.part in "qkvo"} == {0.0}


def test_duplicated_neurons_add_no_direction():
    params = params_of(SHAPE)
    twice = {n: jnp.concatenate([params["blocks"][n][..., :12]] * 2, axis=-1) for n in ("gate", "up")}
    found = all_values(SHAPE, params, Edit(params={"blocks": twice}))
    for name in twice:
        for layer in range(3):
            half = slow(params["blocks"][name][layer, :, :12], 1.0)
            assert found["effective_rank"][name, layer] == pytest.approx(half["effective_rank"], rel=1e-3)
            assert found["stable_rank"][name, layer] == pytest.approx(half["stable_rank"], rel=1e-4)
            assert found["relative_effective_rank"][name, layer] < 0.9


def test_a_copied_layer_has_the_structure_of_the_first():
    params = params_of(SHAPE)
    blocks = {n: w.at[2].set(w[0]) for n, w in params["blocks"].items()}
    found = all_values(SHAPE, params, Edit(params={"blocks": blocks}))
    for name in SHAPE.matrices:
        for metric in set(NAMES) - {"weight_error"}:
            assert found[metric][name, 2] == pytest.approx(found[metric][name, 0], rel=1e-6)
        assert found["effective_rank"][name, 1] != found["effective_rank"][name, 0]
        assert found["weight_error"][name, 2] > 1 > found["weight_error"][name, 0] == 0


def test_a_removed_layer_has_no_rank_no_entropy_and_all_of_the_error():
    gone = jnp.array([1.0, 0.0, 1.0])
    found = all_values(SHAPE, params_of(SHAPE), Edit(attn_L=gone, mlp_L=gone))
    for name in SHAPE.matrices:
        for metric in NAMES:
            expected = pytest.approx(1, rel=1e-6) if metric == "weight_error" else 0
            assert found[metric][name, 1] == expected, metric
            assert np.isfinite(found[metric][name, 0])


@pytest.mark.parametrize("size", [(24, 24), (32, 32), (32, 96), (96, 96)])
def test_gaussian_weights_differ_in_size_but_not_in_relative_rank_and_entropy(size):
    w_NIO = np.random.default_rng(2).normal(size=(40, *size)).astype(np.float32)
    told = [slow(w, w) for w in w_NIO]
    for metric, error in (("relative_effective_rank", 5e-3), ("relative_stable_rank", 0.04)):
        assert np.mean([values[metric] for values in told]) == pytest.approx(1, abs=error)
    infinite = 0.5 * np.log(2 * np.pi * np.e) - np.log(8 / 256)  # less the two tails of 3e-5
    assert np.mean(jax.vmap(entropy)(w_NIO)) == pytest.approx(infinite, abs=0.06)
    assert jnp.mean(jax.vmap(entropy)(100 * w_NIO + 7)) == pytest.approx(infinite, abs=0.06)


@pytest.mark.parametrize("size", [(16, 16), (96, 192)])
def test_the_yardstick_is_the_mean_of_many_random_matrices(size):
    w_NIO = np.random.default_rng(3).normal(size=(300, *size))
    stable_N = np.square(w_NIO).sum((1, 2)) / np.linalg.norm(w_NIO, 2, axis=(1, 2)) ** 2
    assert random_ranks(*size).stable == pytest.approx(stable_N.mean(), rel=0.03)
    assert random_ranks(*size).stable < 0.5 * min(size)  # so far from its bound that it is never told raw


def test_a_share_of_nothing_is_0_of_nothing_and_undefined_of_something():
    told = share_of(jnp.array([1.0, 0.0, 0.0, 1e-9]), jnp.array([4.0, 4.0, 0.0, 0.0]))
    np.testing.assert_array_equal(told, [0.25, 0, 0, np.nan])


def test_a_matrix_of_zeros_to_which_something_is_added_has_no_relative_error():
    params = params_of(SHAPE)
    before = params | {"blocks": params["blocks"] | {"up": params["blocks"]["up"].at[1].set(0)}}
    found = all_values(SHAPE, before, Edit(params={"blocks": {"up": params["blocks"]["up"]}}))
    assert np.isnan(found["weight_error"]["up", 1])
    assert {found["weight_error"]["up", layer] for layer in (0, 2)} == {0.0}
    assert all_values(SHAPE, before, Edit())["weight_error"]["up", 1] == 0


def test_the_entropy_of_few_values_is_that_of_their_shares():
    w_IO = jnp.asarray(np.repeat([-1.0, 0.0, 2.0, 5.0], [40, 40, 10, 10]).reshape(10, 10), jnp.float32)
    plain = -2 * (0.4 * np.log(0.4) + 0.1 * np.log(0.1))
    assert entropy(w_IO) == pytest.approx(plain + 3 / 200, rel=1e-5)


def test_all_statistics_of_the_spectrum_share_one_decomposition_per_size():
    shape = dataclasses.replace(
        SHAPE, n_heads=2, head_dim=8, d_ff=24
    )  # 16 x 16, and 16 x 24 either way round

    def run(params):
        weights = Weights(shape, params, params, Edit())
        return [METRICS[name].values(None, weights) for name in (*NAMES, "spectrum")]

    program = jax.jit(run).lower(params_of(shape)).compile().as_text()
    assert sum("custom-call(" in line and "gesdd" in line for line in program.splitlines()) == 2


def test_a_sweep_writes_a_row_per_matrix_and_layer():
    stream = open_data(Data(sources="graded", context=32, facts=16), steps=4, batch_size=4)
    evaluation = dataclasses.replace(EVALUATION, metrics=("loss", "structure"))
    plain = subject_of(splits_of(stream, 1))
    subject = Subject(plain.member, plain.params, plain.splits, evaluation)
    degrade = Degrade(method="random_weights", severities=(0.5,))
    rows, _ = sweep(subject, degrade, range(1), "cell", 1, lambda n: None)
    for metric in NAMES:
        mine = [row for row in rows if row["metric"] == metric and row["severity"] == 0.5]
        assert [(r["axis"], r["at"], r["part"]) for r in mine] == [
            ("layer", float(layer), part) for part in SHAPE.matrices for layer in range(3)
        ]
        assert all(row["status"] == "ok" and row["task"] == "all" for row in mine)
    for row in rows:
        if row["metric"] == "weight_error":
            assert row["value"] == (0 if row["severity"] == 0 else pytest.approx(0.5, abs=0.2))
        if row["metric"] == "relative_effective_rank" and row["severity"] == 0:
            assert row["value"] == pytest.approx(1, abs=0.08)  # the subject is untrained
        if row["metric"] == "relative_stable_rank" and row["severity"] == 0:
            assert row["value"] == pytest.approx(1, abs=0.5)
    values = {(r["metric"], r["severity"], r["part"], r["at"]): r["value"] for r in rows}
    for (metric, severity, *place), value in values.items():
        if metric.endswith("_of_initial"):
            rank = metric.removesuffix("_of_initial")
            ratio = values[rank, severity, *place] / values[rank, 0.0, *place]
            assert value == pytest.approx(ratio, rel=1e-5)


def test_a_matrix_that_began_as_zeros_has_no_ratio_to_what_it_was():
    stream = open_data(Data(sources="graded", context=32, facts=16), steps=4, batch_size=4)
    subject = subject_of(splits_of(stream, 1))
    subject.settings = dataclasses.replace(EVALUATION, metrics=("loss", "effective_rank_of_initial"))
    subject.__dict__["initial"] = np.where(np.arange(len(every_matrix(SHAPE))) == 4, 0.0, 2.0)
    rows, _ = sweep(subject, Degrade(method="rtn", severities=(4.0,)), range(1), "cell", 1, lambda n: None)
    told = [(r["part"], r["at"]) for r in rows if r["metric"] != "loss" and r["severity"] > 0]
    places = [(place.part, place.at) for place in every_matrix(SHAPE)]
    assert told == places[:4] + places[5:]
