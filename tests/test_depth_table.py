"""First, interior and last layers apart, where their values are known."""

import numpy as np
import pytest
from report_rows import curves_of, point

from wane.eval.depth_table import KL, ORTHOGONAL, by_depth, depth_section

DEEP, SHALLOW = "d64-L9", "d128-L2"


def kl(shape, seed, severity, sublayer, values, **more):
    return [
        point(
            shape, seed, severity, metric=KL, value=value, axis="layer", at=float(l),
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
    found = by_depth(curves, KL, ["probability"]).set_index(["group", "sublayer"])
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


def orthogonal(shape, seed, severity, sublayer, space, values, **more):
    rows = kl(shape, seed, severity, sublayer, values, **more)
    return [row | {"metric": ORTHOGONAL, "part": f"{sublayer}, {space}"} for row in rows]


def test_orthogonal_magnitude_before_and_behind_the_unembedding_by_layer(tmp_path):
    """Spaces are told apart by a factor, seeds by an amount; the null under noise is not among them."""
    factors = {"embedding": 1, "normed": 2, "unnormed logit": 3, "logit": 4}
    layers = np.array([8.0, 1, 3, 6])
    rows = []
    for severity in (0.2, 0.5, 0.8):
        for seed in (0, 1):
            for space, factor in factors.items():
                values = (10 * severity * factor * layers + seed).tolist()
                rows += orthogonal(DEEP, seed, severity, "mlp", space, values)
            for space in ("centred logit", "logit under noise"):
                rows += orthogonal(DEEP, seed, severity, "mlp", space, [99.0] * 4)
    found = by_depth(curves_of(tmp_path, rows), ORTHOGONAL, factors).set_index("space")
    assert set(found["severity"]) == {0.5}
    for space, factor in factors.items():
        expected = [5 * factor * value + 0.5 for value in (8, 2, 6)]
        assert found.loc[space, ["first", "interior", "last"]].tolist() == pytest.approx(expected)
    page = depth_section(curves_of(tmp_path, rows), [DEEP])
    assert "<td>mlp</td><td>first</td><td>40.5</td><td>80.5</td><td>120</td><td>160</td>" in page
    assert "<td>mlp</td><td>last</td><td>30.5</td><td>60.5</td><td>90.5</td><td>120</td>" in page
    assert "KL" not in page


def test_nothing_without_rows(tmp_path):
    assert depth_section(curves_of(tmp_path, [point(DEEP, 0, 0.5, value=1.0)]), [DEEP]) == ""
    assert depth_section(curves_of(tmp_path, kl(DEEP, 0, 0.0, "mlp", [0.0, 0.0])), [DEEP]) == ""
