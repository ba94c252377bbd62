"""The coordinate check and the learning-rate sweep: sizes against numpy, and the law that they show."""

import jax
import numpy as np
import pytest

from wane.launch.bench.coordinates import (
    SITES,
    activation_sizes,
    coordinate_check,
    draw_coordinates,
    draw_rates,
    learning_rate_sweep,
)
from wane.scaling.model import apply, init_params, unembed
from wane.scaling.shape import Parametrization, Shape
from wane.train.config import Train

TRAIN = Train(tokens=4 * 6 * 12, tokens_per_param=None, batch_size=4, lr=2**-6)


def batches(data_seed, step):
    return np.random.default_rng([data_seed, step]).integers(0, 16, (4, 7)).astype(np.int32)


def test_sizes_are_mean_magnitudes_over_causal_pairs():
    shape = Shape(
        d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=2, d_ff=8, vocab=16, context=6, activation="gelu"
    )  # fmt: skip
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), shape)
    tokens_BS = batches(0, 0)[:, :-1]
    sizes = jax.jit(activation_sizes, static_argnums=2)(params, tokens_BS, shape)
    x_BSD, inner = jax.jit(apply, static_argnums=2)(params, tokens_BS, shape)
    q, k = np.asarray(inner["q"]), np.asarray(inner["k"])
    scores = [
        abs(q[l, b, s, h] @ k[l, b, c, h // 2]) / np.sqrt(2)
        for l in range(2) for b in range(4) for h in range(4) for s in range(6) for c in range(s + 1)
    ]  # fmt: skip
    assert float(sizes["attention_logits"]) == pytest.approx(np.mean(scores), rel=1e-5)
    assert float(sizes["logits"]) == pytest.approx(np.abs(unembed(params, x_BSD, shape)).mean(), rel=1e-5)
    outputs = np.stack([inner["block_in"][1], x_BSD])
    assert float(sizes["block_outputs"]) == pytest.approx(np.abs(outputs).mean(), rel=1e-5)


def test_logits_grow_with_width_under_the_standard_parametrisation_only(tmp_path):
    rows = []
    for name in ("complete-p", "standard"):
        rows += coordinate_check(
            Parametrization(name=name, base_d_model=16, base_n_layers=1), (16, 128), (), steps=2, seeds=(0, 1),
            train=TRAIN, batches=batches, head_dim=8, vocab=16, context=6,
        )  # fmt: skip
    assert len(rows) == 2 * 2 * 3 * 2  # parametrisations, shapes, steps 0 to 2, seeds

    def growth(name):
        last = [r for r in rows if (r["parametrization"], r["axis"], r["step"]) == (name, "width", 2)]
        wide, base = (np.mean([r["logits"] for r in last if r["d_model"] == d]) for d in (128, 16))
        return wide / base

    assert growth("complete-p") < 1.2 < 2 < growth("standard")
    draw_coordinates(rows, tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    assert all(f"mean |{site.replace('_', ' ')}|" in text for site in SITES)
    with pytest.raises(ValueError, match=r"coordinates.widths has 20: must be a multiple of head_dim = 8"):
        coordinate_check(
            Parametrization(), (20,), (), steps=1, seeds=(0,), train=TRAIN, batches=batches, head_dim=8,
            vocab=16, context=6,
        )  # fmt: skip


def test_a_sweep_has_a_row_per_shape_rate_and_seed_and_shows_divergence(tmp_path):
    shape = Shape(
        d_model=8, n_layers=1, n_heads=1, head_dim=8, d_ff=8, vocab=16, context=6, activation="gelu"
    )
    said = []
    rows = learning_rate_sweep([shape], (1e-9, 0.05, 1e30), (0, 1), batches, TRAIN, "map", said.append)
    loss = {(r["lr"], r["seed"]): r["loss"] for r in rows}
    assert set(loss) == {(lr, seed) for lr in (1e-9, 0.05, 1e30) for seed in (0, 1)}
    assert loss[1e-9, 0] == pytest.approx(np.log(16), abs=0.3)
    assert loss[0.05, 0] != loss[0.05, 1]
    assert np.isnan(loss[1e30, 0])
    assert said == [f"{shape.name}: step 0/12"]
    draw_rates(rows, tmp_path / "r.svg")
    assert "learning rate of the base shape" in (tmp_path / "r.svg").read_text()
