"""`wane run` as a user starts it: killed at any moment and run again it ends with the same curves, bit for bit."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from wane.eval import load_curves
from wane.launch.cli import main
from wane.launch.directory import StudyDirectory

STUDY = str(Path(__file__).parent / "studies" / "tiny.py")

# Compiles as conftest.py does and kills its own process by SIGKILL at the n-th call of a function: `moment` names
# module, attribute, n and whether the call still happens before the kill; n = 0 never comes.  Runs the command line
# with what follows.
DRIVER = """
import importlib, os, signal, sys
from wane.scaling import program
for options in (program.LIGHT, program.LIGHTER):
    options["xla_backend_optimization_level"] = 0
module, attribute, n, when = sys.argv[1].split(",")
owner = importlib.import_module(module)
*path, name = attribute.split(".")
for part in path:
    owner = getattr(owner, part)
real, calls = getattr(owner, name), [0]

def stand_in(*args, **kwargs):
    calls[0] += 1
    if calls[0] == int(n) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    out = real(*args, **kwargs)
    if calls[0] == int(n):
        os.kill(os.getpid(), signal.SIGKILL)
    return out

setattr(owner, name, stand_in)
from wane.launch.cli import main
sys.exit(main(sys.argv[2:]))
"""

MOMENTS = {
    "in training": "wane.train.logbook,Logbook.write,3,after",
    "in mid-save, before the commit": "wane.train.checkpoint,array_digest,3,after",
    "after a save, before the old one is deleted": "wane.train.checkpoint,_prune,2,before",
    "in a sweep": "wane.eval.cell,point_columns,6,after",
    "while writing rows": "wane.eval.record,pq.write_table,2,after",
    "before the rows are renamed": "wane.eval.record,os.replace,14,before",
    "while writing the table of all curves": "wane.launch.run,merge,1,before",
}


NEVER = "wane.launch.run,merge,0,before"


class Done(NamedTuple):
    """What a run said."""

    out: str
    errors: str


def run(out, *, expected=0, extra=()) -> Done:
    """`wane run` in this process, which knows the programs of the last one."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = main(["run", STUDY, "--out", str(out), *extra])
    assert code == expected, said.getvalue() + errors.getvalue()
    return Done(said.getvalue(), errors.getvalue())


