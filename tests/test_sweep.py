"""The sweep engine: compilations, sensitivity from a cached prefix, metrics against a slow numpy recount."""

import dataclasses
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wane.eval import measure
from wane.eval.cell import diverged_rows, selections, sweep
from wane.eval.degrade import Then
from wane.eval.metrics import METRICS
from wane.eval.metrics.loss import METRICS as PREDICTION
from wane.eval.metrics.view import full_logits
from wane.eval.record import write_rows
from wane.eval.study import Degrade, Evaluation
from wane.eval.subject import Member, Splits, Subject
from wane.eval.sweep import Batches
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.edit import filled
from wane.scaling.model import apply, init_params, unembed
from wane.scaling.program import Program
from wane.scaling.shape import Shape
from wane.train.data import Data, open_data

SHAPE = Shape(d_model=16, n_layers=3, n_heads=2, head_dim=8, d_ff=24, vocab=512, context=32)
EVALUATION = Evaluation(sequences=3, batch=4, calibration_sequences=4)
MEMBER = Member(
    id="m", study="s", arm="", shape=SHAPE, init_seed=0, data_seed=0, step=1, tokens=1, packing=1,
    checkpoint_digest="x",
)  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0, "L3": 1.0})
    stream = open_data(data, steps=4, batch_size=4)
    return splits_of(stream, 3)


def splits_of(stream, sequences):
    return Splits(
        evaluation=stream.evaluation(sequences, 0),
        calibrations={"same": stream.calibration(4, 0)},
        stream=stream,
    )


def subject_of(splits, seed=0, shape=SHAPE, scale=3):
    params = jax.tree.map(lambda w: scale * w, init_params(jax.random.key(seed), shape))
    return Subject(dataclasses.replace(MEMBER, shape=shape, init_seed=seed), params, splits, EVALUATION)


def rows_of(subject, degrade, points=1, draws=None):
    ticks = []
    rows, timing = sweep(subject, degrade, draws or range(degrade.draws), "cell", points, ticks.append)
    return rows, timing, sum(ticks)


def value(rows, metric, task="all", **where):
    found = [r for r in rows if r["metric"] == metric and r["task"] == task and where.items() <= r.items()]
    assert len(found) == 1, (metric, task, where, len(found))
    return found[0]["value"]


def over_tasks(values, read_NS, data):
    """The mean over tasks of their means over the tokens that are read of them, in the order of np.nonzero."""
    task_M = data.task_N[np.nonzero(read_NS)[0]]
    return np.mean([np.mean(np.asarray(values)[task_M == task]) for task in np.unique(task_M)])


def test_one_executable_for_all_severities_draws_and_seeds(splits):
    shape = dataclasses.replace(SHAPE, d_ff=25)  # not used elsewhere: nothing is compiled before
    few = Degrade(method="random_weights", severities=(0.1, 0.2), draws=2)
    engine = subject_of(splits, 0, shape).engine(few, 1)
    assert engine.executables() == 0
    rows_of(subject_of(splits, 0, shape), few)
    assert engine.executables() == 1
    many = Degrade(method="random_weights", severities=tuple(i / 30 for i in range(1, 30)), draws=3)
    rows_of(subject_of(splits, 1, shape), many)
    more = Degrade(method="random_weights", severities=(0.111, 0.222, 0.333))
    rows_of(subject_of(splits, 2, shape), more)
    assert subject_of(splits, 2, shape).engine(more, 1) is engine
    assert engine.executables() == 1
    assert engine.fit.executables() == 1


def test_scopes_of_sensitivity_share_one_executable(splits):
    shape = dataclasses.replace(SHAPE, d_ff=26)
    degrade = Degrade(method="random_heads", severities=(0.5, 1.0), each="head")
    rows, _, ticks = rows_of(subject_of(splits, 0, shape), degrade)
    assert subject_of(splits, 0, shape).engine(degrade, 1).executables() == 1
    assert ticks == 3 * 2 * 3  # layers x heads x severities with the identity
    assert {(r["layer"], r["head"]) for r in rows} == {(layer, h) for layer in range(3) for h in range(2)}


