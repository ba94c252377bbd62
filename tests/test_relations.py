"""Relations in print: recovered from simulated curves of known truth and from published tables."""

import math

import numpy as np
import pytest

from wane.eval.relations import RELATIONS, SLICE_LAW, fit, line, slice_law

TRUTH = {
    "power": (2.5, 1.7), "exponential": (0.05, 5.0), "odds": (0.8,), "hill": (3.0, 2.2, 0.5),
    "weibull": (3.0, 2.2, 0.5), "logistic": (3.5, 1.6, 0.8), "three regimes": (3.0, 1.2, 0.3, 2.0),
    "sparse scaling": (0.5, 0.7, 1.5, 0.25), "1 - s": (), "bits exponential": (30.0, 1.2),
    "bits power": (8.0, 3.0), "stream noise power": (0.9, 1.2), "block noise power": (2.0, 0.7),
}  # fmt: skip
ALONG = {
    "fraction": np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), "bits": np.array([8.0, 7, 6, 5, 4, 3.5, 3, 2]),
    "stream noise": 10.0 ** np.linspace(-4, 0.5, 8), "block noise": 10.0 ** np.linspace(-3, 0, 8),
    "slices": np.linspace(0.1, 3, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", RELATIONS)
def test_a_relation_recovers_its_own_parameters(name):
    relation = RELATIONS[name]
    x = ALONG[relation.of]
    noise = np.random.default_rng(7).normal(0, 1e-6, len(x))
    found = fit(relation, x, relation.excess(x, *TRUTH[name]) * np.exp(noise))
    np.testing.assert_allclose(list(found.parameters.values()), TRUTH[name], rtol=3e-3)
    assert found.n == 8
    assert found.error < 1e-5


def test_three_regimes_and_rounding_noise_as_their_papers_write_them():
    a, b, c, d = TRUTH["three regimes"]
    density = 1 - ALONG["fraction"] + 0j
    printed = [np.abs((x - 1j * c * d) / (x - 1j * c)) ** b for x in (density, 1 + 0j)]
    np.testing.assert_allclose(
        RELATIONS["three regimes"].excess(ALONG["fraction"], a, b, c, d), a * (printed[0] - printed[1])
    )
    bits, rate = ALONG["bits"], 1.2
    both = RELATIONS["bits exponential"].excess(bits, 30.0, rate)
    np.testing.assert_allclose(both, 30 * 2 ** (-2 * (rate / math.log(4)) * bits))
    np.testing.assert_allclose(both, 30 * np.exp(-bits / (1 / rate)))


def test_what_cannot_be_fitted_is_told():
    with pytest.raises(ValueError, match="1 - s: 0 points of positive slices and excess"):
        fit(RELATIONS[SLICE_LAW], [0, 0.1], [0, -0.1])
    with pytest.raises(ValueError, match="hill: 2 points .* for 3 parameters"):
        fit(RELATIONS["hill"], [0, 0.1, 0.2, 0.3], [0, 0.1, 0.2, -0.1])


def test_a_line_and_its_errors_against_a_simulation():
    x = np.linspace(0, 1, 9)
    rng = np.random.default_rng(1)
    fits = [line(x, 2 - 3 * x + rng.normal(0, 0.1, 9)) for _ in range(2000)]
    for field, truth in (("slope", -3), ("intercept", 2)):
        values = np.array([getattr(f, field) for f in fits])
        errors = np.array([getattr(f, field + "_error") for f in fits])
        assert values.mean() == pytest.approx(truth, abs=0.01)
        assert values.std() == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.05)
    fixed = line(x, 2 - 3 * x, intercept=2.0)
    assert (fixed.slope, fixed.intercept) == (pytest.approx(-3), 2.0)


# Ashkboos et al. 2024 (arXiv 2401.15024), Table 1: WikiText-2 perplexity, dense and at slicing 10, 20, 25, 30 %.
SLICEGPT = {
    "OPT 125M": (27.64, 29.34, 34.26, 37.74, 43.98),
    "OPT 1.3B": (14.61, 15.10, 16.43, 17.46, 19.09),
    "OPT 2.7B": (12.46, 12.75, 13.73, 14.56, 15.83),
    "OPT 6.7B": (10.85, 10.92, 11.48, 11.90, 12.51),
    "OPT 13B": (10.12, 10.27, 10.66, 10.94, 11.33),
    "OPT 30B": (9.56, 9.65, 9.87, 10.04, 10.27),
    "OPT 66B": (9.33, 9.43, 9.57, 9.68, 9.85),
    "Llama-2 7B": (5.47, 5.89, 6.64, 7.24, 8.12),
    "Llama-2 13B": (4.88, 5.21, 5.81, 6.30, 6.99),
    "Llama-2 70B": (3.32, 3.69, 4.25, 4.60, 5.05),
}


def test_the_slices_of_slicegpt_do_not_follow_1_minus_s():
    """Slopes through the dense model: -.07 to -.36 for OPT, -.56 to -.86 for Llama-2, where the law says -1; the
    excess loss is a power law with exponents 1.25 to 2.85."""
    severity = (0, 0.1, 0.2, 0.25, 0.3)
    slopes = {name: slice_law(severity, np.log(ppl), intercept=1.0).slope for name, ppl in SLICEGPT.items()}
    opt = [slope for name, slope in slopes.items() if name.startswith("OPT")]
    llama = [slope for name, slope in slopes.items() if name.startswith("Llama")]
    assert (round(max(opt), 2), round(min(opt), 2)) == (-0.07, -0.36)
    assert (round(max(llama), 2), round(min(llama), 2)) == (-0.56, -0.86)
    exponents = [
        fit(RELATIONS["power"], severity, np.log(ppl) - np.log(ppl[0])).parameters["b"]
        for ppl in SLICEGPT.values()
    ]
    assert (round(min(exponents), 2), round(max(exponents), 2)) == (1.25, 2.85)
