"""Representations before and after: the theorems, every metric against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import SHAPE, Subject, rows_of, splits_of, subject_of, value

from wane.eval.metrics import INSTRUMENTS, METRICS
from wane.eval.metrics import deviation as dev
from wane.eval.metrics.deviation_layers import COMPARED, EVERY, PARTS, READ
from wane.eval.metrics.deviation_spaces import RUN, TEMPERATURES, VECTORS, noisy, sample, sampled
from wane.eval.metrics.moments import few
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.model import apply, block, normalize, unembed
from wane.train.data import Data, open_data

NAMES = tuple(metric.name for metric in INSTRUMENTS["representation"])
BATCH = 20  # more than EVERY, and it does not divide the number of sequences


def test_the_estimates_are_exact_to_second_order():
    """Half the change: a quarter of the value, an eighth of the error."""
    rng = np.random.default_rng(0)
    z, change = rng.normal(size=(2, 64, 50))
    errors = []
    for size in (0.4, 0.2, 0.1):
        step = size * change
        p, q = softmax(z / 0.7), softmax((z + step) / 0.7)
        kl = (p * np.log(p / q)).sum(-1)
        distance = 1 - cosine(p, q)
        along = (step * z).sum(-1, keepdims=True) / (z * z).sum(-1, keepdims=True) * z
        vector = 1 - cosine(z, z + step)
        orthogonal = np.linalg.norm(step - along, axis=-1) / np.linalg.norm(z, axis=-1)
        estimate = dev.second_order(jnp.asarray(z), jnp.asarray(step), 0.7)
        first = dev.distance_estimate(orthogonal)
        pairs = ((kl, estimate.kl), (distance, estimate.distance), (vector, first))
        assert all(abs(e / t - 1).mean() < 2 * size for t, e in pairs)
        errors.append([np.sqrt(np.mean((t - e) ** 2)) for t, e in pairs])
    ratio = np.array(errors[:-1]) / np.array(errors[1:])
    assert (ratio > 6.5).all()
    assert (ratio < 10.5).all()


def test_angles_are_exact_where_the_cosine_is_1_and_nothing_has_no_direction():
    v = jnp.asarray([3.0, 0, 0, 4])
    across = jnp.asarray([0, 5.0, 0, 0])
    small = dev.geometry(v, v + 1e-4 * across)
    assert float(small.angle) == pytest.approx(np.degrees(1e-4), rel=1e-4)
    assert float(small.distance) == pytest.approx(0.5e-8, rel=1e-3)
    assert [float(x) for x in dev.geometry(v, v)] == [1, 0, 0, 0, 0]
    gone = dev.geometry(v, 0 * v)
    assert float(gone.cosine) == pytest.approx(0, abs=1e-6)
    assert (float(gone.angle), float(gone.parallel), float(gone.orthogonal)) == (90, 1, 0)
    assert float(dev.angle(v, -2 * v)) == 180
    assert float(dev.angle(v, 2 * v)) == 0


def test_margins_and_entropy():
    z = jnp.asarray([[1.0, 4, 3], [2, 2, 0]])
    changed = jnp.asarray([[1.0, 2, 5], [3, 1, 0]])
    np.testing.assert_array_equal(dev.choice(z), [1, 0])
    np.testing.assert_array_equal(dev.margin(z), [1, 0])
    np.testing.assert_array_equal(dev.kept_margin(z, changed), [-3, 2])
    np.testing.assert_allclose(dev.entropy(jnp.zeros((1, 7))), np.log(7), rtol=1e-6)


@pytest.mark.parametrize("convention", ["generation", "transition"])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100])
def test_kl_of_small_and_of_large_changes(size, convention):
    """Every token against float64, and never below 0."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (64, 512)).astype(np.float32)
    changed = (z + size * rng.normal(size=z.shape)).astype(np.float32)
    for T in (0.3, 1.0):
        found = np.asarray(dev.kl(jnp.asarray(z), jnp.asarray(changed), T, convention))
        log_p, log_q = (
            x - np.logaddexp.reduce(x, -1, keepdims=True)
            for x in (np.float64(z) / T, np.float64(changed) / T)
        )
        if convention == "transition":
            log_p, log_q = log_q, log_p
        expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        np.testing.assert_allclose(found, expected, rtol=5e-5, atol=2e-12)
        assert (found >= 0).all()
    assert (np.asarray(dev.kl(jnp.asarray(z), jnp.asarray(z), 1.0, convention)) == 0).all()


def test_noise_is_as_long_as_the_change_and_isotropic():
    rng = np.random.default_rng(0)
    x, changed = jnp.asarray(rng.normal(size=(2, 4000, 16)), jnp.float32)
    noise = noisy(x, changed, jax.random.key(0)) - x
    lengths = [np.linalg.norm(a, axis=-1) for a in (noise, changed - x)]
    np.testing.assert_allclose(*lengths, rtol=1e-4)
    unit = noise / lengths[0][:, None]
    np.testing.assert_allclose(unit.T @ unit / 4000 * 16, np.eye(16), atol=0.12)