def both_ways(subject, degrade):
    """(selector, points that start where they may, points of the full forward) of every unit."""
    programs = subject.engine(degrade, 1)
    key = subject.draw_key(degrade, 0)
    fitted = programs.fit(subject.params, subject.calibration(degrade), key)
    severities = [s for s, *_ in degrade.grid(SHAPE)]
    for layer, _, where in selections(degrade, SHAPE):
        arguments = (subject.params, fitted, severities, where, key, subject.batches)
        starts = programs.starts(severities, layer)
        above = list(programs.sweep(*arguments, subject.stream, starts))
        yield starts, above, list(programs.sweep(*arguments, subject.full_x))


@pytest.mark.parametrize("method", ["random_weights", "rtn", "random_neurons", "activations"])
def test_sensitivity_from_the_cached_prefix_has_the_bits_of_the_full_forward(splits, method):
    for layer, (starts, above, full) in enumerate(
        both_ways(subject_of(splits), Degrade(method=method, each="layer"))
    ):
        assert {start.first for start in starts} == ({layer} if layer else set())
        for a, b in zip(above, full, strict=True):
            np.testing.assert_array_equal(a.measured.sums, b.measured.sums)
    assert not np.array_equal(full[0].measured.sums, full[-1].measured.sums)


@pytest.mark.parametrize(
    ("degrade", "first", "below"),
    [
        (Degrade(method="rtn", scope=Scope(layers=(1, 3))), 1, 1),
        (Degrade(method="random_heads", scope=Scope(layers=(2, 3))), 2, 2),
        (Degrade(method="early_exit", severities=(0.34, 0.67, 1.0)), 3, [3, 2, 1, 0]),
        (
            Degrade(
                method="early_exit", settings={"lens": "tuned", "steps": 3}, severities=(0.34, 0.67, 1.0)
            ),
            3,
            [3, 2, 1, 0],
        ),
    ],
)
def test_points_start_at_the_first_layer_that_they_change(splits, degrade, first, below):
    ((starts, above, full),) = both_ways(subject_of(splits), degrade)
    below = below if isinstance(below, list) else [below] * len(starts)
    assert [(s.below, s.first) for s in starts] == [(b, first) for b in below]
    for a, b in zip(above, full, strict=True):
        np.testing.assert_array_equal(a.measured.sums, b.measured.sums)
    assert not np.array_equal(full[0].measured.sums, full[-1].measured.sums)


def test_points_start_at_the_first_layer_in_chunks_too(splits):
    degrade = Degrade(method="early_exit", severities=(0.34, 0.67, 1.0))
    one, _, _ = rows_of(subject_of(splits), degrade)
    many, _, _ = rows_of(subject_of(splits), degrade, points=3)
    np.testing.assert_allclose([r["value"] for r in many], [r["value"] for r in one], rtol=1e-5, atol=1e-6)


def test_methods_share_what_counts_and_measures_them(splits):
    """Whether they remove weights of all matrices or of one, heads, neurons or layers."""
    shape = dataclasses.replace(SHAPE, d_ff=27)
    subject = subject_of(splits, 0, shape)
    only_v = {"scope": Scope(matrices=("v",))}
    weights = [Degrade(method="random_weights", severities=(0.5,), **more) for more in ({}, only_v)]
    weights.append(Degrade(method="magnitude_weights", severities=(0.5,)))
    units = [
        Degrade(method=name, severities=(0.5,))
        for name in ("random_heads", "random_neurons", "remove_layers")
    ]
    for degrade in weights + units:
        rows_of(subject, degrade)
    of_weights, of_units = ([subject.engine(degrade, 1) for degrade in some] for some in (weights, units))
    assert len({id(engine.measure) for engine in of_weights + of_units}) == 1
    assert of_weights[0].measure.executables() == 1
    assert of_weights[0].cost is of_weights[2].cost
    assert len({id(engine.cost) for engine in of_units}) == 1
    assert of_units[0].cost.executables() == 1


