"""What the report's curves are of and along: parts of a metric apart, and the noise that was measured."""

import json
import re

import numpy as np
import pytest
from report_rows import curves_of, point

from wane.eval import axes, summary
from wane.eval.figures import write_figures
from wane.eval.laws import points_of
from wane.eval.palette import shapes
from wane.eval.report import write_report

DEEP, WIDE = "d64-L9", "d128-L2"
SEVERITIES = (0.0, 0.25, 0.5, 0.75)
STREAM, BLOCK = "stream_noise_to_signal", "block_noise_to_signal"


def measured(shape, seed, severity, draw=0, **more):
    """Loss, accuracy of a task, a metric of two parts and, where degraded, noise: rows of one point."""
    base = point(shape, seed, severity, draw=draw, **more)
    power = severity**2 * (1 + draw) * (1 + seed) or 1e-9  # undegraded: rounding
    yield base | {"value": 2 + severity}
    yield base | {"metric": "accuracy", "task": "R1", "unit": "fraction", "value": 1 - severity}
    yield base | {"metric": "deviation_cosine", "part": "logit", "value": 1 - 0.1 * severity}
    yield base | {"metric": "deviation_cosine", "part": "normed", "value": 1 - severity}
    yield base | {"metric": STREAM, "value": power}
    yield base | {"metric": BLOCK, "part": "block", "value": 3 * power}
    for layer in range(2):  # of one layer, a value that a mean would take in
        yield base | {"metric": BLOCK, "part": "block", "axis": "layer", "at": float(layer), "value": 99.0}


def rows_of(shape, **more):
    return [
        row
        for seed in (0, 1)
        for severity in SEVERITIES
        for draw in (0, 1)
        for row in measured(shape, seed, severity, draw, **more)
    ]


def curve(points, metric, task="all", axis="severity", of="m"):
    mine = points[(points["metric"] == metric) & (points["task"] == task) & (points["curve"] == of)]
    return mine.sort_values("severity")[axis].tolist()


def test_each_part_of_a_metric_is_a_curve(tmp_path):
    points = summary.plain_curves(summary.prepare(curves_of(tmp_path, rows_of(DEEP))))
    assert "deviation_cosine" not in set(points["metric"])
    assert curve(points, "deviation_cosine, logit", axis="mean") == pytest.approx([1, 0.975, 0.95, 0.925])
    assert curve(points, "deviation_cosine, normed", axis="mean") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert curve(points, "loss", axis="mean") == pytest.approx([2, 2.25, 2.5, 2.75])
    page = write_report(tmp_path).read_text()
    assert '<option value="deviation_cosine, logit">deviation cosine, logit</option>' in page


def test_the_noise_of_a_point_is_an_axis_of_all_that_was_measured_there(tmp_path):
    """A mean over draws, then seeds, of that method alone; where it was not measured there is no place."""
    rows = rows_of(DEEP) + [
        row for row in rows_of(DEEP, method="other") if row["metric"] not in (STREAM, BLOCK)
    ]
    rows.append(point(DEEP, 0, 0.5, layer=0, value=9.0))  # then layers of others are null beside numbers
    points = summary.plain_curves(summary.prepare(curves_of(tmp_path, rows)))
    stream = [s**2 * 1.5 * 1.5 for s in SEVERITIES]
    for metric, task in (("loss", "all"), ("excess_loss", "all"), ("accuracy", "R1")):
        assert curve(points, metric, task, STREAM) == pytest.approx(stream)
        assert curve(points, metric, task, BLOCK) == pytest.approx([3 * x for x in stream])
        assert np.isnan(curve(points, metric, task, STREAM, of="other")).all()
    told = points_of(points[points["curve"] == "m"])  # as `wane laws` has it
    assert told.stream_noise == pytest.approx(stream)
    assert told.block_noise == pytest.approx([3 * x for x in stream])
    assert points_of(points[points["curve"] == "other"]).stream_noise is None


def test_a_seed_or_draw_without_its_noise_leaves_the_point_without_a_place(tmp_path):
    """The mean over the others would stand beside another harm than theirs."""
    rows = rows_of(DEEP)
    lost = next(r for r in rows if r["metric"] == STREAM and r["severity"] == 0.5)
    lost |= {"value": None, "status": "diverged", "reason": "not finite"}
    points = summary.plain_curves(summary.prepare(curves_of(tmp_path, rows)))
    assert np.isnan(curve(points, "loss", axis=STREAM)).tolist() == [False, False, True, False]


def test_the_report_offers_only_axes_that_have_rows(tmp_path):
    def offered(folder):
        page = write_report(folder).read_text()
        content = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
        shown = re.search(r'data-control="x">(.*?)</select>', page)[1]
        assert re.findall(r'value="(\w+)"', shown) == list(content["axes"])
        return content

    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    rows = rows_of(DEEP)
    curves_of(tmp_path / "with", rows)
    content = offered(tmp_path / "with")
    assert {STREAM, BLOCK} <= content["axes"].keys() & set(content["logarithmic"])
    (line,) = content["panels"][0]["curves"]
    assert line["x"][STREAM] == pytest.approx([0, 0.14062, 0.5625, 1.2656], rel=1e-4)
    curves_of(tmp_path / "without", [row for row in rows if row["metric"] not in (STREAM, BLOCK)])
    assert not {STREAM, BLOCK} & offered(tmp_path / "without")["axes"].keys()


def test_figures_have_the_noise_as_a_logarithmic_axis(tmp_path):
    frame = summary.prepare(curves_of(tmp_path, rows_of(DEEP) + rows_of(WIDE)))
    points = summary.plain_curves(frame)
    chosen = points[(points["metric"] == "excess_loss") & (points["task"] == "all")]
    write_figures(tmp_path, chosen, shapes(frame), {})
    text = (tmp_path / "curves_m.svg").read_text()
    for axis in (STREAM, BLOCK):
        assert f"<!-- {axes.AXES[axis]} -->" in text
    assert re.search(r"<!-- \$\\mathdefault\{10\^\{[−-]?\d\}\}\$ -->", text)
