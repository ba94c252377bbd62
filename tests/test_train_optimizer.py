"""The optimizer against a slow numpy AdamW with the group table of Dey et al. 2025, schedules, config errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wane.scaling.model import init_params
from wane.scaling.shape import Parametrization, Shape
from wane.train.config import Train
from wane.train.optimizer import optimizer, schedule

STEPS = 10


def shape_of(name, residual_exponent):
    p = Parametrization(name=name, base_d_model=8, base_n_layers=2, residual_exponent=residual_exponent)
    return Shape(
        d_model=24, n_layers=3, n_heads=2, head_dim=4, d_ff=12, vocab=16, context=8, qk_norm=True, n_experts=2,
        parametrization=p,
    )  # fmt: skip


def path_of(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(tree)
    }


def table(path, name, alpha):
    """(lr, weight decay, eps) factors, written down from the paper a second time."""
    m_N, m_L = (3.0, 1.5) if name == "complete-p" else (1.0, 1.0)
    if path.split("/")[-1] in ("q", "k", "v", "o", "gate", "up", "down"):
        return m_L ** (alpha - 1) / m_N, m_N, m_L**-alpha / m_N
    if path.endswith("router"):  # an output weight without the unembedding's multiplier 1 / m_N
        return m_L ** (alpha - 1) / m_N, m_N, m_L**-alpha
    if path.startswith("blocks"):
        return m_L ** (alpha - 1), 0.0, m_L**-alpha / m_N
    return 1.0, float("embed" in path), 1 / m_N


def numpy_adamw(params, grads_by_step, train, lr, name, alpha, multiplier):
    """Textbook AdamW in float64, one loop per leaf."""
    w = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in w.items()} for _ in range(2))
    for t, grads in enumerate(grads_by_step, start=1):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        clip = min(1.0, train.clip / norm)
        for k in w:
            f_lr, f_wd, f_eps = table(k, name, alpha)
            g = grads[k] * clip
            m[k] = train.betas[0] * m[k] + (1 - train.betas[0]) * g
            v[k] = train.betas[1] * v[k] + (1 - train.betas[1]) * g**2
            m_hat, v_hat = m[k] / (1 - train.betas[0] ** t), v[k] / (1 - train.betas[1] ** t)
            direction = m_hat / (np.sqrt(v_hat) + train.eps * f_eps)
            w[k] = w[k] - lr * multiplier[t - 1] * f_lr * (direction + train.weight_decay * f_wd * w[k])
    return w


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", ["complete-p", "standard"])
@pytest.mark.parametrize("scale", [1e-3, 1.0])  # below and above the clip
def test_optimizer_is_adamw_per_group(name, alpha, scale):
    shape = shape_of(name, alpha)
    # An epsilon as large as the gradients: a wrong epsilon of a group must show.
    train = Train(eps=3e-4, weight_decay=0.3, warmup_fraction=0.0, final_lr_fraction=1.0)
    params = init_params(jax.random.key(0), shape)
    lr, rng = 0.01, np.random.default_rng(0)
    draws = [jax.tree.map(lambda x: scale * rng.normal(size=x.shape), params) for _ in range(4)]
    tx = optimizer(shape, train, STEPS)
    state, new = tx.init(params), params
    for grads in draws:
        updates, state = tx.update(jax.tree.map(jnp.float32, grads), state, new)
        new = jax.tree.map(lambda w, u: w + lr * u, new, updates)
    expected = numpy_adamw(
        path_of(params), [path_of(g) for g in draws], train, lr, name, alpha, multiplier=[1.0] * 4
    )
    before = path_of(params)
    for path, value in path_of(new).items():
        moved, should = np.asarray(value, np.float64) - before[path], expected[path] - before[path]
        np.testing.assert_allclose(moved, should, rtol=2e-3, atol=2e-7, err_msg=path)


def test_gradient_is_clipped_by_its_global_norm():
    """A gradient 100 times as large, both above the clip, gives the same step; Adam alone would too, so the
    second step has a small gradient that remembers the first only through the clipped moments."""
    shape = shape_of("standard", 1.0)
    train = Train(clip=1.0, weight_decay=0.0, warmup_fraction=0.0)
    params = init_params(jax.random.key(0), shape)
    ones = jax.tree.map(jnp.ones_like, params)
    tx, moved = optimizer(shape, train, STEPS), []
    for first in (10.0, 1000.0):
        state = tx.init(params)
        for size in (first, 1e-3):
            updates, state = tx.update(jax.tree.map(lambda x, s=size: s * x, ones), state, params)
        moved.append(np.asarray(updates["blocks"]["q"]))
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-5)


def test_cosine_schedule():
    lr = schedule(Train(warmup_fraction=0.1, final_lr_fraction=0.2), 100)
    assert [float(lr(s)) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert float(lr(54)) == pytest.approx(0.2 + 0.8 * 0.5, abs=1e-6)  # half-way between step 10 and 100
    assert float(lr(99)) == pytest.approx(0.2)
    assert all(np.diff([float(lr(s)) for s in range(9, 100)]) < 0)


def test_wsd_schedule():
    train = Train(schedule="wsd", warmup_fraction=0.1, decay_fraction=0.2, final_lr_fraction=0.0)
    lr = schedule(train, 100)
    assert [float(lr(s)) for s in (0, 9, 10, 50, 79)] == pytest.approx([0.1, 1, 1, 1, 1])
    assert [float(lr(s)) for s in (84, 89, 99)] == pytest.approx([0.75, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_of_very_short_runs_are_finite_and_end_at_the_final_fraction(kind, steps):
    lr = schedule(Train(schedule=kind), steps)
    values = [float(lr(s)) for s in range(steps)]
    assert all(0 < v <= 1 for v in values)
    assert values[-1] == pytest.approx(0.1)


def test_steps_spend_the_budget():
    shape = shape_of("standard", 1.0)
    n = shape.param_counts()["non_embedding"]
    assert Train(tokens_per_param=20.0, batch_size=4).steps(shape, 8) == math.ceil(20 * n / 32)
    assert Train(tokens=33, tokens_per_param=None, batch_size=4).steps(shape, 8) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 5}, "train.tokens = 5, train.tokens_per_param = 20.0: give exactly one"),
        ({"tokens_per_param": None}, "give exactly one"),
        ({"lr": -1.0}, "train.lr = -1.0: must be a positive number"),
        ({"lr": float("nan")}, "train.lr = nan"),
        ({"batch_size": 0}, "train.batch_size = 0: must be at least 1"),
        ({"warmup_fraction": 1.5}, "train.warmup_fraction = 1.5: must be between 0 and 1"),
        ({"schedule": "linear"}, "train.schedule = 'linear': must be 'cosine' or 'wsd'"),
        ({"schedule": "wsd", "decay_fraction": 0.99}, "train.decay_fraction = 0.99: must be at most"),
        ({"betas": (0.9, 1.0)}, "train.betas"),
        ({"weight_decay": -0.1}, "train.weight_decay = -0.1"),
    ],
)
def test_config_errors_name_the_field(fields, message):
    with pytest.raises(ValueError, match="train") as error:
        Train(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
