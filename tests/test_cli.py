"""The command line: help, lists, and one clear line for every bad input."""

import dataclasses
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from wane.eval.study import Degrade, Evaluation, Study
from wane.launch import cli, environment, plan
from wane.launch.progress import Report
from wane.launch.studies import load_study, names
from wane.scaling.config import from_json, override, parse, to_json

STUDY = str(Path(__file__).parent / "studies" / "tiny.py")
TEXT = "data.sources=text:{}"


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "corpus.txt"


def refused(capsys, *argv):
    """The one line that a refused command prints."""
    assert cli.main(list(argv)) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed, printed
    assert printed.startswith("wane: ")
    return printed


def run(capsys, tmp_path, *assignments, study=STUDY):
    sets = [word for a in assignments for word in ("--set", a)]
    return refused(capsys, "run", study, "--out", str(tmp_path / "out"), *sets)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.learning_rate=0.1", ["train.learning_rate", "lr, schedule"]),
        ("trian.lr=0.1", ["did you mean train"]),
        ("train.lr=fast", ["train.lr", "'fast'", "float"]),
        ("train.schedule=linear", ["train.schedule", "'cosine' or 'wsd'"]),
        ("family.head_dim=1", ["head_dim = 1", "even"]),
        ("family.ladder_c=20", ["ladder_c", "multiple"]),
        ("family.depths=3", ["3 is not a square"]),
        ("seeds=0,0", ["seeds", "different"]),
        ("degradations.0.method=random_wieghts", ["random_weights", "wane list methods"]),
        ("degradations.0.settings.group=rows", ["random_weights.group", "'row'"]),
        ("degradations.0.settings.grop=row", ["grop", "group"]),
        ("degradations.0.severities=1.5", ["1.5", "fraction"]),
        ("degradations.9.draws=2", ["'9'", "index below 6"]),
        ("evaluation.metrics=loss,accurcy", ["accurcy", "accuracy"]),
        ("sweep_steps=99", ["sweep_steps", "99", "16 steps"]),
        ("arms.0.mask.method=rtn", ["arms.early.mask.method", "removes weights"]),
        ("arms.0.mask.at=1.5", ["arms.mask.at", "fraction"]),
        ("arms.1.mask.scores=current", ["rewound", "finished"]),
        ("arms.0.overrides.seeds=3", ["arms.overrides.seeds", "family"]),
        ("data.sources=hf:wikitext", ["hf:wikitext", "text:PATH|GLOB"]),
        ("data.context=0", ["data.context"]),
        ("nonsense", ["NAME=VALUE"]),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_what_is_allowed(capsys, tmp_path, assignment, words):
    printed = run(capsys, tmp_path, assignment)
    for word in words:
        assert word in printed, printed
    assert not (tmp_path / "out" / "members").exists(), "found before compute"


def test_a_budget_that_no_shape_meets_names_the_nearest(capsys, tmp_path):
    printed = run(
        capsys, tmp_path, "family.ladder_c=none", "family.budget=1000", "family.match=non_embedding",
        "family.depths=2", "family.head_dim=32",
    )  # fmt: skip
    assert "family.budget = 1000" in printed
    assert "use " in printed


def test_text_that_cannot_be_read(capsys, tmp_path, text_file):
    missing = run(capsys, tmp_path, TEXT.format(text_file))
    assert str(text_file) in missing
    text_file.write_bytes(b"")
    assert "empty" in run(capsys, tmp_path, TEXT.format(text_file))
    text_file.write_bytes(b"caf\xe9 " * 2000)
    assert "UTF-8" in run(capsys, tmp_path, TEXT.format(text_file))
    text_file.write_text("too short")
    assert "window" in run(capsys, tmp_path, TEXT.format(text_file))


def test_a_data_set_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    printed = run(capsys, tmp_path, "data.sources=tfds:no_such_set", f"data.tfds_data_dir={tmp_path}")
    assert "no_such_set" in printed


def test_a_directory_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    printed = refused(capsys, "run", STUDY, "--out", str(tmp_path / "file" / "out"))
    assert "cannot write there" in printed


def test_a_damaged_study_file(capsys, tmp_path):
    (tmp_path / "study.json").write_text("{")
    assert "study.json" in refused(capsys, "run", STUDY, "--out", str(tmp_path))


