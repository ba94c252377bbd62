"""One degraded sublayer alone, against float64 loops and where it is known what it does."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model
from degrade_cases import QUICK
from deviation_reference import across, cosine, quantities
from test_continuation import SHAPE, drawn, shaken, view_of
from test_sweep import SHAPE as GRADED
from test_sweep import rows_of, splits_of, subject_of, value

from wane.eval.metrics.contract import Weights
from wane.eval.metrics.deviation_layers import EVERY, PARTS, READ, alone, read_positions
from wane.eval.metrics.deviation_spaces import noise_key, noisy
from wane.eval.metrics.deviation_sublayers import METRICS, SUBLAYERS, sublayer_sums
from wane.eval.metrics.moments import few
from wane.eval.study import Degrade, Evaluation
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import Edit
from wane.scaling.model import apply
from wane.train.data import Data, open_data

TOKENS = jax.random.randint(jax.random.key(4), (23, SHAPE.context + 1), 0, SHAPE.vocab)
LOOKED_AT = (0, 20)


@functools.partial(jax.jit, **QUICK)
def measured(params, edit, counted_B):
    """(the undegraded stream, positions, states under noise [2 L, tokens, D], metric -> its values)."""
    view = view_of(params, edit, TOKENS)
    view = dataclasses.replace(view, batch=view.batch._replace(counted_B=counted_B))
    found = alone(view)
    before, after = (x.reshape(2 * SHAPE.n_layers, -1, SHAPE.d_model) for x in (found.before, found.after))
    sums, weights = sublayer_sums(view), Weights(SHAPE, params, params, edit)
    values = {m.name: jnp.ravel(m.values(sums, weights)) for m in METRICS}
    return view.stream, read_positions(view), noisy(before, after, noise_key(view)), values


def by_place(values):
    """(metric, layer, part) -> value."""
    return {
        (m.name, int(place.at), place.part): float(v)
        for m in METRICS
        for place, v in zip(m.places(SHAPE), values[m.name], strict=True)
    }


def behind(weights, name, x_SD):
    """The stream behind one sublayer of these weights, in float64."""
    short, sublayer = {"attention": ("attn", reference_model.attention), "mlp": ("mlp", reference_model.mlp)}[
        name
    ]
    inside = reference_model.norm(x_SD, weights[f"{short}_norm_scale"], None, SHAPE.norm_eps)
    enter = reference_model.site_rounder(None, 0)
    return x_SD + sublayer(weights, inside[None], SHAPE, {}, enter)[0] * SHAPE.residual_scale


@pytest.mark.parametrize("last", [1, 0])
def test_every_quantity_against_loops(last):
    """Of 23 sequences the first and the 21st are looked at; the latter counts only where `last` says so."""
    params = drawn()
    edit = shaken(params, ("q", "v", "up", "down"))
    counted_B = jnp.ones(len(TOKENS)).at[20].set(last)
    stream, positions, noisy_states, values = measured(params, edit, counted_B)
    found, models = by_place(values), [reference_model.cast(params, np.float64)]
    models.append(
        models[0] | {"blocks": models[0]["blocks"] | reference_model.cast(edit.params["blocks"], np.float64)}
    )
    assert positions.shape == (2, READ)
    assert EVERY == 20
    told = {}
    for l, (b, sequence) in itertools.product(range(SHAPE.n_layers), enumerate(LOOKED_AT[: 1 + last])):
        trained, degraded = ({n: leaf[l] for n, leaf in m["blocks"].items()} for m in models)
        x_SD = np.asarray(stream[l, sequence], np.float64)
        for i, name in enumerate(SUBLAYERS):
            before, after = behind(trained, name, x_SD), behind(degraded, name, x_SD)
            for n, s in enumerate(np.asarray(positions[b])):
                states = before[s], after[s], noisy_states[2 * l + i, b * READ + n]
                for quantity, of in quantities([models[0]] * 2, SHAPE, states).items():
                    for part, v in of.items():
                        told.setdefault((f"{quantity}_by_sublayer", l, f"{name}, {part}"), []).append(v)
            x_SD = before
    assert found.keys() <= told.keys()
    assert {key[0] for key in told.keys() - found.keys()} == {
        "deviation_parallel_by_sublayer", "rough_estimate_kl_by_sublayer"
    }  # fmt: skip
    for key, v in found.items():
        assert v == pytest.approx(np.mean(told[key]), rel=2e-3, abs=2e-5), key


def test_only_the_degraded_sublayer_of_the_degraded_layer_moves():
    """The second layer's MLP; the first layer's noise does not reach it."""
    params = drawn()
    edit = shaken(params, ())
    edit.params["blocks"]["down"] = edit.params["blocks"]["down"].at[1].multiply(-1)
    values = by_place(measured(params, edit, jnp.ones(len(TOKENS)))[-1])
    for (name, layer, part), v in values.items():
        if name == "deviation_distance_by_sublayer":
            assert (v > 1e-3) == ((layer, part.split(",")[0]) == (1, "mlp")), (layer, part)
        if name == "deviation_kl_by_sublayer" and layer == 0:
            assert v == pytest.approx(0, abs=1e-6)


def test_a_removed_sublayer_leaves_the_stream_that_enters_it():
    params = drawn()
    gone = measured(params, Edit(attn_L=jnp.zeros(2), mlp_L=jnp.ones(2)), jnp.ones(len(TOKENS)))
    stream, positions, _, values = gone
    trained = {n: leaf[0] for n, leaf in reference_model.cast(params["blocks"], np.float64).items()}
    expected = []
    for b, sequence in enumerate(LOOKED_AT):
        x_SD = np.asarray(stream[0, sequence], np.float64)
        mid_SD = behind(trained, "attention", x_SD)
        expected += [cosine(mid_SD[s], x_SD[s]) for s in np.asarray(positions[b])]
    found = by_place(values)
    assert found["deviation_cosine_by_sublayer", 0, "attention, embedding"] == pytest.approx(
        np.mean(expected), abs=1e-3
    )
    assert found["deviation_cosine_by_sublayer", 0, "mlp, embedding"] == pytest.approx(1, abs=1e-5)


def test_through_a_sweep():
    """Rows of every place, and what the degraded model's own sublayers add to its stream."""
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0})
    subject = subject_of(splits_of(open_data(data, steps=4, batch_size=4), 3))
    mine = ("contribution_cosine", "contribution_orthogonal")
    names = ("loss", *mine, *(m.name for m in METRICS))
    subject.settings = Evaluation(metrics=names, sequences=3, batch=4, calibration_sequences=4)
    degrade = Degrade(method="random_weights", severities=(0.5,))
    rows, _, _ = rows_of(subject, degrade)
    assert {r["status"] for r in rows} == {"ok"}
    for metric in METRICS:
        found = [r for r in rows if r["metric"] == metric.name]
        assert len(found) == 2 * len(metric.places(GRADED))
        assert {r["task"] for r in found} == {"all"}
    same = [r for r in rows if r["severity"] == 0]
    assert all(r["value"] == pytest.approx(0, abs=2e-6) for r in same if "distance" in r["metric"])
    built, key = degrade.built(GRADED), subject.draw_key(degrade, 0)
    fitted = built.fit(subject.params, subject.calibration(degrade), key)
    edit = built.apply(subject.params, fitted, 0.5, Where.everywhere(GRADED), key)
    out = apply(subject.params, subject.splits.evaluation.tokens_NT[:, :-1], GRADED, edit)
    mid, start = (np.asarray(out.inner[name], np.float64) for name in ("mid", "block_in"))
    end = np.concatenate([start[1:], np.asarray(out.x_BSD, np.float64)[None]])
    for l in range(GRADED.n_layers):
        pairs = {"attention": (start[l], mid[l]), "mlp": (mid[l], end[l]), "block": (start[l], end[l])}
        for part in PARTS:
            at_Bn = few(GRADED.context, 4)  # batches of 4
            read = (np.concatenate([x_SD[at_Bn[n % 4]] for n, x_SD in enumerate(x)]) for x in pairs[part])
            tokens = list(zip(*read, strict=True))
            for name, of in zip(mine, (cosine, lambda v, w: across(v, w)[0]), strict=True):
                found = value(rows, name, severity=0.5, axis="layer", at=float(l), part=part)
                assert found == pytest.approx(np.mean([of(v, w) for v, w in tokens]), rel=1e-4), (l, part)
