"""Groups of tokens of text: how often they come in training, and whether their context is new."""

import collections
import dataclasses
import math

import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of, value

from wane.eval.metrics import groups
from wane.eval.study import Degrade, Evaluation
from wane.scaling.model import apply, unembed
from wane.train.data import Data, open_data

EVALUATION = Evaluation(sequences=4, batch=4, metrics=("loss", "probes"))


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Two texts and a graded task: text tokens stand behind those of the tasks."""
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANE_CACHE", str(folder / "cache"))
        for name, words in (
            ("a", "line number {0} is not {1}, is it."),
            ("b", "{1} is square: {0} squared."),
        ):
            text = "\n\n".join(words.format(i, i * i) for i in range(3000))
            (folder / f"{name}.txt").write_text(text)
        sources = {"graded": 1, f"text:{folder}/a.txt": 1, f"text:{folder}/b.txt": 1}
        yield open_data(Data(sources=sources, context=32, task_shares={"S": 1}), steps=4, batch_size=4)


def training(stream):
    """The training tokens of each text as lists, in the vocabulary of the stream."""
    return [[512 + int(t) for t in source.packed.train] for source in stream.sources[1:]]


def test_frequency_and_novelty_against_loops(stream, monkeypatch):
    monkeypatch.setattr(groups, "CHUNK", 1000)  # several chunks: none of what stands on a border is lost
    evaluation = stream.evaluation(6, 0)
    frequency, novelty = groups.frequency(evaluation, stream), groups.novelty(evaluation, stream)
    count, known = collections.Counter(), set()
    for tokens in training(stream):
        count.update(tokens)
        known |= {tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)}
    for n, tokens in enumerate(evaluation.tokens_NT.tolist()):
        for s in range(32):
            if evaluation.task_N[n] == 0:
                assert np.isnan(frequency.label_NS[n, s])
                assert np.isnan(novelty.label_NS[n, s])
                continue
            times = count[tokens[s + 1]]
            assert frequency.label_NS[n, s] == (len(str(times)) - 1 if times else -1)
            if s < 2:
                assert np.isnan(novelty.label_NS[n, s])
            else:
                assert novelty.label_NS[n, s] == (tuple(tokens[s - 2 : s + 2]) not in known)
    assert {0.0, 1.0} <= set(novelty.label_NS[6:, 2:].ravel())
    assert {3.0, 4.0} == set(frequency.label_NS[6:].ravel())
    assert groups.novelty(evaluation, stream) is novelty  # once per stream, not once per point


def test_powers_of_ten_and_what_never_comes(stream):
    evaluation = stream.evaluation(4, 0)
    token = int(evaluation.tokens_NT[-1, 1]) - 512
    for times, decade in ((0, -1), (1, 0), (9, 0), (10, 1), (99, 1), (1000, 3)):
        train = np.array([token] * times + [token + 1] * 50)
        source = dataclasses.replace(
            stream.sources[2], packed=dataclasses.replace(stream.sources[2].packed, train=train)
        )
        # none of the other text
        other = dataclasses.replace(source, packed=dataclasses.replace(source.packed, train=train[:0]))
        planted = dataclasses.replace(stream, sources=(stream.sources[0], other, source))
        assert groups.frequency(evaluation, planted).label_NS[-1, 0] == decade


def test_ngrams_are_not_confused():
    rng = np.random.default_rng(0)
    for vocab in (3, 2**16 - 1, 2**17):
        tokens = rng.integers(0, vocab, 3000)
        tokens[:8] = [0, 0, 0, 1, 0, 0, 1, 0]
        numbers = groups.ngrams(tokens, vocab)
        assert numbers.shape == (2997,)
        assert len(set(numbers.tolist())) == len({tuple(tokens[i : i + 4].tolist()) for i in range(2997)})
    assert groups.ngrams(np.zeros((5, 2), int), 7).shape == (5, 0)


def test_losses_of_groups_against_loops(stream):
    splits = splits_of(stream, 4)
    shape = dataclasses.replace(SHAPE, vocab=stream.vocab)
    subject = subject_of(splits, 0, shape)
    subject.settings = EVALUATION
    rows, _, _ = rows_of(subject, Degrade(method="rtn", severities=(4.0,)))
    data = splits.evaluation
    x_BSD = apply(subject.params, data.tokens_NT[:, :-1], shape).x_BSD
    logits = np.asarray(unembed(subject.params, x_BSD, shape), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, data.tokens_NT[:, 1:, None], -1)[..., 0]
    told = {"position": {}, "frequency": {}, "novelty": {}}
    frequency, novelty = (groups.GROUPS[g](data, stream).label_NS for g in ("frequency", "novelty"))
    for n, task in enumerate(data.task_N):
        for s in range(32):
            labels = 2.0 ** int(math.log2(s + 1)), frequency[n, s], novelty[n, s]
            for (_, group), label in zip(told.items(), labels, strict=True):
                for of in ("all", data.tasks[task].name):
                    if not np.isnan(label):
                        group.setdefault((of, float(label)), []).append(nll[n, s])
    for axis, group in told.items():
        mine = [r for r in rows if r["metric"] == f"loss_by_{axis}" and r["severity"] == 0]
        assert {(r["task"], r["at"]) for r in mine} == set(group)
        for row in mine:
            expected = group[row["task"], row["at"]]
            assert row["axis"] == axis
            assert row["count"] == len(expected)
            assert row["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert {task for task, _ in told["novelty"]} == {"all", "text:a.txt", "text:b.txt"}
    assert value(rows, "loss", severity=0.0) == pytest.approx(nll.mean(), rel=1e-5)


def test_what_stands_on_the_border_of_two_chunks_is_known(stream, monkeypatch):
    monkeypatch.setattr(groups, "CHUNK", 5)
    row = np.random.default_rng(0).integers(0, 257, 33)
    source = stream.sources[2]
    packed = dataclasses.replace(source.packed, train=row.astype(np.uint16))
    planted = dataclasses.replace(
        stream, sources=(*stream.sources[:2], dataclasses.replace(source, packed=packed))
    )
    evaluation = stream.evaluation(2, 0)
    evaluation.tokens_NT[-1] = 512 + row
    label_NS = groups.novelty(evaluation, planted).label_NS
    assert (label_NS[-1, 2:] == 0).all()
    evaluation = stream.evaluation(2, 0)
    evaluation.tokens_NT[-1] = 512 + np.roll(row, 1)  # the last token of the text before its first
    assert groups.novelty(evaluation, planted).label_NS[-1, 2:5].tolist() == [1, 0, 0]
