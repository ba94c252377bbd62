"""Effective rank against the initial matrix, and against what 2 bits cost, where both are known."""

import numpy as np
import pytest
from report_rows import curves_of, point

from wane.eval import summary
from wane.eval.rank_table import METRIC, OF_INITIAL, rank_section, ranks
from wane.eval.report import write_report
from wane.eval.two_bits import tolerance, two_bits_section

WIDE, DEEP = "d128-L2", "d64-L9"
TWO = {"setting": 2.0, "setting_unit": "bits", "method": "rtn"}
SEVERITY = 1 - 2 / 16


def rank(shape, seed, at, matrix, value, *, metric=METRIC, step=400, severity=0.0, **more):
    place = {"axis": "layer", "at": float(at), "part": matrix, "unit": "ratio", "train_step": step}
    return point(shape, seed, severity, metric=metric, value=value, **place, **more)


def test_ranks_are_means_over_layers_then_seeds_of_finished_members(tmp_path):
    rows = []
    for metric, factor in ((METRIC, 1.0), (OF_INITIAL, 2.0)):
        for seed, layer, value in ((0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.5), (1, 1, 0.7)):
            for matrix, more in (("q", 0.0), ("down", 0.1)):
                told = factor * (value + more)
                rows += [rank(WIDE, seed, layer, matrix, told, metric=metric, method=m) for m in ("m", "n")]
                for away in (
                    {"step": 0}, {"step": 200}, {"severity": 0.5}, {"arm": "mask", "pruned": "before"},
                ):  # fmt: skip
                    rows += [rank(WIDE, seed, layer, matrix, 7.0, metric=metric, **away)]
        rows += [rank(DEEP, 0, 0, "q", 0.4, metric=metric, step=0)]  # swept before training alone
    curves = curves_of(tmp_path, rows)
    found = ranks(curves).set_index(["group", "matrix"])
    assert set(found.index) == {(WIDE, "q"), (WIDE, "down")}
    for matrix, mean in (("q", 0.4), ("down", 0.5)):
        of_random, of_initial, seeds = found.loc[(WIDE, matrix), ["of_random", "of_initial", "seeds"]]
        assert (of_random, of_initial, seeds) == pytest.approx((mean, 2 * mean, 2))
    page = rank_section(curves, [DEEP, WIDE])
    assert "<th>q</th><th>down</th>" in page
    assert DEEP not in page
    assert "<td>0.400 <small>0.800</small></td>" in page


def test_seeds_count_alike_and_a_matrix_that_began_as_zeros_has_no_ratio(tmp_path):
    rows = [rank(WIDE, 0, layer, "q", 0.5) for layer in (0, 1)] + [rank(WIDE, 1, 0, "q", 1.0)]
    rows += [rank(WIDE, 0, 0, "q", 1.0, metric=OF_INITIAL), rank(WIDE, 1, 0, "q", 2.0, metric=OF_INITIAL)]
    dead = {"status": "diverged", "reason": "x"}
    rows += [rank(WIDE, 2, 0, "q", None, **dead), rank(WIDE, 0, 1, "o", None, **dead)]
    rows += [rank(WIDE, 0, 0, "o", 0.3)]
    found = ranks(curves_of(tmp_path, rows)).set_index("matrix")
    assert found.loc["q", ["of_random", "of_initial", "seeds"]].tolist() == [0.75, 1.5, 2]
    assert found.loc["o", "of_random"] == 0.3
    assert np.isnan(found.loc["o", "of_initial"])
    assert "<td>0.300 <small>—</small></td>" in rank_section(curves_of(tmp_path, rows), [WIDE])


