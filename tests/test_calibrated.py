"""Masks fitted on one task, on a study whose matrices are known."""

import pytest
from report_rows import curves_of, point

from wane.eval import summary
from wane.eval.calibrated import transfer, transfer_section
from wane.eval.report import write_report

WIDE, DEEP = "d128-L2", "d64-L9"
TASKS = ("L1", "S")
COST = {"same": (0.2, 0.3), "task:L1": (0.1, 0.9), "task:S": (0.6, 0.25)}  # on L1, on S; per unit of severity


def member(shape, seed, sources, *, severities=(0.25, 0.5), method="wanda", draws=(0.0,), **more):
    """Rows of a member undegraded and under masks fitted on `sources`; a seed's excess is (1 + seed) times
    COST."""
    for source in sources:
        for severity in (0.0, *severities):
            for draw, harm in enumerate(draws):
                for task, cost in zip(TASKS, COST[source], strict=True):
                    value = 2.0 + seed + severity * cost * (1 + seed) * (1 + harm)
                    about = {
                        "calibration": source,
                        "method": method,
                        "task": task,
                        "draw": draw,
                        "value": value,
                    }
                    # canonical order is by digest, not by name
                    yield point(shape, seed, severity, calibration_digest=source, **about | more)


def test_change_from_calibration_on_the_training_distribution(tmp_path):
    rows = [row for seed in (0, 1) for row in member(WIDE, seed, COST)]
    found = transfer(summary.prepare(curves_of(tmp_path, rows)))
    assert set(found["reference"]) == {"same"}
    assert set(found["curve"]) == {"wanda"}
    cells = found.set_index(["severity", "fitted_on", "task"])["change"]
    assert len(cells) == len(found) == 2 * 2 * 2
    for severity in (0.25, 0.5):
        for source in TASKS:
            for i, task in enumerate(TASKS):
                change = severity * 1.5 * (COST[f"task:{source}"][i] - COST["same"][i])
                assert cells[severity, source, task] == pytest.approx(change)
    assert set(found["seeds"]) == {2}


def test_change_from_the_diagonal_where_no_other_calibration_was_swept(tmp_path):
    """Of a task that nothing was fitted on there is no diagonal and no cell."""
    rows = list(member(DEEP, 1, ("task:L1", "task:S"), draws=(-0.5, 0.5)))
    rows += [row | {"task": "all"} for row in rows if row["task"] == "S"]
    found = transfer(summary.prepare(curves_of(tmp_path, rows)))
    assert set(found["reference"]) == {"diagonal"}
    cells = found[found["severity"] == 0.5].set_index(["fitted_on", "task"])["change"].to_dict()
    assert cells == pytest.approx(
        {("L1", "L1"): 0, ("S", "S"): 0, ("L1", "S"): 0.9 - 0.25, ("S", "L1"): 0.6 - 0.1}
    )


def test_each_severity_method_and_group_has_its_own_reference(tmp_path):
    rows = [*member(WIDE, 0, COST, severities=(0.5,)), *member(WIDE, 0, ("task:L1",), severities=(0.7,))]
    rows = [row for row in rows if row["severity"] != 0] + list(member(WIDE, 0, ("same",), severities=()))
    rows += member(WIDE, 0, ("task:S",), method="gptq", settings='{"group":8}')
    rows += member(DEEP, 0, ("task:L1",), severities=(0.5,), arm="early")
    rows += [row | {"calibration": "random", "calibration_digest": "r"} for row in member(WIDE, 0, ("same",))]
    curves = curves_of(tmp_path, rows)
    found = transfer(summary.prepare(curves))
    assert set(found["fitted_on"]) == {"L1", "S"}
    place = ["group", "curve", "severity"]
    assert found.drop_duplicates([*place, "reference"]).set_index(place)["reference"].to_dict() == {
        (WIDE, "wanda", 0.5): "same",
        (WIDE, "wanda", 0.7): "diagonal",
        (WIDE, "gptq · group 8", 0.25): "diagonal",
        (WIDE, "gptq · group 8", 0.5): "diagonal",
        (f"{DEEP} (early)", "wanda", 0.5): "diagonal",
    }


def test_a_second_setting_keeps_curves_apart_and_a_member_without_reference_does_not_count(tmp_path):
    rows = list(member(WIDE, 0, COST, severities=(0.5,)))
    rows += member(WIDE, 1, ("task:L1",), severities=(0.5,))
    then = {"severity_2": 0.5, "setting_2": 8.0, "setting_2_unit": "bits"}
    rows += [row for row in member(WIDE, 0, COST, severities=(0.5,), **then) if row["severity"]]
    found = transfer(summary.prepare(curves_of(tmp_path, rows)))
    assert set(found["curve"]) == {"wanda", "wanda · then 8 bits"}
    assert set(found["seeds"]) == {1}


def test_the_report_has_a_matrix_for_each(tmp_path):
    rows = [*member(WIDE, 0, COST, severities=(0.5,)), *member(DEEP, 0, COST, severities=(0.5,))]
    curves = curves_of(tmp_path, rows)
    page = transfer_section(summary.prepare(curves), [DEEP, WIDE])
    assert page.index(f"<h3>{DEEP}") < page.index(f"<h3>{WIDE} <small>wanda · 0.5 fraction, reference: same<")
    assert page.count("<table>") == 2
    assert "<th>fitted on</th><th>L1</th><th>S</th>" in page
    assert page.count("<tr><td>S</td><td>+0.200</td><td>-0.025</td></tr>") == 2
    assert '<section id="transfer"><h2>Fitted on one task</h2>' in write_report(tmp_path).read_text()
    curves_of(tmp_path, list(member(WIDE, 0, ("same",))))
    assert 'id="transfer"' not in write_report(tmp_path).read_text()
