"""The options against the full vocabulary: published numbers, loops in float64, known answers, rows of a sweep."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, rows_of, splits_of, subject_of, value

from wane.eval.metrics import INSTRUMENTS, METRICS
from wane.eval.metrics.option_space import SPACES, Pair, cosines, divergence
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit
from wane.scaling.model import apply, unembed
from wane.train.data import Data, open_data

GOLDEN = np.load(Path(__file__).parent / "golden" / "representation.npz")
NAMES = tuple(metric.name for metric in INSTRUMENTS["options"])
B, S, V = 11, 10, 37  # of sequences 0, 4 and 8 are read


def view_of(full_BSV, logits_BSV, scored_BS, options_BSO):
    given = {"scored_BS": scored_BS, "options_BSO": options_BSO}
    batch = Batch(**dict.fromkeys(Batch._fields) | {name: jnp.asarray(a) for name, a in given.items()})
    view = View(shape=SHAPE, params={}, degraded={}, edit=Edit(), batch=batch, x_BSD=None, stream=None)
    for name, logits in (("full_BSV", full_BSV), ("logits_BSV", logits_BSV)):
        vars(view)[name] = jnp.asarray(logits, jnp.float32)  # as if it were cached
    return view


def measured(view, name):
    """(sum, count) of every sequence and place, float64 [B, P]."""
    return tuple(np.asarray(a, np.float64).reshape(len(a), -1) for a in METRICS[name].measure(view))


def read(scored_BS, options_BSO):
    """bool [B, S]: scored tokens with four options, in one sequence of four."""
    looked_at_B = np.arange(len(scored_BS)) % 4 == 0
    return scored_BS & (options_BSO >= 0).all(-1) & looked_at_B[:, None]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def cosine(v, w):
    return v @ w / np.sqrt(v @ v * (w @ w))


def slow(z, changed):
    """The three quantities of one token's logits over some tokens, each a list over places."""
    p, q = softmax(z), softmax(changed)
    moved = [cosine(z, changed), cosine(z - z.mean(), changed - changed.mean()), cosine(p, q)]
    return {
        "kl": [(p * np.log(p / q)).sum()],
        "cosine": moved,
        "agreement": [float(z.argmax() == changed.argmax())],
    }


def slow_of(z, changed, options):
    """Metric -> its places, of one token with these options."""
    few, every = slow(z[options], changed[options]), slow(z, changed)
    inside = {f"option_{name}": told for name, told in few.items()}
    return inside | {f"option_{name}_full": told for name, told in every.items()}


@pytest.fixture
def drawn():
    """(undegraded logits, degraded logits, scored, options): some tokens are not scored, some have two options."""
    rng = np.random.default_rng(0)
    full_BSV = 2 * rng.normal(size=(B, S, V)) + 1
    logits_BSV = full_BSV + rng.normal(size=(B, S, V))
    options_BSO = np.argsort(rng.random((B, S, V)), axis=-1)[..., :4].astype(np.int32)
    scored_BS = rng.random((B, S)) < 0.7
    options_BSO[:, ::3, 2:] = -1
    scored_BS[4] = False
    return full_BSV, logits_BSV, scored_BS, options_BSO


def test_every_metric_against_loops(drawn):
    full_BSV, logits_BSV, scored_BS, options_BSO = drawn
    view, told = view_of(*drawn), {name: [[] for _ in range(B)] for name in NAMES}
    for b, s in np.argwhere(read(scored_BS, options_BSO)):
        found = slow_of(full_BSV[b, s], logits_BSV[b, s], options_BSO[b, s])
        assert found.keys() == told.keys()
        for name, places in found.items():
            told[name][b].append(places)
    assert [b for b, of_tokens in enumerate(told["option_kl"]) if of_tokens] == [0, 8]
    for name, of_sequences in told.items():
        total_BP, count_BP = measured(view, name)
        for b, of_tokens in enumerate(of_sequences):
            assert (count_BP[b] == len(of_tokens)).all()
            np.testing.assert_allclose(total_BP[b], np.sum(of_tokens, axis=0), rtol=2e-5, atol=1e-6)
    agreed = [places[0] for of_tokens in told["option_agreement"] for places in of_tokens]
    assert 0 < np.mean(agreed) < 1


def test_the_published_numbers_of_options():
    """The source divides: its KL is that in nats over the number of options.  Its cosines are of raw logits, and of
    probabilities at a temperature."""
    step, ids, temperature = (GOLDEN[name] for name in ("mcq.step", "mcq.ids", "gen.temperature"))
    z, changed = (GOLDEN[f"gen.z_{name}"][step, ids] for name in ("dense", "target"))
    raw, warm = (
        Pair(*(jnp.asarray(logits / T)[None, None] for logits in (z, changed))) for T in (1, temperature)
    )
    in_nats = len(ids) * GOLDEN["mcq.kl"]
    exact = slow(*(np.float64(logits) / temperature for logits in (z, changed)))
    np.testing.assert_allclose(exact["kl"], in_nats, rtol=2e-4)
    # so small a KL is a difference of logarithms in f32
    np.testing.assert_allclose(divergence(warm)[0], in_nats, rtol=2e-4, atol=2e-6)
    cosine_of_logits = cosines(raw)[SPACES.index("logit"), 0]
    np.testing.assert_allclose(cosine_of_logits, GOLDEN["mcq.cos_logits"], rtol=1e-6)
    cosine_of_p = cosines(warm)[SPACES.index("probability"), 0]
    np.testing.assert_allclose(cosine_of_p, GOLDEN["mcq.cos_prob"], rtol=1e-6)


