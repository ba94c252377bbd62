"""The sections of the report as HTML, in reading order."""

import html
from collections.abc import Mapping

import pandas as pd

from wane.eval import cost_table, summary, tables
from wane.eval.calibrated import transfer_section
from wane.eval.collapse_table import collapse_section
from wane.eval.competence import POOLED
from wane.eval.depth_table import depth_section
from wane.eval.factorial_table import factorial_section
from wane.eval.hazard_table import hazard_section
from wane.eval.headline import headline
from wane.eval.learning import accuracies, learned, learned_cells
from wane.eval.pair_table import pair_section
from wane.eval.rank_table import rank_section
from wane.eval.removable import removable_section
from wane.eval.samples import samples_section
from wane.eval.summary import FEW_SEEDS
from wane.eval.two_bits import BITS, two_bits_section
from wane.scaling.shape import Shape

GATE_SCORE, GATE_SHARE = 0.9, 0.8  # unless study.json fixes another rule under `gate`


def body(
    config: Mapping,
    curves: pd.DataFrame,
    frame: pd.DataFrame,
    shapes: pd.DataFrame,
    points: pd.DataFrame,
    content: Mapping,
    *,
    stems: Mapping[str, str],
    shape_of: Mapping[str, Shape],
    speed: Mapping,
    samples: Mapping,
) -> str:
    """All sections; one without rows says so with a dash or is left out.  curves: the curve table, frame: of
    `summary.prepare`, points: of `summary.plain_curves`; speed, samples: what the commands of these names wrote."""
    groups = list(shapes["group"])
    parts = [
        ("curves", "Degradation curves", _curves(content, stems)),
        ("masked", "Pruned before, during and after training", _masked(content)),
        ("sensitivity", "Sensitivity", _sensitivity(content)),
        ("family", "Family", _family(config, frame, shapes, shape_of)),
        ("tasks", "Tasks", _tasks(config, frame, shapes)),
        ("learned", "Learnt along training", _learned(config, frame, shapes)),
        ("hazard", "Hazard per step", hazard_section(curves, groups)),
        ("factorial", "The same items, several readouts", factorial_section(curves, groups)),
        ("collapse", "Collapse of what models say", collapse_section(curves, groups)),
        ("samples", "What models say", samples_section(samples)),
        ("transfer", "Fitted on one task", transfer_section(frame, groups)),
        ("depth", "First and last layers", depth_section(curves, groups)),
        ("removable", "Removable at almost no cost", removable_section(points, groups)),
        ("rank", "Effective rank", rank_section(curves, groups)),
        ("pairs", "Overlap between seeds", pair_section(curves, groups)),
        ("bits", f"Tolerance to {BITS} bits", two_bits_section(curves, frame, groups)),
        ("cost", "Cost", _cost(config, frame, shapes, speed)),
        ("training", "Training", _training(content)),
        ("diverged", "Diverged members", _diverged(frame)),
        ("figures", "Figures", _figures(stems, content)),
        ("provenance", "Provenance", tables.provenance(frame)),
    ]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in parts)
    rest = "\n".join(f'<section id="{a}"><h2>{title}</h2>\n{text}</section>' for a, title, text in parts)
    return f"<header>{headline(config, frame, shapes)}<nav>{links}</nav></header>\n{rest}"


def _curves(content: Mapping, stems: Mapping[str, str]) -> str:
    if not content["panels"]:
        return f"<p>{tables.NONE}</p>"
    figures = []
    for i, panel in enumerate(content["panels"]):
        title, _, rest = panel["title"].partition(" · ")
        heading = f"<h3>{html.escape(title)} <small>{html.escape(rest)}</small></h3>"
        links = _links(stems[panel["title"]]) if panel["title"] in stems else ""
        figures.append(
            f'<figure>{heading}<div class="plot" id="curve-{i}"></div><figcaption>{links}</figcaption></figure>'
        )
    note = (
        '<p class="note">A line is the mean over the seeds of one shape, the draws of a random method averaged '
        f"within each seed first. The band is the range of the seeds where there are fewer than {FEW_SEEDS}, "
        "else the 95 % t-interval of the mean. A severity that one of the seeds lacks is left out. Excess loss is "
        "the loss minus the loss of the same model undegraded. Harm grows to the right on every axis.</p>"
    )
    return note + _controls(content) + f'<div class="panels">{"".join(figures)}</div>'


def _controls(content: Mapping) -> str:
    axes = "".join(f'<option value="{axis}">{title}</option>' for axis, title in content["axes"].items())
    metrics = "".join(
        f'<option value="{html.escape(metric)}">{html.escape(words["title"])}</option>'
        for metric, words in content["metrics"].items()
    )
    flags = {"draws": "individual draws", "common": "same y-range everywhere", "log": "log y"}
    boxes = "".join(
        f'<label><input type="checkbox" data-control="{flag}">{words}</label>'
        for flag, words in flags.items()
    )
    drawn = {curve["shape"] for panel in content["panels"] for curve in panel["curves"]}
    legend = "".join(
        f'<label><input type="checkbox" checked data-shape="{i}">'
        f"{tables.chip(s)}{html.escape(s['group'])} <small>d/L {s['aspect_ratio']:.3g}</small></label>"
        for i, s in enumerate(content["shapes"])
        if i in drawn
    )
    return (
        f'<div class="controls"><label>x <select data-control="x">{axes}</select></label>'
        f'<label>y <select data-control="metric">{metrics}</select></label>'
        f'<label>on <select data-control="task"></select></label>{boxes}'
        f'<div class="legend">{legend}</div></div>'
    )


