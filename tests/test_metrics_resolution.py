"""Low-resolution inference against distributions that are written out, token by token, in float64."""

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, over_tasks, rows_of, splits_of, subject_of, value

from wane.eval.measure import Batches, measure, of_trained
from wane.eval.metrics import INSTRUMENTS, METRICS, resolution
from wane.eval.metrics.resolution import FAMILIES, KEPT, SHARES, TEMPERATURES, every_so_often
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit
from wane.scaling.model import apply, unembed
from wane.train.data import Data, open_data

NAMES = tuple(metric.name for metric in INSTRUMENTS["resolution"])
EVALUATION = Evaluation(sequences=3, batch=4, metrics=("loss", "resolution"))


@pytest.fixture(scope="module")
def splits():
    few = {"L1": 1.0, "L2": 1.0, "S": 1.0}
    stream = open_data(Data(sources="graded", context=32, facts=16, task_shares=few), steps=4, batch_size=4)
    return splits_of(stream, 3)


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def coarser(p, unigram, bigram):
    """family -> every q of one token."""
    return {
        "temperature": [p ** (1 / T) / (p ** (1 / T)).sum() for T in TEMPERATURES],
        "uniform": [(1 - a) * p + a / len(p) for a in SHARES],
        "unigram": [(1 - a) * p + a * unigram for a in SHARES],
        "bigram": [(1 - a) * p + a * bigram for a in SHARES],
        "truncation": [truncated(p, k) for k in range(1, KEPT + 1)],
    }


def truncated(p, k):
    q, order = p.copy(), np.argsort(-p, kind="stable")
    q[order[k:]] = p[order[k:]].mean()
    return q


def kl(p, q):
    p, q = p[p > 0], q[p > 0]
    return p @ np.log(p / q)


def ngrams(p_NSV, tokens_NT):
    """Mean predictions: of all tokens, and by the token that they are made behind."""
    behind = {}
    for n, s in np.ndindex(p_NSV.shape[:2]):
        behind.setdefault(tokens_NT[n, s], []).append(p_NSV[n, s])
    return p_NSV.mean(axis=(0, 1)), {token: np.mean(ps, axis=0) for token, ps in behind.items()}


