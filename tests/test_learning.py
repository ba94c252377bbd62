"""What is learnt, and when: the gate along training."""

import math
from pathlib import Path

import pandas as pd
import pytest

from wane.eval.learning import accuracies, learned, learned_in, learned_text
from wane.launch.studies import load_study
from wane.train.data import vocabulary

DOCS = Path(__file__).parents[1] / "docs"
MUST_PASS = {"L1", "L2", "S", "X", "K", "R1"}  # in every shape of the CPU tier, with one recipe


def rows(**accuracy: dict[str, list[float]]) -> pd.DataFrame:
    """accuracy: member -> task -> one value per step of a million tokens; chance 0, ceiling 1."""
    return pd.DataFrame(
        {
            "group": member[0],
            "member_id": member,
            "task": task,
            "train_tokens": 1e6 * (step + 1),
            "value": value,
        }
        | {"chance": 0.0, "ceiling": 1.0}
        for member, tasks in accuracy.items()
        for task, values in tasks.items()
        for step, value in enumerate(values)
    )


def test_tokens_are_those_of_the_first_step_from_which_on_the_gate_is_passed():
    found = learned(
        rows(
            w0={"S": [0.1, 0.95, 0.97, 0.99], "K": [0.95, 0.95, 0.8, 0.95], "M": [0.9, 0.9, 0.9, 0.2]},
            w1={"S": [0.1, 0.5, 0.92, 0.99], "K": [0.95, 0.95, 0.9, 0.95], "M": [0.9, 0.9, 0.9, 0.9]},
        ),
        score=0.9,
        share=0.8,
    ).set_index("task")
    assert list(found.index) == ["S", "K", "M"]
    assert found.loc["S", "tokens"] == 3e6  # at 2M one of two seeds passes
    assert found.loc["K", "tokens"] == 4e6  # passed before, and lost in between
    assert math.isnan(found.loc["M", "tokens"])
    assert not found.loc["M", "assessable"]
    assert found.loc["S", "score"] == pytest.approx(0.99)


def test_a_step_that_a_seed_lacks_is_left_out():
    both = rows(w0={"S": [0.1, 0.95, 0.2]}, w1={"S": [0.1, 0.95]})
    found = learned(both, score=0.9, share=0.8)
    assert found.loc[0, "tokens"] == 2e6
    assert found.loc[0, "seeds"] == 2


def test_score_is_between_chance_and_ceiling():
    found = learned(rows(w0={"L1": [0.47]}).assign(chance=0.1, ceiling=0.5), score=0.9, share=0.8)
    assert found.loc[0, "score"] == pytest.approx(0.925)
    assert found.loc[0, "assessable"]


def test_text():
    text = learned_text(learned(rows(w0={"S": [0.1, 0.95]}, d0={"S": [0.1, 0.4]}), score=0.9, share=0.8))
    assert text.splitlines() == [
        "| task | chance | ceiling | w | d |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| S | 0 | 1 | 2M (0.95) | not assessable (0.40) |",
    ]


def test_accuracies_are_of_models_as_they_were_trained():
    base = {
        "metric": "accuracy", "axis": None, "severity": 0.0, "severity_2": None, "pruned": "never", "status": "ok",
        "chance": 0.1, "ceiling": 1.0, "shape": "d32", "arm": "", "member_id": "m", "task": "S", "value": 0.9,
        "train_tokens": 10, "train_step": 1, "evaluation_digest": "e", "at": None, "count": 5,
    }  # fmt: skip
    of_level = {"metric": "accuracy_by_level", "axis": "level", "at": 3.0}
    others = (
        {"severity": 0.5, "pruned": "after"}, {"severity_2": 0.5}, {"axis": "level"}, {"metric": "loss"},
        {"pruned": "before"}, {"chance": None}, {"status": "diverged"}, of_level,
    )  # fmt: skip
    table = pd.DataFrame([base, *(base | other | {"value": 0.1} for other in others)])
    found = accuracies(table)
    assert found.to_dict("records") == [
        {
            "group": "d32",
            "member_id": "m",
            "task": "S",
            "train_tokens": 10,
            "value": 0.9,
            "chance": 0.1,
            "ceiling": 1,
            "weakest": pytest.approx(math.nan, nan_ok=True),
            "weakest_score": pytest.approx(math.nan, nan_ok=True),
        }
    ]
    in_parts = [
        row | {"task": "B"} for row in (base, base | of_level, base | of_level | {"at": 0.0, "value": 1.0})
    ]
    (found,) = accuracies(pd.DataFrame(in_parts)).to_dict("records")
    assert (found["weakest"], found["weakest_score"]) == ("triggered", pytest.approx(0.8 / 0.9))


def test_the_table_of_a_file_is_the_table_of_its_study(tmp_path, monkeypatch):
    along = rows(w0={"S": [0.1, 0.95]}, d0={"S": [0.123456789, 0.4]})
    monkeypatch.setattr("wane.eval.learning.load_curves", lambda source: along)
    monkeypatch.setattr("wane.eval.learning.accuracies", lambda table: table)
    text = learned_in(tmp_path / "study", 0.9, 0.8, tmp_path / "rows.csv")
    assert (
        learned_in(tmp_path / "rows.csv", 0.9, 0.8)
        == text
        == learned_text(learned(along, score=0.9, share=0.8))
    )
    assert "2M (0.40)" in learned_in(tmp_path / "rows.csv", 0.4, 0.8)


def test_a_file_of_something_else_is_refused_in_one_line(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: has no columns ceiling, chance, group"):
        learned_in(tmp_path / "other.csv", 0.9, 0.8)
    rows(w0={"S": [0.1]})[:0].to_csv(tmp_path / "empty.csv", index=False)
    with pytest.raises(ValueError, match="no accuracy of a task"):
        learned_in(tmp_path / "empty.csv", 0.9, 0.8)


def test_the_table_of_sums_alone_is_that_of_its_numbers():
    numbers = DOCS / "learnability_m2.csv"
    assert learned_in(numbers, 0.9, 0.8) in (DOCS / "learnability.md").read_text()
    (row,) = learned(pd.read_csv(numbers), score=0.9, share=0.8).to_dict("records")
    assert row["task"] == "M2"
    assert row["assessable"]
    assert pd.read_csv(numbers)["weakest"].eq("chain").all(), "written steps and single sums come before"


def test_the_committed_table_is_that_of_its_numbers():
    numbers = DOCS / "learnability.csv"
    assert learned_in(numbers, 0.9, 0.8) in (DOCS / "learnability.md").read_text()
    found = learned(pd.read_csv(numbers), score=0.9, share=0.8)
    study = load_study("learnability", [])
    shapes = study.family.shapes(vocab=vocabulary.SIZE, context=study.data.context)
    assert set(found["group"]) == {shape.name for shape in shapes}
    assert set(found["task"]) == set(study.data.shares)
    assert (found["seeds"] == len(study.seeds)).all()
    assert len(study.seeds) > 1
    in_parts = {"L2", "L3", "M1", "M2", "R1", "X"}  # the gate is that of their weakest part
    along = pd.read_csv(numbers)
    assert set(along.loc[along["weakest_score"].notna(), "task"]) >= in_parts
    for shape, part in found.groupby("group"):
        assert set(part.loc[part["assessable"], "task"]) >= MUST_PASS, shape
