"""Text models before lm-evaluation-harness: windows, likelihoods, continuations, a whole task."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import trained
from rich.console import Console

from wane.eval.degrade import Recovery, Then
from wane.eval.study import Degrade, Evaluation, Study
from wane.eval.text_model import TextModel, windows
from wane.launch.run import run_study
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.edit import Edit, merge
from wane.scaling.family import exact_ladder
from wane.scaling.model import apply, unembed
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data import Data

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=32, vocab=32, context=12)
WORDS = ["a cat sat on a mat", "the dog ran to the log", "one and one is two", "no man is an island"]


def model(severity=0.0, batch=4):
    params = trained(SHAPE)
    method = build("magnitude_weights", SHAPE)
    fitted = method.fit(params, jnp.zeros((2, 13), jnp.int32), jax.random.key(0))
    edit = method.apply(params, fitted, jnp.float32(severity), Where.everywhere(SHAPE), jax.random.key(1))
    return TextModel(params, edit if severity else Edit(), SHAPE, batch)


def slow_logits(of: TextModel, tokens) -> np.ndarray:
    """[S, V] in float64, one sequence without padding."""
    out = apply(of.params, jnp.asarray(tokens)[None], SHAPE, of.edit)
    blocks = {**of.params}  # magnitude pruning leaves embedding and unembedding alone
    return np.asarray(unembed(blocks, out.x_BSD, SHAPE)[0], np.float64)


def log_p(logits) -> np.ndarray:
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def draw(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(SHAPE.vocab, size=n).tolist() for n in lengths]


@pytest.mark.parametrize(("length", "first"), [(5, 1), (13, 1), (14, 1), (40, 1), (40, 30), (31, 13), (2, 1)])
def test_windows_score_every_token_once_and_fit(length, first):
    scored = []
    for begin, end, start in windows(length, first, 12):
        assert 0 <= begin < start < end <= length
        assert end - begin <= 13
        assert begin == 0 or end - begin == 13  # as much context as there is room for
        scored += range(start, end)
    assert scored == list(range(first, length))


@pytest.mark.parametrize("severity", [0.0, 0.6])
def test_likelihoods_are_those_of_single_sequences(severity):
    of = model(severity)
    requests = list(zip(draw(0, 5, 13, 9, 13, 2, 7), (1, 4, 8, 12, 1, 3), strict=True))
    for (tokens, first), found in zip(requests, of.likelihoods(requests), strict=True):
        logits = slow_logits(of, tokens[:-1])
        p = log_p(logits)[np.arange(len(tokens) - 1), tokens[1:]]
        assert found.log_p == pytest.approx(p[first - 1 :].sum(), abs=1e-4)
        assert found.greedy == (logits.argmax(-1) == tokens[1:])[first - 1 :].all()


def test_a_long_text_is_scored_in_blocks_of_a_context():
    of = model()
    (text,) = draw(1, 30)
    (found,) = of.likelihoods([(text, 1)])
    expected = 0.0
    for begin, end, first in ((0, 13, 1), (12, 25, 13), (17, 30, 25)):
        p = log_p(slow_logits(of, text[begin : end - 1]))[np.arange(end - begin - 1), text[begin + 1 : end]]
        expected += p[first - begin - 1 :].sum()
    assert found.log_p == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("severity", [0.0, 0.6])
def test_continuations_are_greedy_and_greedy_is_what_continues(severity):
    of = model(severity)
    prompts = draw(2, 3, 1, 20, 7, 5)
    for prompt, said in zip(prompts, of.continuations(prompts, 4), strict=True):
        assert len(said) == 4
        seen = prompt[-(13 - 4) :]
        for token in said:
            assert token == slow_logits(of, seen).argmax(-1)[-1]
            seen = [*seen, token]
        (found,) = of.likelihoods([(seen, len(seen) - 4)])
        assert found.greedy
    assert {len(said) for said in of.continuations(prompts, 100)} == {12}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(directory of a trained study, its text's words)."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(20):  # documents, of which some are held out
        words = (WORDS[i] for i in rng.integers(4, size=20))
        (folder / f"{number}.txt").write_text("\n\n".join(words), encoding="utf-8")
    small = Study(
        name="text",
        family=exact_ladder(16, depths=(1,), head_dim=8),
        data=Data(sources=f"text:{folder}/*.txt", context=32),
        train=Train(tokens=60_000, tokens_per_param=None, batch_size=8, lr=2**-5),
        seeds=(0,),
        degradations=(Degrade(method="magnitude_weights", severities=(0.5,)),),
        evaluation=Evaluation(sequences=4, batch=4, calibration_sequences=4),
    )
    run_study(small, folder / "run", ("train",), Console(quiet=True))
    return folder / "run"


def language_model(*args, **kwargs):
    pytest.importorskip("lm_eval", reason="extra lm-eval is not installed")
    from wane.launch.harness import language_model

    return language_model(*args, **kwargs)


def goes_on(of, words) -> str:
    """Greedily, up to the end of its line."""
    (said,) = of.model.continuations([of.tok_encode(words[:10])], 16)
    return of.tok_decode(said).split("\n")[0]


def evaluate(of, folder, goes_on):
    """The harness's own results on a task file and a data set that are written here.  goes_on: what it is right to
    say behind each beginning."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [
        {"begin": w[:10], "ends": [w[10:], w[10:][::-1]], "right": 0, "text": w, "goes_on": end}
        for w, end in zip(WORDS, goes_on, strict=True)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    choice = data | {
        "task": "ends", "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{begin}}",
        "target_delimiter": "", "doc_to_choice": "{{ends}}", "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    rolling = data | {
        "task": "text", "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    said = data | {
        "task": "said", "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{begin}}",
        "doc_to_target": "{{goes_on}}", "target_delimiter": "", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n", "\n\n"], "max_gen_toks": 16, "do_sample": False},
    }  # fmt: skip
    for task in (choice, rolling, said):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=of, tasks=["ends", "text", "said"], task_manager=manager, bootstrap_iters=0
    )["results"]
    return {name: next(v for k, v in of.items() if k.endswith(",none")) for name, of in found.items()}


