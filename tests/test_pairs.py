"""Members of different seeds compared: against slow numpy, where the answer is known, and as cells of a study."""

import dataclasses
import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import QUICK
from rich.console import Console
from test_metrics_overlap import rotation, slow_cka, slow_unbiased_cka
from test_sweep import MEMBER, splits_of

from wane.eval import load_curves
from wane.eval.metrics import METRICS as SWEPT
from wane.eval.metrics.moments import few, spaced
from wane.eval.pair_table import overlaps, pair_section
from wane.eval.pairs import METRICS, PARTS, sweep_pair
from wane.eval.study import Degrade, Evaluation, Recovery, Then
from wane.eval.subject import Subject
from wane.launch import listing
from wane.launch.cells import PairCell
from wane.launch.directory import StudyDirectory
from wane.launch.plan import cell_table, kind_of, make_plan
from wane.launch.run import run_cell, run_study
from wane.launch.studies import load_study
from wane.scaling.degrade.contract import Where
from wane.scaling.model import apply, init_params
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=24, vocab=512, context=32)
EVALUATION = Evaluation(sequences=3, batch=4, calibration_sequences=4, metrics=("loss",))
STUDY = str(Path(__file__).parent / "studies" / "tiny.py")
QUIET = Console(quiet=True)


def subject_of(seed, params=None, batch=4):
    member = dataclasses.replace(MEMBER, shape=SHAPE, init_seed=seed, id=f"seed{seed}")
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    params = init_params(jax.random.key(seed), SHAPE) if params is None else params
    settings = dataclasses.replace(EVALUATION, batch=batch)
    return Subject(member, params, splits_of(open_data(data, steps=1, batch_size=4), 3), settings)


def told(first, second, degrade):
    rows, timing = sweep_pair(first, second, degrade, range(degrade.draws), "cell", lambda n: None)
    assert timing["pair_seconds"] > 0
    return {(r["draw"], r["setting"], r["metric"], r["part"], int(r["at"])): r["value"] for r in rows}, rows


def levels_of(subject, degrade, draw, severity):
    """Every level of the degraded member's residual stream, sequence by sequence, [L + 1, N, S, D]."""
    built, key = degrade.built(SHAPE), subject.draw_key(degrade, draw)
    fitted = built.fit(subject.params, subject.calibration(degrade), key)
    args = subject.params, fitted, jnp.float32(severity), Where.everywhere(SHAPE), jax.random.fold_in(key, 1)
    tokens_NS = jnp.asarray(subject.splits.evaluation.tokens_NT[:, :-1])
    return np.asarray(_levels(built)(args, tokens_NS), np.float64)


@functools.lru_cache
def _levels(built):
    @functools.partial(jax.jit, **QUICK)
    def levels(args, tokens_NS):
        out = apply(args[0], tokens_NS, SHAPE, built.apply(*args))
        return jnp.concatenate([out.inner["block_in"], out.x_BSD[None]])

    return levels


def read(x_NSD, at_Bn):
    """Tokens [n, D] of every batch."""
    batches = np.split(x_NSD, range(len(at_Bn), len(x_NSD), len(at_Bn)))
    return [np.concatenate([x_SD[at_n] for x_SD, at_n in zip(x, at_Bn, strict=False)]) for x in batches]


@pytest.mark.parametrize("method", ["random_weights", "slicegpt"])
def test_every_level_agrees_with_a_slow_comparison(method):
    degrade = Degrade(method=method, severities=(0.5,), draws=2 if method == "random_weights" else 1)
    first, second = subject_of(1), subject_of(2)
    found, rows = told(first, second, degrade)
    assert len(rows) == degrade.draws * 2 * 2 * 2 * 3  # severities, parts, metrics, levels
    B, S = 4, 32
    for draw in range(degrade.draws):
        for severity in (0.0, 0.5):
            mine = levels_of(first, degrade, draw, severity)
            others = {PARTS[0]: severity, PARTS[1]: 0.0}
            for part, at in others.items():
                theirs = levels_of(second, degrade, draw, at)
                for l in range(3):
                    x, y = (np.concatenate(read(a[l], spaced(S, B))) for a in (mine, theirs))
                    flat = [read(a[l], few(S, B)) for a in (mine, theirs)]
                    about = draw, severity
                    value = found[*about, "seed_cka", part, l]
                    assert value == pytest.approx(slow_cka(x, y), rel=2e-3)
                    value = found[*about, "seed_cka_unbiased", part, l]
                    assert value == pytest.approx(slow_unbiased_cka(*flat), rel=5e-3, abs=5e-3)


