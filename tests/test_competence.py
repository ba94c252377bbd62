"""The competence gate asks for every part that makes a task the task."""

import itertools

import numpy as np
import pandas as pd
import pytest
from report_rows import curves_of, point
from test_sweep import SHAPE

from wane.eval import competence, summary
from wane.eval.competence import POOLED, has_parts
from wane.eval.learning import accuracies, learned, learned_in, learned_text
from wane.eval.metrics import METRICS
from wane.eval.rows import as_asked, parts, token_rows
from wane.train.data import TASKS, Data, open_data

SCORE, SHARE, DEEP = 0.9, 0.8, "d64-L9"


def rows_of(name, right, seeds=2, levels=True, sequences=200, **more):
    """Rows of undegraded members that are right where `right(level)` says, in numbers as an evaluation asks."""
    stream = open_data(Data(context=96, facts=64, task_shares={name: 1.0}), steps=1, batch_size=1)
    data = stream.evaluation(sequences, 3)
    hit = np.where(data.scored_NS, np.vectorize(right, otypes=[float])(data.level_NS), np.nan)
    task = as_asked(data)[0]
    told = {"task": name, "chance": task.chance, "ceiling": task.ceiling, "count": int(data.scored_NS.sum())}
    found = [told | {"metric": "accuracy", "value": float(np.nanmean(hit))}]
    if levels:
        (part,) = parts("level", data, stream)
        found += list(token_rows(METRICS["accuracy_by_level"], hit, part, SHAPE))
    return [
        point(DEEP, seed, severity, **(row | {"unit": "fraction"} | more))
        for seed, severity, row in itertools.product(range(seeds), (0.0, 0.5), found)
    ]


def gate_of(folder, rows):
    frame = summary.prepare(curves_of(folder, rows))
    return summary.competence(frame, score=SCORE, share=SHARE).iloc[0]


# A model that has everything but the skill that makes the task the task, and the part that it lacks.
WITHOUT = {
    "B": (lambda level: level == 0, "triggered"),
    "M3": (lambda level: level % 100 > 50, "direct"),
    "T1": (lambda level: level == 0, "exception"),
    "T13": (lambda level: level < 10, "exception"),
    "L2": (lambda level: level == 0, "1 attractors"),
    "L3": (lambda level: level == 1, "nested"),
    "L4": (lambda level: level == 0, "held out"),
    "R1": (lambda level: level < 70, "distance 88"),
    "M1": (lambda level: level < 2, "2 hops"),
    "M2": (lambda level: level == 1 or level > 10, "chain"),
    "P": (lambda level: level % 10 > 1, "choice of the arm"),
    "I": (lambda level: level % 100 < 10, "held-out length"),
    "T2": (lambda level: level < 27, "27 rumours per truth"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_who_lacks_what_makes_the_task_does_not_pass(tmp_path, name):
    right, part = WITHOUT[name]
    found = gate_of(tmp_path, rows_of(name, right))
    assert part in found["weakest"]
    assert not found["assessable"]
    assert found["score"] <= 0


def test_a_trigger_that_is_ignored_would_pass_with_levels_together(tmp_path):
    """Near .9 in B: the pooled score is what a few items more or less make of it."""
    right = lambda level: level == 0  # noqa: E731
    pooled = gate_of(tmp_path, rows_of("B", right, levels=False, sequences=40))
    assert pooled["score"] == pytest.approx(0.9, abs=0.02)
    assert pooled["weakest"] == POOLED
    whole = gate_of(tmp_path, rows_of("B", lambda level: True))
    assert whole["assessable"]
    assert whole["score"] == 1


def test_each_cell_of_x_has_its_own_ceiling(tmp_path):
    """Who knows the map is right in half of the answers by chance: as good as can be."""
    best = rows_of("X", lambda level: 0.5 if level >= 100 else 1.0)
    found = gate_of(tmp_path, best)
    assert found["score"] == pytest.approx(1, abs=1e-6)
    assert found["assessable"]
    near = gate_of(
        tmp_path, rows_of("X", lambda level: (0.5 if level >= 100 else 1.0) if level % 100 == 1 else 0)
    )
    assert near["weakest"].startswith("far")
    # of all answers together, a cell above its ceiling would make up for one below
    lucky = gate_of(tmp_path, rows_of("X", lambda level: 1.0 if level != 1 else 0.5))
    assert (lucky["weakest"], bool(lucky["assessable"])) == ("local, certain", False)


def test_levels_where_nothing_can_be_shown_are_of_no_part(tmp_path):
    assert gate_of(tmp_path, rows_of("M1", lambda level: level > 0))["assessable"]  # 0 hops is reading
    ceiling = TASKS["G"].ceiling
    hidden = lambda level: ceiling * (level % 10 == 0 or level // 10 > 3)  # noqa: E731
    found = gate_of(tmp_path, rows_of("G", hidden))
    assert found["assessable"]
    assert found["score"] == pytest.approx(1)


def test_a_part_counts_by_its_answers_not_by_its_levels(tmp_path):
    """M3 has 13 lengths a part: the one that few items have is not the part."""
    found = gate_of(tmp_path, rows_of("M3", lambda level: level != 316))
    assert found["weakest"] == "S3, direct"
    assert 0.7 < found["score"] < 1 - 0.5 / 13


def test_tasks_without_parts_and_tables_without_levels_are_judged_as_they_were(tmp_path):
    for name, weakest in (("K", ""), ("M3", POOLED)):
        found = gate_of(tmp_path, rows_of(name, lambda level: 0.95, levels=False))
        assert (found["weakest"], bool(found["assessable"])) == (weakest, True)
    assert [name for name in TASKS if not has_parts(name)] == ["L1", "L1o2", "S", "R2", "K", "E", "L0"]


def test_one_seed_may_be_weak_elsewhere(tmp_path):
    rows = rows_of("B", lambda level: level, seeds=5) + [
        row | {"init_seed": 9, "member_id": row["member_id"] + "x"}
        for row in rows_of("B", lambda level: not level, seeds=1)
    ]
    found = gate_of(tmp_path, rows)
    assert (found["weakest"], found["seeds"], found["passing"]) == ("clean", 6, 0)


def test_the_gate_along_training_names_the_part(tmp_path):
    rows = rows_of("B", lambda level: level == 0)
    table = curves_of(tmp_path, rows)
    numbers = accuracies(table)
    text = learned_text(learned(numbers, score=SCORE, share=SHARE))
    assert "not assessable (-0.01, triggered)" in text
    numbers.to_csv(tmp_path / "numbers.csv", index=False)
    assert learned_in(tmp_path / "numbers.csv", SCORE, SHARE) == text
    bare = pd.read_csv(tmp_path / "numbers.csv").drop(columns=["weakest", "weakest_score"])
    bare.to_csv(tmp_path / "bare.csv", index=False)
    assert "triggered" not in learned_in(tmp_path / "bare.csv", SCORE, SHARE)


def test_the_weakest_part_that_is_named_is_that_of_the_lowest_seed():
    rows = pd.DataFrame(
        {
            "group": "w", "task": "M1", "chance": 0.0, "ceiling": 1.0, "value": 1.0,
            competence.WEAKEST: ["1 hops", "2 hops"], competence.WEAKEST_SCORE: [0.99, 0.85],
        }
    )  # fmt: skip
    (found,) = competence.gate(rows, ["task", "group"], score=0.9, share=0.8).to_dict("records")
    assert (found["weakest"], found["score"], found["assessable"]) == ("2 hops", pytest.approx(0.92), False)
