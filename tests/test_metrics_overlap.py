"""CKA, participation ratios and cosines against slow numpy, and on representations whose overlap is known."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import MEMBER, splits_of, value

from wane.eval.cell import sweep
from wane.eval.measure import forward
from wane.eval.metrics import overlap
from wane.eval.metrics.cka import cka, unbiased_cka
from wane.eval.metrics.concentration import effective_number, gini
from wane.eval.metrics.contract import Weights
from wane.eval.metrics.moments import EVERY, MINIBATCH, moments, own_covariance, participation_ratio
from wane.eval.metrics.neurons import mean_cosine, neuron_cosine, neuron_dimensions, neuron_moments
from wane.eval.metrics.neurons import neuron_overlap as overlap_of_neurons
from wane.eval.metrics.view import Batch, View
from wane.eval.study import Degrade, Evaluation
from wane.eval.subject import Subject
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit, merge
from wane.scaling.model import apply, init_params
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

SHAPE = Shape(d_model=16, n_layers=3, n_heads=2, head_dim=8, d_ff=24, vocab=512, context=32)
EVALUATION = Evaluation(sequences=3, batch=4, calibration_sequences=4, metrics=("loss", "overlap"))
rng = np.random.default_rng(0)


def rotation(D, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]


def slow_cka(x_ND, y_NE):
    """By kernels of examples, centred by a matrix (Kornblith et al. 2019, eq. 3)."""
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_NE, np.float64)
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = (centre @ a @ a.T @ centre for a in (x, y))
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def u_centred(x_ND):
    """Of the kernel, without its diagonal (Szekely & Rizzo 2014): HSIC is then a plain product."""
    k = np.asarray(x_ND, np.float64) @ np.asarray(x_ND, np.float64).T
    np.fill_diagonal(k, 0)
    n, row = len(k), k.sum(axis=0)
    k = k - row[:, None] / (n - 2) - row / (n - 2) + row.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(k, 0)
    return k


def slow_unbiased_cka(x_MND, y_MNE):
    def hsic(pairs):
        return sum(len(a) * np.sum(u_centred(a) * u_centred(b)) / (len(a) * (len(a) - 3)) for a, b in pairs)

    pairs = list(zip(x_MND, y_MNE, strict=True))
    own = [hsic([(a[i], a[i]) for a in pairs]) for i in (0, 1)]
    return hsic(pairs) / math.sqrt(own[0] * own[1])


def test_cka_is_invariant_to_rotation_and_scale_and_is_that_of_kernels():
    x, noise = rng.standard_normal((2, 40, 6)).astype(np.float32)
    assert cka(x, -3 * x @ rotation(6, 1) + 5) == pytest.approx(1, abs=1e-5)
    other = x[:, :4] ** 2 + noise[:, :4]
    assert cka(x, other) == pytest.approx(slow_cka(x, other), rel=1e-4)
    assert cka(x @ rotation(6, 2), other @ rotation(4, 3) / 7) == pytest.approx(
        float(cka(x, other)), rel=1e-4
    )
    stretched = x * np.array([10, 1, 1, 1, 1, 1])  # not invariant to what is not a rotation
    assert cka(x, stretched) < 0.7


def test_unbiased_hsic_is_the_mean_over_four_different_examples():
    """Song et al. 2012: its defining sum, over all orders of four."""
    x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    y[:, 0] += x[:, 0]

    def slow(k, m):
        fours = list(itertools.permutations(range(6), 4))
        return np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in fours])

    k, m = x @ x.T, y @ y.T
    expected = slow(k, m) / math.sqrt(slow(k, k) * slow(m, m))
    found = unbiased_cka(x[None].astype(np.float32), y[None].astype(np.float32))
    assert found == pytest.approx(expected, rel=1e-4)
    assert slow_unbiased_cka(x[None], y[None]) == pytest.approx(expected, rel=1e-9)


def test_only_the_unbiased_cka_of_unrelated_activations_is_small():
    x, y = rng.standard_normal((2, 30, 24, 32)).astype(np.float32)
    assert cka(x[0], y[0]) > 0.5
    assert abs(unbiased_cka(x, y)) < 0.05
    assert unbiased_cka(x, -2 * x @ rotation(32, 4).astype(np.float32) + 100) == pytest.approx(1, abs=1e-4)


def test_participation_ratio_counts_directions_of_equal_variance():
    for k in (1, 3, 5):
        basis = rotation(8, k)[:k]
        x = 3 * np.concatenate([basis, -basis]).astype(np.float32) + 4  # as much in each of k directions
        assert participation_ratio(own_covariance(moments(x, jnp.ones(2 * k)))) == pytest.approx(k, rel=1e-4)
    assert participation_ratio(jnp.zeros((4, 4))) == 0


def test_weights_take_tokens_out():
    x = rng.standard_normal((7, 3)).astype(np.float32)
    weight = np.array([1, 1, 0, 1, 0, 1, 1], np.float32)
    cov = own_covariance(moments(x, weight))
    np.testing.assert_allclose(cov, np.cov(x[weight > 0].T, bias=True), rtol=1e-4, atol=1e-6)


def test_mean_cosine_leaves_dead_neurons_out():
    x = rng.standard_normal((20, 5)).astype(np.float32)
    x[:, 2] = 0
    alive = [a for i, a in enumerate(x.T) if i != 2]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(alive, 2)]
    assert mean_cosine(x.T @ x) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert mean_cosine(x.T @ x, jnp.abs) == pytest.approx(np.mean(np.abs(cosines)), abs=1e-5)
    assert np.isnan(mean_cosine(jnp.zeros((5, 5))))


@pytest.mark.parametrize(
    ("effects", "equality", "number"),
    [
        ([2, 2, 2, 2], 0, 4),
        ([0, 0, 0, 3], 1, 1),
        ([1, 1, 0, -5], 2 / 3, 2),
        ([1, 2, 3, 4], 1 / 3, 10 / (2**2 * 3**3 * 4**4) ** 0.1),
    ],
)
def test_concentration_of_effects(effects, equality, number):
    assert gini(effects) == pytest.approx(equality)
    assert effective_number(effects) == pytest.approx(number)


@pytest.mark.parametrize("n", [2, 8])
def test_the_gini_coefficient_against_all_pairs_of_units_however_many(n):
    """Mean difference of two different units over twice their mean; 1 where one has all, at every n."""
    harm = np.random.default_rng(n).exponential(size=n)
    pairs = [abs(harm[a] - harm[b]) for a, b in itertools.permutations(range(n), 2)]
    assert gini(harm) == pytest.approx(np.mean(pairs) / 2 / harm.mean())
    assert gini(np.eye(n)[0]) == pytest.approx(1)
    assert gini(np.ones(n)) == pytest.approx(0)


def test_concentration_of_nothing():
    assert math.isnan(gini([0, -1]))
    assert math.isnan(gini([2]))
    assert effective_number([2]) == 1
    assert math.isnan(effective_number([0, -1]))
    for bad in ([], [1, float("nan")]):
        with pytest.raises(ValueError, match="must be finite"):
            gini(bad)


# In the model


@pytest.fixture(scope="module")
def splits():
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0, "L3": 1.0})
    return splits_of(open_data(data, steps=4, batch_size=4), 3)


def subject_of(splits, shape=SHAPE):
    params = jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(0), shape))
    return Subject(dataclasses.replace(MEMBER, shape=shape), params, splits, EVALUATION)


def rows_of(subject, degrade):
    return sweep(subject, degrade, range(1), "cell", 1, lambda n: None)[0]


def states(subject, degrade, severity):
    """float64: the levels [L + 1, N, S, D] of the degraded model and of the undegraded one, and its hidden units,
    all of 9 sequences at once."""
    params, shape = subject.params, subject.member.shape
    built, key = degrade.built(shape), subject.draw_key(degrade, 0)
    fitted = built.fit(params, subject.calibration(degrade), key)
    edit = built.apply(params, fitted, severity, Where.everywhere(shape), key)
    tokens = subject.splits.evaluation.tokens_NT[:, :-1]
    outs = [apply(params, tokens, shape, e) for e in (edit, None)]
    levels = [np.concatenate([out.inner["block_in"], out.x_BSD[None]]) for out in outs]
    return *(np.asarray(a, np.float64) for a in levels), np.asarray(outs[0].inner["down_in"], np.float64)


def read(sequence, run, length):
    """The position of a run that is read; sequence: its place in the batch."""
    return run * length + 10007 * (sequence + run) % length


def spaced(x_NSD):
    """Tokens that sums are over: one of 16 of each sequence, in batches of 4."""
    assert EVERY == 16
    return np.array([x_NSD[n, read(n % 4, run, 16)] for n in range(len(x_NSD)) for run in range(2)])


def batches(x):
    """Of 4, 4 and 1 sequences."""
    return [x[part] for part in (slice(0, 4), slice(4, 8), slice(8, 9))]


def minibatches(x):
    """One position of two: 64 tokens of a whole batch."""
    assert MINIBATCH == 64
    return [
        np.array([batch[n, read(n, run, 2)] for n in range(len(batch)) for run in range(16)])
        for batch in batches(x)
    ]


def level_cosines(x_NSD, y_NSD):
    """Mean over tokens of the cosine of two levels, and of that without the means of each minibatch."""
    found = []
    for centre in (False, True):
        tokens = []
        for pair in zip(minibatches(x_NSD), minibatches(y_NSD), strict=True):
            x, y = ((a - a.mean(axis=0)) if centre else a for a in pair)
            tokens += [v @ w / np.linalg.norm(v) / np.linalg.norm(w) for v, w in zip(x, y, strict=True)]
        found.append(np.mean(tokens))
    return found


def ratio(x_ND):
    eigenvalues = np.linalg.eigvalsh(np.cov(x_ND.T, bias=True))
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def test_every_row_against_numpy(splits):
    """9 sequences in batches of 4: the last is filled with three that must not count."""
    degrade = Degrade(method="magnitude_weights", severities=(0.6,))
    subject = subject_of(splits)
    rows = rows_of(subject, degrade)
    x, full, h = states(subject, degrade, 0.6)
    at = {"severity": 0.6, "axis": "layer"}

    def found(metric, **where):
        return value(rows, metric, **at, **where)

    for l in range(4):
        assert found("stream_cka", at=l) == pytest.approx(slow_cka(spaced(x[l]), spaced(full[l])), rel=1e-3)
        expected = slow_unbiased_cka(minibatches(x[l]), minibatches(full[l]))
        assert found("stream_cka_unbiased", at=l) == pytest.approx(expected, rel=1e-3)
        assert found("residual_dimensions", at=l) == pytest.approx(ratio(spaced(x[l])), rel=1e-3)
    for l, m in itertools.combinations(range(4), 2):
        expected = slow_unbiased_cka(minibatches(x[l]), minibatches(x[m]))
        assert found("layer_cka", at=l, at_2=m) == pytest.approx(expected, rel=1e-3)
        raw, centred = level_cosines(x[l], x[m])
        assert found("level_cosine", at=l, at_2=m, part="raw") == pytest.approx(raw, abs=1e-5)
        assert found("level_cosine", at=l, at_2=m, part="centred") == pytest.approx(centred, abs=1e-5)
    for l in range(3):
        expected = slow_cka(spaced(x[l]), spaced(x[l + 1]))
        assert found("neighbour_cka", at=l, at_2=l + 1) == pytest.approx(expected, rel=1e-3)
        units = spaced(h[l])
        assert found("neuron_dimensions", at=l) == pytest.approx(ratio(units), rel=1e-3)
        unit = units / np.linalg.norm(units, axis=0)
        cosines = (unit.T @ unit)[np.triu_indices(24, 1)]
        assert found("neuron_cosine", at=l) == pytest.approx(cosines.mean(), abs=1e-5)
        assert found("neuron_overlap", at=l) == pytest.approx(np.abs(cosines).mean(), abs=1e-5)
    last = x[3].reshape(-1, 16)
    unit = last / np.linalg.norm(last, axis=1, keepdims=True)
    raw = (unit @ unit.T)[np.triu_indices(len(unit), 1)].mean()
    assert value(rows, "token_cosine", severity=0.6, part="raw") == pytest.approx(raw, abs=1e-5)
    total, pairs = 0, 0
    for batch in batches(x[3]):
        batch = batch.reshape(-1, 16) - batch.mean(axis=(0, 1))
        unit = batch / np.linalg.norm(batch, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        total, pairs = total + cosines.sum(), pairs + len(cosines)
    centred = value(rows, "token_cosine", severity=0.6, part="centred")
    assert centred == pytest.approx(total / pairs, abs=1e-5)


def test_the_identity_overlaps_fully_and_every_place_has_a_row(splits):
    rows = rows_of(subject_of(splits), Degrade(method="random_weights", severities=(0.9,)))
    whole = [r for r in rows if r["metric"] in ("stream_cka", "stream_cka_unbiased") and r["severity"] == 0]
    assert len(whole) == 2 * 4
    np.testing.assert_allclose([r["value"] for r in whole], 1, atol=1e-5)
    assert value(rows, "stream_cka", severity=0.9, at=3) < 0.98
    counts = {
        "layer_cka": 6,
        "level_cosine": 12,
        "neighbour_cka": 3,
        "stream_cka": 4,
        "stream_cka_unbiased": 4,
        "token_cosine": 2,
    }
    counts |= {"residual_dimensions": 4, "neuron_dimensions": 3, "neuron_cosine": 3, "neuron_overlap": 3}
    mine = [r for r in rows if r["metric"] in counts]
    assert {name: sum(r["metric"] == name for r in mine) for name in counts} == {
        name: 2 * count for name, count in counts.items()
    }
    assert all(r["status"] == "ok" and r["task"] == "all" for r in mine)


def view_of(shape, params, edit=Edit(), B=5, metrics=("neuron_cosine", "head_cosine")):  # noqa: B008
    tokens = np.random.default_rng(1).integers(shape.vocab, size=(B, shape.context + 1)).astype(np.int32)
    none = dict.fromkeys(Batch._fields)
    batch = Batch(**none | {"tokens_BT": jnp.asarray(tokens), "counted_B": jnp.ones(B).at[-1].set(0)})
    seen = forward(shape, metrics, params, edit, batch)
    return View(
        shape=shape, params=params, degraded=merge(params, edit), edit=edit, batch=batch,
        stream=seen["x_BSD"][None], **seen,
    )  # fmt: skip


def inner_of_view(view):
    return apply(view.params, view.batch.tokens_BT[:, :-1], view.shape, view.edit).inner


def test_duplicated_neurons_have_cosine_one_and_one_dimension():
    params = init_params(jax.random.key(0), SHAPE)
    first = {
        name: params["blocks"][name].at[:].set(params["blocks"][name][..., :1]) for name in ("gate", "up")
    }
    sums = neuron_moments(view_of(SHAPE, params | {"blocks": params["blocks"] | first}))
    weights = Weights(SHAPE, params, params, Edit())
    np.testing.assert_allclose(neuron_cosine(sums, weights), 1, atol=1e-5)
    np.testing.assert_allclose(neuron_dimensions(sums, weights), 1, atol=1e-4)
    assert neuron_cosine(neuron_moments(view_of(SHAPE, params)), weights).max() < 0.5


def test_neurons_of_an_expert_are_compared_over_the_tokens_that_it_serves():
    shape = dataclasses.replace(SHAPE, n_experts=3, top_k=1, d_ff=10)
    params = jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(3), shape))
    view = view_of(shape, params)
    inner = inner_of_view(view)
    h, route = (np.asarray(inner[name], np.float64)[:, :4] for name in ("down_in", "route"))
    expected = {"dimensions": [], "cosine": [], "overlap": []}
    for l in range(3):
        of_layer = {name: [] for name in expected}
        for e in range(3):
            places = [(b, read(b, run, 16)) for b in range(4) for run in range(2)]
            tokens = [h[l, b, s, e] for b, s in places if route[l, b, s, e] > 0]
            if not tokens:
                continue
            a = np.array(tokens)
            if len(a) > 1:
                of_layer["dimensions"].append(ratio(a))
            unit = a / np.linalg.norm(a, axis=0)
            cosines = (unit.T @ unit)[np.triu_indices(10, 1)]
            of_layer["cosine"].append(cosines.mean())
            of_layer["overlap"].append(np.abs(cosines).mean())
        for name, values in of_layer.items():
            expected[name].append(np.mean(values))
    sums, weights = neuron_moments(view), Weights(shape, params, params, Edit())
    np.testing.assert_allclose(neuron_dimensions(sums, weights), expected["dimensions"], rtol=1e-3)
    np.testing.assert_allclose(neuron_cosine(sums, weights), expected["cosine"], atol=1e-5)
    np.testing.assert_allclose(overlap_of_neurons(sums, weights), expected["overlap"], atol=1e-5)


def test_two_levels_of_a_block_that_copies_its_input_are_one():
    params = init_params(jax.random.key(0), SHAPE)
    blocks = dict(params["blocks"])
    for name in ("o", "down"):
        blocks[name] = blocks[name].at[1].set(0)
    params = params | {"blocks": blocks}
    view = view_of(SHAPE, params, metrics=("level_cosine", "stream_cka"))
    sums, weights = overlap.level_directions(view), Weights(SHAPE, params, params, Edit())
    pairs = [(p.at, p.at_2) for p in overlap.level_pairs(SHAPE)]
    raw, centred = (dict(zip(pairs, v.tolist(), strict=True)) for v in overlap.level_cosine(sums, weights))
    assert raw[1, 2] == pytest.approx(1, abs=1e-5)
    assert centred[1, 2] == pytest.approx(1, abs=1e-5)
    assert raw[0, 1] == pytest.approx(raw[0, 2], abs=1e-5)
    assert raw[0, 1] < 0.999
    cka_of = dict(
        zip(pairs, overlap.unbiased_layer_cka(overlap.layer_hsic(view), weights).tolist(), strict=True)
    )
    assert cka_of[1, 2] == pytest.approx(1, abs=1e-5)
    assert cka_of[0, 3] < 0.999
    near = overlap.neighbour_cka(overlap.residual_moments(view), weights)
    assert near[1] == pytest.approx(1, abs=1e-5)
    assert near[0] < 0.999