def two_bits(shape, seed, costs, levels):
    """A member whose layers have these mean ranks and cost so much at 2 bits."""
    whole = point(shape, seed, 0.0, value=2.0 + seed, **TWO | {"setting": 16.0})
    rows = [whole, whole | {"task": "L1"}, whole | {"train_step": 0}]
    for layer, (cost, level) in enumerate(zip(costs, levels, strict=True)):
        rows += [rank(shape, seed, layer, "q", level - 0.2), rank(shape, seed, layer, "up", level + 0.2)]
        rows += [rank(shape, seed, layer, "q", 9 - level, severity=SEVERITY, **TWO, layer=layer)]
        rows += [rank(shape, seed, layer, "q", 9 - level, step=0)]
        value = None if cost is None else 2.0 + seed + cost
        status = {"status": "diverged", "reason": "x"} if cost is None else {}
        rows += [point(shape, seed, SEVERITY, value=value, **TWO, layer=layer, **status)]
        for method in ("activations", "kv_cache"):
            elsewhere = TWO | {"method": method, "relative_weight_error": 0.0}
            rows += [point(shape, seed, SEVERITY, value=9.0 - layer, **elsewhere, layer=layer)]
        away = TWO | {"value": 9.0 - layer, "layer": layer}
        for severity, others in (
            (0.75, {"setting": 4.0}), (0.5, {"setting_unit": "fraction"}), (SEVERITY, {"head": 0}),
            (SEVERITY, {"task": "L1"}), (SEVERITY, {"train_step": 0}),
        ):  # fmt: skip
            rows += [point(shape, seed, severity, **away | others)]
    return rows


def test_correlation_of_rank_and_cost_over_the_layers_of_each_member(tmp_path):
    rows = two_bits(DEEP, 0, (0.1, 0.2, 0.3, 0.4, 0.9), (1, 2, 3, 4, 5))  # 1
    rows += two_bits(DEEP, 1, (0.4, 0.1, 0.3, 0.2, 0.9), (1, 2, 3, 4, 5))  # by hand: 1 - 6 x 14 / 120
    rows += two_bits(DEEP, 2, (0.1, None, 0.3, 0.2, 0.9), (1, 2, 3, 4, 5))  # a layer is not finite
    rows += two_bits(WIDE, 0, (0.1, 0.2, 0.3), (3, 2, 1))
    curves = curves_of(tmp_path, rows)
    found = tolerance(curves, summary.prepare(curves)).set_index("group")
    deep = found.loc[DEEP]
    assert deep["curve"] == "rtn"
    assert deep[["correlation", "low", "high"]].tolist() == pytest.approx([0.65, 0.3, 1.0])
    assert deep[["layers", "seeds"]].tolist() == [5, 2]
    assert np.isnan(found.loc[WIDE, "correlation"])
    page = two_bits_section(curves, summary.prepare(curves), [DEEP, WIDE])
    assert "<td>+0.65 <small>[+0.30, +1.00]</small></td><td>5</td><td>2</td>" in page
    assert '<td><span class="closed">not assessable</span></td><td>3</td><td>0</td>' in page


def test_draws_are_averaged_and_ties_share_a_rank(tmp_path):
    rows = two_bits(DEEP, 0, (0.1, 0.2, 0.2, 0.4), (1, 2, 2, 4))
    rows += [
        point(DEEP, 0, SEVERITY, value=2.0 + cost, draw=1, **TWO, layer=layer)
        for layer, cost in enumerate((0.1, 0.8, 0.8, 0.0))
    ]  # the means are .1 .5 .5 .2
    rows += two_bits(DEEP, 1, (0.1, 0.2, 0.3, 0.4), (1, 2, 3, 4))  # one draw of one layer is not finite
    dead = {"value": None, "status": "diverged", "reason": "x"}
    rows += [point(DEEP, 1, SEVERITY, draw=1, layer=0, **TWO, **dead)]
    curves = curves_of(tmp_path, rows)
    found = tolerance(curves, summary.prepare(curves))
    assert found["correlation"].item() == pytest.approx(1 / 3)
    assert found["seeds"].item() == 1


def test_the_report_has_both_sections_only_with_rows_for_them(tmp_path):
    write = two_bits(DEEP, 0, (0.1, 0.2, 0.3, 0.4), (1, 2, 3, 4))
    curves_of(tmp_path, [row for row in write if row["metric"] == "loss"])
    bare = write_report(tmp_path).read_text()
    assert 'id="rank"' not in bare
    assert 'id="bits"' not in bare
    curves_of(tmp_path, write)
    page = write_report(tmp_path).read_text()
    assert '<section id="rank"><h2>Effective rank</h2>' in page
    assert '<section id="bits"><h2>Tolerance to 2 bits</h2>' in page
