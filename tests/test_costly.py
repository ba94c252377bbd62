"""Instruments that take many forward passes: cells of their own, behind all others, with the same rows."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from wane.eval import load_curves
from wane.eval.factorial_table import factorial_section, readouts
from wane.eval.metrics import COSTS, INSTRUMENTS, METRICS, costly, costly_apart, extra_forwards
from wane.eval.study import Arm, Degrade, Evaluation, FixedMask, Recovery
from wane.launch.cells import SweepCell
from wane.launch.directory import StudyDirectory
from wane.launch.environment import resolve
from wane.launch.expand import Decided
from wane.launch.plan import cell_table, make_plan
from wane.launch.run import run_study
from wane.launch.studies import load_study

STUDY = str(Path(__file__).parent / "studies" / "tiny.py")
QUIET = Console(quiet=True)
SETS = [
    "family.depths=4", "seeds=0", "sweep_steps=[]", 'data.task_shares={"L1": 1.0, "K": 1.0}', "train.tokens=2048",
]  # fmt: skip
DEGRADATIONS = (
    Degrade(method="random_weights", severities=(0.5, 1.0), draws=2, refine=1),
    Degrade(method="rtn", severities=(4.0,), each="layer"),
    Degrade(method="random_neurons", severities=(0.5,), recovery=Recovery(steps=(4,), batch_size=8)),
    Degrade(method="rtn", severities=(3.0,), metrics=("kl", "accuracy", "accuracy_free_running")),
)
MASKED = (Arm(name="early", mask=FixedMask(method="random_weights", severities=(0.5,))),)
CHEAP, SAID = ("loss", "accuracy"), ("accuracy_free_running",)


def study_of(metrics=CHEAP + SAID, **changes):
    fields = {
        "degradations": DEGRADATIONS, "arms": MASKED,
        "evaluation": Evaluation(sequences=2, batch=4, calibration_sequences=4, metrics=metrics),
    }  # fmt: skip
    return dataclasses.replace(load_study(STUDY, SETS), **(fields | changes))


def sweeps(study, decided=None):
    """Its sweeps: (the others, the costly ones)."""
    found = [c for c in make_plan(study, resolve(1), decided=decided).cells if isinstance(c, SweepCell)]
    return [c for c in found if not c.costly], [c for c in found if c.costly]


def table_of(out):
    """The curve table without what names its cells."""
    return load_curves(out, per_sequence=True).drop(columns="cell_id")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("costly") / "study"
    run_study(study_of(), out, ("train", "sweep"), QUIET)
    return out


def test_what_goes_on_by_itself_is_costly_with_all_that_shares_its_passes():
    assert [name for name in INSTRUMENTS if costly(name)] == [
        "generation", "factorial", "continuation", "crossing",
    ]  # fmt: skip
    assert costly_apart(("loss", "whole_answers", "accuracy", "repetition")) == (
        ("loss", "accuracy"),
        ("whole_answers", "repetition"),
    )
    assert costly_apart(("kl",)) == (("kl",), ())


def test_an_instrument_without_a_measured_cost_is_not_free(monkeypatch):
    said = METRICS["accuracy_free_running"]
    for name, free_running in (("mine", False), ("said", True)):
        metric = dataclasses.replace(said, name=name, free_running=free_running)
        monkeypatch.setitem(INSTRUMENTS, f"group of {name}", (metric,))
        monkeypatch.setitem(METRICS, name, metric)
    cheap = [cost for name, cost in COSTS.items() if not costly(name)]
    assert min(cheap) < extra_forwards(("mine",)) < max(cheap)
    assert extra_forwards(("said",)) > 1
    assert extra_forwards(("loss", "mine", "kl")) == extra_forwards(("mine",))


def test_curves_of_the_loss_are_the_same_cells_whatever_is_generated():
    without, _ = sweeps(study_of(CHEAP, degradations=DEGRADATIONS[:3]))
    others, dear = sweeps(study_of((*CHEAP, "generation", "crossing"), degradations=DEGRADATIONS[:3]))
    assert [c.id for c in others] == [c.id for c in without]
    assert len({c.id for c in others + dear}) == len(others) + len(dear)
    evaluation = study_of((*CHEAP, "generation"), degradations=DEGRADATIONS[:3]).evaluation
    warm = dataclasses.replace(evaluation, temperature=0.7)
    same, warmer = sweeps(study_of(evaluation=warm, degradations=DEGRADATIONS[:3]))
    assert [c.id for c in same] == [c.id for c in without]
    assert not {c.id for c in warmer} & {c.id for c in dear}


def test_metrics_of_one_degradation_are_taken_apart_like_those_of_all():
    def ids(metrics):
        others, dear = sweeps(
            study_of(CHEAP, degradations=(Degrade(method="rtn", metrics=metrics),), arms=())
        )
        return [c.id for c in others], [c.id for c in dear]

    (both, dear), (cheap, none), (_, alone) = map(ids, (("kl", "repetition"), ("kl",), ("repetition",)))
    assert (both, dear, none) == (cheap, alone, [])
    assert len(both) == len(dear) == 1


def test_what_is_costly_comes_behind_all_members():
    cells = make_plan(study_of(seeds=(0, 1)), resolve(1)).cells
    dear = [isinstance(c, SweepCell) and bool(c.costly) for c in cells]
    assert dear == sorted(dear)
    _, found = sweeps(study_of(seeds=(0, 1)))
    # Of both members the coarse grid and its refinement, by layer, recovered, and its own; of both masked ones one.
    assert len(found) == 2 * 5 + 2
    assert {c.costly for c in found} == {("generation",)}
    assert {c.evaluation.metrics for c in found} == {SAID}


def test_a_member_trained_under_a_mask_has_no_cell_of_what_compares_with_the_model_before():
    for metrics, count in ((("loss", "crossing"), 0), (("loss", "continuation"), 1)):
        _, dear = sweeps(study_of(metrics, degradations=DEGRADATIONS[:1]))
        assert sum(c.trained.mask is not None for c in dear) == count


def test_the_pilot_measures_nothing_costly():
    evaluation = dataclasses.replace(study_of().evaluation, precision=0.1)
    pilots = [c for c in sweeps(study_of(evaluation=evaluation))[0] if c.pilot]
    assert {c.evaluation.metrics for c in pilots} == {CHEAP}
    assert not any(c.pilot for c in sweeps(study_of(evaluation=evaluation))[1])


def test_the_rows_are_those_of_cells_that_measure_all_at_once(whole, tmp_path, monkeypatch):
    """Refined, layer by layer, recovered, under a mask and with metrics of one degradation alone."""
    monkeypatch.setattr(Evaluation, "of_cells", lambda self, degrade: (self.of(degrade),))
    monkeypatch.setattr(SweepCell, "costly", ())
    run_study(study_of(), tmp_path, ("train", "sweep"), QUIET)
    monkeypatch.undo()
    once, apart = (table_of(out) for out in (tmp_path, whole))
    assert load_curves(whole).cell_id.nunique() > load_curves(tmp_path).cell_id.nunique()
    about = [column for column in once if column not in ("value", "per_sequence")]
    assert once[about].equals(apart[about])
    assert (once.value - apart.value).abs().max() < 1e-6
    said = apart[apart.metric == "accuracy_free_running"]
    assert set(said.method) == {"random_weights", "rtn", "random_neurons+recovery"}
    assert set(said.pruned) == {"never", "after", "before"}
    assert said.layer.notna().any()
    refined = apart[(apart.method == "random_weights") & (apart.arm == "") & (apart.task == "all")]
    points = refined.groupby("metric").setting.agg(lambda s: tuple(sorted(set(s))))
    assert points["loss"] == points["accuracy_free_running"]
    assert len(points["loss"]) == 4  # 0, two of the coarse grid, and one that refinement adds
    assert (refined[refined.severity == 0].groupby("metric").size() == 2).all()  # draws, each once


def test_what_two_cells_measured_stands_in_one_table_of_the_report(whole):
    curves = load_curves(whole)
    found = readouts(curves)
    both = found.groupby(["group", "curve", "severity", "setting"]).metric.agg(set)
    assert len(both) > 4
    assert all(metrics == {"accuracy", "accuracy_free_running"} for metrics in both)
    (line, *_) = factorial_section(curves, [*found.group.unique()]).split("<tbody><tr>")[1].split("</tr>")
    assert line.count("<td>") == 4  # items, setting, teacher-forced, free-running
    assert "<td></td>" not in line


def test_a_kill_while_it_generates_loses_no_curve_of_the_loss(whole, tmp_path, monkeypatch):
    from wane.launch import run

    real = run.write_rows

    def killed(path, rows):
        if {row["metric"] for row in rows} == {*SAID}:
            raise KeyboardInterrupt
        return real(path, rows)

    monkeypatch.setattr(run, "write_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study_of(), tmp_path, ("train", "sweep"), QUIET)
    directory = StudyDirectory(tmp_path)
    plan = directory.plan(study_of())
    assert plan.decided.grids  # what was added where the loss bends is there, too
    found = {bool(c.costly): directory.done(c) for c in plan.cells if isinstance(c, SweepCell)}
    assert found == {False: True, True: False}
    assert {*CHEAP} < set(load_curves(tmp_path).metric)
    monkeypatch.setattr(run, "write_rows", real)
    run_study(study_of(), tmp_path, ("sweep",), QUIET)
    assert (tmp_path / "curves.parquet").read_bytes() == (whole / "curves.parquet").read_bytes()


def test_the_plan_has_a_line_of_their_own_with_what_they_cost():
    study = study_of(
        ("loss", "generation", "crossing"),
        arms=(),
        degradations=(Degrade(method="rtn", severities=(4.0, 2.0)),),
    )
    plan = make_plan(study, resolve(1), decided=Decided(asked=study.evaluation))
    table = cell_table(plan, rate=1e6)
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    lines = dict(
        zip(table.columns[0].cells, zip(*(c.cells for c in table.columns[1:]), strict=True), strict=True)
    )
    assert list(lines) == ["train", "sweep rtn", "sweep rtn: generation, crossing"]
    loss, dear = (lines[kind] for kind in list(lines)[1:])
    assert loss[:2] == dear[:2] == ("1", "3")  # cells, points
    (shape,), points, tokens = plan.shapes, 3, 2 * 2 * 32
    unembed = 2 * shape.vocab * shape.d_model
    for (*_, flops, _, clock), passes in ((loss, 1), (dear, 1 + COSTS["generation"] + COSTS["crossing"])):
        expected = points * tokens * (passes * shape.flops_per_token() + unembed)
        assert float(flops) == pytest.approx(expected, rel=0.05)
        minutes, unit = clock.split()
        seconds = expected / (0.3 * 1e6) + 2  # compiled once
        assert float(minutes) * {"s": 1, "min": 60, "h": 3600}[unit] == pytest.approx(seconds, rel=0.05)
    assert "sweep rtn: generation, crossing" in text.getvalue()
    assert any(c.title.endswith("rtn: generation, crossing") for c in plan.cells)