def test_rows_are_of_the_member_and_name_the_other():
    _, rows = told(subject_of(1), subject_of(2), Degrade(method="magnitude_weights", severities=(0.5,)))
    assert {(r["member_id"], r["compared_with"], r["init_seed"]) for r in rows} == {("seed1", "seed2", 1)}
    removed = {r["setting"]: r["removed_fraction"] for r in rows}
    assert removed[0.0] == 0
    assert removed[0.5] == pytest.approx(0.5, abs=0.01)
    pruned = {r["setting"]: r["pruned"] for r in rows}
    assert pruned == {0.0: "never", 0.5: "after"}


def test_a_twin_in_other_coordinates_is_the_same_and_a_stranger_is_not():
    """A rotation of the residual stream is another seed's choice of coordinates: with the norms' gains at 1 the
    function stays."""
    params, turn = init_params(jax.random.key(1), SHAPE), jnp.asarray(rotation(16, 5), jnp.float32)
    into = {"q", "k", "v", "gate", "up"}
    blocks = {
        name: turn.T @ leaf if name in into else leaf @ turn if name in ("o", "down") else leaf
        for name, leaf in params["blocks"].items()
    }
    twin = params | {"blocks": blocks, "embed": params["embed"] @ turn, "unembed": turn.T @ params["unembed"]}
    degrade = Degrade(method="rtn", severities=(8,))
    same, _ = told(subject_of(1, params), subject_of(2, twin), degrade)
    unlike, _ = told(subject_of(1, params), subject_of(2), degrade)
    for part in PARTS:
        for l in range(3):
            assert same[0, 16, "seed_cka", part, l] == pytest.approx(1, abs=1e-3)
            assert same[0, 16, "seed_cka_unbiased", part, l] == pytest.approx(1, abs=1e-3)
            assert unlike[0, 16, "seed_cka_unbiased", part, l] < 0.9