def explained(full, degraded, tokens_NT):
    """(metric -> value, the best temperature) of logits [N, S, V] of both models."""
    p_NSV, d_NSV, total = softmax(full), softmax(degraded), 0.0
    sums = dict.fromkeys(FAMILIES, 0)
    unigram, bigram = ngrams(p_NSV, tokens_NT)
    for n, tokens in enumerate(tokens_NT):
        S = len(tokens) - 1
        for s in [(tokens.sum() + 29 * i) % S for i in range(max(1, S // 29))]:
            total += kl(p_NSV[n, s], d_NSV[n, s])
            for family, qs in coarser(p_NSV[n, s], unigram, bigram[tokens[s]]).items():
                sums[family] = sums[family] + np.array([kl(q, d_NSV[n, s]) for q in qs])
    best = {family: min(total, s.min()) for family, s in sums.items()}
    best["coarsening"] = min(best.values())
    found = {f"explained_by_{family}": 1 - least / total for family, least in best.items()}
    hotter = sums["temperature"].min() < total
    return found | {"resolution_temperature": TEMPERATURES[sums["temperature"].argmin()] if hotter else 1}


def test_all_of_them_against_loops(splits):
    subject = subject_of(splits)
    subject.settings = EVALUATION
    degrade = Degrade(method="random_weights", severities=(0.5,))
    rows, _, _ = rows_of(subject, degrade)
    assert {r["metric"] for r in rows} == {"loss", *NAMES}
    read = {r["count"] for r in rows if r["metric"].startswith(("explained", "resolution"))}
    assert read == {len(splits.evaluation.tokens_NT)}  # one token of each
    counts = {r["count"] for r in rows if r["metric"] == "calibration_error"}
    assert counts == {splits.evaluation.scored_NS.sum()}
    method, key, data = degrade.built(SHAPE), subject.draw_key(degrade, 0), splits.evaluation
    fitted = method.fit(subject.params, subject.calibration(degrade), key)
    key = jax.random.fold_in(key, 1)
    edit = method.apply(subject.params, fitted, 0.5, Where.everywhere(SHAPE), key)
    degraded, full = (
        np.asarray(
            unembed(subject.params, apply(subject.params, data.tokens_NT[:, :-1], SHAPE, e).x_BSD, SHAPE),
            np.float64,
        )
        for e in (edit, None)
    )
    for name, expected in explained(full, degraded, data.tokens_NT).items():
        between_nodes = {"rel": 0.02} if "temperature" in name or "coarsening" in name else {"rel": 2e-3}
        assert value(rows, name, severity=0.5) == pytest.approx(expected, **between_nodes, abs=1e-4), name
        assert value(rows, name, severity=0.0) == (1 if name == "resolution_temperature" else 0), name
    p, scored, targets = softmax(degraded), data.scored_NS, data.tokens_NT[:, 1:]
    bins = [[] for _ in range(15)]
    covered = []
    for n, s in zip(*np.nonzero(scored), strict=True):
        confidence = p[n, s].max()
        hit = p[n, s].argmax() == targets[n, s]
        (bin,) = (b for b in range(15) if b / 15 < confidence <= (b + 1) / 15)
        bins[bin].append((hit, confidence))
        covered.append(p[n, s, targets[n, s]] > 1 / data.values_N2[n, 1])
    error = sum(abs(sum(hit - c for hit, c in members)) for members in bins) / scored.sum()
    assert value(rows, "calibration_error", severity=0.5) == pytest.approx(error, rel=1e-4)
    assert value(rows, "confidence", severity=0.5) == pytest.approx(
        over_tasks(p.max(-1)[scored], scored, data), rel=1e-4
    )
    assert value(rows, "coverage", severity=0.5) == pytest.approx(over_tasks(covered, scored, data))
    assert 0 < np.mean(covered) < 1


def measured(splits, params, shape, logits_of, batch=4):
    """metric -> value where the degraded logits are logits_of(the undegraded ones): the degraded state is the
    undegraded one times a factor, through an unembedding without a norm."""
    batches = Batches.of(splits.evaluation, batch)
    full = jax.lax.map(lambda b: apply(params, b.tokens[:, :-1], shape).x_BSD, batches)
    return of_states(shape, params, batches, full, logits_of(full))


def of_states(shape, params, batches, full, degraded):
    """metric -> value where these are the states [n, B, S, D] behind the last block."""

    names = tuple(n for n in NAMES if hasattr(METRICS[n], "gather"))
    found = values_of(shape, ("loss", *names), params, batches, full, degraded)
    return dict(zip(names, np.asarray(found).tolist(), strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def values_of(shape, names, params, batches, full, degraded):
    def run(batch, index):
        return {"x_BSD": degraded[index], "stream": full[index][None]}

    trained = of_trained(shape, names, params, batches, full[None])
    return measure(shape, names, params, Edit(), run, batches, trained).values


@pytest.fixture(scope="module")
def linear(splits):
    """Logits in proportion to the state, with a standard deviation of about 2."""
    shape = dataclasses.replace(SHAPE, norm="none")
    params = subject_of(splits, 0, shape).params
    logits = unembed(params, apply(params, splits.evaluation.tokens_NT[:, :-1], shape).x_BSD, shape)
    return params | {"unembed": params["unembed"] * 2 / logits.std()}, shape


def test_a_model_at_a_temperature_is_explained_by_it(splits, linear):
    T = TEMPERATURES[-14]
    found = measured(splits, *linear, lambda x: x / T)
    assert found["resolution_temperature"] == pytest.approx(T)
    assert found["explained_by_temperature"] == pytest.approx(1, abs=1e-3)
    assert found["explained_by_coarsening"] == pytest.approx(1, abs=1e-3)
    sharper = measured(splits, *linear, lambda x: 2 * x)
    assert sharper["resolution_temperature"] == 1
    assert sharper["explained_by_temperature"] == 0


def test_a_model_that_knows_nothing_is_explained_by_the_uniform(splits, linear):
    found = measured(splits, *linear, lambda x: 0 * x)
    assert found["explained_by_uniform"] == pytest.approx(1, abs=1e-3)
    assert found["explained_by_truncation"] < 0.99
    assert found["resolution_temperature"] == TEMPERATURES[-1]


class Free(NamedTuple):
    """A model whose states are its logits, which may be anything: its own [N, S, V], what each family mixes them
    with, and measured(degraded logits [N, S, V]) -> metric -> value."""

    full: np.ndarray
    own: dict[str, np.ndarray]
    measured: Callable[[np.ndarray], dict[str, float]]


@pytest.fixture(scope="module")
def free(splits):
    shape, batches = dataclasses.replace(SHAPE, norm="none", d_model=512), Batches.of(splits.evaluation, 4)
    rng, tokens_NT = np.random.default_rng(0), splits.evaluation.tokens_NT
    full = rng.normal(0, 2, (512, 512))[tokens_NT[:, :-1]] + rng.normal(0, 2, (*tokens_NT[:, 1:].shape, 512))
    unigram, bigram = ngrams(softmax(full), tokens_NT)
    own = {
        "uniform": np.full_like(full, 1 / 512),
        "unigram": np.broadcast_to(unigram, full.shape),
        "bigram": np.array([[bigram[token] for token in row] for row in tokens_NT[:, :-1]]),
    }
    place = np.arange(batches.counted.size).reshape(batches.counted.shape) % len(tokens_NT)

    def measured(degraded):
        states = (jnp.asarray((z / shape.logit_scale)[place], jnp.float32) for z in (full, degraded))
        return of_states(shape, {"unembed": jnp.eye(512)}, batches, *states)

    return Free(full, own, measured)


@pytest.mark.parametrize("T", [1.01, 1.05, 1.1, 1.3, 2.5, 6.0])
def test_temperatures_between_those_of_the_grid(free, T):
    found = free.measured(free.full / T)
    assert found["explained_by_temperature"] == pytest.approx(1, abs=0.005)
    assert found["resolution_temperature"] - 1 == pytest.approx(T - 1, rel=0.05)


@pytest.mark.parametrize("family", resolution.MIXTURES)
def test_mixtures_between_those_of_the_grid(free, family):
    p_NSV = softmax(free.full)
    for share in (0.001, 0.01, 0.05, 0.3, 0.55, 0.9):
        found = free.measured(np.log((1 - share) * p_NSV + share * free.own[family]))
        assert found[f"explained_by_{family}"] == pytest.approx(1, abs=0.01), share
        assert found["explained_by_coarsening"] == pytest.approx(1, abs=0.01), share
        for other in {"unigram", "bigram"} - {family}:
            assert found[f"explained_by_{other}"] < 0.98, share


def test_any_number_of_tokens_kept(free):
    kept = np.apply_along_axis(truncated, -1, softmax(free.full), 11)
    found = free.measured(np.log(kept))
    assert found["explained_by_truncation"] == pytest.approx(1, abs=1e-3)


CHANGES = {
    "noise": lambda z, rng: z + rng.normal(0, 0.5, z.shape),
    "more noise": lambda z, rng: z / 1.7 + rng.normal(0, 1, z.shape),
    "clipped": lambda z, rng: np.clip(z, -3, 3),
    "squared": lambda z, rng: z - 0.05 * z**2,
    "rounded up": lambda z, rng: np.maximum(z, 0),
    "mixed": lambda z, rng: np.log(0.45 * softmax(z) + 0.55 / z.shape[-1]),
    "hardly mixed": lambda z, rng: np.log(0.98 * softmax(z) + 0.02 / z.shape[-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_more_is_claimed_than_a_search_finds(free, splits, change):
    """On what no temperature or mixture has made, against float64 on a grid without gaps, all tokens at once."""
    degraded = CHANGES[change](free.full, np.random.default_rng(1))
    found, tokens_NT = free.measured(degraded), splits.evaluation.tokens_NT
    at_N = tokens_NT.sum(axis=1) % (tokens_NT.shape[1] - 1)
    logits = (z[np.arange(len(at_N)), at_N] for z in (free.full, degraded))
    p_NV, log_d_NV = (f(z) for f, z in zip((softmax, lambda z: np.log(softmax(z))), logits, strict=True))

    def kl_of(q_NV):
        return (q_NV * (np.log(q_NV) - log_d_NV)).sum()

    temperatures = 1 + 7 * np.linspace(0, 1, 500) ** 3
    searched = {"temperature": [kl_of(softmax(np.log(p_NV) / T)) for T in temperatures]}
    for family, other in free.own.items():
        other_NV = other[np.arange(len(at_N)), at_N]
        shares = np.linspace(0, 1, 300) ** 3
        searched[family] = [kl_of((1 - a) * p_NV + a * other_NV) for a in shares]
    for family, kls in searched.items():
        explained = 1 - min(kls) / kl_of(p_NV)
        assert found[f"explained_by_{family}"] == pytest.approx(explained, abs=0.015), family
        assert 0 <= found[f"explained_by_{family}"] <= 1


def test_tokens_of_a_large_vocabulary_share_rows(monkeypatch):
    monkeypatch.setattr(resolution, "CURRENT", 4)
    tokens_BT = jnp.asarray([[0, 4, 1, 9, 3]])
    view = SimpleNamespace(
        shape=SimpleNamespace(vocab=10), batch=SimpleNamespace(tokens_BT=tokens_BT),
        full_BSV=jnp.zeros((1, 4, 10)), weight_BS=jnp.ones((1, 4)),
    )  # fmt: skip
    total_CV, count_C = resolution.own_ngrams(view)
    assert count_C.tolist() == [2, 2, 0, 0]
    np.testing.assert_allclose(total_CV, np.outer(count_C, np.full(10, 0.1)), rtol=1e-6)


def test_a_model_that_diverged_has_no_value(splits, linear):
    found = measured(splits, *linear, lambda x: x * jnp.nan)
    assert len(found) == 8
    assert not np.isfinite(list(found.values())).any()


def test_batches_make_no_difference(splits, linear):
    """Neither how many sequences are in one nor those that only fill the last."""
    one, other = (measured(splits, *linear, lambda x: x / 3 + 0.1, batch) for batch in (4, 9))
    assert one == pytest.approx(other, rel=1e-4)


def test_places_are_spread_over_a_period():
    tokens = np.random.default_rng(0).integers(0, 512, (400, 101))
    places = np.asarray(every_so_often(jnp.asarray(tokens)))
    assert places.shape == (400, 3)
    assert (np.diff(places, axis=1) % 100 == 29).all()
    assert np.bincount(places.ravel(), minlength=100).min() > 2  # 12 each
    assert every_so_often(jnp.asarray(tokens[:, :4])).shape == (400, 1)


def test_errors_of_bins_do_not_cancel():
    """Half of the tokens with confidence .5, always right, half with .8, never right; those of a sequence that
    only fills the batch and those that are not scored do not count."""
    N = 20
    logits = np.full((3, N, 4), -30.0)
    sure = np.arange(N) % 2 == 0
    logits[..., :2] = np.log(np.where(sure[:, None], (0.8, 0.2), (0.501, 0.499)))
    scored = np.arange(N) < 16
    view = SimpleNamespace(
        logits_BSV=jnp.asarray(logits, jnp.float32), targets_BS=jnp.asarray(np.tile(1 * sure, (3, 1))),
        scored_BS=jnp.asarray(np.tile(scored, (3, 1))), weight_BS=jnp.asarray([[1.0], [1.0], [0.0]]) * jnp.ones(N),
    )  # fmt: skip
    metric = METRICS["calibration_error"]
    sums = metric.gather(view)
    assert sums[0].sum() == 2 * 16
    assert metric.values(sums, None) == pytest.approx((0.8 + 0.499) / 2, abs=1e-4)
