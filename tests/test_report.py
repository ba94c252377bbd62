"""The report on a made-up study whose numbers are known, and its page in a browser."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest

from wane.eval import palette, summary
from wane.eval.columns import COLUMNS
from wane.eval.curves import load_curves
from wane.eval.record import write_rows
from wane.eval.report import write_report

EMPTY = {pa.string(): "x", pa.int64(): 1, pa.float64(): 0.0}
SHAPES = {
    "d128-L2": (128, 2, 0.9),
    "d64-L9": (64, 9, 1.3),
    "d48-L16": (48, 16, 1.8),
}  # name: d_model, layers, harm
METHODS = {"random_weight": 3, "magnitude": 1, "wanda": 1, "rtn": 1}  # name: draws
TASKS = {"R1": (0.01, 1.0), "M1": (0.25, 1.0)}
LOSS0 = 2.0
PARTS = {"logit": 0.2, "normed": 0.9}  # of deviation_cosine: how far it falls


def member_row(shape, seed, arm="", **changes):
    d_model, layers, _ = SHAPES[shape]
    values = {c.name: None if c.nullable else EMPTY[c.type] for c in COLUMNS}
    values |= {"study": "synthetic", "shape": shape, "arm": arm, "member_id": f"{shape}-{seed}{arm}"}
    values |= {"d_model": d_model, "n_layers": layers, "n_heads": d_model // 16, "n_kv_heads": d_model // 16}
    values |= {"head_dim": 16, "d_ff": 2 * d_model, "vocab": 512, "context": 128, "train_step": 400}
    blocks = 10 * d_model**2 * layers
    values |= {
        "non_embedding_params": blocks + (2 * layers + 1) * d_model,
        "total_params": blocks + 1024 * d_model,
    }
    values |= {"init_seed": seed, "data_seed": seed, "train_tokens": 819_200, "cell_id": f"c-{shape}-{seed}"}
    values |= {"status": "ok", "scope": "all", "settings": "{}", "task": "all", "evaluation_digest": "e" * 8}
    values |= {"metric_version": 1, "device_kind": "cpu", "dtype": "float32", "pruned": "after"}
    values |= {
        "setting_unit": "fraction",
        "metric": "loss",
        "unit": "nats/token",
        "draw": 0,
        "code_version": "1.1",
    }
    return values | changes


def degraded(shape, seed, method, severity, draw):
    """The columns that every metric of one point shares, and its true excess loss."""
    excess = SHAPES[shape][2] * severity**1.6 * (1 + 0.15 * seed + 0.04 * draw) * (1 + len(method) / 15)
    bits = method == "rtn"
    point = {"method": method, "severity": severity, "draw": draw, "setting": severity}
    point |= {"removed_fraction": 0.0 if bits else 0.999 * severity, "relative_weight_error": severity**2}
    point |= {"bits_per_weight": 16 - 14 * severity if bits else 16 * (1 - severity) + 1}
    point |= {"compression_ratio": 1 / (1 - 0.8 * severity)}
    if bits:
        point |= {"setting": 16 - 14 * severity, "setting_unit": "bits", "settings": '{"group":16}'}
    return point, excess


def noise(point):
    """To signal; 0 of the undegraded model."""
    return 0.01 * 100 ** point["severity"] * (1 + point["draw"]) if point["severity"] else 0.0


def rows_of_member(shape, seed, severities):
    for method, draws in METHODS.items():
        for draw in range(draws):
            for severity in severities:
                point, excess = degraded(shape, seed, method, severity, draw)
                base = member_row(shape, seed, **point)
                yield base | {"value": LOSS0 + 0.1 * seed + excess}
                yield base | {"metric": "kl", "value": 0.8 * excess}
                if method == "random_weight":
                    yield base | {"metric": "stream_noise_to_signal", "unit": "ratio", "value": noise(point)}
                if method == "magnitude":
                    for part, factor in PARTS.items():
                        told = {"metric": "deviation_cosine", "part": part, "unit": ""}
                        yield base | told | {"value": 1 - factor * severity}
                yield base | {"metric": "top1_agreement", "unit": "fraction", "value": 1 / (1 + excess)}
                for task, (chance, ceiling) in TASKS.items():
                    best = ceiling if task == "R1" else 0.4
                    accuracy = chance + (best - chance) / (1 + excess)
                    known = {"chance": chance, "ceiling": ceiling, "unit": "fraction", "task": task}
                    yield base | known | {"metric": "accuracy", "value": accuracy}


def sensitivity_rows(shape, seed):
    for layer in range(SHAPES[shape][1]):
        for severity in (0.0, 0.25, 0.5):
            loss = LOSS0 + 0.1 * seed + severity * (0.5 if layer == 0 else 0.1)
            yield member_row(shape, seed, method="magnitude", severity=severity, layer=layer, value=loss)
        for head in range(SHAPES[shape][0] // 16):
            loss = LOSS0 + 0.1 * seed + 0.01 * head + 0.02 * layer
            yield member_row(shape, seed, method="head", severity=1.0, layer=layer, head=head, value=loss)


def masked_rows(shape, seed):
    for pruned, step, gain in (("before", 0, 0.3), ("during", 200, 0.5)):
        for severity in (0.25, 0.5, 0.75):
            known = {"pruned": pruned, "pruned_at_step": step, "method": "magnitude", "severity": severity}
            member = f"{shape}-{seed}-{pruned}-{severity}"
            value = LOSS0 + gain * severity
            yield member_row(shape, seed, arm=f"mask {pruned}", value=value, **known) | {"member_id": member}


def fabricate(study: pathlib.Path, *, seeds: int = 2) -> pathlib.Path:
    """A study directory: 3 shapes, 4 methods, 8 severities, 3 draws, one diverged member, sensitivity, masks."""
    severities = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9]
    rows = []
    for shape in SHAPES:
        for seed in range(seeds):
            rows += [*rows_of_member(shape, seed, severities), *masked_rows(shape, seed)]
            rows += sensitivity_rows(shape, seed)
            write_member(study / "members" / f"{shape}-{seed}", shape, seed)
    dead = {"value": None, "status": "diverged", "reason": "loss is nan at step 31 <3"}
    rows += [row | dead for row in rows_of_member("d64-L9", 9, severities)]
    write_rows(study / "curves.parquet", rows)
    resolved = {"name": "synthetic", "note": "A made-up study.", "family": {"budget": None}}
    (study / "study.json").write_text(json.dumps({"study": resolved, "environment": {}}))
    return study


def write_member(folder: pathlib.Path, shape: str, seed: int) -> None:
    folder.mkdir(parents=True)
    d_model, layers, _ = SHAPES[shape]
    fields = {"d_model": d_model, "n_layers": layers, "n_heads": d_model // 16, "head_dim": 16}
    fields |= {"d_ff": 2 * d_model, "vocab": 512, "context": 128}
    (folder / "config.json").write_text(json.dumps({"shape": fields, "init_seed": seed}))
    curve = LOSS0 + 4 * np.exp(-np.arange(50) / (8 + seed + layers / 4))
    lines = [{"step": 8 * i, "tokens": 16384 * i, "loss": v, "lr": 1e-3} for i, v in enumerate(curve)]
    text = "\n".join(map(json.dumps, lines))
    (folder / "train.jsonl").write_text(text + '\n{"step": 400, "tok')  # a kill cut the last line short


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = fabricate(tmp_path_factory.mktemp("study"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def frame(study):
    return summary.prepare(load_curves(study))


def test_mean_and_band_over_seeds_after_averaging_draws(frame):
    points = summary.plain_curves(frame).set_index(["curve", "group", "metric", "task", "severity"])
    point = points.loc["random_weight", "d64-L9", "excess_loss", "all", 0.5]
    per_seed = []
    for seed in range(2):
        draws = [degraded("d64-L9", seed, "random_weight", 0.5, draw)[1] for draw in range(3)]
        per_seed.append(sum(draws) / 3)
    assert point["mean"] == pytest.approx(sum(per_seed) / 2)
    assert (point["low"], point["high"]) == pytest.approx((min(per_seed), max(per_seed)))
    assert point["seeds"] == 2
    assert point["removed_fraction"] == pytest.approx(0.999 * 0.5)
    loss = points.loc["rtn · group 16", "d128-L2", "perplexity", "all", 0.0]
    assert loss["mean"] == pytest.approx((np.exp(2.0) + np.exp(2.1)) / 2)


def test_five_seeds_give_a_t_interval(tmp_path):
    rows = []
    for seed in range(5):
        for severity in (0.0, 0.5):
            value = LOSS0 + severity * [0.1, 0.2, 0.4, 0.5, 0.8][seed]
            rows.append(member_row("d128-L2", seed, method="m", severity=severity, value=value))
    write_rows(tmp_path / "curves.parquet", rows)
    points = summary.plain_curves(summary.prepare(load_curves(tmp_path)))
    point = points[(points["metric"] == "excess_loss") & (points["severity"] == 0.5)].iloc[0]
    # mean .2, standard deviation .13693 of (.05 .1 .2 .25 .4), t(.975, 4) = 2.776445
    half = 2.776445 * np.std([0.05, 0.1, 0.2, 0.25, 0.4], ddof=1) / np.sqrt(5)
    assert (point["low"], point["high"]) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-6)


def test_a_severity_that_a_seed_lacks_is_left_out(tmp_path):
    rows = [
        member_row("d128-L2", seed, method="m", severity=severity, value=LOSS0 + severity + seed)
        for seed in range(3)
        for severity in (0.0, 0.3, 0.6)
        if (seed, severity) != (2, 0.3)
    ]
    write_rows(tmp_path / "curves.parquet", rows)
    points = summary.plain_curves(summary.prepare(load_curves(tmp_path)))
    assert sorted(points["severity"].unique()) == [0.0, 0.6]


def test_excess_loss_falls_back_to_the_members_own_baseline(tmp_path):
    rows = [member_row("d128-L2", 0, method="none", severity=0.0, value=2.5, pruned="never")]
    rows += [member_row("d128-L2", 0, method="m", severity=s, value=2.5 + s) for s in (0.25, 0.5)]
    rows += [member_row("d128-L2", 1, method="m", severity=s, value=7.0) for s in (0.25, 0.5)]  # no baseline
    write_rows(tmp_path / "curves.parquet", rows)
    frame = summary.prepare(load_curves(tmp_path))
    excess = frame[frame["metric"] == "excess_loss"].sort_values("severity")
    assert excess["value"].tolist() == [0.0, 0.25, 0.5]


def test_excess_loss_is_above_the_baseline_of_the_same_curve(tmp_path):
    """Also beside members trained under a mask, whose step is known and that have no baseline."""
    rows = [
        member_row("d128-L2", 0, method=method, severity=s, value=base + s, pruned="after" if s else "never")
        for method, base in (("m", 2.0), ("other", 3.0))
        for s in (0.0, 0.5)
    ]
    known = {"pruned": "during", "pruned_at_step": 3, "member_id": "masked"}
    rows.append(member_row("d128-L2", 0, method="m", severity=0.5, value=2.5) | known)
    write_rows(tmp_path / "curves.parquet", rows)
    frame = summary.prepare(load_curves(tmp_path))
    excess = frame[frame["metric"] == "excess_loss"].sort_values(["method", "severity"])
    assert excess["value"].tolist() == [0.0, 0.5, 0.0, 0.5]


def test_the_gate_counts_seeds_that_reach_the_score(frame):
    gate = summary.competence(frame, score=0.9, share=0.8).set_index(["task", "group"])
    assert gate.loc[("R1", "d64-L9"), ["passing", "seeds", "assessable"]].tolist() == [2, 2, True]
    poor = gate.loc[("M1", "d64-L9")]
    assert poor["score"] == pytest.approx((0.4 - 0.25) / 0.75)
    assert (poor["passing"], bool(poor["assessable"])) == (0, False)


def test_four_of_five_seeds_are_eighty_percent(tmp_path):
    known = {"metric": "accuracy", "unit": "fraction", "task": "S", "chance": 0.1, "ceiling": 0.5}
    scores = {"d128-L2": [1.0, 0.9, 0.95, 0.9, 0.2], "d64-L9": [1.0, 1.0, 1.0, 0.89, 0.2]}
    rows = [
        member_row(shape, seed, method="m", severity=0.0, value=0.1 + 0.4 * value + 1e-9, **known)
        for shape, values in scores.items()
        for seed, value in enumerate(values)
    ]
    write_rows(tmp_path / "curves.parquet", rows)
    gate = summary.competence(summary.prepare(load_curves(tmp_path)), score=0.9, share=0.8)
    assert gate.set_index("group")["assessable"].to_dict() == {"d128-L2": True, "d64-L9": False}


def test_heat_maps_hold_the_sensitivity_of_each_layer_and_head(frame):
    maps = {(m["curve"], m["group"], m["kind"]): m for m in summary.heat_maps(frame)}
    layers = maps["magnitude", "d64-L9", "layer × severity"]
    assert (layers["rows"], layers["columns"]) == (list(range(9)), [0.0, 0.25, 0.5])
    np.testing.assert_allclose(layers["values"][0], [0, 0.125, 0.25], atol=1e-12)
    heads = maps["head", "d64-L9", "head × layer"]
    assert heads["severity"] == 1.0
    np.testing.assert_allclose(heads["values"][3], [0.03 + 0.02 * layer for layer in range(9)], atol=1e-12)


def test_masks_before_and_during_training_are_compared_with_after(frame):
    points = summary.trained_under_mask(frame)
    assert set(points["curve"]) == {"magnitude"}
    modes = {"after training", "before training (mask before)", "at step 200 (mask during)"}
    assert set(points["mode"]) == modes
    before = points[(points["mode"] == "before training (mask before)") & (points["shape"] == "d48-L16")]
    assert before["mean"].tolist() == pytest.approx([2.075, 2.15, 2.225])


def test_diverged_members_are_listed_and_left_out(frame, study):
    rows = summary.diverged(frame)
    assert rows[["group", "init_seed", "reason"]].values.tolist() == [
        ["d64-L9", 9, "loss is nan at step 31 <3"]
    ]
    assert rows["rows"].tolist() == rows["all_rows"].tolist()
    assert "d64-L9-9" not in set(summary.undegraded(frame, "loss")["member_id"])
    assert "loss is nan at step 31 &lt;3" in (study / "report" / "index.html").read_text()


def test_shapes_are_ordered_and_told_apart(frame):
    shapes = palette.shapes(frame)
    primary = shapes[shapes["arm"] == ""]
    assert primary["group"].tolist() == ["d48-L16", "d64-L9", "d128-L2"]
    assert primary["light"].nunique() == 3
    looks = shapes.set_index("group")[["light", "dash"]]
    assert looks.loc["d64-L9", "light"] == looks.loc["d64-L9 (mask during)", "light"]
    assert shapes["dash"].nunique() == 3  # primary and two arms
    assert palette.size_class(shapes["non_embedding_params"]).max() == 0
    series = shapes.assign(non_embedding_params=[100, 110, 1000] * 3)["non_embedding_params"]
    assert palette.size_class(series).tolist() == [0, 0, 1] * 3


class Attributes(html.parser.HTMLParser):
    """Collects every src and href of the tags (not of the text of scripts)."""

    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_its_links_exist(study):
    parser = Attributes()
    parser.feed((study / "report" / "index.html").read_text())
    files = [link for link in parser.links if not link.startswith("#")]
    assert len(files) >= 2 * (len(METHODS) + 2)
    for link in files:
        assert not re.match(r"[a-z]+:|//", link)
        assert (study / "report" / link).stat().st_size > 1000


def test_the_same_table_gives_the_same_files(study):
    files = sorted(p for p in (study / "report").rglob("*") if p.is_file())
    before = {p.name: p.read_bytes() for p in files}
    write_report(study)
    assert {p.name: p.read_bytes() for p in files} == before


def test_a_bare_table_is_enough(tmp_path):
    rows = [member_row("d128-L2", 0, method="m", severity=0.0, value=2.0)]
    write_rows(tmp_path / "curves.parquet", rows)
    page = write_report(tmp_path).read_text()
    for section in ("curves", "tasks", "training", "figures"):
        assert re.search(rf'id="{section}"><h2>[^<]*</h2>\s*<p>—', page), section
    assert "a single finished seed" in page


def test_a_damaged_study_file_is_named(tmp_path):
    write_rows(tmp_path / "curves.parquet", [member_row("d128-L2", 0, method="m", severity=0.0, value=2.0)])
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match="study.json: not valid JSON"):
        write_report(tmp_path)


def test_a_study_without_a_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="curves.parquet"):
        write_report(tmp_path)


def dump_dom(page: pathlib.Path, query: str, profile: pathlib.Path) -> str:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    command = [shutil.which("chromium"), *flags, f"--user-data-dir={profile}", f"file://{page}{query}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on the path")
def test_plots_are_drawn_and_the_axis_switches(study, tmp_path):
    page = study / "report" / "index.html"
    dom = dump_dom(page, "", tmp_path)
    plots = re.findall(r'class="plot[^"]*js-plotly-plot', dom)
    heat = sum(layers > 0 for _, layers, _ in SHAPES.values()) * 2
    assert len(plots) == len(METHODS) + len(SHAPES) + heat + 1
    assert titles(dom).count("severity") >= len(METHODS)
    assert titles(dom).count("excess loss (nats/token)") == len(METHODS)
    dom = dump_dom(page, "?x=removed_fraction&metric=accuracy&task=M1", tmp_path)
    assert titles(dom).count("removed fraction") == len(METHODS)
    assert titles(dom).count("accuracy (fraction)") == len(METHODS)
    assert "against a varying removed fraction" in dom  # round-to-nearest removes nothing
    assert 'data-x="removed_fraction"' in dom
    dom = dump_dom(page, "?x=stream_noise_to_signal&metric=deviation_cosine%2C+logit", tmp_path)
    assert titles(dom).count("noise to signal of the stream") == len(METHODS)
    assert titles(dom).count("deviation cosine, logit") == len(METHODS)
    assert "no deviation cosine, logit on all tasks" in dom  # where it was measured there is no noise


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on the path")
def test_what_else_there_is_is_drawn_where_there_are_no_curves(tmp_path):
    write_member(tmp_path / "study" / "members" / "d128-L2-0", "d128-L2", 0)
    write_rows(tmp_path / "study" / "curves.parquet", [*sensitivity_rows("d128-L2", 0)])
    write_report(tmp_path / "study")
    dom = dump_dom(tmp_path / "study" / "report" / "index.html", "", tmp_path)
    assert len(re.findall(r'class="plot[^"]*js-plotly-plot', dom)) == 3  # two heat maps and the training


def titles(dom: str) -> list[str]:
    return re.findall(r'class="[xy]title"[^>]*>([^<]*)<', dom)
