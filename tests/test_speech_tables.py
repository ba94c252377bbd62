"""Collapse and hazard as tables, on members whose answers are known."""

import numpy as np
import pytest
from report_rows import curves_of, point

from wane.eval.collapse_table import collapse_section, onsets
from wane.eval.hazard_table import hazard_section, hazards
from wane.eval.report import write_report
from wane.train.data.graded_state import STEP_LEVEL
from wane.train.data.graded_steps import MODULUS

WIDE, DEEP = "d128-L2", "d64-L9"
NEVER = None
GRID = (0.0, 0.25, 0.5, 0.75)


def speaks(shape, seed, onset, *, temperature=0.0, draw=0, grid=GRID, **more):
    """A member whose entropy, 4 undegraded, begins to fall 1/4 before `onset`, where it is half of that, and
    is 0 from 1/4 behind it on; NEVER: it stays.  Different tokens stay as they are."""
    place = {"axis": "temperature", "at": temperature, "draw": draw}
    for severity in grid:
        entropy = 4.0 if onset is NEVER else 4.0 - 8.0 * max(0.0, severity - onset + 0.25)
        for metric, value in (("output_entropy", max(entropy, 0.0)), ("distinct_1", 0.8)):
            yield point(shape, seed, severity, metric=metric, value=value, **place | more)


def test_onset_is_a_median_over_draws_then_members(tmp_path):
    told = {0: 0.25, 1: 0.25, 2: 0.5, 3: NEVER}
    rows = [row for seed in (0, 1, 2) for row in speaks(WIDE, seed, told[seed])]
    rows += [
        row for draw, onset in enumerate((0.5, NEVER, 0.25)) for row in speaks(WIDE, 3, onset, draw=draw)
    ]
    for seed, onset in told.items():  # one of four never: between .25 and .5; two of four: none
        rows += speaks(WIDE, seed, onset, temperature=0.7)
        rows += speaks(WIDE, seed, 0.5 if seed == 0 else NEVER, temperature=1.0)
    found = onsets(curves_of(tmp_path, rows)).set_index("temperature")
    assert found.loc[0.0, ["severity", "collapsed", "members"]].tolist() == [0.375, 4, 4]
    assert found.loc[0.7, ["severity", "collapsed", "members"]].tolist() == [0.375, 3, 4]
    assert found.loc[1.0, ["severity", "collapsed", "members", "up_to"]].tolist() == [np.inf, 1, 4, 0.75]


def test_what_is_no_curve_of_a_finished_model_is_left_out(tmp_path):
    rows = list(speaks(WIDE, 0, NEVER))
    rows += speaks(WIDE, 0, 0.25, train_step=0)
    rows += speaks(WIDE, 0, 0.25, layer=1)
    rows += [row for task in ("L1", "S") for row in speaks(WIDE, 0, 0.25, task=task)]
    rows += speaks(WIDE, 0, 0.25, severity_2=0.5, setting_2=4.0, setting_2_unit="bits")
    rows += speaks(DEEP, 0, NEVER, grid=GRID[:3])
    rows += speaks(DEEP, 1, NEVER)
    dead = {"value": None, "status": "diverged", "reason": "x"}
    rows = [row | (dead if row["shape"] == DEEP and row["severity"] == 0.5 else {}) for row in rows]
    found = onsets(curves_of(tmp_path, rows)).set_index("group")
    assert found["severity"].tolist() == [np.inf, np.inf]
    assert found["up_to"].to_dict() == {WIDE: 0.75, DEEP: 0.25}


def test_the_report_tells_onsets(tmp_path):
    rows = [*speaks(WIDE, 0, 0.5), *speaks(DEEP, 0, NEVER), *speaks(DEEP, 0, 0.25, temperature=1.0)]
    rows += [
        row for seed, onset in ((0, 0.5), (1, NEVER)) for row in speaks(DEEP, seed, onset, temperature=0.7)
    ]
    curves = curves_of(tmp_path, rows)
    page = collapse_section(curves, [DEEP, WIDE])
    assert "<th>temperature 0</th><th>temperature 0.7</th><th>temperature 1</th>" in page
    half = "<td>&gt; 0.75 <small>1/2</small></td>"
    deep = f"<td>none up to 0.75 <small>0/1</small></td>{half}<td>0.25 <small>1/1</small></td>"
    assert f"<tr><td>{DEEP}</td><td>m</td>{deep}</tr><tr><td>{WIDE}</td>" in page
    assert f"<td>{WIDE}</td><td>m</td><td>0.50 <small>1/1</small></td><td>—</td><td>—</td>" in page
    losses = [point(shape, 0, severity, value=2.0 + severity) for shape in (WIDE, DEEP) for severity in GRID]
    curves_of(tmp_path, rows + losses)
    assert '<section id="collapse">' in write_report(tmp_path).read_text()
    curves_of(tmp_path, losses)
    bare = write_report(tmp_path).read_text()
    assert 'id="collapse"' not in bare
    assert 'id="hazard"' not in bare


