"""Every number that the code of "Demystifying When Pruning Works via Representation Hierarchies" printed."""

from pathlib import Path

import numpy as np
import pytest

from wane.eval.metrics import deviation as dev

GOLDEN = np.load(Path(__file__).parent / "golden" / "representation.npz")
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
STEPS = {name.removeprefix("gen."): GOLDEN[name] for name in GOLDEN if name.startswith("gen.")}
OPTIONS = {name.removeprefix("mcq."): GOLDEN[name] for name in GOLDEN if name.startswith("mcq.")}


def close(found, expected, **tolerance):
    np.testing.assert_allclose(found, expected, **CLOSE | tolerance)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("space", "before", "after"), [("h", "h", "h2"), ("z", "z", "z2")])
def test_vectors(space, before, after):
    v, changed = GOLDEN[before], GOLDEN[after]
    parts, geometry = dev.split(v, changed - v), dev.geometry(v, changed)
    close(parts.parallel, GOLDEN[f"{space}_para_rel"])
    close(parts.orthogonal, GOLDEN[f"{space}_orth_rel"])
    close(dev.cosine(v, changed), GOLDEN[f"cos_{space}"], rtol=1e-6)
    close(dev.distance_estimate(parts.orthogonal), GOLDEN[f"thm1_est_{space}"])
    close(parts.parallel / parts.orthogonal, GOLDEN[f"{space}_para_perp"])
    length = np.linalg.norm(v, axis=-1)
    lengths = [np.mean(part * length) for part in parts]
    close(lengths[0] / lengths[1], GOLDEN[f"{space}_ratio_of_means"])
    # alpha is signed: cosine x |changed| / |v| = 1 + alpha
    shrunk = np.asarray(geometry.cosine) * np.linalg.norm(changed, axis=-1) / length - 1
    close(shrunk, GOLDEN[f"alpha_{space}"][..., 0])
    close(np.abs(shrunk), parts.parallel)
    if space == "z":
        close(np.hypot(*parts) * length, GOLDEN["delta_norm"])


def test_the_undegraded_logits_are_those_of_the_head():
    for state, logits in (("h", "z"), ("h2", "z2")):
        close(GOLDEN[state] @ GOLDEN["lm_head"].T, GOLDEN[logits], rtol=1e-4, atol=1e-4)


def test_uniform_variance_of_transitions_is_not_halved():
    change = GOLDEN["z2"] - GOLDEN["z"]
    close(2 * np.mean(dev.kl_of_uniform(change, 1.0)), GOLDEN["uniform_var"])


@pytest.mark.parametrize("i", range(2))
def test_probabilities_of_transitions(i):
    z, changed, temperature = GOLDEN["z"], GOLDEN["z2"], float(GOLDEN["temperatures"][i])
    golden = {name.removeprefix(f"T{i}."): GOLDEN[name] for name in GOLDEN if name.startswith(f"T{i}.")}
    q, p = (softmax(logits / temperature) for logits in (z, changed))
    close(p, golden["p_weights_perturbed"])
    close(q, golden["q_dense"])
    cosine, kl = dev.cosine(q, p), dev.kl(z, changed, temperature, "transition")
    close(cosine, golden["cos_p"], rtol=1e-5)
    close(1 - np.mean(cosine), golden["real_1_minus_cos_p"])
    close(kl, golden["real_kl"])
    close(np.mean(kl), golden["real_kl_batchmean"])
    estimate = dev.second_order(z, changed - z, temperature, "transition")
    close(estimate.kl, golden["kl_estimate"])
    close(estimate.distance, golden["cos_estimate"])
    close(np.mean(estimate.kl), golden["kl_estimate_mean"])
    close(np.mean(estimate.distance), golden["cos_estimate_mean"])
    close(2 * temperature**2 * np.asarray(estimate.kl), golden["var_p"])
    close(2 * temperature**2 * np.asarray(estimate.distance), golden["var_r"])


def test_decoding_steps():
    z, changed, T = STEPS["z_dense"], STEPS["z_target"], float(STEPS["temperature"])
    close(dev.cosine(STEPS["h_dense"], STEPS["h_target"]), STEPS["cos_h"], rtol=1e-6)
    close(dev.cosine(z, changed), STEPS["cos_z"], rtol=1e-6)
    p, q = (softmax(logits / T) for logits in (z, changed))
    close(dev.cosine(p, q), STEPS["cos_p"], rtol=1e-5)
    close(dev.kl(z, changed, T), STEPS["kl"])
    change = changed - z
    estimate = dev.second_order(z, change, T)
    close(estimate.kl, STEPS["kl_estimates"])
    close(estimate.distance, STEPS["cos_estimates"])
    close(dev.kl_of_uniform(change, T), STEPS["uniform_var"])
    close(dev.kl_of_top(z, change, T, 5), STEPS["top5_var"])
    close(dev.kl_of_top(z, change, T, 10), STEPS["top10_var"])
    parts = dev.split(z, change)
    rms = np.hypot(*parts) * np.linalg.norm(z, axis=-1) / np.sqrt(z.shape[-1])
    close(rms, STEPS["global_l2"])
    close(np.abs(change).mean(-1), STEPS["global_l1"])
    top = np.take_along_axis(change, np.argsort(-z, axis=-1)[:, :5], axis=-1)
    close(np.abs(top).sum(-1), STEPS["top5_l1"])  # a sum, not a mean
    close(np.sqrt((top**2).mean(-1)), STEPS["top5_l2"])


def test_probabilities_among_the_options_of_a_question():
    """Its KL is divided by the number of options, which ours is not."""
    row, temperature = int(OPTIONS["step"]), float(STEPS["temperature"])
    z, changed = (STEPS[name][row][OPTIONS["ids"]] for name in ("z_dense", "z_target"))
    close(dev.cosine(z, changed), OPTIONS["cos_logits"][0], rtol=1e-5)
    p, q = (softmax(logits / temperature) for logits in (z, changed))
    close(dev.cosine(p, q), OPTIONS["cos_prob"][0], rtol=1e-5)
    close(dev.kl(z, changed, temperature) / len(z), OPTIONS["kl"])
