"""The tables of the report as HTML.  Every function takes frames of summary.py and returns one fragment."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from wane.eval.palette import SAME_SIZE
from wane.scaling.shape import Shape

NONE = "—"
PROVENANCE = (
    "code_version",
    "jax_version",
    "device_kind",
    "dtype",
    "matmul_precision",
    "answer_temperature",
    "packing",
    "train_step",
    "evaluation_digest",
    "calibration_digest",
    "checkpoint_digest",
    "metric_version",
)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table.  Cells are HTML already; a cell that holds a number is aligned right by the style sheet."""
    head = "".join(f"<th>{h}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def unfolding(
    found: pd.DataFrame, groups: Sequence[str], lines: Callable[[pd.DataFrame], tuple[list[str], list]]
) -> str:
    """A table for every group and curve of `found` that unfolds, groups in this order.  lines(the rows of one) ->
    its headers and rows, as `table` takes them."""
    return "".join(
        f"<details><summary>{html.escape(group)} · {html.escape(curve)}</summary>{table(*lines(part))}</details>"
        for group in groups
        for curve, part in found[found["group"] == group].groupby("curve")
    )


def family(shapes: pd.DataFrame, losses: pd.DataFrame, built: Mapping[str, Shape], budgets: list[int]) -> str:
    """One row per shape: dimensions, parameters, mismatch against its budget, norm share, final loss.

    `losses` are the `undegraded` rows of loss; `built` maps a group to its Shape where the member's config
    is known; `budgets` are the study's non-embedding budgets, empty to compare with the median of the size.
    """
    final = losses[losses["task"] == "all"].groupby("group")["value"].agg(["mean", "std", "count"])
    rows = []
    for shape in shapes.itertuples():
        params = shape.non_embedding_params
        heads = f"{shape.n_heads} × {shape.head_dim}"
        if shape.n_kv_heads != shape.n_heads:
            heads += f" ({shape.n_kv_heads} kv)"
        rows.append(
            [
                chip(shape._asdict()) + _text(shape.group),
                f"{shape.aspect_ratio:.3g}",
                f"{shape.d_model}",
                f"{shape.n_layers}",
                heads,
                f"{shape.d_ff}",
                f"{params:,}",
                f"{params / _target(shape, shapes, budgets) - 1:+.2%}",
                _norm_share(built.get(shape.group)),
                f"{shape.total_params:,}",
                f"{shape.members}",
                _plus_minus(final.loc[shape.group]) if shape.group in final.index else NONE,
            ]
        )
    headers = [
        "shape",
        "d/L",
        "d_model",
        "layers",
        "heads",
        "d_ff",
        "non-embedding",
        "mismatch",
        "norm share",
    ]
    return table([*headers, "total", "seeds", "final loss"], rows)


def _target(shape, shapes: pd.DataFrame, budgets: list[int]) -> float:
    params = shape.non_embedding_params
    near = [b for b in budgets if 1 / SAME_SIZE < params / b < SAME_SIZE]
    if near:
        return min(near, key=lambda budget: abs(np.log(params / budget)))
    return shapes.loc[shapes["size"] == shape.size, "non_embedding_params"].median()


def _norm_share(shape: Shape | None) -> str:
    if shape is None:
        return NONE
    counts = shape.param_counts()
    return f"{counts['norms'] / counts['non_embedding']:.2%}"


def _plus_minus(stats: pd.Series) -> str:
    spread = f" ± {stats['std']:.4f}" if stats["count"] > 1 else ""
    return f"{stats['mean']:.4f}{spread}"


def chip(looks: Mapping) -> str:
    """A piece of the line that stands for a shape in the plots."""
    dashes = {"solid": "none", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}[looks["dash"]]
    style = f"--light:{looks['light']};--dark:{looks['dark']};stroke-dasharray:{dashes}"
    return f'<svg class="chip" style="{style}" viewBox="0 0 24 4"><line x2="24" y1="2" y2="2"/></svg>'


def competence(gate: pd.DataFrame, groups: Sequence[str]) -> str:
    """Tasks down, shapes across: mean accuracy, seeds that pass, or `not assessable`."""
    rows = []
    for task, part in gate.groupby("task"):
        cells = part.set_index("group")
        row = [_text(task), f"{part['chance'].mean():.3g}", f"{part['ceiling'].mean():.3g}"]
        rows.append(row + [_gate_cell(cells.loc[g]) if g in cells.index else NONE for g in groups])
    return table(["task", "chance", "ceiling", *map(_text, groups)], rows)


def _gate_cell(cell: pd.Series) -> str:
    words = f"{cell['accuracy']:.3f} <small>{cell['passing']}/{cell['seeds']} seeds</small>"
    if cell["assessable"]:
        return words
    part = f" <small>{_text(cell['weakest'])}: {cell['score']:.2f}</small>" if cell["weakest"] else ""
    return f'<span class="closed">{words}<br>not assessable{part}</span>'


def diverged(rows: pd.DataFrame) -> str:
    """Members with rows that have no value, and why."""
    cells = [
        [
            _text(row.group),
            f"<code>{_text(row.member_id)}</code>",
            f"{row.init_seed}",
            f"{row.data_seed}",
            f"{row.rows:,} of {row.all_rows:,}",
            _text(row.reason),
        ]
        for row in rows.itertuples()
    ]
    return table(["shape", "member", "init seed", "data seed", "rows without value", "reason"], cells)


def provenance(frame: pd.DataFrame) -> str:
    """Every value that stands in the columns of provenance; of digests with many values the number."""
    rows = []
    for name in PROVENANCE:
        values = [str(v) for v in frame[name].dropna().unique()]
        shown = ", ".join(f"<code>{_text(v)}</code>" for v in sorted(values)[:4]) or NONE
        rows.append([name, shown + (f" and {len(values) - 4} more" if len(values) > 4 else "")])
    return table(["column", "values"], rows)


def _text(value: object) -> str:
    return html.escape(str(value))