def test_a_filled_edit_is_the_same_degradation(splits):
    """With trained matrices and multipliers of 1 where a method leaves them alone: same bits."""
    shape, key = SHAPE, jax.random.key(3)
    params, tokens = subject_of(splits).params, jnp.asarray(splits.evaluation.tokens_NT[:3, :-1])
    for name in ("random_weights", "random_heads", "remove_layers", "rtn"):
        method = build(name, shape)
        severity = jnp.float32(severity_of(3 if name == "rtn" else 0.5, method.unit))
        edit = method.apply(params, method.fit(params, tokens, key), severity, Where.everywhere(shape), key)
        full = filled(edit, params, shape)
        assert all(m is not None for m in (full.head_LH, full.neuron_LF, full.attn_L, full.mlp_L))
        assert full.params["blocks"].keys() == shape.matrices.keys()
        forward = jax.jit(lambda edit: apply(params, tokens, shape, edit).x_BSD)
        np.testing.assert_array_equal(forward(edit), forward(full))
        before, after = (method.cost(params, e, severity) for e in (edit, full))
        np.testing.assert_array_equal(before, after)


def test_the_undegraded_model_is_run_only_where_a_metric_compares_with_it(splits):
    degrade, found = Degrade(method="random_weights", severities=(0.5,)), {}
    for metrics in (("loss",), ("loss", "kl")):
        settings = dataclasses.replace(EVALUATION, metrics=metrics)
        subject = Subject(MEMBER, subject_of(splits).params, splits, settings)
        rows, _, _ = rows_of(subject, degrade)
        found[metrics] = value(rows, "loss", severity=0.5)
        assert ("full_x" in vars(subject)) == ("kl" in metrics)
    assert found["loss",] == pytest.approx(found["loss", "kl"], rel=1e-6)