def run_alone(out, moment=None) -> None:
    """The same in a process of its own, which a moment kills."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, MOMENTS.get(moment, NEVER), "run", STUDY, "--out", str(out)],
        capture_output=True, text=True, timeout=600,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    expected = -signal.SIGKILL if moment else 0
    assert done.returncode == expected, f"{moment or 'to the end'}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "study"
    return out, run(out)


def test_a_run_leaves_what_the_layout_promises(whole):
    out, done = whole
    record = json.loads((out / "study.json").read_text())
    assert record["environment"]["jax_version"]
    members = sorted(out.glob("members/*"))
    assert len(members) == 2 * 2 * 3  # shapes x seeds x arms
    for member in members:
        assert (member / "config.json").is_file()
        assert (member / "train.jsonl").is_file()
        assert list(member.glob("checkpoints/*"))
    assert (out / "report" / "index.html").stat().st_size > 1e6
    assert list((out / "report" / "figures").glob("*.svg"))
    assert len(list(out.glob("cells/*/rows.parquet"))) == sum("sweep" in c["title"] for c in record["cells"])
    assert "rows in" in done.out


def test_pruning_before_during_and_after_training_are_curves_of_one_table(whole):
    table = load_curves(whole[0])
    loss = table[(table.metric == "loss") & (table.task == "all")]
    for pruned, method in (
        ("after", "random_weights"),
        ("before", "random_weights"),
        ("during", "magnitude_weights"),
    ):
        point = loss[(loss.pruned == pruned) & (loss.method == method) & (loss.severity == 0.5)]
        assert len(point) > 0, pruned
        np.testing.assert_allclose(point.removed_fraction, 0.5, atol=0.01)
    assert set(loss[loss.pruned == "before"].pruned_at_step) == {0}
    assert set(loss[loss.pruned == "during"].pruned_at_step) == {8}
    assert set(loss[loss.method == "random_weights"].train_step) == {8, 16}
    assert loss[(loss.pruned == "before")].value.notna().all()
    assert not ((table.pruned == "before") & table.metric.isin(["kl", "top1_agreement"])).any()


def test_shapes_are_paired(whole):
    """The same evaluation sequences for all; the same untouched member in every one of its sweeps."""
    table = load_curves(whole[0])
    assert table.evaluation_digest.nunique() == 1
    undegraded = (table.severity == 0) & (table.severity_2.fillna(0) == 0)
    untouched = table[undegraded & (table.metric == "loss") & (table.task == "all")]
    assert (untouched.groupby(["member_id", "train_step"]).value.nunique() == 1).all()


def test_second_severities_and_other_calibration_stand_in_the_table(whole):
    table = load_curves(whole[0])
    loss = table[(table.metric == "loss") & (table.task == "all") & (table.train_step == 16)]
    pair = loss[loss.method == "magnitude_weights+rtn"]
    assert set(zip(pair.setting, pair.setting_2, strict=True)) == {(0, 16), (0, 4), (0.5, 16), (0.5, 4)}
    assert set(pair.setting_2_unit) == {"bits"}
    value = pair.groupby(["member_id", "setting", "setting_2"]).value.first().unstack([1, 2])
    alone = loss[(loss.method == "magnitude_weights") & (loss.setting == 0.5) & (loss.pruned == "after")]
    np.testing.assert_allclose(value[0.5, 16], alone.groupby("member_id").value.first(), rtol=1e-5)
    after = (
        loss[loss.method == "random_neurons+recovery"].set_index(["member_id", "setting", "setting_2"]).value
    )
    for member in after.index.get_level_values(0).unique():
        assert after[member, 0.5, 16] < after[member, 0.5, 0]
    rounded = table[table.method == "activations"]
    assert set(rounded.calibration) == {"random"}
    assert set(table[table.method == "random_weights"].calibration.isna()) == {True}
    timing = [json.loads(path.read_text()) for path in whole[0].glob("cells/*/timing.json")]
    assert all(t["fit_memory_bytes"] >= 0 for t in timing if "fit_memory_bytes" in t)
    assert any(t.get("point_memory_bytes", 0) > 1e4 for t in timing)


def test_running_again_does_nothing(whole):
    out, _ = whole
    before = (out / "curves.parquet").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/rows.parquet")}
    assert "all" in run(out).out
    assert (out / "curves.parquet").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_killed_at_any_moment_it_ends_with_the_same_curves(whole, tmp_path):
    """One directory, killed at seven moments in turn; every continuation meets what the last kill left."""
    for moment in MOMENTS:
        run_alone(tmp_path / "study", moment)
    run_alone(tmp_path / "study")
    assert (tmp_path / "study" / "curves.parquet").read_bytes() == (whole[0] / "curves.parquet").read_bytes()
    assert not list((tmp_path / "study").glob("cells/*/.*.tmp")), "a continuation sweeps up half-written rows"


def test_a_damaged_checkpoint_is_refused_and_computed_again(whole, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "cells")
    victim = next(out.glob("members/d16*-s0-*/checkpoints/16"))
    largest = max((p for p in victim.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    done = run(out)
    assert "damaged" in done.out + done.errors
    assert (out / "curves.parquet").read_bytes() == (whole[0] / "curves.parquet").read_bytes()


def test_two_runs_cannot_share_a_directory(whole):
    command = [sys.executable, "-m", "wane.launch", "run", STUDY, "--out", str(whole[0])]
    with StudyDirectory(whole[0]).locked():
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "another wane is working there" in done.stderr


def test_a_resume_on_another_machine_is_refused(whole, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(whole[0], out)
    record = json.loads((out / "study.json").read_text())
    record["environment"]["threads"] += 1
    (out / "study.json").write_text(json.dumps(record))
    done = run(out, expected=2)
    assert "threads" in done.errors
    assert "--accept-drift" in done.errors
    run(out, extra=("--accept-drift",))


def test_growing_a_study_keeps_what_is_done(whole, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(whole[0], out)
    done = run(out, extra=("--set", "degradations.1.severities=0.25,0.5"))
    assert "done before" in done.out
    table = load_curves(out)
    assert set(table[(table.method == "magnitude_weights") & (table.pruned != "during")].severity) == {
        0,
        0.25,
        0.5,
    }


def test_packs_and_chunks_of_an_accelerator_give_the_same_table_to_tolerance(whole, tmp_path, monkeypatch):
    """What an accelerator would do, done on CPU: three seeds in packs of two, three severities per call."""
    from rich.console import Console

    from wane.launch import directory, environment
    from wane.launch.run import run_study
    from wane.launch.studies import load_study

    packed = {"pack": 2, "packing": "vmap", "points_per_call": 3}
    monkeypatch.setattr(directory, "resolve", lambda seeds: environment.resolve(seeds) | packed)
    study = load_study(STUDY, ["family.depths=1"])
    study = dataclasses.replace(study, degradations=study.degradations[:1], arms=study.arms[1:])
    run_study(study, tmp_path / "packed", ("train", "sweep"), Console(quiet=True))
    one, both = load_curves(whole[0]), load_curves(tmp_path / "packed")
    keys = [
        "shape",
        "arm",
        "init_seed",
        "train_step",
        "pruned",
        "method",
        "draw",
        "severity",
        "severity_2",
        "task",
        "metric",
        "at",
    ]
    one = one[one.layer.isna()]
    pairs = one.merge(both, on=keys, suffixes=("", "_packed"), how="right", validate="1:1")
    assert pairs.value.notna().all()
    smooth = pairs[pairs.metric.isin(["loss", "perplexity"]) & (pairs.method != "magnitude_weights")]
    np.testing.assert_allclose(smooth.value_packed, smooth.value, rtol=2e-3)
    assert set(both.packing) == {2}
    assert len(list(tmp_path.glob("packed/packs/*/checkpoints"))) == 2
    # Growth: a third seed opens a pack of its own, filled with a dummy, and leaves the old one alone.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("packed/packs/*/done.json")}
    study = dataclasses.replace(study, seeds=(0, 1, 2))
    run_study(study, tmp_path / "packed", ("train",), Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("packed/packs/*/done.json"))) == len(before) + 2
    assert len(list(tmp_path.glob("packed/members/d16-L1-f32-s2-*"))) == 1


def test_packs_keep_their_members():
    from wane.launch.expand import pack_seeds

    assert pack_seeds([0, 1, 2], 2) == [[0, 1], [2]]
    assert pack_seeds([0, 1, 2, 3, 4], 2, [[0, 1], [2]]) == [[0, 1], [2], [3, 4]]
    assert pack_seeds([1, 2], 2, [[0, 1], [2]]) == [[2], [1]]


def test_a_study_that_diverges_keeps_its_members_with_the_reason(tmp_path):
    """Also members whose mask comes from a diverged one; the report names them."""
    study = (
        "train.lr=1e6",
        "train.clip=1e9",
        "family.parametrization.name=standard",
        "seeds=0",
        "sweep_steps=[]",
    )
    run(tmp_path, extra=[word for a in study for word in ("--set", a)])
    table = load_curves(tmp_path)
    assert set(table.status) == {"diverged"}
    assert table.value.isna().all()
    assert set(table.arm) == {"", "early", "rewound"}
    assert table[table.arm == "rewound"].reason.str.contains("which gives its mask").all()
    assert set(table[table.method == "random_heads"].layer.dropna()) == {0, 1, 2, 3}
    assert "diverged at step" in (tmp_path / "report" / "index.html").read_text()


def test_cells_computed_one_by_one_are_those_of_the_run(tmp_path):
    """What a launcher does: train, then each cell by its id."""
    out = tmp_path / "study"
    extra = ("--set", "family.depths=1", "--set", "seeds=0", "--set", "arms=[]", "--set", "sweep_steps=[]")
    assert main(["train", STUDY, "--out", str(out), *extra]) == 0
    cells = json.loads((out / "study.json").read_text())["cells"]
    sweeps = [cell["id"] for cell in cells if cell["title"].startswith("sweep")]
    assert main(["cell", sweeps[0], "--study", str(out)]) == 0
    assert main(["cell", sweeps[0], "--study", str(out)]) == 0  # done: nothing to do
    alone = (out / "cells" / sweeps[0] / "rows.parquet").read_bytes()
    assert main(["sweep", STUDY, "--out", str(out), *extra]) == 0
    assert (out / "cells" / sweeps[0] / "rows.parquet").read_bytes() == alone
    assert (out / "curves.parquet").exists()
    assert not (out / "report").exists()
    assert main(["cell", "0000", "--study", str(out)]) == 2