def study_of(**changes):
    study = load_study(STUDY, ["family.depths=4", "seeds=0,1,2", "sweep_steps=[]"])
    fields = {
        "degradations": (Degrade(method="rtn", severities=(4.0,)),),
        "pairs": (
            Degrade(method="random_weights", severities=(0.5,), draws=2),
            Degrade(
                method="magnitude_weights", severities=(0.5,), then=Then(method="rtn", severities=(4.0,))
            ),
        ),
        "evaluation": Evaluation(sequences=4, batch=4, calibration_sequences=4, metrics=("loss",)),
        "arms": (),
    }
    return dataclasses.replace(study, **(fields | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("paired") / "study"
    run_study(study_of(), out, ("train", "sweep", "report"), QUIET)
    return out


def test_each_seed_is_compared_with_the_one_before_it(whole):
    table = load_curves(whole)
    rows = table[table.compared_with.notna()]
    assert set(rows.metric) == {metric.name for metric in METRICS}
    assert not set(rows.metric) & SWEPT.keys()
    seed = dict(zip(table.member_id, table.init_seed, strict=True))
    assert {(seed[a], seed[b]) for a, b in zip(rows.member_id, rows.compared_with, strict=True)} == {
        (1, 0),
        (2, 1),
    }
    assert set(rows["at"]) == {0, 1, 2, 3, 4}
    assert rows.value.between(-0.2, 1.001).all()
    keys = ["member_id", "method", "metric", "at", "draw", "severity_2"]
    untouched = rows[(rows.severity == 0) & (rows.severity_2.fillna(0) == 0)]
    by_part = untouched.pivot_table(index=keys[:-1], columns="part", values="value")
    np.testing.assert_array_equal(by_part[PARTS[0]], by_part[PARTS[1]])
    assert len(by_part) == 2 * (2 + 1) * 2 * 5  # pairs, draws of both methods, metrics, levels
    assert untouched.groupby(["member_id", "metric", "at"]).value.nunique().max() == 1  # whatever the method
    assert set(rows[rows.method == "magnitude_weights+rtn"].severity_2) > {0.0}


def test_the_report_tells_what_is_left_of_the_overlap(whole):
    table = load_curves(whole)
    found = overlaps(table).set_index(["curve", "setting"])
    assert set(found.pairs) == {2}
    rows = table[
        (table.metric == "seed_cka_unbiased") & (table.method == "random_weights") & (table.severity == 0.5)
    ]
    for part in PARTS:
        by_hand = rows[rows.part == part].groupby("member_id").value.mean().mean()  # as many draws of each
        assert found.loc[("random_weights", 0.5), part] == pytest.approx(by_hand)
    section = pair_section(table, [*found.group.unique()])
    assert section in (whole / "report" / "index.html").read_text()
    assert section.count("<table") == 2
    assert f"{found.loc[('random_weights', 0.5), PARTS[0]]:.3f}" in section
    assert not pair_section(table[table.compared_with.isna()], [*found.group.unique()])


def test_another_seed_adds_a_pair_and_leaves_the_others(whole):
    environment = StudyDirectory(whole).record()["environment"]
    cells = {c.id: c for c in make_plan(study_of(), environment).cells if isinstance(c, PairCell)}
    more = {
        c.id for c in make_plan(study_of(seeds=(0, 1, 2, 3)), environment).cells if isinstance(c, PairCell)
    }
    assert len(cells) == 4
    assert cells.keys() < more
    assert len(more) == 6
    kinds = {kind_of(c): c.points() for c in cells.values()}
    assert kinds == {"pair random_weights": 4, "pair magnitude_weights+rtn": 4}
    text = io.StringIO()
    Console(file=text, width=200).print(cell_table(make_plan(study_of(), environment), 1e9))
    assert "pair random_weights" in text.getvalue()


def test_a_pair_costs_two_members(whole):
    plan = make_plan(
        study_of(degradations=study_of().pairs[:1]), StudyDirectory(whole).record()["environment"]
    )
    sweep, pair = (
        next(c for c in plan.cells if getattr(c, "degrade", None) and isinstance(c, PairCell) == paired)
        for paired in (False, True)
    )
    assert plan.flops(pair) == pytest.approx(2 * plan.flops(sweep))
    assert plan.memory(pair) > plan.memory(sweep)


def test_a_pair_waits_for_both_members_and_gives_the_same_rows_alone(whole, tmp_path):
    directory = StudyDirectory(tmp_path)
    run_study(study_of(seeds=(0,), pairs=()), tmp_path, ("train",), QUIET)
    plan = directory.plan(study_of())
    directory.write(plan)
    pair = next(c for c in plan.cells if isinstance(c, PairCell))
    with pytest.raises(ValueError, match="needs cell .* which has not finished"):
        run_cell(tmp_path, pair.id, QUIET)
    run_cell(tmp_path, pair.trained.id, QUIET)
    run_cell(tmp_path, pair.id, QUIET)
    assert directory.rows(pair).read_bytes() == StudyDirectory(whole).rows(pair).read_bytes()


def test_what_diverged_stays_in_the_table_with_the_reason(tmp_path):
    study = load_study(STUDY, ["train.lr=1e6", "train.clip=1e9", "family.parametrization.name=standard"])
    family = dataclasses.replace(study.family, depths=(1,))
    run_study(study_of(train=study.train, family=family, seeds=(0, 1)), tmp_path, ("train", "sweep"), QUIET)
    rows = load_curves(tmp_path)
    rows = rows[rows.compared_with.notna()]
    assert set(rows.status) == {"diverged"}
    assert rows.reason.str.contains("diverged at step").all()
    assert rows.value.isna().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0,)}, "pairs: compares members of different seeds; seeds = \\(0,\\) is one"),
        ({"pairs": (Degrade(method="rtn", each="layer"),)}, "pairs: rtn: each: compares whole models"),
        ({"pairs": (Degrade(method="wanda", recovery=Recovery(steps=(4,))),)}, "recovery: compares whole"),
        ({"pairs": (Degrade(method="rtn", metrics=("loss",)),)}, "metrics: compares whole"),
        ({"pairs": (Degrade(method="rtn", refine=2),)}, "refine: compares whole"),
        ({"pairs": (Degrade(method="substitute_tokens"),)}, "method substitute_tokens: compares"),
        ({"pairs": (Degrade(method="rtn"), Degrade(method="rtn", severities=(4,)))}, "stands there twice"),
    ],
)
def test_a_study_refuses_what_cannot_be_compared(changes, message):
    with pytest.raises(ValueError, match=message):
        study_of(**changes)


def test_the_list_of_metrics_names_them():
    text = io.StringIO()
    listing.show("metrics", None, Console(file=text, width=220))
    assert all(metric.name in text.getvalue() for metric in METRICS)
