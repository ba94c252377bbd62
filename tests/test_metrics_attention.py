"""Attention maps: the instrument against loops in float64, and on heads whose overlap is known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics_overlap import (  # noqa: F401
    SHAPE,
    inner_of_view,
    rows_of,
    splits,
    subject_of,
    value,
    view_of,
)

from wane.eval.metrics import attention
from wane.eval.metrics.contract import Weights
from wane.eval.study import Degrade, Evaluation
from wane.eval.subject import Subject
from wane.scaling.edit import Edit
from wane.scaling.model import apply, init_params

HEADS = dataclasses.replace(SHAPE, d_model=24, n_heads=3)
EVALUATION = Evaluation(sequences=3, batch=4, calibration_sequences=4, metrics=("loss", "attention"))


def drawn(shape):
    return jax.tree.map(lambda w: 1.5 * w, init_params(jax.random.key(0), shape))


def measured(view):
    """metric -> its values."""
    weights, sums = Weights(view.shape, view.params, view.degraded, view.edit), attention.maps(view)
    return {m.name: np.ravel(m.values(sums, weights)) for m in attention.METRICS}


def softmax(scores):
    size = np.exp(scores - scores.max())
    return size / size.sum()


def spread(p):
    return -sum(x * np.log(x) for x in p if x > 0)


def cosine(p, q):
    return p @ q / np.linalg.norm(p) / np.linalg.norm(q) if q.any() else 0  # all of it on its own key


def loops(maps_LNHSS, q_LNSHK, S):
    """Every metric from the queries 14, 15, 30, 31 of 32, of every other sequence."""
    maps_LNHSS, q_LNSHK = maps_LNHSS[:, ::2], np.asarray(q_LNSHK, np.float64)[:, ::2]
    L, N, H = maps_LNHSS.shape[:3]
    later = [S - 1 - i * S // 2 for i in range(2)]
    pairs = list(itertools.combinations(range(H), 2))
    out = {m.name: [] for m in attention.METRICS}
    for l in range(L):
        of = {name: np.zeros(H) for name in ("entropy", "next")} | {"js": np.zeros((H, H)), "cos": np.eye(H)}
        for n, t in itertools.product(range(N), later):
            for s in (t - 1, t):
                p = maps_LNHSS[l, n, :, s, : s + 1]
                of["entropy"] += [spread(p[h]) / (4 * N) for h in range(H)]
                for g, h in pairs:
                    js = spread((p[g] + p[h]) / 2) - (spread(p[g]) + spread(p[h])) / 2
                    of["js"][g, h] += js / (4 * N)
                    of["cos"][g, h] += cosine(p[g], p[h]) / (4 * N)
            early, late = maps_LNHSS[l, n, :, t - 1, :t], maps_LNHSS[l, n, :, t, :t]
            of["next"] += [cosine(early[h], late[h]) / (2 * N) for h in range(H)]
        of_queries = {name: np.zeros(H) for name in ("pair", "vector")}
        read = sorted([*later, *(t - 1 for t in later)])
        for (s, t), n, h in itertools.product(itertools.combinations(read, 2), range(N), range(H)):
            p = maps_LNHSS[l, n, h]
            of_queries["pair"][h] += cosine(p[s, : s + 1], p[t, : s + 1]) / (6 * N)
            of_queries["vector"][h] += cosine(q_LNSHK[l, n, s, h], q_LNSHK[l, n, t, h]) / (6 * N)
        for name, values in of_queries.items():
            out[f"query_{name}_cosine"] += list(values)
        js, cos = ([of[name][pair] for pair in pairs] for name in ("js", "cos"))
        out["head_pair_divergence"] += js
        out["head_pair_cosine"] += cos
        out["head_divergence"].append(np.mean(js))
        out["head_cosine"].append(np.mean(cos))
        out["head_entropy"] += list(of["entropy"])
        out["attention_entropy"].append(of["entropy"].mean())
        out["query_cosine"] += list(of["next"])
        similarity = (of["cos"] + of["cos"].T - np.eye(H)) / H
        out["effective_heads"].append(np.exp(spread(np.linalg.eigvalsh(similarity))))
    return out


def maps_of(inner, S):
    """Of queries and keys, [L, B, H, S, S] in float64."""
    q, k = (np.asarray(inner[name], np.float64) for name in "qk")
    L, B, _, H, K = q.shape
    out = np.zeros((L, B, H, S, S))
    for l, b, h, s in itertools.product(range(L), range(B), range(H), range(S)):
        out[l, b, h, s, : s + 1] = softmax(k[l, b, : s + 1, h] @ q[l, b, s, h] / np.sqrt(K))
    return out


def test_against_loops():
    view = view_of(HEADS, drawn(HEADS))
    inner = inner_of_view(view)
    # the fifth sequence only fills the batch
    expected = loops(maps_of(inner, 32)[:, :4], inner["q"][:, :4], 32)
    found = measured(view)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert min(found["head_divergence"]) > 0.05


def test_through_a_sweep(splits):  # noqa: F811
    params, tokens = drawn(HEADS), splits.evaluation.tokens_NT[:, :-1]
    subject = Subject(dataclasses.replace(subject_of(splits).member, shape=HEADS), params, splits, EVALUATION)
    rows = rows_of(subject, Degrade(method="random_heads", severities=(0.5,)))
    inner = apply(params, tokens, HEADS).inner
    expected = loops(maps_of(inner, 32), inner["q"], 32)
    for metric in attention.METRICS:
        places = metric.places(HEADS)
        assert len(places) == len(expected[metric.name])
        for place, wanted in zip(places, expected[metric.name], strict=True):
            found = value(rows, metric.name, severity=0.0, **place._asdict())
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5), (metric.name, place)
            assert value(rows, metric.name, severity=0.5, **place._asdict()) is not None
    entropies = [value(rows, "attention_entropy", severity=s, at=2.0) for s in (0.0, 0.5)]
    assert abs(entropies[0] - entropies[1]) > 1e-3


def copied(shape, to, source):
    """Parameters whose head `to` has the queries and keys of head `source`."""
    params, K = drawn(shape), shape.head_dim
    blocks = dict(params["blocks"])
    for name in "qk":
        part = blocks[name][:, :, source * K : (source + 1) * K]
        blocks[name] = blocks[name].at[:, :, to * K : (to + 1) * K].set(part)
    return params | {"blocks": blocks}


def test_a_duplicated_head_has_no_divergence_and_does_not_count():
    found = measured(view_of(HEADS, copied(HEADS, to=2, source=0)))
    pairs = found["head_pair_divergence"].reshape(3, 3), found["head_pair_cosine"].reshape(3, 3)
    np.testing.assert_allclose(pairs[0][:, 1], 0, atol=1e-6)  # 0-1, 0-2, 1-2
    np.testing.assert_allclose(pairs[1][:, 1], 1, atol=1e-6)
    np.testing.assert_allclose(pairs[0][:, 0], pairs[0][:, 2], rtol=1e-5)
    assert pairs[0][:, 0].min() > 0.05
    assert found["effective_heads"].max() < 1.9
    two = measured(view_of(SHAPE, copied(SHAPE, to=1, source=0)))
    np.testing.assert_allclose(two["effective_heads"], 1, atol=1e-3)


def test_effective_number_of_known_similarities():
    assert attention.vendi_score(jnp.eye(5)) == pytest.approx(5, rel=1e-5)
    assert attention.vendi_score(jnp.ones((5, 5))) == pytest.approx(1, abs=1e-4)
    groups = jnp.kron(jnp.eye(2), jnp.ones((3, 3)))  # two groups of three
    assert attention.vendi_score(groups) == pytest.approx(2, rel=1e-4)
    one_pair = attention.symmetric(jnp.array([1.0, 0, 0, 0, 0, 0]), 4, 1.0)
    assert attention.vendi_score(one_pair) == pytest.approx(4 / 2 ** (2 / 4), rel=1e-4)


def test_one_head_has_no_pairs(splits):  # noqa: F811
    shape = dataclasses.replace(SHAPE, n_heads=1)
    member = dataclasses.replace(subject_of(splits).member, shape=shape)
    rows = rows_of(
        Subject(member, drawn(shape), splits, EVALUATION), Degrade(method="rtn", severities=(4.0,))
    )
    names = {r["metric"] for r in rows if r["metric"] != "loss"}
    of_queries = {"query_cosine", "query_pair_cosine", "query_vector_cosine"}
    assert names == {"effective_heads", "attention_entropy", "head_entropy"} | of_queries
    assert [r["value"] for r in rows if r["metric"] == "effective_heads"] == [1.0] * 6


def test_keys_of_a_rounded_cache_are_those_that_were_attended_to():
    params = drawn(HEADS)
    bits = lambda b: Edit(cache_bits={"k": jnp.full(3, b, jnp.float32)})  # noqa: E731
    whole, exact, coarse = (view_of(HEADS, params, edit) for edit in (Edit(), bits(16), bits(2)))
    whole, exact, inner = measured(whole), measured(exact), inner_of_view(coarse)
    for name in whole:
        np.testing.assert_allclose(exact[name], whole[name], rtol=1e-4, atol=1e-5, err_msg=name)
    maps = np.asarray(inner["attn_map"], np.float64)
    found, expected = measured(coarse), loops(maps[:, :4], inner["q"][:, :4], 32)
    for name in whole:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.abs(maps - maps_of(inner, 32)).max() > 0.1
