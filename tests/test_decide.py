"""Studies whose number of sequences and whose refined severities are decided between training and curves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wane.eval import load_curves
from wane.launch.cli import main
from wane.launch.decide import Decided
from wane.launch.expand import cohorts, splits
from wane.launch.studies import load_study

STUDY = str(Path(__file__).parent / "studies" / "refined.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("decided") / "study"
    assert main(["run", STUDY, "--out", str(out)]) == 0
    shutil.copy(out / "curves.parquet", out / "first.parquet")
    return out


def record(out):
    return json.loads((out / "study.json").read_text())


def loss(out):
    table = load_curves(out, per_sequence=True)
    return table[(table.metric == "loss") & (table.task == "all")]


def test_the_pilot_decides_how_many_sequences_all_members_are_measured_on(whole):
    decided = record(whole)["decided"]
    assert 4 < decided["sequences"] < 500
    table = loss(whole)
    assert set(table.per_sequence.map(len)) == {2 * decided["sequences"]}  # two tasks
    assert table.evaluation_digest.nunique() == 1
    curves = [cell for cell in record(whole)["cells"] if cell["title"].startswith(("sweep", "refine"))]
    pilots = 2 * 4  # degradations of the whole model x members
    assert len(list(whole.glob("cells/*/rows.parquet"))) == len(curves) + pilots  # nothing before its time


def test_a_narrower_precision_takes_more_sequences_and_the_most_allowed_is_not_passed(
    whole, tmp_path, capsys
):
    few = record(whole)["decided"]
    extra = ("--set", "evaluation.precision=0.005", "--set", "evaluation.sequences=20", "--set", "seeds=0")
    assert main(["run", STUDY, "--out", str(tmp_path / "capped"), *extra]) == 0
    decided = record(tmp_path / "capped")["decided"]
    assert decided["sequences"] == 20 < 16 * few["sequences"]
    said = capsys.readouterr().out
    assert "evaluation.sequences = 20 is the most allowed: about" in said


def test_pilot_and_curves_are_measured_on_different_sequences():
    study = load_study(STUDY)
    stream = cohorts(study)[0].stream
    curves, pilot = splits(study, stream, Decided(asked=study.evaluation, sequences=30))
    assert len(curves.evaluation.tokens_NT) == 2 * 30
    assert len(pilot.evaluation.tokens_NT) == 2 * 4
    for task in range(2):
        a, b = (part.evaluation.tokens_NT[part.evaluation.task_N == task] for part in (curves, pilot))
        assert not (a[:, None] == b[None]).all(axis=2).any()
    more, _ = splits(study, stream, Decided(asked=study.evaluation, sequences=31))
    first = [more.evaluation.tokens_NT[more.evaluation.task_N == task][:30] for task in range(2)]
    assert np.array_equal(np.concatenate(first), curves.evaluation.tokens_NT)  # more are the same and others


def test_a_study_may_score_equally_many_tokens_of_every_task():
    study = load_study(STUDY, ["evaluation.precision=None", "evaluation.scored_tokens=70"])
    data = splits(study, cohorts(study)[0].stream, Decided(asked=study.evaluation))[0].evaluation
    assert [data.scored_NS[data.task_N == task].sum() for task in range(2)] == [70, 70]
    assert len(set(np.bincount(data.task_N))) == 2


def test_all_members_get_the_same_refined_severities_and_one_identity(whole):
    table, grids = loss(whole), record(whole)["decided"]["grids"]
    for name, count in (("random_weights", 2), ("rtn", 1)):
        (added,) = (grid for key, grid in grids.items() if key.startswith(name))
        assert len(added) == count
        mine = table[(table.method == name) & table.layer.isna()]
        for _, curve in mine.groupby(["member_id", "draw"]):
            assert set(added) < set(curve.setting)
            assert curve.setting.is_unique
            assert (curve.severity == 0).sum() == 1
        assert mine.member_id.nunique() == 4


def test_a_seed_more_changes_nothing_that_was_decided(whole):
    before, cells = record(whole)["decided"], {path.name for path in whole.glob("cells/*")}
    table = loss(whole)
    assert main(["run", STUDY, "--out", str(whole), "--set", "seeds=0,1,2"]) == 0
    assert record(whole)["decided"] == before
    assert cells < {path.name for path in whole.glob("cells/*")}
    grown = loss(whole)
    again = grown[grown.init_seed < 2].reset_index(drop=True)
    assert (again.value == table.reset_index(drop=True).value).all()


def test_interrupted_before_and_after_every_decision_it_ends_with_the_same_curves(
    whole, tmp_path, monkeypatch
):
    from wane.launch import run

    out, calls, real = tmp_path / "study", [], run.decide

    def interrupted(*arguments):
        calls.append(len(calls))
        if calls[-1] % 2 == 0:
            raise KeyboardInterrupt
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "decide", interrupted)
    for _ in range(2):
        assert main(["run", STUDY, "--out", str(out)]) != 0
    monkeypatch.setattr(run, "decide", real)
    assert main(["run", STUDY, "--out", str(out)]) == 0
    assert (out / "curves.parquet").read_bytes() == (whole / "first.parquet").read_bytes()


def test_a_cell_that_waits_is_refused(tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["train", STUDY, "--out", str(out), "--set", "seeds=0"]) == 0
    waiting = [cell["id"] for cell in record(out)["cells"] if cell["title"].startswith("refine")]
    assert waiting
    assert main(["cell", waiting[0], "--study", str(out)]) == 2
    assert "waits for cells that decide" in capsys.readouterr().err