def test_what_is_kept_of_the_undegraded_model_is_what_every_point_would_find(splits, monkeypatch):
    names = tuple(name for name, metric in METRICS.items() if metric.full and not metric.free_running)
    assert {"kl", "top1_agreement", "deviation_cosine", "update_cosine", "explained_by_bigram"} < set(names)
    degrade = Degrade(method="random_weights", severities=(0.5,))
    subject = subject_of(splits)
    subject.settings = dataclasses.replace(EVALUATION, metrics=names)
    engine, batches = subject.engine(degrade, 1), subject.batches
    key, everywhere = jax.random.key(0), Where.everywhere(SHAPE)
    fitted = engine.fit(subject.params, subject.calibration(degrade), key)
    edit, _ = engine.degraded(subject.params, fitted, [0.5], everywhere, key)
    trained, stream = subject.of_trained, subject.undegraded(engine)
    assert not any(kept is None for kept in trained.batches)
    nothing = trained._replace(batches=[None for _ in trained.batches])
    for mine, theirs in zip(
        engine.measure(subject.params, edit.acting(), batches, stream, trained),
        engine.measure(subject.params, edit.acting(), batches, stream, nothing),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    logits = 4 * batches.tokens[..., 1:].size * SHAPE.vocab
    monkeypatch.setattr(measure, "ROOM", logits - 1)
    kept = measure.of_trained(SHAPE, names, subject.params, batches, stream).batches
    without = [read for read, of in zip(measure.reads_of_full(names), kept, strict=True) if of is None]
    assert without == [full_logits]


def test_an_edit_that_shares_nothing_is_not_filled(splits):
    """Multiplications by 1 would cost time and save no program."""
    shape = SHAPE
    params = subject_of(splits).params
    for name in ("activations", "kv_cache", "substitute_tokens", "random_dimensions"):
        method = build(name, shape)
        severity = jnp.float32(severity_of(4 if method.unit == "bits" else 0.5, method.unit))
        key, where = jax.random.key(0), Where.everywhere(shape)
        edit = method.apply(
            params, method.fit(params, splits.calibrations["same"][:2], key), severity, where, key
        )
        assert filled(edit, params, shape) is edit


@pytest.mark.parametrize(
    ("method", "share"), [("embedding_attack", 0.6), ("embedding_noise", 0.98)]
)  # of the FLOPs of a point that finds it
def test_the_direction_of_an_attack_or_of_noise_is_found_once_for_all_severities(splits, method, share):
    # With larger weights the gradient in f32 is good to 1e-4 only (against f64), of whichever program.
    subject = subject_of(splits, scale=1)
    degrade = Degrade(method=method, severities=(0.1, 0.3))
    programs, key = subject.engine(degrade, 1), subject.draw_key(degrade, 0)
    stream, where = subject.undegraded(programs), Where.everywhere(SHAPE)
    fitted = programs.fit(subject.params, subject.calibration(degrade), key)
    found, flops = {}, {}
    for name, batches in (
        ("anew", subject.batches),
        ("once", programs.known(subject.params, fitted, subject.batches)),
    ):
        args = subject.params, fitted, [0.1, 0.3], where, jax.random.key(0), batches, stream
        found[name] = [np.asarray(point.measured.sums) for point in programs.sweep(*args)]
        flops[name] = programs.measure._last.cost_analysis()["flops"]
    np.testing.assert_allclose(found["once"], found["anew"], rtol=1e-5, atol=1e-5)
    assert flops["once"] < share * flops["anew"]
    rows, _, _ = rows_of(subject, degrade)
    assert abs(value(rows, "loss", severity=0.3) - value(rows, "loss", severity=0.0)) > 1e-3
    assert value(rows, "loss", severity=0.3) * splits.evaluation.scored_NS.size == pytest.approx(
        found["once"][1][0][: len(splits.evaluation.task_N)].sum(), rel=1e-5
    )
    then = Degrade(method="rtn", severities=(4.0,), then=Then(method=method, severities=(0.1,)))
    assert then.built(SHAPE).direction is None  # rounded weights may have one of their own


def test_the_selector_is_taken_into_account(splits):
    """A prefix that starts above the degraded layer would miss it: the identity must not come out."""
    rows, _, _ = rows_of(
        subject_of(splits), Degrade(method="random_weights", severities=(0.9,), each="layer")
    )
    for layer in range(3):
        assert value(rows, "kl", layer=layer, severity=0.0) == pytest.approx(0, abs=1e-7)
        assert value(rows, "kl", layer=layer, severity=0.9) > 1e-4


def test_metrics_against_numpy(splits):
    subject = subject_of(splits)
    degrade = Degrade(method="magnitude_weights", severities=(0.6,))
    rows, _, _ = rows_of(subject, degrade)
    built = degrade.built(SHAPE)
    key = subject.draw_key(degrade, 0)
    fitted = built.fit(subject.params, subject.calibration(degrade), key)
    edit = built.apply(subject.params, fitted, 0.6, Where.everywhere(SHAPE), key)
    data = splits.evaluation
    logits, full = (
        np.asarray(
            unembed(subject.params, apply(subject.params, data.tokens_NT[:, :-1], SHAPE, e).x_BSD, SHAPE),
            np.float64,
        )
        for e in (edit, None)
    )
    log_p, log_full = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, full))
    targets = data.tokens_NT[:, 1:]
    nll = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    kl = (np.exp(log_full) * (log_full - log_p)).sum(-1)
    hit = logits.argmax(-1) == targets
    at = {"severity": 0.6}
    assert value(rows, "loss", **at) == pytest.approx(nll.mean(), rel=1e-5)
    assert value(rows, "perplexity", **at) == pytest.approx(np.exp(nll.mean()), rel=1e-4)
    assert value(rows, "kl", **at) == pytest.approx(kl.mean(), rel=1e-4)
    assert value(rows, "top1_agreement", **at) == pytest.approx((logits.argmax(-1) == full.argmax(-1)).mean())
    for index, task in enumerate(data.tasks):
        mine = data.task_N == index
        assert value(rows, "loss", task.name, **at) == pytest.approx(nll[mine].mean(), rel=1e-5)
        scored = data.scored_NS[mine]
        assert value(rows, "accuracy", task.name, **at) == pytest.approx(hit[mine][scored].mean())
    each = next(r for r in rows if r["metric"] == "loss" and r["task"] == "all" and r["severity"] == 0.6)
    np.testing.assert_allclose(each["per_sequence"], nll.mean(axis=1), rtol=1e-5)
    assert not any(r["metric"] == "loss_per_byte" for r in rows)  # graded tokens have no bytes


