"""One answer in every readout against loops over whole forward passes in float64; all cells as rows of a sweep."""

import dataclasses
import functools
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model
from degrade_cases import QUICK
from test_continuation import SHAPE, TOKENS, drawn, shaken, view_of
from test_sweep import SHAPE as GRADED
from test_sweep import rows_of, splits_of, subject_of

from wane.eval.measure import Batches
from wane.eval.metrics import METRICS, generation, saying
from wane.eval.metrics.answers import READOUTS
from wane.eval.metrics.factorial import CELLS, TWINS, Cell, whole_answers
from wane.eval.metrics.factorial import TOKENS as LENGTHS
from wane.eval.rows import as_asked
from wane.eval.study import Degrade, Evaluation
from wane.train.data import TASKS, Data, open_data

B, S = 3, SHAPE.context
VALUES_B2 = np.array([[5, 9], [0, 0], [11, 3]])  # of the second row any token may come


def items():
    """Options [B, S, 4] that hold the answer among values, and runs of scored tokens of 1 to 4."""
    rng, target = np.random.default_rng(1), np.asarray(TOKENS)[:, 1:]
    scored = rng.random((B, S)) < 0.7
    options = np.full((B, S, 4), -1)
    for b, s in np.argwhere(scored & (VALUES_B2[:, 1:] > 0)):
        first, count = VALUES_B2[b]
        wrong = rng.permutation([v for v in range(first, first + count) if v != target[b, s]])[:3]
        options[b, s, : 1 + len(wrong)] = rng.permutation([target[b, s], *wrong])
    return scored, options


SCORED, OPTIONS = items()
ALL = (*TWINS, *TWINS.values())


def allowed(readout, b, s):
    if readout == "options":
        return [v for v in OPTIONS[b, s] if v >= 0]
    first, count = VALUES_B2[b]
    return range(first, first + count) if readout == "values" else range(SHAPE.vocab)


def slow(params, edit, readout, reads, temperature):
    """What is said of every scored token [B, S], -1 of others: a forward pass of the whole row for each."""
    trained = jax.tree.map(np.asarray, params)
    edited = {"params": {"blocks": jax.tree.map(np.asarray, edit.params["blocks"])}}
    key_B, out = saying.noise_keys(TOKENS), np.full((B, S), -1)
    for b in range(B):
        row = np.array(TOKENS[b, :-1])
        for s in range(S):
            if s and not SCORED[b, s - 1]:
                row = np.array(TOKENS[b, :-1])  # behind an answer stands the truth
            if not SCORED[b, s] or not len(allowed(readout, b, s)):
                continue
            z_V = reference_model.forward(trained, row[None, : s + 1], SHAPE, edit=edited)[0, -1]
            if reads == "itself":
                z_V = z_V + temperature * np.asarray(saying.noise_at(key_B, s, SHAPE.vocab))[b]
            out[b, s] = max(allowed(readout, b, s), key=lambda v: z_V[v])
            if reads == "itself" and s + 1 < S:
                row[s + 1] = out[b, s]
    return out


@functools.partial(jax.jit, **QUICK)
def measured(params, edit, temperature):
    """Metric -> (sums, counts) [B], and what is said by every readout."""
    view = view_of(params, edit)
    batch = view.batch._replace(
        scored_BS=jnp.asarray(SCORED), options_BSO=jnp.asarray(OPTIONS), values_B2=jnp.asarray(VALUES_B2),
        temperature_B=jnp.full(B, temperature),
    )  # fmt: skip
    view = dataclasses.replace(view, batch=batch)
    told = {name: METRICS[name].measure(view) for name in CELLS.values()}
    return told, generation.said_among(view) | {"vocabulary": generation.said(view)}


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_every_cell_against_loops(temperature):
    params = drawn()
    edit, target = shaken(params, ("q", "v", "up")), np.asarray(TOKENS)[:, 1:]
    told, said = measured(params, edit, temperature)
    whole = {}
    for readout, reads in product(READOUTS, ("truth", "itself")):
        expected = slow(params, edit, readout, reads, temperature)
        counted = expected >= 0
        if reads == "itself":
            np.testing.assert_array_equal(np.asarray(said[readout])[counted], expected[counted])
        total, count = told[CELLS[Cell(readout, reads, False)]]
        np.testing.assert_array_equal(total, ((expected == target) & counted).sum(1))
        np.testing.assert_array_equal(count, counted.sum(1))
        total, count = told[CELLS[Cell(readout, reads, True)]]
        for b in range(B):
            (runs,) = runs_of(counted[b : b + 1])
            hits = iter((expected == target)[b][counted[b]])
            whole[b] = [min([next(hits) for _ in run]) for run in runs]
            assert (total[b], count[b]) == (sum(whole[b]), len(runs))
    heard = [np.where(SCORED & (VALUES_B2[:, 1:] > 0), said[readout], -1) for readout in READOUTS]
    assert not np.array_equal(heard[0], heard[1])
    assert not np.array_equal(heard[1], heard[2])


def test_temperature_draws_and_none_is_greedy():
    params = drawn()
    edit = shaken(params, ("q", "v", "up"))
    (_, cold), (_, hot) = (measured(params, edit, t) for t in (0.0, 2.0))
    for readout in READOUTS:
        share = np.mean((np.asarray(cold[readout]) == hot[readout])[SCORED & (VALUES_B2[:, 1:] > 0)])
        assert share < 0.9, readout