def answers(task, levels, severity, *, shape=WIDE, seed=0, **more):
    place = {"metric": "accuracy_by_level", "unit": "fraction", "axis": "level", "task": task}
    for level, value in levels.items():
        yield point(shape, seed, severity, at=float(level), value=value, **place | more)


def above(chance, survival):
    return chance + (1 - chance) * survival


def test_hazard_of_steps_that_fail_with_a_known_probability(tmp_path):
    """Direct chains survive with (1 - h)^n; written steps stand behind true ones and fail with h each."""
    rows = []
    for seed in (0, 1):
        for severity, h in ((0.0, 0.02), (0.5, 0.1)):
            h += 0.04 * seed
            own = {n: above(1 / MODULUS, (1 - h) ** n) for n in (1, 2, 3)}
            rows += answers("M2", own, severity, seed=seed)
            rows += answers(
                "M2", {10 + n: above(1 / MODULUS, 1 - h * n) for n in (1, 2, 3)}, severity, seed=seed
            )
            for degree, chance in ((3, 1 / 6), (5, 1 / 120)):
                own = {100 * degree + n: above(chance, (1 - h) ** n) for n in (4, 8, 16)}
                written = {100 * degree + STEP_LEVEL + n: above(chance, 1 - h) for n in (2, 3)}
                rows += answers("M3", own | written, severity, seed=seed)
    found = hazards(curves_of(tmp_path, rows)).set_index(["task", "chain", "severity", "step"])
    assert set(found["members"]) == {2}
    for severity, h in ((0.0, 0.04), (0.5, 0.12)):  # means of the two seeds
        for step in (1, 2, 3):
            assert found.loc[("M2", "direct", severity, step), "hazard"] == pytest.approx(h)
            assert found.loc[("M2", "written", severity, step), "hazard"] == pytest.approx(step * h)
        for group in ("S3", "S5"):
            for step in (4, 8, 16):
                assert found.loc[("M3", f"{group} direct", severity, step), "hazard"] == pytest.approx(h)
            for step in (2, 3):
                assert found.loc[("M3", f"{group} written", severity, step), "hazard"] == pytest.approx(h)
    assert len(found) == 2 * (3 + 3 + 2 * (3 + 2))


def test_a_step_before_which_one_member_has_nothing_left_has_no_hazard(tmp_path):
    rows = [*answers("M2", {1: 1.0, 2: above(1 / MODULUS, 0.5)}, 0.5, seed=0)]
    rows += answers("M2", {1: 0.1, 2: 0.1}, 0.5, seed=1)
    rows += answers("K", {1: 1.0}, 0.5)
    rows += answers("M2", {3: 0.5}, 0.5, train_step=0)
    rows += answers("M2", {4: 0.5}, 0.5, layer=0)
    rows += answers("M2", {5: 0.5}, 0.5, metric="loss_by_level")
    curves = curves_of(tmp_path, rows)
    found = hazards(curves).set_index("step")["hazard"]
    assert set(found.index) == {1, 2}
    assert found[1] == 0.5  # 0 and 1
    assert np.isnan(found[2])
    page = hazard_section(curves, [WIDE])
    assert "<td>M2 direct</td><td>0.5 fraction</td><td>0.50</td><td>—</td>" in page


def test_the_report_unfolds_a_table_for_each_shape_and_method(tmp_path):
    rows = [*answers("M2", {1: 1.0, 3: 1.0}, 0.0), *answers("M2", {12: above(1 / MODULUS, 0.75)}, 0.0)]
    rows += answers("M2", {1: above(1 / MODULUS, 0.25)}, 0.5, draw=0)
    rows += answers("M2", {1: above(1 / MODULUS, 0.75)}, 0.5, draw=1)
    rows += answers("M2", {1: 1.0}, 0.5, shape=DEEP)
    page = hazard_section(curves_of(tmp_path, rows), [DEEP, WIDE])
    assert page.index(f"<summary>{DEEP} · m</summary>") < page.index(f"<summary>{WIDE} · m</summary>")
    assert "<th>step 1</th><th>step 2</th><th>step 3</th>" in page
    direct, written = (f"<tr><td>M2 {name}</td><td>0 fraction</td>" for name in ("direct", "written"))
    assert f"{direct}<td>0.00</td><td></td><td>0.00</td></tr>" in page
    assert f"{written}<td></td><td>0.25</td><td></td></tr>" in page
    assert "<tr><td>M2 direct</td><td>0.5 fraction</td><td>0.50</td><td></td><td></td></tr>" in page
    curves_of(tmp_path, [*rows, point(WIDE, 0, 0.0, value=2.0), point(DEEP, 0, 0.0, value=2.0)])
    assert '<section id="hazard">' in write_report(tmp_path).read_text()
