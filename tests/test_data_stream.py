"""The stream: purity, disjoint splits, shares, mixtures, repetition, digests."""

import dataclasses
import json

import numpy as np
import pytest

from wane.train.data import TASKS, Data, open_data
from wane.train.data.marks import is_scored, unmarked
from wane.train.data.pattern import PERIOD, Pattern
from wane.train.data.vocabulary import TAGS

MIXED = [name for name, task in TASKS.items() if task.mixed]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    """A text of 60 different paragraphs of about 3 kB and its source spec."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(26, size=5)) for _ in range(400)]
    paragraphs = [" ".join(rng.choice(words, 500)) for _ in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    return f"text:{tmp_path / 'a.txt'}"


def graded_stream(**fields):
    fields = {"steps": 100, "batch_size": 16, "context": 64} | fields
    steps, batch_size = fields.pop("steps"), fields.pop("batch_size")
    return open_data(Data(**fields), steps=steps, batch_size=batch_size)


def rows_of(*arrays):
    return {row.tobytes() for array in arrays for row in array}


def test_batch_is_a_pure_function_of_seed_and_step(corpus):
    first = graded_stream(sources={"graded": 1, corpus: 1})
    backwards = [first.batch(3, step) for step in reversed(range(12))][::-1]
    second = graded_stream(sources={"graded": 1, corpus: 1})
    for step in range(12):
        batch = second.batch(3, step)
        assert batch.shape == (16, 65)
        assert batch.dtype == np.int32
        np.testing.assert_array_equal(batch, backwards[step])
        assert not rows_of(batch) & rows_of(second.batch(4, step))
    assert len(rows_of(*backwards)) == 12 * 16
    np.testing.assert_array_equal(second.batch(np.int64(3), np.int32(2)), backwards[2])


def test_stream_does_not_depend_on_the_planned_number_of_steps():
    short, long = graded_stream(steps=5), graded_stream(steps=500)
    assert short.digest == long.digest
    np.testing.assert_array_equal(short.batch(0, 30), long.batch(0, 30))


@pytest.mark.parametrize("task", TASKS)
def test_training_evaluation_and_calibration_share_no_graded_sequence(task):
    stream = graded_stream(
        task_shares={task: 1}, batch_size=30
    )  # 30 rows everywhere: no accidental difference
    parts = [
        stream.batch(0, 0),
        stream.batch(0, 1),
        stream.evaluation(30, 0).tokens_NT,
        stream.calibration(30, 0),
    ]
    assert len(rows_of(*parts)) == 120


def test_evaluation_set_is_paired_and_complete(corpus):
    stream = graded_stream(sources={"graded": 1, corpus: 1})
    one, same, other = stream.evaluation(6, 0), stream.evaluation(6, 0), stream.evaluation(6, 1)
    assert one.digest == same.digest != other.digest
    np.testing.assert_array_equal(one.tokens_NT, same.tokens_NT)
    assert [task.name for task in one.tasks] == [*MIXED, "text:a.txt"]
    assert np.bincount(one.task_N).tolist() == [6] * 11
    assert one.scored_NS.shape == one.bytes_NS.shape == (66, 64)
    text = one.task_N == 10
    assert one.scored_NS[text].all()
    ends = one.tokens_NT[text][:, 1:] == 512 + 256
    np.testing.assert_array_equal(one.bytes_NS[text], ~ends)
    assert not one.bytes_NS[~text].any()
    assert all(array.dtype == np.int32 for array in (one.tokens_NT, one.task_N, one.bytes_NS, one.level_NS))
    np.testing.assert_array_equal(one.scored_NS, one.level_NS >= 0)


def test_evaluation_may_score_equally_many_tokens_of_every_task(corpus):
    """In whole sequences, none more than it takes; of the last one the rest has neither score nor options."""
    stream = graded_stream(sources={"graded": 1, corpus: 1})
    for scored in (100, 130):
        data = stream.evaluation(6, 0, scored)
        assert data.digest == stream.evaluation(6, 0, scored).digest != stream.evaluation(6, 1, scored).digest
        for i, task in enumerate(data.tasks):
            count_N = data.scored_NS[data.task_N == i].sum(axis=1)
            assert count_N.sum() == scored, task.name
            assert count_N.all(), task.name
        np.testing.assert_array_equal(data.scored_NS, data.level_NS >= 0)
        assert (data.foil_NS[~data.scored_NS] < 0).all()
        assert (data.options_NSO[~data.scored_NS] < 0).all()
    size = dict(zip((task.name for task in data.tasks), np.bincount(data.task_N), strict=True))
    assert size["L1"] == size["text:a.txt"] == 3  # of 63 and 64 tokens each
    assert size["L2"] > 10
    with pytest.raises(ValueError, match="held-out part of text:a.txt has"):
        stream.evaluation(6, 0, 10**6)


def test_graded_evaluation_scores_targets_not_inputs():
    evaluation = graded_stream(task_shares={"S": 1}).evaluation(4, 0)
    places = np.flatnonzero(evaluation.scored_NS[0])
    np.testing.assert_array_equal(places, np.arange(4, 64, 5))  # input: the query, at 4, 9, ...
    assert ((evaluation.tokens_NT[:, places] >= 17) & (evaluation.tokens_NT[:, places] <= 22)).all()


def scored_by_task(stream, steps):
    """Scored tokens of each task in the batches of the stream, told by their marks."""
    batches = np.concatenate([stream.marked_batch(0, step) for step in range(steps)])
    tag_N, scored_N = unmarked(batches)[:, 0], is_scored(batches[:, 1:]).sum(axis=1)
    return {s.task.name: scored_N[tag_N == TAGS[s.task.name]].sum() for s in stream.sources}


def test_tasks_get_equal_scored_tokens_unless_shares_are_given():
    """R1 scores 6 to 30 tokens a row, which is what its 2 % are for."""
    scored = scored_by_task(graded_stream(context=128, batch_size=512), 256)
    assert set(scored) == set(MIXED)
    np.testing.assert_allclose(list(scored.values()), np.mean(list(scored.values())), rtol=0.02)
    scored = scored_by_task(graded_stream(context=128, task_shares={"M2": 1, "L1": 3}), 256)
    assert scored["L1"] / scored["M2"] == pytest.approx(3, rel=0.01)
    assert list(scored) == ["L1", "M2"]


def test_rows_carry_the_tags_that_the_pattern_says():
    stream = graded_stream()
    tags = np.concatenate([stream.batch(0, step)[:, 0] for step in range(64)])
    dealt = stream.pattern.sources(np.arange(1024))
    expected = [TAGS[stream.sources[source].task.name] for source in dealt]
    assert tags.tolist() == expected


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [1e-9, 1], [0.013, 0.2, 0.11, 0.5, 0.02]])
def test_pattern_keeps_shares_in_every_stretch(weights):
    pattern = Pattern(weights)
    assert pattern.counts.sum() == PERIOD
    share = np.array(weights) / sum(weights)
    np.testing.assert_allclose(pattern.counts / PERIOD, share, atol=1 / PERIOD)
    sources = pattern.sources(np.arange(3 * PERIOD))
    for source in range(len(weights)):
        taken = np.cumsum(sources == source)
        expected = share[source] * np.arange(1, len(sources) + 1)
        assert np.abs(taken - expected).max() < 6
        rows = np.flatnonzero(sources == source)
        np.testing.assert_array_equal(pattern.ordinals(rows, source), np.arange(len(rows)))


def test_unique_fraction_repeats_graded_batches_in_new_orders():
    stream = graded_stream(steps=40, unique_fraction=0.25)
    batches = [stream.batch(0, step).tobytes() for step in range(40)]
    epochs = [batches[start : start + 10] for start in range(0, 40, 10)]
    assert len(set(batches)) == 10
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    whole = graded_stream(steps=40)
    assert [whole.batch(0, step).tobytes() for step in range(10)] == epochs[0]  # paired with the other arm
    assert len({whole.batch(0, step).tobytes() for step in range(40)}) == 40
    assert stream.digest != whole.digest
    assert graded_stream(steps=10, unique_fraction=0.11).distinct_batches == 2


def test_mixture_keeps_weights_and_separate_vocabularies(corpus):
    stream = graded_stream(sources={"graded": 1, corpus: 3})
    assert stream.vocab == 512 + 257
    rows = np.concatenate([stream.batch(0, step) for step in range(64)])
    text = rows[:, 0] >= 512
    assert text.mean() == pytest.approx(0.75, abs=0.005)
    assert rows[text].min() >= 512
    assert rows[~text].max() < 512
    assert graded_stream(sources=corpus).vocab == 257


def test_repeated_mixture_reads_every_text_window_once_per_epoch(corpus):
    stream = graded_stream(sources={"graded": 1, corpus: 1}, steps=40, unique_fraction=0.3)
    text = stream.sources[-1]
    seen, rows = [], text.rows

    def watched(seed, batch, ordinals):
        seen.extend(ordinals)
        return rows(seed, batch, ordinals)

    object.__setattr__(text, "rows", watched)
    for step in range(36):  # three times the 12 distinct batches
        stream.batch(0, step)
    assert sorted(seen) == list(range(len(seen)))


def test_digest_depends_on_what_batches_depend_on():
    digest = graded_stream().digest
    assert graded_stream().digest == digest
    assert (
        graded_stream(task_shares={"L1": 1, "K": 2}).digest
        == graded_stream(task_shares={"K": 2, "L1": 1}).digest
    )
    changes = [
        {"batch_size": 8},
        {"context": 65},
        {"facts": 100},
        {"world_seed": 1},
        {"task_shares": {"K": 1}},
    ]
    changes += [{"unique_fraction": 0.5}, {"unique_fraction": 0.5, "steps": 50}]
    assert len({digest, *(graded_stream(**change).digest for change in changes)}) == 8


def test_text_digest_is_of_content_not_of_paths(tmp_path, corpus):
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes((tmp_path / "a.txt").read_bytes())
    stream, moved = graded_stream(sources=corpus), graded_stream(sources=f"text:{copy}")
    assert stream.digest == moved.digest
    np.testing.assert_array_equal(stream.batch(0, 0), moved.batch(0, 0))
    copy.write_bytes(copy.read_bytes() + b"!" * 100)
    assert graded_stream(sources=f"text:{copy}").digest != stream.digest


def test_text_tasks_are_named_without_folders(tmp_path, corpus):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text((tmp_path / "a.txt").read_text()[::-1])
    stream = graded_stream(sources={corpus: 1, f"text:{tmp_path}/b/a.txt": 1})
    assert [source.task.name for source in stream.sources] == ["text:a.txt", "text:a.txt#2"]


def test_world_seed_changes_the_world_and_data_seed_does_not():
    facts = [graded_stream(task_shares={"K": 1}, world_seed=w).sources[0].world for w in (0, 0, 1)]
    assert facts[0] == facts[1] != facts[2]


def test_config_survives_json():
    config = Data(sources={"graded": 2, "python": 1}, task_shares={"M2": 1, "L1": 3}, facts=10)
    assert hash(config) == hash(Data(**json.loads(json.dumps(dataclasses.asdict(config)))))
    assert config == Data(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert json.dumps(dataclasses.asdict(Data(unique_fraction=1))) == json.dumps(dataclasses.asdict(Data()))
    assert Data(sources="python").sources == (("python", 1.0),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sources": "grated"},
            r"data.sources: 'grated' is not a source; the forms are graded, python, text:",
        ),
        ({"sources": "text:"}, r"data.sources: 'text:' is not a source"),
        ({"sources": {}}, r"data.sources = \{\}: must name at least one"),
        ({"sources": [("python", 1), ("python", 2)]}, r"each only once"),
        ({"sources": {"graded": 0}}, r"data.sources\['graded'\] = 0.0: must be above 0"),
        ({"sources": {"graded": float("nan")}}, r"must be above 0"),
        ({"sources": {"graded": "much"}}, r"must map names to numbers"),
        ({"task_shares": {"L11": 1}}, r"data.task_shares: 'L11' is not known; .*close: L1"),
        ({"tokenizer": "byte"}, r"data.tokenizer: 'byte' is not known; allowed are bytes, bpe; close: bytes"),
        ({"context": 31}, r"data.context = 31: must be at least 32 with graded tasks"),
        ({"sources": "python", "context": 0}, r"data.context = 0: must be at least 1$"),
        ({"bpe_vocab": 256}, r"data.bpe_vocab = 256: must be at least 257"),
        ({"held_out": 0}, r"data.held_out = 0.0: must be between 0 and 1"),
        ({"unique_fraction": 1.5}, r"data.unique_fraction = 1.5: must be above 0"),
        ({"facts": 0}, r"data.facts = 0: must be 1..16384"),
    ],
)
def test_wrong_config_is_one_line_that_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        Data(**fields)
    assert "\n" not in str(error.value)


def test_wrong_counts_are_refused():
    for name in ("steps", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} = 0: must be at least 1"):
            graded_stream(**{name: 0})
    for name in ("evaluation", "calibration"):
        with pytest.raises(ValueError, match=f"{name} sequences = 0"):
            getattr(graded_stream(), name)(0, 0)


def test_description_counts_what_is_there(corpus):
    described = graded_stream(sources={"graded": 1, corpus: 1}, steps=10, unique_fraction=0.5).describe()
    assert described["tokens"] == 10 * 16 * 64
    assert described["distinct graded batches"] == 5
    assert sum(source["share of rows"] for source in described["sources"]) == pytest.approx(1)
    assert [source["task"] for source in described["sources"]] == [*MIXED, "text:a.txt"]
    text = described["sources"][-1]
    assert text["train documents"] + text["held_out documents"] == 60
    assert text["unique documents"] == -(-text["train documents"] // 2)
    json.dumps(described)


def test_rumours_are_no_answers_and_weigh_as_much():
    """T2: unmarked are the values, of one statement in five tokens each, whoever makes it."""
    stream = graded_stream(task_shares={"T2": 1}, facts=64)
    marked = stream.marked_batch(0, 0)
    assert (is_scored(marked[:, 1:61].reshape(16, 12, 5)) == [False] * 4 + [True]).all()
    rows = stream.sources[0].scored_per_row
    assert rows < 6, "truths alone are answers"


def test_tokens_that_no_task_scores_are_marked(corpus):
    stream = graded_stream(sources={"graded": 1, corpus: 1})
    found, text = {}, 0
    for step in range(40):
        tokens, marked = stream.batch(0, step), stream.marked_batch(0, step)
        np.testing.assert_array_equal(np.where(marked < 0, -1 - marked, marked), tokens)
        assert marked.dtype == np.int32
        for row, scored in zip(tokens, marked >= 0, strict=True):
            task = next((name for name in MIXED if TAGS[name] == row[0]), None)
            if task is None:
                assert scored.all()
                text += 1
            else:
                found.setdefault(task, []).append(scored)
    assert text
    assert set(found) == set(MIXED)
    answers = 1 + np.arange(4, 64, 5)  # of S: the last of every five tokens behind the tag
    assert (np.flatnonzero(found["S"][0]) == answers[answers < 65]).all()
    assert not any(scored[0] for rows in found.values() for scored in rows)  # the tag
    density = {source.task.name: source.scored_per_row for source in stream.sources[: len(MIXED)]}
    for task, rows in found.items():
        assert np.mean([row.sum() for row in rows]) == pytest.approx(density[task], rel=0.35), task