def test_whole_answers_that_are_known():
    right = jnp.asarray([[0, 1, 1, 1, 0, 1, 1, 0]], bool)
    scored = jnp.asarray([[1, 0, 1, 1, 0, 1, 1, 1]], bool)
    assert [float(a[0]) for a in whole_answers(right, scored)] == [1, 3]
    assert [float(a[0]) for a in whole_answers(right, scored, jnp.asarray([2]))] == [1, 2]
    assert [float(a[0]) for a in whole_answers(right, scored, jnp.asarray([3]))] == [0, 1]


@pytest.fixture(scope="module")
def twins():
    """A random model under two severities, all metrics of the factorial, and the evaluation set."""
    data = Data(sources="graded", context=64, facts=16, task_shares=dict.fromkeys(ALL, 1.0))
    subject = subject_of(
        splits_of(open_data(data, steps=4, batch_size=4), 3), shape=dataclasses.replace(GRADED, context=64)
    )
    subject.settings = Evaluation(
        metrics=("loss", "accuracy", "answers", "factorial", "accuracy_free_running", "whole_answers",
                 "whole_answers_free_running"),
        sequences=3, calibration_sequences=4,
    )  # fmt: skip
    rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.3,)))
    return subject, [r for r in rows if r["severity"] > 0]


def runs_of(scored_NS):
    return ["".join("x" if s else " " for s in row).split() for row in scored_NS]


def test_answers_of_the_tasks_are_as_long_as_is_said(twins):
    """Where the row does not cut them off: such answers are not counted as whole ones."""
    subject, rows = twins
    found, cut = subject.splits.evaluation, 0
    for i, task in enumerate(found.tasks):
        lengths = [len(run) for row in runs_of(found.scored_NS[found.task_N == i]) for run in row]
        least = 3 if task.name in TWINS.values() else 1
        whole = [length for length in lengths if length >= least]
        assert {length % least for length in whole} == {0}
        assert task.name not in LENGTHS or set(whole) == {LENGTHS[task.name]}
        counts = {r["count"] for r in rows if r["metric"] == "whole_answers" and r["task"] == task.name}
        assert counts == {len(whole)}
        cut += len(lengths) - len(whole)
    assert 0 < cut < 9


def test_every_cell_has_a_row_of_the_same_items(twins):
    subject, rows = twins
    chance = {task.name: task.chance for task in as_asked(subject.splits.evaluation)}
    assert chance["R2"] == pytest.approx(
        1 / 4, abs=0.13
    )  # a guess among the values in the row, not among all
    assert chance["T1"] == TASKS["T1"].chance
    told = {(r["metric"], r["task"]): r for r in rows if r["axis"] is None}
    assert len(CELLS) == 3 * 2 * 2 == len(set(CELLS.values()))
    for task in ALL:
        tokens = LENGTHS.get(task)
        of = {cell: told[name, task] for cell, name in CELLS.items()}
        for whole in (False, True):
            assert len({row["count"] for cell, row in of.items() if cell.whole == whole}) == 1
        for cell, row in of.items():
            by_chance = 1 / 4 if cell.readout == "options" else chance[task]
            mixed = (
                task == "R23" and cell.readout != "options"
            )  # the mean of cubes is not the cube of the mean
            of_all = None if tokens is None or mixed else by_chance**tokens
            assert row["chance"] == (pytest.approx(of_all) if cell.whole else by_chance)
            assert row["ceiling"] == 1
            if tokens == 1:  # nothing is read again, and a token is all of the answer
                assert row["value"] == of[Cell(cell.readout, "truth", False)]["value"]
        # a model of random weights is right by chance: more often among fewer
        forced = [of[Cell(readout, "truth", False)]["value"] for readout in READOUTS]
        assert forced == sorted(forced, reverse=True)


def test_another_temperature_compiles_nothing_and_says_something_else(twins):
    subject, rows = twins
    engine = subject.engine(Degrade(method="random_weights", severities=(0.3,)), 1)
    before, cold = engine.measure.executables(), subject.batches
    try:
        subject.batches = Batches.of(subject.splits.evaluation, cold.tokens.shape[1], temperature=3.0)
        hot, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.3,)))
    finally:
        subject.batches = cold
    assert engine.measure.executables() == before
    both = [
        {(r["metric"], r["task"]): r["value"] for r in some if r["severity"] > 0 and r["axis"] is None}
        for some in (rows, hot)
    ]
    said = {name for cell, name in CELLS.items() if cell.reads == "itself"}
    for key in both[0]:
        assert key[0] in said or both[0][key] == both[1][key], key
    moved = {name for name in said if any(both[0][name, task] != both[1][name, task] for task in ALL)}
    assert "accuracy_of_options_free_running" in moved


def test_a_temperature_is_of_studies_that_say_something():
    degrade = Degrade(method="rtn", severities=(4.0,))
    said = dataclasses.replace(degrade, metrics=("accuracy_of_values_free_running",))
    warm = Evaluation(temperature=0.7)
    assert warm.of(said).temperature == 0.7
    assert warm.of(degrade) == Evaluation()
    for wrong in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"evaluation.temperature = {wrong}: must be 0 or more"):
            Evaluation(temperature=wrong)