def test_unknown_studies_and_files(capsys, tmp_path):
    assert "did you mean quickstart" in refused(capsys, "plan", "quikstart")
    assert "no such file" in refused(capsys, "plan", str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("STUDY = 3")
    assert "STUDY = Study" in refused(capsys, "plan", str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("import nothing_of_this_name")
    assert "nothing_of_this_name" in refused(capsys, "plan", str(tmp_path / "mine.py"))
    assert "curves.parquet" in refused(capsys, "report", str(tmp_path))
    assert "study.json" in refused(capsys, "cell", "abc", "--study", str(tmp_path))


def test_not_enough_memory_is_found_by_the_plan():
    tiny = plan.make_plan(load_study(STUDY), environment.resolve(2))
    need = max(tiny.memory(cell) for cell in tiny.cells)
    plan.check_memory(tiny, need)
    plan.check_memory(tiny, None)
    with pytest.raises(ValueError, match="not enough memory: .* needs about .* use a smaller"):
        plan.check_memory(tiny, need - 1)


def test_the_plan_shows_shapes_and_cells(capsys):
    assert cli.main(["plan", STUDY]) == 0
    printed = capsys.readouterr().out
    for words in ("d16-L1", "d8-L4", "mismatch", "sweep random_heads per head", "peak memory"):
        assert words in printed


@pytest.mark.parametrize("what", ["studies", "methods", "metrics", "tasks", "data", "columns"])
def test_lists_name_everything(capsys, what):
    from wane.eval.columns import COLUMNS
    from wane.eval.metrics import METRICS
    from wane.scaling.degrade import METHODS
    from wane.train.data import TASKS

    known = {
        "studies": names(), "methods": METHODS, "metrics": METRICS, "tasks": TASKS,
        "data": ["graded", "python"], "columns": [c.name for c in COLUMNS],
    }  # fmt: skip
    assert cli.main(["list", what]) == 0
    printed = capsys.readouterr().out
    for name in known[what]:
        assert name in printed


def test_samples_and_explanations(capsys):
    assert cli.main(["list", "tasks", "--show", "R1"]) == 0
    assert len(capsys.readouterr().out) > 100
    assert cli.main(["list", "methods", "--show", "rtn"]) == 0
    assert "group" in capsys.readouterr().out
    assert "did you mean" in refused(capsys, "list", "methods", "--show", "rnt")


def test_help_answers_without_jax():
    code = (
        "import sys\nfrom wane.launch.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\nassert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("run", "plan", "train", "sweep", "report", "cell", "bench", "list"):
        assert word in done.stdout


def test_quickstart_is_matched_within_one_percent():
    shapes = plan.make_plan(load_study("quickstart"), environment.resolve(2)).shapes
    counts = [shape.param_counts()["non_embedding"] for shape in shapes]
    assert len(shapes) >= 3
    assert max(counts) <= 100_000
    assert max(counts) <= 1.01 * min(counts)
    assert max(shape.n_layers for shape in shapes) <= 9


def test_progress_is_lines_in_a_log_and_bars_on_a_terminal():
    log, terminal = (Console(file=StringIO(), force_terminal=t, width=160) for t in (False, True))
    for console in (log, terminal):
        with Report(console, "mine", cells=2, work=10.0) as report:
            for title in ("train a", "sweep b"):
                with report.cell(title, 4, 5.0, "steps") as tick:
                    tick(3, "loss 2.5")
                    report.bars.refresh()
                    tick(1, "loss 2.0")
    first, second = log.file.getvalue().splitlines()
    assert first.startswith("[1/2] train a: ")
    assert second.startswith("[2/2] sweep b: ")
    assert second.endswith("loss 2.0")
    for words in ("3/4 steps", "loss 2.5", "1/2 cells", "left"):
        assert words in terminal.file.getvalue()


def test_a_config_survives_json_and_overrides():
    study = load_study("quickstart")
    again = from_json(Study, to_json(study), "")
    assert to_json(again) == to_json(study)
    changed = override(
        study, {"train.lr": "0.5", "data.sources": "python", "seeds": "3,4", "sweep_steps": "[7]"}
    )
    assert (changed.train.lr, changed.seeds, changed.sweep_steps) == (0.5, (3, 4), (7,))
    assert dict(changed.data.sources) == {"python": 1.0}
    assert override(study, {"data.sources": '{"graded": 0.5, "python": 0.5}'}).data.graded
    settings = override(study, {"degradations.0.settings.group": "row"}).degradations[0].settings
    assert settings == {"group": "row"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("none", None),
        ("True", True),
        ("a,1", ["a", 1]),
        ("(1, 2)", (1, 2)),
        ("x y", "x y"),
        ("text:a,b", "text:a,b"),
    ],
)
def test_words_of_a_command_line(text, value):
    assert parse(text) == value


def test_studies_refuse_what_contradicts_itself():
    study = load_study(STUDY)
    with pytest.raises(ValueError, match="twice"):
        dataclasses.replace(study, degradations=(Degrade(method="rtn"), Degrade(method="rtn")))
    with pytest.raises(ValueError, match="must contain 'loss'"):
        dataclasses.replace(study, evaluation=Evaluation(metrics=("kl",)))
