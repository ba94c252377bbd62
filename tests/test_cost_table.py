"""The table of costs on rows whose answers are known."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from test_report import member_row

from wane.eval import summary
from wane.eval.cost_table import COMPRESSING, cost_table, costs
from wane.eval.curves import load_curves
from wane.eval.record import write_rows
from wane.eval.report import write_report

CHANCE, CEILING = 0.2, 0.6
ACCURACY = {"metric": "accuracy", "unit": "fraction", "chance": CHANCE, "ceiling": CEILING}
SHAPES = ("d128-L2", "d64-L9")
HALF = {"median": 1.5, "low": 1.25, "high": 1.75}
OTHER = {"median": 9.0, "low": 9.0, "high": 9.0}


def accuracy(score: float) -> float:
    return CHANCE + score * (CEILING - CHANCE)


def point(shape, seed, method, severity, scores, draw=0, **more):
    """Rows of one point: its loss, and the accuracy of every task whose normalised score is given."""
    about = {"method": method, "severity": severity, "setting": severity, "draw": draw, **more}
    about["compression_ratio"] = 1 / (1 - 0.5 * severity)
    yield member_row(shape, seed, value=2.0 + severity, **about)
    for task, score in scores.items():
        yield member_row(shape, seed, value=accuracy(score), task=task, **ACCURACY, **about)


def study():
    """Two shapes, two seeds: seed 0 scores .8 undegraded, seed 1 .4; of task X seed 1 knows nothing."""
    rows = []
    for shape in SHAPES:
        for seed, whole in enumerate((0.8, 0.4)):
            known = {"K": whole, "X": (0.5, 0.05)[seed]}
            for method in ("random_neurons", "wanda", "rtn"):
                rows += point(shape, seed, method, 0.0, known)
            for draw, left in enumerate((0.5, 0.3)):  # of what there was: .4 on average
                lost = {"K": whole * left, "X": 0.1}
                if seed:
                    lost["K"] -= 0.096  # .4 less .24 is .16
                rows += point(shape, seed, "random_neurons", 0.5, lost, draw=draw)
            rows += point(shape, seed, "wanda", 0.5, {"K": whole / 2})
            rows += point(shape, seed, "wanda", 0.7, {"K": 0})
            for bits, left in ((8, 1.0), (4, 0.5)):
                rounded = {"setting": bits, "setting_unit": "bits"}
                rows += point(shape, seed, "rtn", 1 - bits / 16, {"K": whole * left}, **rounded)
            for method in ("kv_cache", "gaussian_noise", "wanda+recovery"):
                rows += point(shape, seed, method, 0.5, {"K": whole})
            second = {"severity_2": 0.75, "setting_2": 4.0, "setting_2_unit": "bits"}
            rows += point(shape, seed, "wanda+rtn", 0.5, {"K": whole / 4}, **second)
            rows += point(shape, seed, "random_neurons", 0.25, {"K": whole}, settings='{"group":"global"}')
            rows += point(shape, seed, "random_neurons", 0.25, {"K": 0}, layer=1)
    return rows


def speed_of(**changes):
    timing = {"forward": [], "request": []}
    for batch, forward, request in ((8, OTHER, OTHER), (32, HALF, OTHER), (1, OTHER, HALF)):
        timing["forward"].append({"batch": batch, "speed_up": forward})
        timing["request"].append({"batch": batch, "speed_up": request})
    about = {"shape": "d64-L9", "arm": "", "method": "random_neurons", "scope": "all", "settings": "{}"}
    about |= {"calibration": None, "severity": 0.5}
    return {
        "device": "a <fast> machine",
        "timing": {"batches": [1, 8, 32]},
        "points": [about | timing | changes, about | {"severity": 0.25, "reason": "nothing shrinks"}],
    }


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "curves.parquet"
    write_rows(path, study())
    return summary.prepare(load_curves(path))


@pytest.fixture(scope="module")
def table(frame):
    return costs(frame, list(SHAPES), speed_of())


def row_of(table, curve, severity, group="d64-L9") -> pd.Series:
    chosen = (table["group"] == group) & (table["curve"] == curve) & np.isclose(table["severity"], severity)
    return table[chosen].squeeze()


def test_all_methods_that_compress_weights_stand_beside_sparsegpt_and_wanda_at_half(table):
    """Neither what rounds a cache, nor noise, nor what was trained again; of two methods those that both do."""
    pruned = [("sparsegpt", 0.5), ("wanda", 0.5), ("wanda", 0.7), ("wanda+rtn · then 4 bits", 0.5)]
    neurons = [("random_neurons", 0.5), ("random_neurons · group global", 0.25)]
    rows = [*pruned, *neurons, ("rtn", 0.5), ("rtn", 0.75)]
    found = list(zip(table["group"], table["curve"], table["severity"], strict=True))
    assert found == [(group, *row) for group in SHAPES for row in rows]
    assert set(COMPRESSING) >= {
        "magnitude_weights",
        "gptq",
        "awq",
        "slicegpt",
        "remove_layers",
        "fewer_experts",
    }


def test_what_was_swept_at_other_severities_only_stands_at_half_too(frame):
    other = frame[~((frame["method"] == "wanda") & (frame["severity"] == 0.5))]
    row = row_of(costs(other, list(SHAPES), {}), "wanda", 0.5)
    assert np.isnan(row["retention K"])


def test_retention_is_a_mean_over_draws_then_over_seeds(table):
    row = row_of(table, "random_neurons", 0.5)
    assert row["retention K"] == pytest.approx((0.4 + 0.16) / 2)
    assert row["compression_ratio"] == pytest.approx(1 / 0.75)
    assert row_of(table, "wanda", 0.5)["retention K"] == pytest.approx(0.5)


def test_what_nobody_measured_or_knew_is_left_open(table):
    assert np.isnan(row_of(table, "random_neurons", 0.5)["retention X"]), "seed 1 knew nothing of X"
    missing = row_of(table, "sparsegpt", 0.5)
    assert missing[["compression_ratio", "retention K"]].isna().all()
    assert missing["forward"] is None


def test_speed_ups_are_found_by_shape_method_settings_and_severity(table):
    timed = row_of(table, "random_neurons", 0.5)
    assert (timed["forward"], timed["request"]) == (HALF, HALF)  # of the largest and of the smallest batch
    others = table[~((table["group"] == "d64-L9") & (table["curve"] == "random_neurons"))]
    assert others["forward"].isna().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": '{"group":"global"}'},
        {"arm": "early"},
        {"severity": 0.4},
        {"shape": "d32-L9"},
        {"calibration": "random"},
    ],
)
def test_a_timing_of_something_else_is_not_taken(frame, changes):
    assert costs(frame, list(SHAPES), speed_of(**changes))["forward"].isna().all()


def cells(text: str) -> list[list[str]]:
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]


def test_cells_that_were_not_measured_are_empty(frame, table):
    gate = summary.competence(frame, score=0.3, share=0.8)
    head, *rows = cells(cost_table(table, gate, speed_of()))
    assert head == [
        "shape", "method", "setting", "compression", "K", "X", "speed-up, batch 32", "speed-up, one request",
        "device",
    ]  # fmt: skip
    assert rows[0] == ["d128-L2", "sparsegpt", "50 %", *[""] * 6]
    assert rows[1][:5] == ["d128-L2", "wanda", "50 %", "1.33", "50%"]
    timed = "1.50 <small>[1.25, 1.75]</small>"
    assert rows[12][4:] == ["28%", "", timed, timed, "a &lt;fast&gt; machine"]
    assert rows[7][1:5] == ["rtn", "4 bits", "1.60", "50%"]
    assert rows[7][5:] == [""] * 4
    strict = summary.competence(frame, score=0.5, share=0.8)
    assert cells(cost_table(table, strict, {}))[2][4] == '<span class="closed">50%</span>'


def test_the_report_has_the_table_with_and_without_timings(tmp_path):
    write_rows(tmp_path / "curves.parquet", study())
    text = write_report(tmp_path).read_text()
    assert '<section id="cost"><h2>Cost</h2>' in text
    assert "1.25, 1.75" not in text
    (tmp_path / "speed.json").write_text(json.dumps(speed_of()))
    assert "1.25, 1.75" in write_report(tmp_path).read_text()
    assert 'id="samples"' not in text
    said = {"severity": 0.5, "prompt": "s1 s2", "undegraded": "s3", "degraded": "s4"}
    entry = {"member": "d48", "degradation": "wanda all {}, draw 0", "tasks": {"S": [said]}}
    (tmp_path / "samples.json").write_text(json.dumps({"d48 wanda": entry}))
    text = write_report(tmp_path).read_text()
    assert '<section id="samples"><h2>What models say</h2>' in text
    assert "<td>s<mark>4</mark></td>" in text
    (tmp_path / "speed.json").write_text("{")
    with pytest.raises(ValueError, match="speed.json: not valid JSON"):
        write_report(tmp_path)


def test_a_ratio_is_told_as_one():
    row = {"group": "g", "curve": "mixed_precision", "setting": 6.0, "setting_unit": "ratio"}
    row |= {"compression_ratio": 5.9, "forward": None, "request": None}
    assert cells(cost_table(pd.DataFrame([row]), pd.DataFrame(), {}))[1][2] == "6 ×"


def test_a_study_without_any_of_this_has_two_empty_rows(tmp_path):
    rows = [member_row("d128-L2", 0, method="kv_cache", severity=s, value=2.0) for s in (0.0, 0.5)]
    write_rows(tmp_path / "curves.parquet", rows)
    bare = summary.prepare(load_curves(tmp_path))
    table = costs(bare, ["d128-L2"], {})
    gate = summary.competence(bare, score=0.9, share=0.8)
    assert [row[1:] for row in cells(cost_table(table, gate, {}))[1:]] == [
        [name, "50 %", *[""] * 4] for name in ("sparsegpt", "wanda")
    ]
