"""Matched families: the exact ladder, budgets met or refused with the nearest ones, series, grids, padding."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wane.scaling.family import Family, describe, exact_ladder, mismatch, size, size_series
from wane.scaling.shape import Parametrization, Shape

DATA = {"vocab": 512, "context": 256}


def weights(shape, ratio=3):
    """Block matrices by hand: q, k, v, o and `ratio` matrices of the MLP."""
    return shape.n_layers * (4 * shape.d_model**2 + ratio * shape.d_model * shape.d_ff)


@pytest.mark.parametrize(
    ("c", "head_dim", "spread"), [(192, 16, 0.0040), (384, 32, 0.0020), (768, 32, 0.0010)]
)
def test_exact_ladder_of_swiglu_blocks(c, head_dim, spread):
    shapes = exact_ladder(c, head_dim=head_dim).shapes(**DATA)
    assert [s.d_model for s in shapes] == [c // 2, c // 3, c // 4, c // 6]
    assert {weights(s) for s in shapes} == {10 * c**2} == {s.param_counts()["blocks"] for s in shapes}
    assert {s.head_dim for s in shapes} == {head_dim}
    norms = [s.param_counts()["norms"] for s in shapes]
    assert norms == [(2 * s.n_layers + 1) * s.d_model for s in shapes]
    assert (norms[-1] - norms[0]) / (10 * c**2) == pytest.approx(spread, rel=0.01)


def test_exact_ladder_of_gelu_blocks():
    shapes = exact_ladder(192, head_dim=16, activation="gelu", d_ff_ratio=4.0).shapes(**DATA)
    assert {weights(s, 2) for s in shapes} == {12 * 192**2} == {s.param_counts()["blocks"] for s in shapes}


def test_exact_ladder_stays_exact_under_grouped_queries_and_padding():
    family = exact_ladder(768, kv_group=2, vocab_per_d_model=8)
    (budget, shapes), *rest = family.groups(**DATA)
    assert not rest
    assert {s.param_counts()["blocks"] for s in shapes} == {budget} == {9 * 768**2}
    assert {s.vocab / s.d_model for s in shapes} == {8}
    assert mismatch(shapes, family) == (0, 0, 0, 0)


def brute_force(family, depth, budget):
    """Least |size / budget - 1| over every d_model and d_ff that a family allows at one depth."""
    best = math.inf
    for d_model in range(family.head_dim, 40 * family.head_dim, family.head_dim):
        per_unit = (3 if family.activation == "swiglu" else 2) * d_model * depth
        fixed = 4 * d_model**2 * depth + (2 * depth + 1) * d_model
        low, high = math.ceil(family.d_ff_ratio * d_model / 2), math.floor(family.d_ff_ratio * d_model * 2)
        if fixed + per_unit * low > 2 * budget:
            break
        best = min(best, *(abs((fixed + per_unit * f) / budget - 1) for f in range(low, high + 1)))
    return best


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(10**6, 3 * 10**7),
    depths=st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True).map(tuple),
    head_dim=st.sampled_from([16, 32, 64]),
    activation=st.sampled_from(["swiglu", "gelu"]),
)
def test_budgets_from_a_million_are_met_or_refused_with_budgets_that_can_be(
    budget, depths, head_dim, activation
):
    ratio = 2.0 if activation == "swiglu" else 4.0
    family = Family(budget=budget, depths=depths, head_dim=head_dim, activation=activation, d_ff_ratio=ratio)
    try:
        shapes = family.shapes(**DATA)
    except ValueError as error:
        assert max(brute_force(family, depth, budget) for depth in depths) > 0.005
        proposed = re.search(r"use (\d+)(?: or (\d+))?, or change", str(error))
        for other in filter(None, proposed.groups()):
            assert dataclasses.replace(family, budget=int(other)).shapes(**DATA)
        return
    assert [s.n_layers for s in shapes] == list(depths)
    for shape in shapes:
        assert shape.d_model == shape.n_heads * head_dim
        assert 0.5 <= shape.d_ff / (ratio * shape.d_model) <= 2
        assert abs(shape.param_counts()["non_embedding"] / budget - 1) <= 0.005


def test_depths_to_24_of_one_million_parameters_take_the_d_model_of_the_nearest_ratio():
    shapes = Family(budget=1_000_000, depths=(2, 4, 8, 24)).shapes(**DATA)
    assert [(s.d_model, s.d_ff) for s in shapes] == [(224, 445), (160, 307), (96, 305), (64, 131)]


def test_quickstart_sizes_match_within_one_per_cent():
    family = Family(budget=80_000, depths=(1, 2, 3, 4, 6, 9), head_dim=16, max_mismatch=0.01)
    assert max(map(abs, mismatch(family.shapes(**DATA), family))) <= 0.01


@pytest.mark.parametrize("match", ["non_embedding", "blocks", "total", "flops"])
@pytest.mark.parametrize(
    "options", [{}, {"tied_embeddings": True, "qk_norm": True, "norm": "layernorm"}], ids=str
)
def test_every_matched_quantity(match, options):
    budget = 6_000_000 if match == "flops" else 2_000_000
    family = Family(budget=budget, match=match, depths=(2, 6, 12), vocab_per_d_model=8, **options)
    for s in family.shapes(vocab=300, context=128):
        counts = s.param_counts()
        embeddings = (1 if s.tied_embeddings else 2) * s.vocab * s.d_model
        expected = {
            "blocks": weights(s),
            "non_embedding": weights(s) + counts["norms"],
            "total": weights(s) + counts["norms"] + embeddings,
            "flops": 2 * weights(s) + 4 * s.n_layers * 128 * s.d_model + 2 * s.vocab * s.d_model,
        }
        assert size(s, match) == expected[match] == pytest.approx(budget, rel=0.005)
        assert s.vocab == 8 * s.d_model


def experts_by_hand(s):
    """(block matrices of all experts, parameters of what a token does not visit) of a SwiGLU shape."""
    attention, expert = 4 * s.d_model**2, 3 * s.d_model * s.d_ff
    blocks = s.n_layers * (attention + s.n_experts * expert)
    return blocks, s.n_layers * (s.n_experts - s.top_k) * expert


@pytest.mark.parametrize(("n_experts", "top_k"), [(4, 1), (8, 2)])
@pytest.mark.parametrize("match", ["non_embedding", "blocks", "active", "total", "flops"])
def test_experts_are_counted_in_what_a_family_matches(match, n_experts, top_k):
    budget = 6_000_000 if match == "flops" else 2_000_000
    family = Family(
        budget=budget,
        match=match,
        depths=(2, 6),
        n_experts=n_experts,
        top_k=top_k,
        d_ff_ratio=0.5,
        head_dim=16,
    )
    for s in family.shapes(vocab=300, context=128):
        blocks, idle = experts_by_hand(s)
        router, norms = s.n_layers * s.d_model * n_experts, (2 * s.n_layers + 1) * s.d_model
        expected = {
            "blocks": blocks,
            "non_embedding": blocks + router + norms,
            "active": blocks + router + norms - idle,
            "total": blocks + router + norms + 2 * 300 * s.d_model,
            "flops": 2 * (blocks - idle + router) + 4 * s.n_layers * 128 * s.d_model + 2 * 300 * s.d_model,
        }
        assert size(s, match) == expected[match] == pytest.approx(budget, rel=0.005)
        assert 0.25 <= s.d_ff / s.d_model <= 1  # of one expert
        assert (s.n_experts, s.top_k, s.name[-3:]) == (n_experts, top_k, f"-e{n_experts}")


def test_a_ladder_of_experts_is_exact_in_its_block_matrices():
    family = exact_ladder(192, head_dim=16, n_experts=4, top_k=2, d_ff_ratio=0.5)
    shapes = family.shapes(**DATA)
    assert (
        {experts_by_hand(s)[0] for s in shapes}
        == {10 * 192**2}
        == {s.param_counts()["blocks"] for s in shapes}
    )
    assert mismatch(shapes, family) == (0, 0, 0, 0)
    for s, row in zip(shapes, describe(shapes, family), strict=True):
        assert (row["n_experts"], row["top_k"]) == (4, 2)
        assert (
            row["router"]
            == 4 * s.d_model * s.n_layers
            == pytest.approx(row["router_share"] * row["non_embedding"])
        )
        assert row["active"] == row["non_embedding"] - experts_by_hand(s)[1]


def test_grid_of_budgets_and_aspect_ratios():
    budgets, ratios = (1_000_000, 8_000_000), (4.0, 16.0, 64.0)
    family = Family(budget=budgets, aspect_ratios=ratios)
    groups = family.groups(**DATA)
    assert tuple(budget for budget, _ in groups) == budgets
    for budget, shapes in groups:
        assert [s.aspect_ratio for s in shapes] == pytest.approx(ratios, rel=0.25)
        assert [s.param_counts()["non_embedding"] for s in shapes] == pytest.approx([budget] * 3, rel=0.005)
        assert {family.budget_of(s) for s in shapes} == {budget}
    assert family.shapes(**DATA) == groups[0][1] + groups[1][1]


def test_size_series_grows_geometrically_at_one_aspect_ratio():
    family = size_series(16.0, 50_000, 4, 4, head_dim=16, max_mismatch=0.01)
    assert family.budget == (50_000, 200_000, 800_000, 3_200_000)
    shapes = family.shapes(**DATA)
    sizes = [s.param_counts()["non_embedding"] for s in shapes]
    assert sizes == pytest.approx(family.budget, rel=0.01)
    assert [s.aspect_ratio for s in shapes] == pytest.approx([16] * 4, rel=0.25)


def test_d_ff_multiple_tiles_d_ff():
    shapes = Family(budget=30_000_000, depths=(4, 8, 16), d_ff_multiple=16).shapes(**DATA)
    assert all(s.d_ff % 16 == 0 for s in shapes)


def test_every_option_of_a_shape_reaches_the_shapes():
    options = {
        "activation": "gelu", "norm": "none", "norm_position": "after", "qk_norm": True, "tied_embeddings": True,
        "residual": False, "rope_theta": 5e3, "norm_eps": 1e-6, "dtype": "bfloat16", "remat": True,
        "parametrization": Parametrization(name="standard"), "n_experts": 2, "top_k": 2,
    }  # fmt: skip
    dimensions = {"d_model", "n_layers", "n_heads", "head_dim", "d_ff", "vocab", "context", "n_kv_heads"}
    assert {f.name for f in dataclasses.fields(Shape)} == dimensions | set(options)
    for shape in Family(budget=2_000_000, depths=(3,), kv_group=2, **options).shapes(**DATA):
        assert {name: getattr(shape, name) for name in options} == options
        assert shape.n_kv_heads == shape.n_heads // 2
        assert (shape.vocab, shape.context) == (512, 256)


def test_options_have_the_types_and_defaults_of_a_shape():
    ours, theirs = ({f.name: (f.type, f.default) for f in dataclasses.fields(c)} for c in (Family, Shape))
    shared = (ours.keys() & theirs.keys()) - {"head_dim"}
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_describe_counts_and_states_the_mismatch():
    family = exact_ladder(192, head_dim=16)
    rows = describe(family.shapes(**DATA), family)
    deepest = rows[-1]
    assert deepest == {
        "budget": 368640, "name": "d32-L36-f64", "d_model": 32, "n_layers": 36, "n_heads": 2, "kv_heads": 2,
        "head_dim": 16, "d_ff": 64, "vocab": 512, "aspect_ratio": 32 / 36, "blocks": 368640, "norms": 73 * 32,
        "n_experts": None, "top_k": None, "router": 0, "router_share": 0.0, "active": 368640 + 73 * 32,
        "embed": 512 * 32, "unembed": 512 * 32, "non_embedding": 368640 + 2336, "total": 370976 + 2 * 16384,
        "norm_share": 2336 / 370976, "flops_forward": 2 * 368640 + 36 * 4 * 256 * 32 + 2 * 16384,
        "flops_forward_backward": 3 * (2 * 368640 + 36 * 4 * 256 * 32 + 2 * 16384), "mismatch": 0.0,
    }  # fmt: skip
    matched = Family(budget=1_000_000, depths=(2, 8))
    for row in describe(matched.shapes(**DATA), matched):
        assert row["mismatch"] == row["non_embedding"] / 1_000_000 - 1 != 0
    assert json.dumps(rows + [dataclasses.asdict(matched)])


GIVEN = {"budget": 1_000_000, "depths": (4,)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "family.depths and family.aspect_ratios: give exactly one"),
        (GIVEN | {"aspect_ratios": (4.0,)}, "family.depths and family.aspect_ratios: give exactly one"),
        ({"depths": (4,)}, "family.budget and family.ladder_c: give exactly one"),
        (GIVEN | {"ladder_c": 192}, "family.budget and family.ladder_c: give exactly one"),
        ({"depths": (4,), "ladder_c": 192}, "family.ladder_c = 192: needs depths and match = 'blocks'"),
        (GIVEN | {"depths": (4, 4)}, "family.depths = (4, 4): must be positive and different"),
        (GIVEN | {"depths": (0,)}, "family.depths = (0,): must be positive and different"),
        (GIVEN | {"budget": ()}, "family.budget = (): must be one or more positive integers"),
        (GIVEN | {"budget": 0}, "family.budget = 0: must be one or more positive integers"),
        (GIVEN | {"kv_group": 0}, "family.kv_group = 0: must be positive"),
        (GIVEN | {"match": "params"}, "family.match = 'params': must be one of"),
        (GIVEN | {"top_k": 2}, "family.top_k = 2: read with n_experts only; give n_experts or leave it at 1"),
        (GIVEN | {"n_experts": 2, "top_k": 3}, "family.top_k = 3: must be from 1 to n_experts = 2"),
        (GIVEN | {"n_experts": 0}, "family.n_experts = 0: must be at least 1, or None for a dense MLP"),
        (
            GIVEN | {"vocab_per_d_model": 0.3},
            "family.vocab_per_d_model = 0.3: must be a multiple of 1 / head_dim = 1 / 32",
        ),
    ],
)
def test_contradictions_are_found_at_construction(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Family(**fields)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            Family(budget=50_000, depths=(2, 4, 9), head_dim=16),
            "family.budget = 50000: depth 9 misses it by more than 0.5 % (d16-L9-f64 has 37168 at its most d_ff,"
            " 2 x target, d32-L9-f32 has 65120 at its least d_ff, 0.5 x target); use 37168 or 65120, or change"
            " head_dim, d_ff_ratio or max_mismatch",
        ),
        (Family(budget=1000, depths=(36,), head_dim=16), "use 65680, or change"),
        (Family(budget=10_000, aspect_ratios=(64.0,), head_dim=16), "aspect ratio 64 misses it"),
        (
            exact_ladder(192),
            "d_model = 48 at depth 16 is not a multiple of 32 (head_dim * kv_group); use a multiple",
        ),
        (exact_ladder(192, (4, 8)), "family.depths: 8 is not a square"),
        (exact_ladder(192, (25,), head_dim=2), "d_model = 38.4 at depth 25 is not a multiple of 2"),
        (
            exact_ladder(192, head_dim=16, d_ff_ratio=8 / 3),
            "d_ff = 170.667 at d_model 64 is not a multiple of family.d_ff_multiple = 1",
        ),
        (
            exact_ladder(384, vocab_per_d_model=2),
            "family.vocab_per_d_model = 2: the vocabulary of d64-L36-f128 becomes 128, but 512 tokens are in use;"
            " use 8 or more",
        ),
        (
            Family(budget=1_000_000, aspect_ratios=(16.0, 16.1)),
            "comes out twice; put budgets or aspect ratios further apart",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line_with_a_way_out(family, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        family.shapes(**DATA)
    assert "\n" not in str(error.value)


def met(budget, **fields):
    try:
        return bool(Family(budget=budget, head_dim=16, max_mismatch=0.01, **fields).shapes(**DATA))
    except ValueError:
        return False


def test_a_budget_is_met_up_to_max_mismatch_and_not_beyond():
    largest = 9 * (4 * 16**2 + 3 * 16 * 64) + 19 * 16  # at d_model 16; d_model 32 begins at 65120
    assert met(round(largest / 0.9901), depths=(9,))
    assert not met(round(largest / 0.9899), depths=(9,))


def test_proposed_budgets_are_the_nearest_that_all_depths_meet():
    """Depth 6 cannot have 25 to 43 thousand parameters, depth 9 not 37 to 65 thousand."""
    with pytest.raises(ValueError, match="use 24784 or 65120, or change"):
        Family(budget=40_000, depths=(6, 9), head_dim=16, max_mismatch=0.01).shapes(**DATA)
    assert met(24_784, depths=(6, 9))
    assert met(65_120, depths=(6, 9))
    between = range(math.ceil(24_784 / 0.99), math.floor(65_120 / 1.01), 97)
    assert not any(met(budget, depths=(6, 9)) for budget in between)


def test_an_exhausted_search_still_says_what_is_near_and_what_to_change():
    message = (
        r"\(d48-L2-f108 has 49776, d48-L2-f109 has 50064\); change head_dim, d_ff_ratio or max_mismatch$"
    )
    with pytest.raises(ValueError, match=message):
        Family(budget=50_000, depths=(2, 4, 9), head_dim=16, max_mismatch=1e-6).shapes(**DATA)