def test_every_run_of_positions_gives_one_of_each_place():
    positions, _ = sample(300, 3 * RUN + 2)
    np.testing.assert_array_equal(positions // RUN, np.broadcast_to(np.arange(4), (300, 4)))
    assert set(positions[:, 0]) == set(range(RUN))
    assert set(positions[:, 3]) == {3 * RUN, 3 * RUN + 1}


@pytest.mark.parametrize("batch", [8, 16, 50])
@pytest.mark.parametrize("length", [64, 100, 128])
def test_every_octave_is_read_in_every_batch_and_means_stay_those_over_all_tokens(batch, length):
    position, (places, weights) = 1 + np.arange(length), sample(batch, length)
    octave_S = np.log2(position).astype(int)
    read = np.bincount(octave_S[places].ravel(), minlength=octave_S[-1] + 1)
    assert read.min() > 0
    told = np.bincount(octave_S[places].ravel(), weights.ravel()) / weights.sum()
    runs = np.arange(0, length, RUN)
    # each run weighs the same, as each is read once by every sequence
    expected = [
        np.bincount(octave_S[r : r + RUN], minlength=len(read)) / len(octave_S[r : r + RUN]) for r in runs
    ]
    np.testing.assert_allclose(told, np.mean(expected, axis=0), rtol=1e-5)
    np.testing.assert_allclose(weights.mean(axis=0), 1, rtol=1e-5)


def test_few_sequences_read_anywhere():
    """Fewer than there are octaves: all positions are as likely as each other."""
    places, weights = sample(5, 32)
    assert places.shape == (5, 1)
    assert (weights == 1).all()


@pytest.fixture(scope="module")
def swept():
    """(rows, subject, edit at severity .5): magnitude pruning and everything else of a tiny model."""
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0, "L3": 1.0})
    splits = splits_of(open_data(data, steps=4, batch_size=4), 16)
    known = subject_of(splits)
    settings = Evaluation(sequences=16, batch=BATCH, metrics=("loss", "kl", "representation"))
    subject = Subject(known.member, known.params, splits, settings)
    degrade = Degrade(method="magnitude_weights", severities=(0.5,))
    rows, _, _ = rows_of(subject, degrade)
    method, key = degrade.built(SHAPE), subject.draw_key(degrade, 0)
    fitted = method.fit(subject.params, subject.calibration(degrade), key)
    return rows, subject, method.apply(subject.params, fitted, 0.5, Where.everywhere(SHAPE), key)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cosine(v, w):
    return (v * w).sum(-1) / (np.linalg.norm(v, axis=-1) * np.linalg.norm(w, axis=-1))


def states(subject, edit):
    """Final state, logits and what enters every block, of all sequences in float64."""
    tokens = subject.splits.evaluation.tokens_NT[:, :-1]
    out = apply(subject.params, tokens, SHAPE, edit)
    z = unembed(subject.params, out.x_BSD, SHAPE)
    return tuple(np.asarray(a, np.float64) for a in (out.x_BSD, z, out.inner["block_in"]))


def tokens_of(N):
    """(sequence, position) of every sampled token."""
    positions, _ = sample(BATCH, SHAPE.context)
    return [(i, s) for i in range(N) for s in positions[i % BATCH]]


def over(task_N):
    """values of all sampled tokens -> their mean: over tasks, of each over its tokens, each of which stands for as
    many as `sample` says."""
    weight_Bn = sample(BATCH, SHAPE.context).weight_Bn
    weight_Nn = np.array([weight_Bn[i % BATCH] for i in range(len(task_N))])
    task_M = np.repeat(task_N, weight_Nn.shape[1])

    def average(values):
        of = [task_M == task for task in np.unique(task_N)]
        return np.mean([np.average(np.array(values)[m], 0, weight_Nn.ravel()[m]) for m in of], axis=0)

    return average


