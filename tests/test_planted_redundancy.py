"""Redundancy that was planted: copied layers, heads that do the same, neurons that write into few dimensions.  What
every instrument must say of it is known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_examine import (
    SHAPE,
    evaluation_of,
    examined_of,
    findings,
    params_of,
    slow_rise,
    values,
    with_weights,
)

from wane.eval.examine import EXAMINATIONS, restricted, settings_of
from wane.eval.examine.losses import Losses
from wane.eval.examine.restricted import READS, REPLACED, Removal
from wane.eval.examine.transformation import PARTS, transformations
from wane.eval.metrics.contract import Weights
from wane.eval.metrics.structure import effective_rank, every_matrix
from wane.scaling.edit import Edit

HEADS = dataclasses.replace(SHAPE, n_layers=2, n_heads=4, head_dim=4)


def copied_layer(size, seed):
    """Two layers that add the same to every token: each raises the logit of the commonest one by `size`; and the
    loss of the evaluation set with 0, 1 and 2 of them."""
    shape = dataclasses.replace(SHAPE, n_layers=2, d_ff=4, activation="gelu", norm="none")
    evaluation, _ = evaluation_of(2)
    count_V = np.bincount(evaluation.tokens_NT[:, 1:].ravel(), minlength=shape.vocab)
    common = int(count_V.argmax())
    params = jax.tree.map(lambda w: np.zeros_like(w), params_of(shape, seed))
    params["embed"][:, 0] = 1  # every token says the same, and no layer writes there
    params["blocks"]["up"][:, 0, seed % 4] = 1
    params["blocks"]["down"][:, seed % 4, 1] = 1
    raised = float(jax.nn.gelu(1.0)) * shape.residual_scale * shape.logit_scale
    params["unembed"][1, common] = size / raised
    share = count_V[common] / count_V.sum()
    loss = [np.log(shape.vocab - 1 + np.exp(k * size)) - share * k * size for k in range(3)]
    return examined_of(shape, jax.tree.map(jnp.asarray, params)), loss


@pytest.mark.parametrize(("size", "seed"), [(1.0, 1), (12.0, 2)])
def test_a_copied_layer_can_be_spared_as_the_first_can_and_both_cannot(size, seed):
    """At size 1 the second one still helps; at 12 it is too much already, and one alone is better."""
    examined, loss = copied_layer(size, seed)
    for kind in ("layer", "sublayer"):
        found, _ = findings("ablation", examined, units=(kind,))
        effect = {(p.at, p.part): v for p, v in values(found, "ablation_effect").items()}
        for layer, part in effect:
            expected = 0 if part == "attention" else loss[1] - loss[2]
            assert effect[layer, part] == pytest.approx(expected, abs=2e-5)
    found, _ = findings("synergy", examined, unit="layer")
    (pair,), (synergy,) = (values(found, name).values() for name in ("pair_ablation_effect", "synergy"))
    assert pair == pytest.approx(loss[0] - loss[2], abs=2e-5)
    assert synergy == pytest.approx(loss[0] - 2 * loss[1] + loss[2], abs=2e-5)
    assert synergy > 1e-3  # either stands in for the other
    assert (loss[1] > loss[2]) == (size < 5)


def in_pairs(shape, seed):
    """A model whose heads 0 and 1, and 2 and 3, of every layer do the same."""
    params = params_of(shape, seed)
    kind = np.repeat([0, 2], 2)
    columns = (kind[:, None] * shape.head_dim + np.arange(shape.head_dim)).ravel()
    copies = {n: np.array(params["blocks"][n])[..., columns] for n in "qkv"}
    o = 4 * np.array(params["blocks"]["o"])[:, columns]  # so that what attention adds counts
    return with_weights(params, o=o, **copies)


@pytest.mark.parametrize("seed", [3, 4])
def test_copied_heads_are_worth_the_same_and_add_no_direction(seed):
    params = in_pairs(HEADS, seed)
    examined = examined_of(HEADS, params, seed)
    found, _ = findings("ablation", examined, units=("head",))
    effect = {(p.at, p.at_2): v for p, v in values(found, "ablation_effect").items()}
    for layer, first in itertools.product((0.0, 1.0), (0.0, 2.0)):
        assert effect[layer, first] == pytest.approx(effect[layer, first + 1], abs=1e-5)
    assert abs(effect[0.0, 0.0] - effect[0.0, 2.0]) > 1e-4
    weights = Weights(HEADS, params, params, Edit())
    ranks = dict(zip(every_matrix(HEADS), np.asarray(effective_rank(None, weights)), strict=True))
    for place in every_matrix(HEADS):
        if place.part in "qkvo":
            w = np.float64(params["blocks"][place.part][int(place.at)])
            half = np.linalg.svd(w, compute_uv=False)[:8]
            share = half / half.sum()
            assert ranks[place] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
            assert ranks[place] < 8


@pytest.mark.parametrize("seed", [5, 6])
def test_a_head_makes_good_for_its_removed_copy_and_no_map_of_the_output_does(seed):
    """One of four heads is gone; its copy alone can stand in, at twice its size."""
    examined = examined_of(HEADS, in_pairs(HEADS, seed), seed)
    settings = {"unit": "head", "sizes": (0.25,), "subsets": 2}
    found, ticks = findings("restricted", examined, **settings)
    assert ticks == restricted.forwards(HEADS, settings_of("restricted", settings))
    left = {(p.at_2, p.part): v for p, v in values(found, "restricted_removal").items()}
    for layer in (0.0, 1.0):
        assert abs(left[layer, "none"]) > 1e-3
        assert abs(left[layer, "per_head"]) < 1e-4
        assert min(abs(left[layer, part]) for part in ("scalar", "diagonal")) > 1e-4
    assert {part for _, part in left} == {*PARTS[:-1], "per_head"}


def test_the_share_told_is_that_removed_once_for_each_number_of_heads_and_never_all():
    def sizes(n_heads, asked):
        shape = dataclasses.replace(HEADS, n_heads=n_heads)
        return restricted.counts(shape, settings_of("restricted", {"unit": "head", "sizes": asked}))

    usual = restricted.Settings().sizes
    assert sizes(2, usual) == {1: 1 / 2}
    assert sizes(3, usual) == {1: 1 / 3}
    assert sizes(8, usual) == {1: 1 / 8, 2: 1 / 4, 3: 3 / 8, 4: 1 / 2}
    assert sizes(4, (1 / 8, 1 / 4, 3 / 8, 1 / 2, 0.9)) == {1: 1 / 4, 2: 1 / 2, 3: 3 / 4}
    assert sizes(1, (1 / 2,)) == {}
    ragged = dataclasses.replace(SHAPE, d_ff=10)
    assert restricted.counts(ragged, settings_of("restricted", {"sizes": (0.25, 0.59)})) == {2: 0.2, 5: 0.5}
    alone = dataclasses.replace(HEADS, n_heads=1)
    settings = settings_of("restricted", {"unit": "head"})
    assert restricted.forwards(alone, settings) == 0
    assert not list(EXAMINATIONS["restricted"].run(examined_of(alone), settings, lambda n: None))


def test_rows_of_shapes_with_few_and_many_heads_tell_what_each_lost():
    """All that is asked of two heads is one of them."""
    for n_heads, at in ((2, {0.5}), (4, {0.25, 0.5})):
        shape = dataclasses.replace(HEADS, n_heads=n_heads)
        found, _ = findings("restricted", examined_of(shape), unit="head", subsets=1)
        assert {f.place.axis for f in found} == {"removed"}
        assert {p.at for p in values(found, "restricted_removal")} == at
        assert {f.place.at for f in found if f.metric == "functional_redundancy"} == at


@pytest.mark.parametrize(("size", "seed"), [(1.0, 1), (1e-8, 1), (1e-8, 2)])
def test_what_costs_next_to_nothing_to_remove_has_no_share_that_is_made_good(size, seed):
    """Of heads that write 1e-8 of what they did the rise is there and a share of it would be one of rounding."""
    params = params_of(HEADS, seed)
    o = size * params["blocks"]["o"]
    found, _ = findings("restricted", examined_of(HEADS, with_weights(params, o=o), seed), unit="head")
    whole = [f for f in found if f.place.at_2 is None]
    rise, share = (
        {(f.task, f.place.at, f.place.part): f.value for f in whole if f.metric == metric}
        for metric in ("restricted_removal", "functional_redundancy")
    )
    outright = {place: rise[*place[:2], "none"] for place in rise if place[2] != "none"}
    assert any(value > 0 for value in outright.values())
    assert set(share) == {place for place, value in outright.items() if value > 1e-4}
    assert bool(share) == (size == 1)
    for place, value in share.items():
        assert value == pytest.approx(1 - rise[place] / outright[place])


@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_a_restricted_removal_of_either_unit_is_the_model_with_these_weights(unit):
    examined, rng = examined_of(HEADS, seed=7), np.random.default_rng(7)
    w = np.array(examined.params["blocks"][READS[unit]])
    one = np.eye(HEADS.d_model, dtype=np.float32)
    start = Removal(np.int32(0), np.ones(w.shape[1], np.float32), one)
    losses = Losses(examined, REPLACED[unit], start, lambda n: None)
    scale_U = np.float32(rng.random(w.shape[1]) < 0.5)
    map_DD = np.float32(one + 0.3 * rng.normal(size=one.shape))
    w[1] = (scale_U[:, None] * w[1]) @ map_DD
    expected = slow_rise(examined, with_weights(examined.params, **{READS[unit]: w}))
    found = losses.rise(Removal(np.int32(1), scale_U, map_DD), 1)
    assert dict(zip(losses.tasks, found, strict=True)) == pytest.approx(expected, abs=2e-4)


def test_scales_of_units_of_several_entries_against_least_squares():
    rng = np.random.default_rng(8)
    h_TU, w_UD, size = rng.normal(size=(300, 15)), rng.normal(size=(15, 6)), 3
    h_TU[:, 3:6] = h_TU[:, :3] + 0.3 * h_TU[:, 3:6]
    keep_N = np.array([1, 0, 1, 0, 1])
    keep_U = np.repeat(keep_N, size)
    scale_U, _ = transformations(h_TU.T @ h_TU, w_UD, keep_U, 2, size)["per_unit"]
    alone = [(h_TU[:, n * size :][:, :size] @ w_UD[n * size :][:size]).ravel() for n in range(5)]
    kept = np.flatnonzero(keep_N)
    scales = np.linalg.lstsq(np.stack([alone[n] for n in kept], axis=1), sum(alone), rcond=None)[0]
    np.testing.assert_allclose(scale_U.reshape(5, size)[kept], np.repeat(scales[:, None], size, 1), atol=1e-8)
    assert (scale_U.reshape(5, size)[keep_N == 0] == 0).all()


@pytest.mark.parametrize("seed", [9, 10])
def test_what_writes_into_few_directions_is_made_good_by_a_map_of_that_rank(seed):
    """Copies of three neurons, each with a direction of its own that no axis follows: a map of rank three brings
    all back, one of rank two and one number per dimension do not."""
    shape = dataclasses.replace(SHAPE, n_layers=2, d_ff=24)
    params, kinds_F = params_of(shape, seed), np.arange(24) % 3
    copies = {name: np.array(params["blocks"][name])[..., kinds_F] for name in ("gate", "up")}
    down = np.array(params["blocks"]["down"])[:, kinds_F]
    examined = examined_of(shape, with_weights(params, down=down, **copies), seed)
    assert {np.linalg.matrix_rank(w) for w in down} == {3}
    left = {}
    for rank in (2, 3):
        found, _ = findings("restricted", examined, sizes=(0.5,), subsets=1, rank=rank)
        left |= {(rank, p.at_2, p.part): abs(v) for p, v in values(found, "restricted_removal").items()}
    for layer in (0.0, 1.0):
        assert left[3, layer, "none"] > 1e-3
        assert left[3, layer, "low_rank"] < 1e-4
        assert left[3, layer, "per_neuron"] < 1e-4
        assert left[2, layer, "low_rank"] > 1e-4
        assert left[3, layer, "diagonal"] > 1e-4