def _masked(content: Mapping) -> str:
    if not content["masked"]:
        return ""
    note = '<p class="note">Loss of models trained under the mask beside models degraded after training.</p>'
    return note + _panels("masked", content["masked"])


def _sensitivity(content: Mapping) -> str:
    if not content["heat"]:
        return ""
    panels = []
    for heat in content["heat"]:
        at = "" if heat["severity"] is None else f", severity {heat['severity']:g}"
        panels.append({"title": f"{heat['curve']} · {heat['kind']}{at}", "group": heat["group"]})
    note = (
        '<p class="note">Excess loss when one layer, head or matrix alone is degraded, a mean over seeds.</p>'
    )
    return note + _panels("heat", panels)


def _panels(kind: str, panels: list[Mapping]) -> str:
    figures = []
    for i, panel in enumerate(panels):
        heading = f"<h3>{html.escape(panel['group'])} <small>{html.escape(panel['title'])}</small></h3>"
        figures.append(f'<figure>{heading}<div class="plot" id="{kind}-{i}"></div></figure>')
    return f'<div class="panels">{"".join(figures)}</div>'


def _family(config: Mapping, frame: pd.DataFrame, shapes: pd.DataFrame, shape_of: Mapping[str, Shape]) -> str:
    family = config.get("family") or {}
    budget = family.get("budget") if family.get("match", "non_embedding") == "non_embedding" else None
    budgets = [] if budget is None else [budget] if isinstance(budget, int | float) else list(budget)
    against = "the budget of the study" if budgets else "the median of the shapes of its size"
    note = (
        f'<p class="note">Mismatch: deviation of the non-embedding parameters from {against}. Norm share: norm '
        "gains among the non-embedding parameters. Final loss: mean ± standard deviation over seeds, in nats per "
        "token.</p>"
    )
    return note + tables.family(shapes, summary.undegraded(frame, "loss"), shape_of, budgets)


def _gate(config: Mapping, frame: pd.DataFrame) -> tuple[float, float, pd.DataFrame]:
    """Score and share of the seeds that the competence gate asks for, and what it says."""
    rule = config.get("gate") or {}
    score, share = rule.get("score", GATE_SCORE), rule.get("seeds", GATE_SHARE)
    return score, share, summary.competence(frame, score=score, share=share)


def _tasks(config: Mapping, frame: pd.DataFrame, shapes: pd.DataFrame) -> str:
    score, share, gate = _gate(config, frame)
    if gate.empty:
        return f"<p>{tables.NONE}</p>"
    note = (
        '<p class="note">Accuracy of the undegraded models. A seed passes when (accuracy − chance) / (ceiling − '
        f"chance) is at least {score:g} in the weakest part of the task, which is named where the gate is closed "
        f"({POOLED}: accuracy_by_level was not measured); what a task loses under degradation can be judged only "
        f"where at least {share:.0%} of the seeds pass.</p>"
    )
    return note + tables.competence(gate, list(shapes["group"]))


def _learned(config: Mapping, frame: pd.DataFrame, shapes: pd.DataFrame) -> str:
    """Nothing where members were measured at their last step alone."""
    rows = accuracies(frame)
    if rows["train_tokens"].nunique() < 2:
        return ""
    score, share, _ = _gate(config, frame)
    note = (
        '<p class="note">Training tokens from which on a task passes the gate at every step that was measured; in '
        "brackets the normalised score at the last.</p>"
    )
    headers, *cells = learned_cells(learned(rows, score=score, share=share), list(shapes["group"]))
    return note + tables.table(headers, cells)


def _cost(config: Mapping, frame: pd.DataFrame, shapes: pd.DataFrame, speed: Mapping) -> str:
    note = (
        '<p class="note">Setting: what was asked for: a share removed, bits, or a ratio. Compression: 16 bits over '
        "the bits that a weight still takes, indices included. Tasks: share of the undegraded model's (accuracy − "
        "chance) / (ceiling − chance) that is left, a mean over seeds; coloured where too few seeds pass the gate, "
        f"empty where one of them was below {cost_table.FLOOR:g} before anything was taken. Speed-up: how many "
        "times as fast the really smaller model is, of the shape's first seed, median and quartiles of rounds in "
        "turns with the trained one (<code>wane speed</code>). Empty: not measured, or the model gets no smaller."
        "</p>"
    )
    table = cost_table.costs(frame, list(shapes["group"]), speed)
    return note + cost_table.cost_table(table, _gate(config, frame)[2], speed)


def _training(content: Mapping) -> str:
    if not content["training"]:
        return f"<p>{tables.NONE}</p>"
    return '<div class="plot wide" id="training-plot"></div>'


def _diverged(frame: pd.DataFrame) -> str:
    rows = summary.diverged(frame)
    if rows.empty:
        return "<p>None.</p>"
    note = '<p class="note">Kept in the table, left out of every mean.</p>'
    return note + tables.diverged(rows)


def _figures(stems: Mapping[str, str], content: Mapping) -> str:
    named = dict(sorted(stems.items()))
    if named:
        named = {"overview of all methods": "overview"} | named
    if content["training"]:
        named["training"] = "training"
    items = "".join(f"<li>{html.escape(title)} {_links(stem)}</li>" for title, stem in named.items())
    return f"<ul>{items}</ul>" if items else f"<p>{tables.NONE}</p>"


def _links(stem: str) -> str:
    return " ".join(f'<a href="figures/{stem}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png"))
