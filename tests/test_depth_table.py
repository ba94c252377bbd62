"""First, interior and last layers apart, where their values are known."""

import numpy as np
import pytest
from report_rows import curves_of, point

from wane.eval.depth_table import METRIC, by_depth, depth_section

DEEP, SHALLOW = "d64-L9", "d128-L2"


def kl(shape, seed, severity, sublayer, values, **more):
    return [
        point(
            shape, seed, severity, metric=METRIC, value=value, axis="layer", at=float(l),
            part=f"{sublayer}, probability", n_layers=len(values), **more,
        )
        for l, value in enumerate(values)
    ]  # fmt: skip


def test_layers_draws_and_seeds_are_averaged_apart(tmp_path):
    rows = []
    for severity, factor in ((0.0, 0.0), (0.2, 1.0), (0.5, 10.0), (0.8, 100.0), (0.9, 1000.0)):
        for seed in (0, 1):
            attention = np.array([8.0, 1, 2, 6]) + seed
            for draw, more in ((0, 0.0), (1, 0.5)):
                rows += kl(
                    DEEP, seed, severity, "attention", (factor * (attention + more)).tolist(), draw=draw
                )
        rows += kl(SHALLOW, 0, severity, "mlp", [factor * 3.0, factor * 5.0])
    rows += kl(DEEP, 0, 0.5, "attention", [99.0] * 4, layer=1)  # one layer degraded is another question
    rows += [r | {"part": "attention, logit"} for r in kl(DEEP, 0, 0.5, "attention", [99.0] * 4)]
    curves = curves_of(tmp_path, rows)
    found = by_depth(curves).set_index(["group", "sublayer"])
    assert found["severity"].tolist() == [0.5, 0.5]
    deep = found.loc[(DEEP, "attention")]
    assert deep[["first", "interior", "last"]].tolist() == pytest.approx([87.5, 22.5, 67.5])
    shallow = found.loc[(SHALLOW, "mlp")]
    assert shallow[["first", "last"]].tolist() == [30, 50]
    assert np.isnan(shallow["interior"])
    page = depth_section(curves, [SHALLOW, DEEP])
    assert page.index(SHALLOW) < page.index(DEEP)
    assert "<td>87.5</td><td>22.5</td><td>67.5</td><td>—</td><td>—</td><td>—</td>" in page
    assert "<td>—</td><td>—</td><td>—</td><td>30</td><td>—</td><td>50</td>" in page


def test_nothing_without_rows(tmp_path):
    assert depth_section(curves_of(tmp_path, [point(DEEP, 0, 0.5, value=1.0)]), [DEEP]) == ""
    assert depth_section(curves_of(tmp_path, kl(DEEP, 0, 0.0, "mlp", [0.0, 0.0])), [DEEP]) == ""
