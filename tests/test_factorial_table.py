"""The factorial of readouts as a table, on members whose answers are known."""

import numpy as np
import pytest
from report_rows import curves_of, point

from wane.eval.factorial_table import factorial_section, readouts
from wane.eval.metrics.factorial import CELLS, Cell
from wane.eval.report import write_report

WIDE, DEEP = "d128-L2", "d64-L9"
CHANCE = {"options": 0.25, "values": 1 / 64, "vocabulary": 1 / 64}


def answered(task, severity, *, shape=WIDE, seed=0, off=0.0, cells=tuple(CELLS), **more):
    """A row for each cell: a tenth less for every level of every factor that makes it harder, and `off` less."""
    for cell in cells:
        harder = list(CHANCE).index(cell.readout) + (cell.reads == "itself") + cell.whole
        told = {"metric": CELLS[cell], "unit": "fraction", "task": task, "chance": CHANCE[cell.readout]}
        yield point(shape, seed, severity, value=0.9 - 0.1 * harder - off, **told | more)


def test_values_are_means_over_draws_then_members(tmp_path):
    rows = [*answered("K", 0.0), *answered("K", 0.0, seed=1, off=0.02)]
    rows += [row for draw in range(2) for row in answered("K", 0.5, off=0.2 + 0.1 * draw, draw=draw)]
    rows += answered("K", 0.5, seed=1, off=0.45)
    rows += answered("K", 0.5, seed=1, off=0.8, layer=1)  # no curve of the whole model
    rows += answered("K", 0.0, off=0.8, train_step=200)
    rows += answered("L1", 0.0)  # no task of the factorial
    rows += answered("R2", 0.0, cells=[Cell("vocabulary", "truth", False)])  # nothing to compare with
    found = readouts(curves_of(tmp_path, rows))
    assert set(found["task"]) == {"K"}
    at = found.set_index(["metric", "severity"])
    for cell, metric in CELLS.items():
        harder = list(CHANCE).index(cell.readout) + (cell.reads == "itself") + cell.whole
        assert at.loc[(metric, 0.0), "value"] == pytest.approx(0.89 - 0.1 * harder)
        assert at.loc[(metric, 0.5), "value"] == pytest.approx(0.9 - 0.1 * harder - (0.25 + 0.45) / 2)
        assert at.loc[(metric, 0.5), "chance"] == pytest.approx(CHANCE[cell.readout])


def test_a_draw_without_an_answer_leaves_no_mean(tmp_path):
    dead = {"value": None, "status": "diverged", "reason": "x"}
    rows = [*answered("K", 0.5, draw=0), *(row | dead for row in answered("K", 0.5, draw=1))]
    rows += answered("K", 0.5, seed=1)
    found = readouts(curves_of(tmp_path, rows))
    assert len(found) == len(CELLS)
    assert np.isnan(found["value"]).all()
    assert "<td>—</td>" in factorial_section(curves_of(tmp_path, rows), [WIDE])


def test_the_report_has_a_line_for_every_task_unit_and_setting(tmp_path):
    some = [cell for cell in CELLS if cell.reads == "truth" and cell.readout != "values"]
    rows = [row for severity in (0.0, 0.5) for row in answered("K3", severity, cells=some, chance=None)]
    rows += answered("K", 0.0, cells=some)
    rows += answered("R2", 0.0, shape=DEEP)
    curves = curves_of(tmp_path, rows)
    page = factorial_section(curves, [DEEP, WIDE])
    assert page.index(DEEP) < page.index(WIDE)
    wide = page[page.index(WIDE) :]
    heads = (
        "<th>items</th><th>setting</th><th>4 options, teacher-forced</th><th>vocabulary, teacher-forced</th>"
    )
    assert heads + "</tr>" in wide
    tokens = "<tr><td>K tokens</td><td>0 fraction</td><td>0.900 <small>0.25</small></td>"
    assert tokens + "<td>0.700 <small>0.0156</small></td></tr>" in wide
    lines = ["K tokens", "K whole answers", "K3 tokens", "K3 tokens", "K3 whole answers", "K3 whole answers"]
    assert [line.split("</td>")[0] for line in wide.split("<tr><td>")[1:]] == lines
    assert "<td>K3 whole answers</td><td>0.5 fraction</td><td>0.800</td><td>0.600</td>" in wide
    losses = [point(WIDE, 0, severity, value=2.0 + severity) for severity in (0.0, 0.5)]
    curves_of(tmp_path, rows + losses)
    assert '<section id="factorial">' in write_report(tmp_path).read_text()
    curves_of(tmp_path, losses)
    assert 'id="factorial"' not in write_report(tmp_path).read_text()