def test_the_harness_reads_a_text_trained_member(study, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    as_trained = language_model(study, "d16")
    said = [goes_on(as_trained, words) for words in WORDS]
    found = evaluate(as_trained, tmp_path, said)
    nats = []
    for words in WORDS:
        tokens = [256, *words.encode()]
        (whole,) = as_trained.model.likelihoods([(tokens, 1)])
        nats.append(whole.log_p)
    expected = -sum(nats) / sum(map(len, WORDS)) / np.log(2)
    assert found["text"] == pytest.approx(expected, rel=1e-6)
    assert found["ends"] == 1.0  # four sentences, seen a hundred times
    assert found["text"] < 2.0
    ruined = evaluate(language_model(study, "d16", method="magnitude_weights", severity=0.9), tmp_path, said)
    assert ruined["text"] > found["text"] + 1
    assert found["said"] == 1.0, "each is said as one sequence alone says it"
    assert ruined["said"] < 1.0


def test_severity_0_is_the_member_as_it_was_trained(study):
    requests = [([256, *WORDS[0].encode()], 1)]
    (plain,), (same,), (none,) = (
        language_model(study, "d16", **how).model.likelihoods(requests)
        for how in ({}, {"method": "wanda"}, {"method": "wanda", "severity": 1.0})
    )
    assert plain.log_p == pytest.approx(same.log_p, abs=1e-5)
    assert none.log_p < plain.log_p - 10


def test_a_degradation_may_have_a_scope_and_a_second_method(study):
    """Nothing of the scope's matrices is left, then rounding to 3 bits: as the edits one after the other."""
    scope = Scope(matrices=("down",))
    both = Degrade(method="magnitude_weights", scope=scope, then=Then(method="rtn", severities=(3.0,)))
    of = language_model(study, "d16", method=both, severity=1.0).model
    weights = merge(of.params, of.edit)["blocks"]
    assert not np.any(weights["down"])
    alone = language_model(study, "d16", method="rtn", severity=3.0).model
    rounded = merge(alone.params, alone.edit)["blocks"]
    np.testing.assert_allclose(weights["up"], rounded["up"], atol=1e-6)
    assert np.any(weights["up"] != of.params["blocks"]["up"])
    with pytest.raises(ValueError, match="method.recovery: trains the member on"):
        language_model(study, "d16", method=Degrade(method="rtn", recovery=Recovery(steps=(1,))))


def test_text_and_tokens(study):
    of = language_model(study, "d16")
    assert of.tok_encode("né") == list("né".encode())
    assert of.tok_decode([*b"abc", 256, *b"d"]) == "abc"
    assert of.eot_token_id == 256


def test_a_task_that_samples_is_refused(study):
    from lm_eval.api.instance import Instance

    of = language_model(study, "d16")
    asked = Instance(
        request_type="generate_until", doc={}, idx=0, arguments=("a", {"do_sample": True, "temperature": 0.7})
    )
    with pytest.raises(ValueError, match="do_sample"):
        of.generate_until([asked])
