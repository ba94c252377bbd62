"""Cost against a slow recount in numpy."""

import numpy as np
import pytest
from degrade_cases import SHAPES, TABLE, Case, bench

from wane.scaling.degrade.contract import Where

WEIGHTS = ("random_weights", "magnitude_weights")
UNITS = ("random_neurons", "random_heads", "remove_layers", "remove_experts")
RECOUNTED = (*WEIGHTS, *UNITS, "rtn", "activations", "gaussian_noise")
ROWS = [row for row in TABLE if row[0].method in RECOUNTED]


def effective(b, edit) -> dict[str, np.ndarray]:
    """Matrices without the units that the edit removes, unit by unit."""
    shape, K = b.shape, b.shape.head_dim
    w = {name: np.array(b.params["blocks"][name]) for name in shape.matrices}
    w |= {name: np.array(leaf) for name, leaf in (edit.params or {"blocks": {}})["blocks"].items()}
    for l in range(shape.n_layers):
        for h in range(shape.n_heads if edit.head_LH is not None else 0):
            w["o"][l, h * K : (h + 1) * K] *= edit.head_LH[l, h]
            if edit.head_LH[l, h] == 0:
                w["q"][l][:, h * K : (h + 1) * K] = 0
        for g in range(shape.kv_heads if edit.head_LH is not None else 0):
            per = shape.n_heads // shape.kv_heads
            if not any(edit.head_LH[l, g * per : (g + 1) * per]):
                w["k"][l][:, g * K : (g + 1) * K] = w["v"][l][:, g * K : (g + 1) * K] = 0
        for at in np.ndindex(edit.neuron_LF.shape[1:] if edit.neuron_LF is not None else (0,)):
            *expert, f = at
            w["down"][(l, *at)] *= edit.neuron_LF[(l, *at)]
            for name in {"gate", "up"} & set(w) if edit.neuron_LF[(l, *at)] == 0 else ():
                w[name][(l, *expert)][:, f] = 0
        for e in range(shape.n_experts if edit.expert_LE is not None else 0):
            for name in ("gate", "up", "down") if edit.expert_LE[l, e] == 0 else ():
                w[name][l, e] = 0
        for gate, names in ((edit.attn_L, "qkvo"), (edit.mlp_L, ("gate", "up", "down"))):
            if gate is not None and gate[l] == 0:
                for name in set(names) & set(w):
                    w[name][l] = 0
    return w


def storage(b, edit, removed: dict[str, np.ndarray], bits: float) -> float:
    """Deployed bits of all block weights, matrix by matrix."""
    settings, total = dict(b.method.settings), 0.0
    for name, (fan_in, fan_out) in b.shape.matrices.items():
        for gone in removed[name].reshape(-1, fan_in, fan_out):
            if b.method.name == "rtn" and bits < 16:
                scales = (
                    1 if settings["per_tensor"] else fan_out * fan_in // (settings["group_size"] or fan_in)
                )
                total += gone.size * bits + scales * (16 if settings["symmetric"] else 16 + bits)
            elif b.method.name in ("rtn", "gaussian_noise"):
                total += gone.size * 16
            else:
                total += (~gone).sum() * 16 + (gone.size if b.method.name in WEIGHTS and gone.any() else 0)
        total += 16 * np.count_nonzero((edit.bias or {}).get(name, 0))
    return total


@pytest.mark.parametrize(("case", "shape"), ROWS, ids=lambda x: str(x))
@pytest.mark.parametrize(("fraction", "bits", "sigma"), [(0.3, 4, 0.2), (0.75, 2, 0.7), (0.9, 1.585, 1.0)])
def test_cost_is_what_was_done(case, shape, fraction, bits, sigma):
    b = bench(case, shape)
    edit, _, cost = b.at(b.severity(fraction, bits, sigma))
    trained, after = b.params["blocks"], effective(b, edit)
    removed = {name: (after[name] == 0) & (np.asarray(trained[name]) != 0) for name in after}
    N = sum(w.size for w in after.values())
    assert cost.removed_fraction == np.float32(sum(m.sum() for m in removed.values()) / N)
    lost = sum(np.square(np.float64(trained[n]) - after[n]).sum() for n in after)
    np.testing.assert_allclose(
        cost.relative_weight_error,
        lost / sum(np.square(np.float64(trained[n])).sum() for n in after),
        rtol=1e-5,
    )
    expected = storage(b, edit, removed, bits) / N
    np.testing.assert_allclose(cost.bits_per_weight, expected, rtol=1e-5, atol=1e-6)
    if expected:
        np.testing.assert_allclose(cost.compression_ratio, 16 / expected, rtol=1e-5)


def test_one_layer_pays_for_one_layer():
    """Under a selector the bitmap and the narrow codes are counted only where it acts."""
    size = {name: i * o for name, (i, o) in SHAPES["mha-swiglu"].matrices.items()}
    layer, L = sum(size.values()), SHAPES["mha-swiglu"].n_layers
    for name, expected in (("random_weights", (layer * 16 * 0.5 + layer) / layer), ("rtn", 4.0)):
        b = bench(Case.of(name), "mha-swiglu")
        where = Where.only(b.shape, 1)
        cost = b.at(b.severity(0.5, 4, 0), where)[2]
        if name == "rtn":
            expected += 16 * sum(o for _, o in b.shape.matrices.values()) / layer
        np.testing.assert_allclose(cost.bits_per_weight, (expected + 16 * (L - 1)) / L, rtol=1e-5)
