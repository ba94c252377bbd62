"""Retrieval by states: planted states whose answer is known, and a loop over queries in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of

from wane.eval.metrics import retrieval
from wane.eval.metrics.contract import Kept
from wane.eval.metrics.retrieval import PARTS
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation
from wane.scaling.edit import Edit
from wane.train.data import Data, open_data
from wane.train.data.graded_retrieval import RENDERING, pairs

D, SECOND = 16, 1  # of a pair the second rendering


@pytest.fixture(scope="module")
def evaluation():
    """20 rows of E, 3 whole items each, behind 5 rows of S."""
    stream = open_data(Data(context=64, task_shares={"S": 1.0, "E": 1.0}), steps=1, batch_size=1)
    data = stream.evaluation(20, 0)
    rows = np.r_[0:5, 20:40]
    return data.tokens_NT[rows], data.values_N2[rows]


def view_of(tokens_BT, values_B2, x_BSD, counted_B=None):
    empty = dict.fromkeys(Batch._fields)
    counted_B = np.ones(len(tokens_BT)) if counted_B is None else counted_B
    given = {"tokens_BT": tokens_BT, "values_B2": values_B2, "counted_B": counted_B}
    batch = Batch(**empty | {name: jnp.asarray(a) for name, a in given.items()})
    return View(
        shape=SHAPE, params={}, degraded={}, edit=Edit(), batch=batch, x_BSD=jnp.asarray(x_BSD), stream=None
    )


def random_states(tokens_BT, seed=0):
    return np.random.default_rng(seed).normal(size=(*tokens_BT[:, 1:].shape, D)).astype(np.float32)


def planted(tokens_BT, noise, seed=0, common=0.0):
    """States that hold one random vector per record, in all tokens of both renderings, and noise."""
    rng, x_BSD = np.random.default_rng(seed), noise * random_states(tokens_BT, seed + 1)
    for b in np.flatnonzero(tokens_BT[:, 0] == tokens_BT[-1, 0]):
        for ends in pairs(tokens_BT[b : b + 1])[0]:
            record = rng.normal(size=D)
            for end in ends:
                x_BSD[b, end - RENDERING + 1 : end + 1] += record
    return np.float32(x_BSD + common)


def whole(view):
    """What is kept, of one batch that is all there is."""
    return Kept(retrieval.renderings(view))


def value(view, pool, score):
    total, count = retrieval.among(pool, score)(whole(view))
    return np.asarray(total, np.float64).sum(0) / np.asarray(count).sum(0), np.asarray(count)


def slow(tokens_BT, x_BSD, pool):
    """(recall@1, mean reciprocal rank) of each part, one query after another, without ties."""
    items = []
    for b in range(len(tokens_BT)):
        if tokens_BT[b, 0] == tokens_BT[-1, 0]:
            items += [(b, first, second) for first, second in pairs(tokens_BT[b : b + 1])[0]]
    told = {part: [] for part in PARTS}
    for start in range(0, len(items) // pool * pool, pool):
        chosen = items[start : start + pool]
        for kind in ("last", "mean"):
            width = 1 if kind == "last" else RENDERING
            states = [
                [np.float64(x_BSD[b, end - width + 1 : end + 1]).mean(0) for end in ends]
                for b, *ends in chosen
            ]
            mean = np.mean([second for _, second in states], axis=0)
            for centring, shift in (("raw", 0 * mean), ("centred", mean)):
                for i, (query, _) in enumerate(states):
                    q = query - shift
                    others = [second - shift for _, second in states]
                    cosine = [q @ o / np.sqrt((q @ q) * (o @ o)) for o in others]
                    told[f"{kind} {centring}"].append(1 + sum(c > cosine[i] for c in cosine))
    ranks = np.array([told[part] for part in PARTS])
    return (ranks == 1).mean(1), (1 / ranks).mean(1)


@pytest.mark.parametrize("pool", [4, 16])
@pytest.mark.parametrize("common", [0.0, 10.0])
def test_ranks_against_loops(evaluation, pool, common):
    tokens_BT, values_B2 = evaluation
    x_BSD = planted(tokens_BT, noise=3.0, common=common)
    view = view_of(tokens_BT, values_B2, x_BSD)
    expected = slow(tokens_BT, x_BSD, pool)
    assert (expected[0] > 0).all()
    assert (expected[0] < 1).all()
    found = [value(view, pool, score)[0] for score in (retrieval.recall, retrieval.reciprocal_rank)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_same_state_in_both_renderings_is_always_found(evaluation):
    """With a common direction a hundred times as long, as well: centring takes it off."""
    view = view_of(*evaluation, planted(evaluation[0], noise=0.0))
    assert value(view, 16, retrieval.recall)[0].tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(value(view, 16, retrieval.reciprocal_rank)[0], 1, rtol=1e-6)
    far = view_of(*evaluation, planted(evaluation[0], noise=0.0, common=100.0))
    recall = dict(zip(PARTS, value(far, 16, retrieval.recall)[0], strict=True))
    assert recall["last centred"] == recall["mean centred"] == 1


def test_states_that_know_nothing_are_at_chance():
    """Random ones by many draws; equal ones exactly, whatever the order of the pool."""
    stream = open_data(Data(context=64, task_shares={"E": 1.0}), steps=1, batch_size=1)
    data = stream.evaluation(600, 0)

    @jax.jit
    def measured(x_BSD):
        kept = whole(view_of(data.tokens_NT, data.values_N2, x_BSD))
        return [metric.measure(kept) for metric in retrieval.METRICS]

    random = measured(random_states(data.tokens_NT))
    equal = [measured(np.full((600, 64, D), constant, np.float32)) for constant in (0.0, 3.0)]
    for metric, (total, count), *others in zip(retrieval.METRICS, random, *equal, strict=True):
        pool = metric.places(SHAPE)[0].at
        assert set(np.unique(count)) <= {0, 1, 2, 3}
        assert count[:, 0].sum() == 1800 // pool * pool
        chance, ceiling = metric.bounds(data.tasks[0])
        np.testing.assert_allclose(total.sum(0) / count.sum(0), chance, atol=4 * (chance / 1800) ** 0.5)
        assert ceiling == 1
        for total, count in others:
            np.testing.assert_allclose(total.sum(0) / count.sum(0), chance, rtol=1e-5)


def test_ties_are_the_mean_over_their_orders():
    cosine = jnp.asarray([[0.5, 0.5, 0.9], [0.1, 0.3, 0.3], [0.2, 0.2, 0.2]])
    better, equal = retrieval.standing(cosine)
    assert better.tolist() == [1, 0, 0]
    assert equal.tolist() == [2, 2, 3]
    np.testing.assert_allclose(retrieval.recall(better, equal), [0, 1 / 2, 1 / 3])
    expected = [(1 / 2 + 1 / 3) / 2, (1 + 1 / 2) / 2, (1 + 1 / 2 + 1 / 3) / 3]
    np.testing.assert_allclose(retrieval.reciprocal_rank(better, equal), expected, rtol=1e-6)


def test_only_whole_pools_of_whole_items_of_this_task_count(evaluation):
    tokens_BT, values_B2 = evaluation
    x_BSD = planted(tokens_BT, noise=0.0)
    view = view_of(tokens_BT, values_B2, x_BSD)
    _, count = value(view, 16, retrieval.recall)
    assert count.sum(0).tolist() == [48] * 4  # of 60 items, 3 a row
    assert count[:, 0].tolist() == [0] * 5 + [3] * 16 + [0] * 4
    _, count = retrieval.among(64, retrieval.recall)(whole(view))
    assert count.sum() == 0
    filled = view_of(tokens_BT, values_B2, x_BSD, counted_B=np.arange(25) < 12)
    _, count = value(filled, 16, retrieval.recall)  # 7 rows, 21 items
    assert count[:, 0].sum() == 16
    text = view_of(tokens_BT, np.zeros_like(values_B2), x_BSD)
    assert retrieval.among(16, retrieval.recall)(whole(text))[1].sum() == 0
    cut = view_of(tokens_BT[:, :58], values_B2, x_BSD[:, :57])  # the end of the third item is not read
    assert retrieval.among(4, retrieval.recall)(whole(cut))[1].max() == 2
    short = view_of(tokens_BT[:, :17], values_B2, x_BSD[:, :16])
    assert retrieval.among(16, retrieval.recall)(whole(short))[1].sum() == 0


def test_a_state_that_is_not_finite_is_no_hit(evaluation):
    tokens_BT, values_B2 = evaluation
    x_BSD = planted(tokens_BT, noise=0.0)
    x_BSD[5, pairs(tokens_BT[5:6])[0, 0, SECOND]] = np.nan
    total, _ = retrieval.among(16, retrieval.recall)(whole(view_of(tokens_BT, values_B2, x_BSD)))
    assert np.isnan(total[5]).all()
    assert np.isfinite(total[15]).all()


def test_rows_tell_pool_part_and_chance():
    """3 rows a batch of 5 items each fill no pool of 16; together they fill two, and none that is larger."""
    stream = open_data(Data(context=96, facts=16, task_shares={"S": 1.0, "E": 1.0}), steps=4, batch_size=4)
    subject = subject_of(splits_of(stream, 8), shape=dataclasses.replace(SHAPE, context=96))
    told = {}
    for batch in (16, 3):
        subject.settings = Evaluation(metrics=("loss", "retrieval"), batch=batch)
        rows, _, _ = rows_of(subject, Degrade(method="random_weights", severities=(0.5,)))
        told[batch] = [row for row in rows if row["metric"] != "loss" and row["severity"] == 0.5]
    names = {"recall_at_1_of_16", "reciprocal_rank_of_16"}
    assert {(row["metric"], row["axis"], row["at"]) for row in told[3]} == {
        (name, "pool", 16) for name in names
    }
    of_task = [row for row in told[3] if row["task"] == "E" and row["metric"] == "recall_at_1_of_16"]
    assert [row["part"] for row in of_task] == list(PARTS)
    assert {(row["count"], row["chance"], row["ceiling"]) for row in of_task} == {(32, 1 / 16, 1.0)}
    values = {batch: [row["value"] for row in rows] for batch, rows in told.items()}
    np.testing.assert_allclose(values[3], values[16], atol=1 / 32 / 4)