def test_every_metric_has_rows_and_the_identity_is_no_deviation(swept):
    rows, *_ = swept
    same = [r for r in rows if r["severity"] == 0 and r["task"] == "all"]
    assert {r["metric"] for r in same} == {"loss", "kl", *NAMES}
    assert all(r["status"] == "ok" for r in rows)
    for row in same:
        name = row["metric"].removesuffix("_by_sublayer")
        if name.startswith("contribution_"):
            continue
        if name.endswith(("_cosine", "_agreement")) or name == "cosine_by_position":
            assert row["value"] == pytest.approx(1, abs=1e-6), row
        elif name.startswith(("deviation_", "estimate_")) or name in (
            "layer_orthogonal", "update_orthogonal", "kl_by_position"
        ):  # fmt: skip
            assert row["value"] == pytest.approx(0, abs=2e-4 if name == "deviation_angle" else 2e-6), row
    shown = {
        p: value(rows, "prediction_margin", severity=0, part=p) for p in ("undegraded", "degraded", "kept")
    }
    assert len({round(v, 5) for v in shown.values()}) == 1
    places = {
        (r["axis"], r["at"], r["part"]) for r in same if r["metric"] == "deviation_cosine" and r["at"] != 0.5
    }
    assert (None, None, "centred logit under noise") in places
    assert ("temperature", 0.3, "probability") in places
    assert all(
        METRICS[name].relative
        for name in NAMES
        if name
        not in ("prediction_entropy", "state_entropy", "contribution_cosine", "contribution_orthogonal")
    )


def test_whole_model_metrics_against_loops(swept):
    rows, subject, edit = swept
    (x, z, _), (changed_x, changed_z, _) = (states(subject, e) for e in (None, edit))
    scale = subject.params["final_norm"]["scale"]
    w = np.asarray(subject.params["unembed"], np.float64) * SHAPE.logit_scale
    spaces = {name: ([], []) for name in VECTORS}
    p_at, margins, entropy = {t: ([], []) for t in TEMPERATURES}, [], []
    average = over(subject.splits.evaluation.task_N)
    kl, estimates = ({t: [] for t in TEMPERATURES} for _ in range(2))
    for i, s in tokens_of(len(x)):
        for side, (h, logits) in enumerate(((x[i, s], z[i, s]), (changed_x[i, s], changed_z[i, s]))):
            normed = np.asarray(normalize(jnp.asarray(h, jnp.float32), scale, None, SHAPE.norm_eps), float)
            told = h, normed, h @ w, logits, logits - logits.mean()
            for name, v in zip(VECTORS, told, strict=True):
                spaces[name][side].append(v)
            for t in TEMPERATURES:
                p_at[t][side].append(softmax(logits / t))
        for t in TEMPERATURES:
            p, q, change = p_at[t][0][-1], p_at[t][1][-1], changed_z[i, s] - z[i, s]
            kl[t].append(sum(p * np.log(p / q)))
            mean = sum(p * change)
            r = p**2 / sum(p**2)
            spread = sum(r * (change - sum(r * change)) ** 2) / (2 * t * t)
            estimates[t].append((sum(p * (change - mean) ** 2) / (2 * t * t), spread))
        order, other = np.sort(z[i, s]), np.sort(changed_z[i, s])
        top = z[i, s].argmax()
        kept = changed_z[i, s, top] - max(np.delete(changed_z[i, s], top))
        margins.append((order[-1] - order[-2], other[-1] - other[-2], kept))
        q = p_at[1.0][1][-1]
        entropy.append(-sum(q * np.log(q)))

    def check(metric, expected, **where):
        assert value(rows, metric, severity=0.5, **where) == pytest.approx(expected, rel=1e-4, abs=1e-6), (
            where
        )

    for name, (before, after) in spaces.items():
        before, after = np.array(before), np.array(after)
        cos = cosine(before, after)
        parallel = ((after - before) * before).sum(-1, keepdims=True) / (before**2).sum(-1, keepdims=True)
        across = after - before - parallel * before
        orthogonal = np.linalg.norm(across, axis=-1) / np.linalg.norm(before, axis=-1)
        check("deviation_cosine", average(cos), part=name)
        check("deviation_angle", average(np.degrees(np.arccos(cos))), part=name)
        check("deviation_distance", 1 - average(cos), part=name)
        check("deviation_orthogonal", average(orthogonal), part=name)
        check("deviation_parallel", average(abs(parallel[:, 0])), part=name)
        check("estimate_distance", average(orthogonal**2 / 2), part=name)
    for t in TEMPERATURES:
        where = {"part": "probability", "at": t, "axis": "temperature"}
        cos = cosine(np.array(p_at[t][0]), np.array(p_at[t][1]))
        check("deviation_cosine", average(cos), **where)
        check("deviation_angle", average(np.degrees(np.arccos(cos))), **where)
        check("deviation_kl", average(kl[t]), **where)
        of_kl, of_distance = average(estimates[t])
        check("estimate_kl", of_kl, **where)
        check("estimate_distance", of_distance, **where)
    for part, expected in zip(("undegraded", "degraded", "kept"), average(margins), strict=True):
        check("prediction_margin", expected, part=part)
    same = [z[i, s].argmax() == changed_z[i, s].argmax() for i, s in tokens_of(len(x))]
    check("deviation_agreement", average(same), part="probability")
    check("prediction_entropy", average(entropy))
    nats = 0.5 * np.log(2 * np.pi * np.e * changed_x.reshape(-1, SHAPE.d_model).var(axis=0))
    check("state_entropy", nats.mean(), part="embedding")
    for octave in (1, 4, 16):
        chosen = [n for n, (_, s) in enumerate(tokens_of(len(x))) if 2 ** int(np.log2(1 + s)) == octave]
        where = {"axis": "position", "at": float(octave)}
        check("kl_by_position", np.array(kl[1.0])[chosen].mean(), **where)
        before, after = (np.array(side)[chosen] for side in spaces["embedding"])
        check("cosine_by_position", cosine(before, after).mean(), **where)


