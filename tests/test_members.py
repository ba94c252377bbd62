"""Members of a study directory by name: their degradations are those of its sweeps; what they say, in words."""

import jax
import numpy as np
import pytest
from rich.console import Console

from wane.eval import load_curves
from wane.eval.members import read_json
from wane.eval.samples import samples_section
from wane.eval.study import Degrade, Evaluation, Study
from wane.launch.members import trained_member
from wane.launch.run import run_study
from wane.launch.samples import samples_in, words
from wane.scaling.family import exact_ladder
from wane.scaling.model import apply, nll
from wane.train.config import Train
from wane.train.data import Data

DEGRADATIONS = (
    Degrade(method="random_weights", severities=(0.5,), draws=2),
    Degrade(method="wanda", severities=(0.5,), calibration="random"),
    Degrade(method="rtn", severities=(3.0,)),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    study = Study(
        name="small",
        family=exact_ladder(16, depths=(1,), head_dim=8),
        data=Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0}),
        train=Train(tokens=4096, tokens_per_param=None, batch_size=8),
        seeds=(0, 1),
        degradations=DEGRADATIONS,
        evaluation=Evaluation(sequences=4, batch=4, calibration_sequences=4),
    )
    out = tmp_path_factory.mktemp("members")
    run_study(study, out, ("train", "sweep"), Console(quiet=True))
    return out


def ids(directory) -> list[str]:
    return sorted(load_curves(directory)["member_id"].unique())


@pytest.mark.parametrize("degrade", DEGRADATIONS, ids=lambda degrade: degrade.method)
def test_the_edit_is_that_of_the_sweep(directory, degrade):
    for member in ids(directory):
        for draw in range(degrade.draws):
            found = trained_member(directory, member)
            edit = found.edit(degrade, draw)
            tokens_NT = found.plan.splits.evaluation.tokens_NT
            with jax.default_matmul_precision("highest"):
                x_NSD = apply(found.params, tokens_NT[:, :-1], found.shape, edit).x_BSD
                loss = float(np.mean(nll(found.params, x_NSD, tokens_NT, found.shape)))
            row = load_curves(directory).query(
                f"member_id == '{member}' and method == '{degrade.method}' and metric == 'loss' and task == 'all' "
                f"and draw == {draw} and severity > 0"
            )
            assert row["value"].item() == pytest.approx(loss, rel=1e-5)


def test_a_member_is_named_by_the_beginning_of_its_id(directory):
    first, second = ids(directory)
    assert trained_member(directory, first[:-3]).id == first
    with pytest.raises(ValueError, match=r"several begin so .*choose one of"):
        trained_member(directory, "d16")
    with pytest.raises(ValueError, match=f"no such member .*{second}"):
        trained_member(directory, "d17")


def test_samples_stand_side_by_side(directory):
    asked = [Degrade(method="magnitude_weights", severities=(s,)) for s in (0.0, 1.0)]
    text = samples_in(directory, ids(directory)[0], asked, 0, ("S",), 2)
    assert text.startswith("S\n")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| <S>")]
    assert [row[1] for row in rows] == ["0", "1", "0", "1"]
    assert all(row[2] == row[3] for row in rows if row[1] == "0")
    assert any(row[2] != row[3] for row in rows if row[1] == "1")
    assert "L1\n" in samples_in(directory, ids(directory)[0], asked[:1], 0, (), 1)


def test_samples_are_recorded_for_the_report(directory):
    (directory / "samples.json").unlink(missing_ok=True)
    first, second = ids(directory)
    for member, severity, draw in ((first, 0.5, 0), (second, 0.5, 0), (first, 1.0, 0), (first, 1.0, 1)):
        samples_in(
            directory, member, [Degrade(method="random_weights", severities=(severity,))], draw, ("S",), 1
        )
    recorded = read_json(directory / "samples.json").values()
    assert [(e["member"], e["degradation"].rpartition(" ")[2]) for e in recorded] == [
        (first, "0"), (second, "0"), (first, "1")
    ]  # fmt: skip
    assert [e["tasks"]["S"][0]["severity"] for e in recorded] == [1.0, 0.5, 1.0]
    asked = [Degrade(method="random_weights", severities=(0.5,))]
    cold = read_json(directory / "samples.json")
    samples_in(directory, second, asked, 0, ("S",), 1, temperature=2.0)
    hot = read_json(directory / "samples.json")
    (added,) = hot.keys() - cold.keys()  # beside the greedy ones
    assert added.endswith("draw 0, temperature 2")
    assert hot[added]["tasks"]["S"] != cold[added.removesuffix(", temperature 2")]["tasks"]["S"]
    shown = samples_section(cold)
    assert shown.count("<table>") == 3
    assert all(f"{e['member']} · random_weights" in shown for e in recorded)


def test_samples_refuse_what_is_not_there_in_one_line(directory):
    asked = [Degrade(method="magnitude_weights", severities=(0.5,))]
    with pytest.raises(ValueError, match="--task = K: not of this study; choose from L1, S"):
        samples_in(directory, ids(directory)[0], asked, 0, ("K",), 1)
    with pytest.raises(ValueError, match="--temperature = -1: must be 0"):
        samples_in(directory, ids(directory)[0], asked, 0, ("S",), 1, temperature=-1)
    with pytest.raises(ValueError, match="--severities: must be at least one"):
        samples_in(directory, ids(directory)[0], [], 0, (), 1)


def test_words_of_the_graded_language(directory):
    stream = trained_member(directory, ids(directory)[0]).stream
    assert words(stream, 1, [4, 64, 65]).split()[1:] == ["s0", "s1"]