def test_the_same_model_does_not_deviate(drawn):
    full_BSV, _, scored_BS, options_BSO = drawn
    view = view_of(full_BSV, full_BSV, scored_BS, options_BSO)
    for name in NAMES:
        total_BP, count_BP = measured(view, name)
        expected = 0 if "_kl" in name else 1
        np.testing.assert_allclose(total_BP.sum(0) / count_BP.sum(0), expected, atol=1e-6)


def test_a_change_outside_of_the_options_moves_the_vocabulary_only(drawn):
    """One token that is no option becomes the most likely: among the options nothing happens."""
    full_BSV, _, scored_BS, options_BSO = drawn
    other_BS = np.array([[min(set(range(V)) - set(o)) for o in row.tolist()] for row in options_BSO])
    logits_BSV = full_BSV.copy()
    np.put_along_axis(logits_BSV, other_BS[..., None], 99.0, axis=-1)
    view = view_of(full_BSV, logits_BSV, scored_BS, options_BSO)
    sums = {name: measured(view, name) for name in NAMES}
    told = {name: total_BP.sum(0) / count_BP.sum(0) for name, (total_BP, count_BP) in sums.items()}
    assert told["option_kl"] == pytest.approx(0, abs=1e-6)
    assert told["option_cosine"] == pytest.approx(1, abs=1e-6)
    assert told["option_agreement"] == 1
    assert told["option_kl_full"] > 50
    assert told["option_cosine_full"][0] < 0.5
    assert told["option_agreement_full"] < 0.5


def test_one_number_added_to_all_logits_moves_raw_logits_only(drawn):
    full_BSV, _, scored_BS, options_BSO = drawn
    view = view_of(full_BSV, full_BSV + 5, scored_BS, options_BSO)
    for suffix in ("", "_full"):
        total_BP, count_BP = measured(view, "option_cosine" + suffix)
        raw, *others = total_BP.sum(0) / count_BP.sum(0)
        assert raw < 0.9
        np.testing.assert_allclose(others, 1, atol=1e-5)
        np.testing.assert_allclose(measured(view, "option_kl" + suffix)[0], 0, atol=1e-4)


def test_swapped_logits_of_two_options_have_a_known_kl():
    """p = (3, 1, 1, 1) / 6 against (1, 3, 1, 1) / 6: ln(3) / 3 nats, and another choice."""
    z = np.full((1, 1, V), -20.0)
    z[..., :4] = np.log([3, 1, 1, 1])
    changed = z.copy()
    changed[..., [0, 1]] = changed[..., [1, 0]]
    view = view_of(z, changed, np.ones((1, 1), bool), np.arange(4)[None, None])
    for suffix in ("", "_full"):  # the other tokens have next to no probability
        assert measured(view, "option_kl" + suffix)[0] == pytest.approx(np.log(3) / 3, rel=1e-5)
        assert measured(view, "option_cosine" + suffix)[0][0, 2] == pytest.approx(8 / 12, rel=1e-5)
        assert measured(view, "option_agreement" + suffix)[0] == 0


def test_rows_of_a_sweep_against_loops():
    """The metrics as a study runs them: compiled, beside each other, at severities 0 and .5."""
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0, "L3": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3))
    subject.settings = Evaluation(sequences=3, batch=4, metrics=("loss", "options"))
    degrade = Degrade(method="magnitude_weights", severities=(0.5,))
    rows, _, _ = rows_of(subject, degrade)
    method, key, held = degrade.built(SHAPE), subject.draw_key(degrade, 0), subject.splits.evaluation
    fitted = method.fit(subject.params, subject.calibration(degrade), key)
    edit = method.apply(subject.params, fitted, 0.5, Where.everywhere(SHAPE), key)
    tokens = held.tokens_NT[:, :-1]
    states = (apply(subject.params, tokens, SHAPE, e).x_BSD for e in (None, edit))
    z, changed = (np.asarray(unembed(subject.params, x_BSD, SHAPE), np.float64) for x_BSD in states)
    told = {}
    for n, s in np.argwhere(read(held.scored_NS, held.options_NSO)):
        told.setdefault(held.task_N[n], []).append(slow_of(z[n, s], changed[n, s], held.options_NSO[n, s]))
    assert len(told) > 1
    for name in NAMES:
        expected = np.mean(
            [np.mean([found[name] for found in each], axis=0) for each in told.values()], axis=0
        )
        where = [{"part": part} for part in SPACES] if "cosine" in name else [{}]
        for place, number in zip(where, expected, strict=True):
            assert value(rows, name, severity=0.5, **place) == pytest.approx(number, rel=1e-4), (name, place)
            still = 0 if "_kl" in name else 1
            assert value(rows, name, severity=0, **place) == pytest.approx(still, abs=1e-5), (name, place)