def test_rows_count_the_tokens_that_their_values_average_over(swept):
    rows, subject, _ = swept
    N, S = subject.splits.evaluation.scored_NS.shape
    looked_at = sum(i % BATCH % EVERY == 0 for i in range(N))
    counts = {r["metric"]: r["count"] for r in rows if r["task"] == "all"}
    by_sublayer = {count for name, count in counts.items() if name.endswith("_by_sublayer")}
    assert by_sublayer == {looked_at * READ}
    assert counts["block_noise_to_signal"] == looked_at * S / 2 / COMPARED
    assert counts["layer_noise_to_signal"] == N * S / RUN
    assert counts["contribution_cosine"] == N * few(S, BATCH).shape[1]
    assert counts["state_entropy"] == N * S


def test_noise_moves_the_state_as_far_but_elsewhere(swept):
    rows, *_ = swept
    lengths = []
    for part in ("embedding", "embedding under noise"):
        parts = [value(rows, f"deviation_{n}", severity=0.5, part=part) for n in ("orthogonal", "parallel")]
        lengths.append(np.hypot(*parts))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)
    for metric, where in (("deviation_kl", {"at": 1.0}), ("deviation_agreement", {})):
        real, noise = (
            value(rows, metric, severity=0.5, part=f"probability{n}", **where) for n in ("", " under noise")
        )
        assert real != noise


def test_layers_against_loops(swept):
    rows, subject, edit = swept
    before, after = (states(subject, e)[2] for e in (None, edit))
    average = over(subject.splits.evaluation.task_N)
    for layer in range(SHAPE.n_layers):
        pairs = [(before[layer, i, s], after[layer, i, s]) for i, s in tokens_of(before.shape[1])]
        cos = average([cosine(v, w) for v, w in pairs])
        orthogonal = [np.linalg.norm(w - v - (w - v) @ v / (v @ v) * v) / np.linalg.norm(v) for v, w in pairs]
        where = {"severity": 0.5, "axis": "layer", "at": float(layer)}
        assert value(rows, "layer_cosine", **where) == pytest.approx(cos, rel=1e-5)
        assert value(rows, "layer_orthogonal", **where) == pytest.approx(
            average(orthogonal), rel=1e-4, abs=1e-6
        )


def test_blocks_alone_against_loops(swept):
    """On the undegraded stream, the first half of the first sequences of every batch, every second token."""
    rows, subject, edit = swept
    before = states(subject, None)[2]
    looked_at = [i for i in range(before.shape[1]) if i % BATCH % EVERY == 0]
    assert len(looked_at) > 2
    (at,) = sampled(1, SHAPE.context // 2, COMPARED)
    assert len(at) == SHAPE.context / 4
    for layer in range(SHAPE.n_layers):
        x = jnp.asarray(before[layer, looked_at], jnp.float32)
        told = []
        for params in (subject.params["blocks"], subject.params["blocks"] | edit.params["blocks"]):
            out, inner, _ = block({name: leaf[layer] for name, leaf in params.items()}, x, SHAPE)
            start, mid, end = (np.asarray(a, np.float64)[:, at] for a in (x, inner["mid"], out))
            told.append((mid - start, end - mid, end - start))
        for part, v, w in zip(PARTS, *told, strict=True):
            where = {"severity": 0.5, "axis": "layer", "at": float(layer), "part": part}
            assert value(rows, "update_cosine", **where) == pytest.approx(cosine(v, w).mean(), rel=1e-4)
            change = w - v
            across = change - (change * v).sum(-1, keepdims=True) / (v * v).sum(-1, keepdims=True) * v
            orthogonal = (np.linalg.norm(across, axis=-1) / np.linalg.norm(v, axis=-1)).mean()
            assert value(rows, "update_orthogonal", **where) == pytest.approx(orthogonal, rel=1e-4)


def test_a_removed_sublayer_adds_nothing(swept):
    _, subject, _ = swept
    rows, _, _ = rows_of(subject, Degrade(method="remove_layers", severities=(1.0,)))
    found = [
        r for r in rows if r["severity"] == 1.0 and r["metric"] == "update_cosine" and r["task"] == "all"
    ]
    assert len(found) == SHAPE.n_layers * len(PARTS)
    np.testing.assert_allclose([r["value"] for r in found], 0, atol=1e-6)
