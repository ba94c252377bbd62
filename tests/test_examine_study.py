"""Examinations as cells of a study: rows of the table, resume, plan; and metrics of one degradation alone."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from wane.eval import load_curves
from wane.eval.examine import EXAMINATIONS
from wane.eval.metrics import COSTS, INSTRUMENTS, METRICS, chosen, extra_forwards
from wane.eval.study import Degrade, Evaluation, Examine
from wane.launch import listing
from wane.launch.cells import ExamineCell, SweepCell
from wane.launch.directory import StudyDirectory
from wane.launch.plan import cell_table, kind_of, make_plan
from wane.launch.run import run_cell, run_study
from wane.launch.studies import load_study

STUDY = str(Path(__file__).parent / "studies" / "tiny.py")
QUIET = Console(quiet=True)
EXAMINATIONS_ASKED = (
    Examine(name="ablation", settings={"units": ("layer",)}, sequences=2),
    Examine(name="synergy"),
    Examine(name="zero_sensitivity", settings={"weights": 1, "groups": 0}, sequences=1),
    Examine(name="restricted", settings={"sizes": (0.5,), "subsets": 1}, sequences=1),
)


def study_of(**changes):
    study = load_study(STUDY, ["family.depths=4", "seeds=0", "sweep_steps=[]"])
    fields = {
        "degradations": (
            Degrade(method="rtn", severities=(4.0,)),
            Degrade(method="rtn", severities=(4.0,), metrics=("kl", "accuracy_by_level")),
        ),
        "evaluation": Evaluation(sequences=4, batch=4, calibration_sequences=4, metrics=("loss",)),
        "arms": (), "examinations": EXAMINATIONS_ASKED,
    }  # fmt: skip
    return dataclasses.replace(study, **(fields | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("examined") / "study"
    run_study(study_of(), out, ("train", "sweep", "report"), QUIET)
    return out


def test_examinations_stand_in_the_table_beside_the_curves(whole):
    table = load_curves(whole)
    told = table[table.method == "none"]
    for name, examination in EXAMINATIONS.items():
        rows = told[told.settings.map(json.loads).map(lambda s, name=name: s["examination"] == name)]
        assert set(rows.metric) == {metric.name for metric in examination.metrics}
        assert set(rows.pruned) == {"never"}
        for column in (rows.calibration, rows.calibration_digest):
            assert set(column.notna()) == {examination.needs_calibration}
    assert '{"examination":"ablation","units":["layer"]}' in set(told.settings)
    effect = told[(told.metric == "ablation_effect") & (told.task == "all")]
    assert set(effect.axis) == {"layer"}
    assert sorted(effect["at"]) == [0, 1, 2, 3]
    assert effect.value.notna().all()
    assert effect.evaluation_digest.nunique() == 1
    assert set(effect["count"]) == {2 * 2 * 32}  # two sequences of each of two tasks
    assert not set(effect.evaluation_digest) & set(table[table.method == "rtn"].evaluation_digest)
    pairs = told[told.metric == "synergy"]
    assert set(pairs.evaluation_digest) == set(table[table.method == "rtn"].evaluation_digest)


def test_ablation_of_a_layer_agrees_with_the_method_that_removes_it(whole, tmp_path):
    """Over all sequences and one layer at a time, by another program."""
    study = study_of(
        degradations=(Degrade(method="remove_layers", severities=(1.0,), each="layer"),),
        examinations=(Examine(name="ablation", settings={"units": ("layer",)}),),
    )
    run_study(study, tmp_path, ("train", "sweep"), QUIET)
    table = load_curves(tmp_path)
    loss = (
        table[(table.metric == "loss") & table.layer.notna()].set_index(["task", "layer", "severity"]).value
    )
    effect = table[table.metric == "ablation_effect"]
    assert len(effect) == 4 * 3
    for row in effect.itertuples():
        change = loss[row.task, int(row.at), 1.0] - loss[row.task, int(row.at), 0.0]
        assert row.value == pytest.approx(change, abs=2e-6)


def test_an_interrupted_study_goes_on_with_the_same_bytes(whole, tmp_path, monkeypatch):
    from wane.launch import run

    real, calls = run.write_rows, []

    def stopped(path, rows):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(path, rows)

    monkeypatch.setattr(run, "write_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(study_of(), tmp_path, ("train", "sweep"), QUIET)
    monkeypatch.setattr(run, "write_rows", real)
    plan = StudyDirectory(tmp_path).plan(study_of())
    undone = [c for c in plan.cells if not StudyDirectory(tmp_path).done(c)]
    examined = next(c for c in undone if isinstance(c, ExamineCell))
    run_cell(tmp_path, examined.id, QUIET)  # what a launcher does
    assert StudyDirectory(tmp_path).done(examined)
    run_study(study_of(), tmp_path, ("train", "sweep"), QUIET)
    assert (tmp_path / "curves.parquet").read_bytes() == (whole / "curves.parquet").read_bytes()


def test_another_examination_or_metric_is_a_new_cell_and_leaves_the_others(whole):
    def ids(**changes):
        plan = make_plan(study_of(**changes), StudyDirectory(whole).record()["environment"])
        return {c.id: c for c in plan.cells if isinstance(c, ExamineCell)}

    before = ids()
    assert len(before) == 4
    more = ids(examinations=(*EXAMINATIONS_ASKED, Examine(name="synergy", settings={"unit": "head"})))
    assert before.keys() < more.keys()
    other = dataclasses.replace(study_of().evaluation, metrics=("loss", "kl"))
    assert ids(evaluation=other, degradations=study_of().degradations[:1]).keys() == before.keys()
    seed = dataclasses.replace(study_of().evaluation, draw_seed=1)
    assert not ids(evaluation=seed).keys() & before.keys()
    default = ids(examinations=(Examine(name="synergy", settings={"pairs": 64}),))
    assert default.keys() < before.keys()


def test_the_plan_has_a_line_for_each_and_its_passes(whole):
    plan = make_plan(study_of(), StudyDirectory(whole).record()["environment"])
    cells = [c for c in plan.cells if isinstance(c, ExamineCell)]
    by_kind = {kind_of(c): c for c in cells}
    assert list(by_kind) == [f"examine {e.name}" for e in EXAMINATIONS_ASKED]
    assert by_kind["examine synergy"].points() == 1 + 4 + 6
    assert by_kind["examine ablation"].points() == 1 + 4
    text = io.StringIO()
    Console(file=text, width=200).print(cell_table(plan, 1e9))
    for kind in by_kind:
        assert kind in text.getvalue()
    sweep = next(c for c in plan.cells if isinstance(c, SweepCell))
    ablation, synergy = by_kind["examine ablation"], by_kind["examine synergy"]
    assert plan.flops(synergy) == pytest.approx(2 * 11 / 5 * plan.flops(ablation))  # of twice the sequences
    assert plan.memory(synergy) > plan.memory(sweep) - 4 * synergy.trained.shape.param_counts()["total"]


def test_a_shape_that_has_nothing_to_examine_has_no_cell(whole):
    family = dataclasses.replace(study_of().family, depths=(1, 4))
    plan = make_plan(study_of(family=family), StudyDirectory(whole).record()["environment"])
    cells = [(c.trained.shape.n_layers, c.examine.name) for c in plan.cells if isinstance(c, ExamineCell)]
    assert len(cells) == 2 * 4 - 1
    assert (1, "synergy") not in cells  # of one layer there are no pairs


def test_members_that_were_trained_under_a_mask_are_not_examined(whole):
    plan = make_plan(study_of(arms=load_study(STUDY).arms), StudyDirectory(whole).record()["environment"])
    assert {c.trained.mask for c in plan.cells if isinstance(c, ExamineCell)} == {None}
    assert any(c.trained.mask for c in plan.cells if isinstance(c, SweepCell))


def test_a_member_that_diverged_keeps_its_examinations_with_the_reason(tmp_path):
    study = load_study(STUDY, ["train.lr=1e6", "train.clip=1e9", "family.parametrization.name=standard"])
    study = study_of(
        train=study.train, family=dataclasses.replace(study.family, depths=(1,)),
        examinations=EXAMINATIONS_ASKED[:1],
    )  # fmt: skip
    run_study(study, tmp_path, ("train", "sweep"), QUIET)
    table = load_curves(tmp_path)
    told = table[table.method == "none"]
    assert set(told.metric) == {metric.name for metric in EXAMINATIONS["ablation"].metrics}
    assert set(table.status) == {"diverged"}
    assert told.reason.str.contains("diverged at step").all()
    assert set(table[table.method == "rtn"].metric) == {"loss", "kl"}


def test_a_degradation_may_have_metrics_of_its_own(whole):
    table = load_curves(whole)
    rtn = table[table.method == "rtn"]
    assert set(rtn.metric) == {"loss", "kl", "accuracy_by_level"}
    cells = rtn.groupby("cell_id").metric.agg(set)
    assert sorted(map(sorted, cells)) == [["accuracy_by_level", "kl"], ["loss"]]
    np.testing.assert_array_equal(rtn[(rtn.metric == "kl") & (rtn.severity == 0)].value, 0)


def test_costly_metrics_weigh_in_the_forecast(whole):
    environment = StudyDirectory(whole).record()["environment"]
    costly = Degrade(method="rtn", severities=(4.0,), metrics=("generation",))
    plan = make_plan(study_of(degradations=(Degrade(method="rtn", severities=(4.0,)), costly)), environment)
    plain, dear = (c for c in plan.cells if isinstance(c, SweepCell))
    assert plan.flops(dear) > (1 + COSTS["generation"] / 2) * plan.flops(plain)
    assert extra_forwards(("loss", "kl")) == 0
    first, second = (m.name for m in INSTRUMENTS["answers"][:2])
    assert extra_forwards((first,)) == extra_forwards((first, second)) == COSTS["answers"]
    assert extra_forwards(chosen(COSTS)) == pytest.approx(sum(COSTS.values()))
    assert COSTS.keys() <= INSTRUMENTS.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"examinations": (Examine(name="synergy"), Examine(name="synergy", settings={"pairs": 64}))},
            "twice",
        ),
        (
            {"examinations": (Examine(name="ablation", sequences=5),)},
            "must be at most evaluation.sequences = 4",
        ),
        ({"evaluation": Evaluation(metrics=("kl",))}, "must contain 'loss'"),
        (
            {"degradations": (Degrade(method="rtn"), Degrade(method="rtn", metrics=("loss", "kl")))},
            "rtn measures loss twice at the same severities",
        ),
        (
            {"degradations": (Degrade(method="substitute_tokens", metrics=("generation",)),)},
            "goes token by token",
        ),
    ],
)
def test_a_study_refuses_what_contradicts_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        study_of(**changes)


def test_fields_that_cannot_be_are_named():
    with pytest.raises(
        ValueError, match="examinations.name = 'synergie': not an examination; did you mean synergy"
    ):
        Examine(name="synergie")
    with pytest.raises(ValueError, match="sequences = 0: must be at least 1"):
        Examine(name="synergy", sequences=0)
    with pytest.raises(ValueError, match="degradations.metrics: 'lose' is not a metric; did you mean loss"):
        Degrade(method="rtn", metrics=("lose",))
    with pytest.raises(ValueError, match="degradations.metrics = .*must name at least one"):
        Degrade(method="rtn", metrics=())
    with pytest.raises(ValueError, match="add 'loss' to degradations.metrics"):
        Degrade(method="rtn", refine=1, metrics=("kl",))
    assert not Degrade(method="rtn", metrics=("kl",)).piloted


def test_the_list_names_every_examination():
    text = io.StringIO()
    listing.show("examinations", None, Console(file=text, width=220))
    for name, examination in EXAMINATIONS.items():
        assert name in text.getvalue()
        assert not {m.name for m in examination.metrics} & METRICS.keys()
