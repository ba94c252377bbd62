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
    view_of,
)

from wane.eval.metrics import attention
from wane.eval.metrics.contract import Place, Weights
from wane.eval.study import Degrade, Evaluation
from wane.eval.subject import Subject
from wane.scaling.degrade.contract import Where
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


def divergence(p, q):
    return spread((p + q) / 2) - (spread(p) + spread(q)) / 2


def seen_by_both(p_SS, s, t):
    """The attention of a query and of a later one over the keys that the first sees; None where nothing is left."""
    late = p_SS[t, : s + 1]
    return p_SS[s, : s + 1], late / late.sum() if late.any() else None


def divergence_of_queries(p_SS, s, t):
    early, late = seen_by_both(p_SS, s, t)
    return np.log(2) if late is None else divergence(early, late)


def mean(values):
    """nan of none."""
    return np.mean(values) if len(values) else np.nan


def loops(maps_LNHSS, q_LNSHK, S, left_LH=None):
    """Every metric from the queries 14, 15, 30, 31 of 32, of every other sequence; nan where it is not defined."""
    maps_LNHSS, q_LNSHK = maps_LNHSS[:, ::2], np.asarray(q_LNSHK, np.float64)[:, ::2]
    L, N, H = maps_LNHSS.shape[:3]
    later = [S - 1 - i * S // 2 for i in range(2)]
    pairs = list(itertools.combinations(range(H), 2))
    out = {m.name: [] for m in attention.METRICS}
    left_LH = np.ones((L, H), bool) if left_LH is None else left_LH
    for l in range(L):
        of = {name: np.zeros(H) for name in ("entropy", "next", "next_js")}
        of |= {"js": np.zeros((H, H)), "cos": np.eye(H)}
        for n, t in itertools.product(range(N), later):
            for s in (t - 1, t):
                p = maps_LNHSS[l, n, :, s, : s + 1]
                of["entropy"] += [spread(p[h]) / (4 * N) for h in range(H)]
                for g, h in pairs:
                    of["js"][g, h] += divergence(p[g], p[h]) / (4 * N)
                    of["cos"][g, h] += cosine(p[g], p[h]) / (4 * N)
            early, late = maps_LNHSS[l, n, :, t - 1, :t], maps_LNHSS[l, n, :, t, :t]
            of["next"] += [cosine(early[h], late[h]) / (2 * N) for h in range(H)]
            of["next_js"] += [divergence_of_queries(p, t - 1, t) / (2 * N) for p in maps_LNHSS[l, n]]
        of_queries = {name: np.zeros(H) for name in ("pair_cosine", "pair_divergence", "vector_cosine")}
        read = sorted([*later, *(t - 1 for t in later)])
        for (s, t), n, h in itertools.product(itertools.combinations(read, 2), range(N), range(H)):
            p = maps_LNHSS[l, n, h]
            of_queries["pair_cosine"][h] += cosine(p[s, : s + 1], p[t, : s + 1]) / (6 * N)
            of_queries["pair_divergence"][h] += divergence_of_queries(p, s, t) / (6 * N)
            of_queries["vector_cosine"][h] += cosine(q_LNSHK[l, n, s, h], q_LNSHK[l, n, t, h]) / (6 * N)
        left_H = left_LH[l]
        of_queries |= {"cosine": of["next"], "divergence": of["next_js"]}
        for name, values in of_queries.items():
            out[f"query_{name}"] += list(np.where(left_H, values, np.nan))
        for name, values in (("divergence", of["js"]), ("cosine", of["cos"])):
            out[f"head_pair_{name}"] += [values[p] if left_H[list(p)].all() else np.nan for p in pairs]
            out[f"head_{name}"].append(mean([values[p] for p in pairs if left_H[list(p)].all()]))
        out["head_entropy"] += list(np.where(left_H, of["entropy"], np.nan))
        out["attention_entropy"].append(mean(of["entropy"][left_H]))
        similarity = (of["cos"] + of["cos"].T - np.eye(H))[left_H][:, left_H] / max(left_H.sum(), 1)
        number = np.exp(spread(np.linalg.eigvalsh(similarity)))
        out["effective_heads"].append(number if left_H.any() else np.nan)
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
    degrade = Degrade(method="random_heads", severities=(0.5, 1.0))
    rows = rows_of(subject, degrade)
    built, key = degrade.built(HEADS), subject.draw_key(degrade, 0)
    fitted = built.fit(params, subject.calibration(degrade), key)
    assert {r["status"] for r in rows} == {"ok"}
    for severity in (0.0, 0.5, 1.0):
        edit = built.apply(params, fitted, severity, Where.everywhere(HEADS), key)
        inner = apply(params, tokens, HEADS, edit).inner
        expected = loops(maps_of(inner, 32), inner["q"], 32, np.asarray(edit.head_LH) != 0)
        for metric in attention.METRICS:
            mine = [r for r in rows if r["metric"] == metric.name and r["severity"] == severity]
            found = {Place(*(r[field] for field in Place._fields)): r["value"] for r in mine}
            wanted = dict(zip(metric.places(HEADS), expected[metric.name], strict=True))
            wanted = {place: number for place, number in wanted.items() if not np.isnan(number)}
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5), (metric.name, severity)
            assert bool(wanted) == (severity < 1)