def test_over_all_tasks_each_weighs_the_same(splits):
    """However many of its tokens are scored, and however many sequences it has."""
    stream, at = splits.stream, {"severity": 0.6}
    for scored in (None, 40):
        subject = subject_of(dataclasses.replace(splits, evaluation=stream.evaluation(3, 0, scored)))
        rows, _, _ = rows_of(subject, Degrade(method="magnitude_weights", severities=(0.6,)))
        names = [task.name for task in subject.splits.evaluation.tasks]
        found = {r["task"]: r for r in rows if r["metric"] == "accuracy" and r["severity"] == 0.6}
        counts = {found[name]["count"] for name in names}
        assert counts == {40} if scored else len(counts) == 3
        assert found["all"]["count"] == sum(found[name]["count"] for name in names)
        for metric in ("loss", "accuracy", "kl"):
            mean = np.mean([value(rows, metric, name, **at) for name in names])
            assert value(rows, metric, **at) == pytest.approx(mean, rel=1e-12)
        assert value(rows, "perplexity", **at) == pytest.approx(np.exp(value(rows, "loss", **at)))
        (loss,) = (r for r in rows if r["metric"] == "loss" and r["task"] == "all" and r["severity"] == 0.6)
        sizes = set(np.bincount(subject.splits.evaluation.task_N))
        assert (loss["per_sequence"] is None) == (len(sizes) > 1) == bool(scored)


class Told(SimpleNamespace):
    """What metrics read; told from others by identity, as views are."""

    __hash__ = object.__hash__

    def of_full(self, f):
        return f(self)


def test_every_metric_of_a_small_view_against_loops():
    rng = np.random.default_rng(1)
    logits, full = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    nll, targets = rng.random((4, 6)).astype(np.float32), rng.integers(0, 3, (4, 6))
    scored, sizes = rng.random((4, 6)) < 0.5, rng.integers(0, 4, (4, 6))
    sizes[2] = 0  # a graded sequence among text
    view = Told(
        logits_BSV=logits, nll_BS=nll, full_BSV=full, targets_BS=targets, scored_BS=scored, bytes_BS=sizes
    )  # fmt: skip
    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    expected = {name: np.zeros((2, 4)) for name in (m.name for m in PREDICTION)}
    for b in range(4):
        for s in range(6):
            p, q = softmax(full[b, s].astype(float)), softmax(logits[b, s].astype(float))
            hit = logits[b, s].argmax() == targets[b, s]
            for name, total, count in (
                ("loss", nll[b, s], 1),
                ("perplexity", nll[b, s], 1),
                ("loss_per_byte", nll[b, s] if b != 2 else 0, sizes[b, s]),
                ("top1_agreement", full[b, s].argmax() == logits[b, s].argmax(), 1),
                ("kl", sum(p * np.log(p / q)), 1),
                ("accuracy", hit and scored[b, s], scored[b, s]),
            ):
                expected[name][:, b] += total, count
    for metric in PREDICTION:
        found = np.stack(metric.measure(view))
        np.testing.assert_allclose(found, expected[metric.name], rtol=1e-4, err_msg=metric.name)
    assert (
        0
        < expected["accuracy"][0].sum()
        < sum(logits[b, s].argmax() == targets[b, s] for b in range(4) for s in range(6))
    )


