"""Training a mixture of experts: the balance loss, and checkpoints, masks and logs of stacked experts."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mask_cases import random_mask

from wane.scaling.model import apply
from wane.scaling.shape import Shape
from wane.train import mesh
from wane.train.checkpoint import load_replica
from wane.train.config import Train
from wane.train.loop import train
from wane.train.mask import MaskPlan
from wane.train.placement import Placement
from wane.train.run import Run
from wane.train.step import imbalance, init_state, objective, train_step

SHAPE = Shape(
    d_model=8, n_layers=2, n_heads=1, head_dim=8, d_ff=8, vocab=16, context=6, activation="gelu",
    n_experts=4, top_k=2,
)  # fmt: skip
TRAIN = Train(batch_size=2, lr=0.01, log_every=4, checkpoints=2)


def batches(data_seed, step, batch=2):
    start = np.random.default_rng([data_seed, step]).integers(0, 16, (batch, 1))
    return ((start + np.arange(7)) % 16).astype(np.int32)


def test_imbalance_is_that_of_the_switch_transformer():
    rng = np.random.default_rng(0)
    L, B, S, E, k = 3, 2, 5, 4, 2
    probability = rng.dirichlet(np.ones(E), (L, B, S)).astype(np.float32)
    route = np.zeros((L, B, S, E), np.float32)
    for token in np.ndindex(L, B, S):
        route[token][rng.permutation(E)[:k]] = 0.5
    expected = []
    for l in range(L):
        pairs = [e for b in range(B) for s in range(S) for e in range(E) if route[l, b, s, e] > 0]
        f = [pairs.count(e) / len(pairs) for e in range(E)]
        p = [probability[l, :, :, e].mean() for e in range(E)]
        expected.append(E * sum(f[e] * p[e] for e in range(E)))
    inner = {"router": probability, "route": route}
    assert float(imbalance(inner)) == pytest.approx(np.mean(expected), rel=1e-5)
    one, all_ = np.zeros_like(route), np.full_like(route, 1 / E)
    one[..., 2] = 1
    assert float(imbalance({"router": one, "route": one})) == pytest.approx(E)
    assert float(imbalance({"router": all_, "route": all_})) == pytest.approx(1)


def test_the_objective_adds_the_imbalance_with_its_coefficient_and_the_logged_loss_does_not():
    params = init_state(jax.random.key(0), SHAPE, TRAIN).params
    value, parts = jax.jit(objective, static_argnums=2)(params, batches(0, 0), SHAPE, 0.25)
    assert float(value) == pytest.approx(float(parts["loss"]) + 0.25 * float(parts["imbalance"]), rel=1e-6)
    assert float(parts["loss"]) == pytest.approx(np.log(16), abs=0.3)
    dense = dataclasses.replace(SHAPE, n_experts=None, top_k=1)
    _, parts = jax.eval_shape(
        partial(objective, shape=dense, load_balance=1.0), params_of(dense), batches(0, 0)
    )
    assert set(parts) == {"loss"}


def params_of(shape):
    return jax.eval_shape(lambda: init_state(jax.random.key(0), shape, TRAIN).params)


def test_the_balance_loss_spreads_tokens_over_experts():
    """A router that sends every token to the same experts is evened out, and is not without the loss."""

    def uneven_after(load_balance):
        settings = Train(batch_size=16, lr=0.03, load_balance=load_balance, warmup_fraction=0.0)
        state = jax.jit(partial(init_state, shape=SHAPE, train=settings))(jax.random.key(1))
        router = state.params["blocks"]["router"].at[:, :, :2].add(0.3)
        state.params["blocks"]["router"] = router
        state.params["embed"] += 0.1  # a common direction, which the router favours two experts by
        step = jax.jit(partial(train_step, shape=SHAPE, train=settings, steps=60))
        values = []
        for i in range(60):
            state, metrics = step(state, batches(0, i, 16), settings.lr)
            values.append(float(metrics["imbalance"]))
        return values[0], values[-1]

    before, after = uneven_after(1.0)
    assert before > 1.2
    assert after < 1.05
    assert uneven_after(0.0)[1] > 1.2


def test_a_masked_run_of_experts_is_saved_logged_and_resumed(tmp_path):
    plan = MaskPlan(at_step=2, mask=random_mask(SHAPE, 0.5, (3, 4)))
    run = Run(
        shape=SHAPE, train=TRAIN, steps=8, init_seeds=(3, 4), data_seeds=(0, 0), lrs=None, keep_steps=(0,),
        packing="map", mask_from=plan,
    )  # fmt: skip

    class Killed(Exception):
        pass

    def killed(seed, step):
        if step == 6:
            raise Killed
        return batches(seed, step)

    whole, cut = ([tmp_path / name / str(r) for r in range(2)] for name in ("whole", "cut"))
    outcomes = train(run, batches, tmp_path / "whole", whole, lambda point: None)
    with pytest.raises(Killed):
        train(run, killed, tmp_path / "cut", cut, lambda point: None)
    assert train(run, batches, tmp_path / "cut", cut, lambda point: None) == outcomes
    rows = [json.loads(line) for line in (whole[0] / "train.jsonl").read_text().splitlines()]
    assert all(0.9 < row["imbalance"] < 2 and row["loss"] > 1 for row in rows)
    state = load_replica(tmp_path / "whole" / "checkpoints", 8, 0, abstract_masked(run))
    for name in SHAPE.matrices:
        w = np.asarray(state.params["blocks"][name])
        gone = (w == 0).sum((-2, -1))
        assert w.shape == SHAPE.full(name)
        assert np.all(gone == w.shape[-1] * w.shape[-2] // 2)
        np.testing.assert_array_equal(w != 0, state.mask[name])


def abstract_masked(run):
    """The state of one replica under its mask."""
    state_R = Placement(run, None).abstract(run.steps)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state_R)


def test_experts_are_split_like_a_dense_mlp_and_the_router_is_whole(monkeypatch):
    monkeypatch.setattr(mesh, "NamedSharding", lambda _, spec: spec)
    blocks = params_of(SHAPE)["blocks"]
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), {"blocks": blocks})
    specs = mesh.state_sharding(SimpleNamespace(shape={"model": 2}), stacked)["blocks"]
    assert specs["up"] == P("seed", None, None, None, "model")
    assert specs["down"] == P("seed", None, None, "model", None)
    assert specs["q"] == P("seed", None, None, "model")
    assert specs["router"] == P("seed", None, None, None)


def test_bfloat16_experts_route_in_float32():
    shape = dataclasses.replace(SHAPE, dtype="bfloat16")
    params = init_state(jax.random.key(0), shape, TRAIN).params
    inner = jax.eval_shape(partial(apply, shape=shape), params, batches(0, 0)[:, :-1]).inner
    assert (inner["router"].dtype, inner["route"].dtype, inner["mlp_out"].dtype) == (
        np.float32, np.float32, jax.numpy.bfloat16
    )  # fmt: skip