def copied(shape, to, source):
    """Parameters whose head `to` has the queries and keys of head `source`."""
    params, K = drawn(shape), shape.head_dim
    blocks = dict(params["blocks"])
    for name in "qk":
        part = blocks[name][:, :, source * K : (source + 1) * K]
        blocks[name] = blocks[name].at[:, :, to * K : (to + 1) * K].set(part)
    return params | {"blocks": blocks}


def test_of_copied_heads_the_removed_half_does_not_count():
    """Four heads that are two: without a copy of each as many attend differently, without both copies of one no two
    do."""
    shape = dataclasses.replace(SHAPE, n_heads=4, head_dim=4)
    params = drawn(shape)
    kind_H = np.repeat([0, 2], 2)
    columns = (kind_H[:, None] * shape.head_dim + np.arange(shape.head_dim)).ravel()
    copies = {name: params["blocks"][name][..., columns] for name in "qk"}
    params = params | {"blocks": params["blocks"] | copies}

    def told(left_H):
        return measured(
            view_of(shape, params, Edit(head_LH=jnp.tile(jnp.float32(jnp.array(left_H)), (3, 1))))
        )

    whole, halves, pair, one = (told(h) for h in ([1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 0]))
    first = {
        name: values.reshape(3, -1)[0] for name, values in halves.items()
    }  # what reaches layer 0 is the same
    assert first["effective_heads"] == pytest.approx(whole["effective_heads"][0], abs=1e-3)
    assert whole["effective_heads"][0] > 1.2
    between = whole["head_pair_divergence"].reshape(3, 6)[0, 1]  # 0-2
    assert first["head_divergence"] == pytest.approx(between, rel=1e-4)
    assert whole["head_divergence"][0] == pytest.approx(between * 4 / 6, rel=1e-4)
    np.testing.assert_allclose(pair["effective_heads"], 1, atol=1e-3)
    np.testing.assert_allclose(pair["head_divergence"], 0, atol=1e-6)
    np.testing.assert_allclose(pair["head_cosine"], 1, atol=1e-6)
    np.testing.assert_allclose(one["effective_heads"], 1, atol=1e-6)
    assert np.isnan(one["head_divergence"]).all()
    assert np.isnan(one["head_cosine"]).all()
    np.testing.assert_allclose(one["attention_entropy"], one["head_entropy"].reshape(3, 4)[:, 2])
    assert np.isnan(one["query_divergence"]).sum() == 3 * 3


def test_a_layer_without_attention_has_no_heads():
    found = measured(view_of(HEADS, drawn(HEADS), Edit(attn_L=jnp.array([1.0, 0.0, 1.0]))))
    for name, values in found.items():
        by_layer = np.isnan(values).reshape(3, -1)
        assert by_layer[1].all(), name
        assert not by_layer[[0, 2]].any(), name


def test_queries_of_one_head_that_attend_alike_or_apart():
    """Over the keys that both see, what the later one spends on others left out."""
    at_Q, early, q = np.array([1, 3]), [0.5, 0.5, 0, 0], jnp.ones((1, 1, 2, 3))

    def told(late):
        map_HBQC = jnp.asarray([early, late], jnp.float32)[None, None]
        sums = attention.of_queries(map_HBQC, attention.surprise(map_HBQC), q, at_Q, jnp.ones(1))
        return float(sums["pair_divergence"][0]), float(sums["pair_cosine"][0])

    assert told([0.05, 0.05, 0.6, 0.3]) == pytest.approx((0, 1), abs=1e-6)
    apart = divergence(np.array([0.5, 0.5]), np.array([1.0, 0]))
    assert told([0.1, 0, 0.6, 0.3]) == pytest.approx((apart, 0.5**0.5), abs=1e-6)
    assert told([0, 0, 0.7, 0.3]) == pytest.approx((np.log(2), 0), abs=1e-6)
    assert told([1e-30, 0, 0.7, 0.3]) == pytest.approx((apart, 0.5**0.5), abs=1e-5)


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
    def number(similarity_HH, left_H=None):
        left_H = np.ones(len(similarity_HH)) if left_H is None else left_H
        return attention.vendi_score(similarity_HH, np.array(left_H, bool))

    assert number(jnp.eye(5)) == pytest.approx(5, rel=1e-5)
    assert number(jnp.ones((5, 5))) == pytest.approx(1, abs=1e-4)
    groups = jnp.kron(jnp.eye(2), jnp.ones((3, 3)))  # two groups of three
    assert number(groups) == pytest.approx(2, rel=1e-4)
    one_pair = attention.symmetric(jnp.array([1.0, 0, 0, 0, 0, 0]), 4, 1.0)
    assert number(one_pair) == pytest.approx(4 / 2 ** (2 / 4), rel=1e-4)
    assert number(one_pair, [1, 0, 1, 1]) == pytest.approx(3, rel=1e-4)
    assert number(one_pair, [1, 1, 0, 0]) == pytest.approx(1, abs=1e-4)
    assert np.isnan(number(one_pair, [0, 0, 0, 0]))


def test_one_head_has_no_pairs(splits):  # noqa: F811
    shape = dataclasses.replace(SHAPE, n_heads=1)
    member = dataclasses.replace(subject_of(splits).member, shape=shape)
    rows = rows_of(
        Subject(member, drawn(shape), splits, EVALUATION), Degrade(method="rtn", severities=(4.0,))
    )
    names = {r["metric"] for r in rows if r["metric"] != "loss"}
    of_queries = {"query_cosine", "query_pair_cosine", "query_vector_cosine"}
    of_queries |= {"query_divergence", "query_pair_divergence"}
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