def test_loss_per_byte_of_text(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(
        "\n\n".join(f"Zeile {i}: größer als {i * i} ist sie nicht." for i in range(900))
    )
    stream = open_data(Data(sources=f"text:{tmp_path}/a.txt", context=32), steps=4, batch_size=4)
    splits = splits_of(stream, 5)
    shape = dataclasses.replace(SHAPE, vocab=stream.vocab)
    rows, _, _ = rows_of(subject_of(splits, 0, shape), Degrade(method="rtn", severities=(4.0,)))
    per_token, per_byte = (value(rows, m, setting=4.0) for m in ("loss", "loss_per_byte"))
    tokens, total_bytes = splits.evaluation.bytes_NS.size, splits.evaluation.bytes_NS.sum()
    assert per_byte == pytest.approx(per_token * tokens / total_bytes)


def test_points_in_one_call_agree_with_one_by_one(splits):
    degrade = Degrade(method="random_weights", severities=(0.1, 0.2, 0.4, 0.8))
    one, _, _ = rows_of(subject_of(splits), degrade, points=1)
    chunked, _, ticks = rows_of(
        subject_of(splits), degrade, points=3
    )  # 5 severities: the last chunk is padded
    assert ticks == 5
    for a, b in zip(one, chunked, strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-5, abs=1e-6)
        assert {**a, "value": 0, "per_sequence": 0} == pytest.approx({**b, "value": 0, "per_sequence": 0})


def test_draws_are_nested_in_the_member(splits):
    degrade = Degrade(method="random_weights", severities=(0.5,), draws=3)
    rows, _, _ = rows_of(subject_of(splits), degrade)
    losses = [value(rows, "loss", severity=0.5, draw=d) for d in range(3)]
    assert len(set(losses)) == 3
    last, _, _ = rows_of(subject_of(splits), degrade, draws=range(2, 3))
    assert value(last, "loss", severity=0.5) == losses[2]
    assert len({value(rows, "loss", severity=0.0, draw=d) for d in range(3)}) == 1


def test_rows_fit_the_schema_and_a_diverged_member_stays_in_the_table(splits, tmp_path):
    subject = subject_of(splits)
    degrade = Degrade(method="remove_layers", settings={"order": "last"})
    rows, _, _ = rows_of(subject, degrade)
    write_rows(tmp_path / "rows.parquet", rows)
    member = dataclasses.replace(MEMBER, id="d", init_seed=9, diverged="training diverged at step 3")
    gone = diverged_rows(member, degrade, range(2), EVALUATION, splits, "cell")
    table = write_rows(tmp_path / "gone.parquet", gone).to_pylist()
    assert len(table) == 2 * len(degrade.grid(SHAPE))
    assert {r["status"] for r in table} == {"diverged"}
    assert {r["value"] for r in table} == {None}
    assert {r["reason"] for r in table} == {"training diverged at step 3"}


def test_a_batch_size_that_does_not_divide_counts_no_sequence_twice(splits):
    data = splits.evaluation
    batches = Batches.of(data, 4)
    assert batches.tokens.shape[:2] == (3, 4)  # 9 sequences: the last batch is filled with earlier ones
    np.testing.assert_array_equal(batches.tokens.reshape(-1, 33)[:9], data.tokens_NT)
    rows, _, _ = rows_of(subject_of(splits), Degrade(method="rtn", severities=(4.0,)))
    counted = next(r for r in rows if r["metric"] == "loss" and r["task"] == "all")
    assert counted["count"] == 9 * 32


def test_a_scope_bounds_the_sensitivity(splits):
    degrade = Degrade(method="random_weights", severities=(0.5,), scope=Scope(layers=(1, 3)), each="layer")
    rows, _, _ = rows_of(subject_of(splits), degrade)
    assert {r["layer"] for r in rows} == {1, 2}


def test_text_has_an_accuracy_and_no_known_ceiling(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(
        "\n\n".join(f"line number {i} is not the same as line {i * i}, is it." for i in range(900))
    )
    stream = open_data(Data(sources=f"text:{tmp_path}/a.txt", context=32), steps=4, batch_size=4)
    splits = splits_of(stream, 5)
    subject = subject_of(splits, 0, dataclasses.replace(SHAPE, vocab=stream.vocab))
    rows, _, _ = rows_of(subject, Degrade(method="rtn", severities=(4.0,)))
    accuracy = [r for r in rows if r["metric"] == "accuracy"]
    assert {r["task"] for r in accuracy} == {"all", "text:a.txt"}
    assert {(r["chance"], r["ceiling"]) for r in accuracy} == {(None, None)}


def test_no_program_runs_beside_that_of_the_next_point(splits, monkeypatch):
    """On a CPU two at once may wait for each other for ever."""
    threads, call = set(), Program.__call__

    def recorded(self, *args):
        threads.add(threading.current_thread())
        return call(self, *args)

    monkeypatch.setattr(Program, "__call__", recorded)
    subject = subject_of(splits)
    subject.settings = dataclasses.replace(
        EVALUATION, metrics=("loss", "structure", "retrieval", "agreement")
    )
    rows_of(subject, Degrade(method="random_weights", severities=(0.3, 0.6), draws=2))
    assert threads == {threading.current_thread()}
