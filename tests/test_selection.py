"""Which relation a curve follows, on simulated curves whose truth is known."""

import math

import numpy as np
import pytest
from test_relations import TRUTH

from wane.eval.relations import RELATIONS, SLICE_LAW, slice_law
from wane.eval.selection import Points, best_by, compare

S = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
BITS = np.array([16.0, 8, 7, 6, 5, 4, 3, 2])
STREAM = np.array([0, 1e-4, 3e-4, 1e-2, 0.02, 0.05, 0.4, 0.5, 0.9, 1.7, 2.5])  # not smooth in the severity
BLOCK = np.array([0, 1e-3, 2e-2, 3e-2, 0.1, 0.2, 0.25, 0.3, 0.6, 0.8, 0.9])


def members(name, noise, seeds, rng_seed=11):
    """The mean curve of some seeds, and their own curves: each point has noise, and each seed a factor."""
    relation, rng = RELATIONS[name], np.random.default_rng(rng_seed)
    unit = "bits" if relation.of == "bits" else "fraction"
    severity = 1 - BITS / 16 if unit == "bits" else S
    about = {"severity": severity, "unit": unit}
    if unit == "fraction":
        about |= {"undegraded": 2.0, "stream_noise": STREAM, "block_noise": BLOCK}
    x = Points(excess=severity, **about).along(relation.of)
    truth = np.zeros(len(severity))
    truth[1:] = relation.excess(x[1:], *TRUTH[name])
    each = [truth * np.exp(rng.normal(0, noise, len(severity)) + rng.normal(0, noise)) for _ in range(seeds)]
    return Points(excess=np.mean(each, axis=0), **about), [Points(excess=e, **about) for e in each]


def relation_by(found, score):
    best = best_by(found, score)
    return best and best.fit.relation.name


@pytest.mark.parametrize("name", RELATIONS)
def test_the_family_that_made_the_curves_is_found(name):
    """By severities, by seeds and by AICc; fewer parameters win what is within the error."""
    curve, single = members(name, 1e-3, 4)
    found = compare(curve, single)
    assert relation_by(found, "misses") == name
    assert relation_by(found, "seed_misses") == name
    # Seeds differ by a factor, which the law without one cannot have.
    assert relation_by(found, "aicc") == ("odds" if name == SLICE_LAW else name)


@pytest.mark.parametrize("rng_seed", [21, 22])
def test_with_noise_what_is_chosen_predicts_as_the_truth_does(rng_seed):
    for name in ("power", "exponential", "bits exponential", "stream noise power"):
        curve, single = members(name, 0.03, 5, rng_seed)
        found = compare(curve, single)
        truth = np.log(next(iter(members(name, 0.0, 1))).usable().excess)
        for score in ("misses", "seed_misses"):
            fitted = best_by(found, score).fit
            missed = np.log(fitted.excess(curve.usable().along(fitted.relation.of))) - truth
            assert np.abs(missed).max() < 0.12, (name, score)


def test_what_is_left_out_by_severity_and_by_seed_against_polyfit():
    curve, single = members("power", 0.1, 3)
    found = next(c for c in compare(curve, single) if c.fit.relation.name == "power")
    s, y = np.log(S[1:]), np.log(curve.excess[1:])
    alone = [
        abs(np.polyval(np.polyfit(np.delete(s, i), np.delete(y, i), 1), s[i]) - y[i]) for i in range(len(s))
    ]
    np.testing.assert_allclose(found.misses, alone, rtol=1e-4)
    assert found.left_out == pytest.approx(np.sqrt(np.mean(np.square(alone))), rel=1e-5)
    logs = [np.log(one.excess[1:]) for one in single]
    missed = []
    for i, mine in enumerate(logs):
        others = [one for j, one in enumerate(logs) if j != i]
        told = np.polyval(np.polyfit(np.tile(s, 2), np.concatenate(others), 1), s)
        missed.append(np.sqrt(np.mean((told - mine) ** 2)))
    np.testing.assert_allclose(found.seed_misses, missed, rtol=1e-4)
    mild, strong = S[1:] <= 0.3, S[1:] >= 0.5
    told = np.polyval(np.polyfit(s[mild], y[mild], 1), s[strong]) - y[strong]
    assert found.extrapolated == pytest.approx(np.sqrt(np.mean(told**2)), rel=1e-4)


def test_bits_are_extrapolated_from_4_to_3_and_2():
    curve, _ = members("bits exponential", 0.1, 1)
    found = next(c for c in compare(curve) if c.fit.relation.name == "bits exponential")
    b, y = BITS[1:], np.log(curve.excess[1:])
    told = np.polyval(np.polyfit(b[b >= 4], y[b >= 4], 1), b[b <= 3]) - y[b <= 3]
    assert found.extrapolated == pytest.approx(np.sqrt(np.mean(told**2)), rel=1e-4)
    assert found.seed_misses == ()
    assert math.isnan(found.seed_left_out)
    assert best_by([found], "seed_misses") is None


def test_extrapolation_tells_saturation_from_growth():
    found = {c.fit.relation.name: c for c in compare(members("exponential", 1e-6, 1)[0])}
    assert found["exponential"].extrapolated < 1e-3 < found["power"].extrapolated


def test_relations_are_those_of_the_axes_that_are_known():
    def names(points):
        return {c.fit.relation.name for c in compare(points)}

    bits, _ = members("bits power", 0.01, 1)
    assert names(bits) == {"bits exponential", "bits power"}
    curve, _ = members("power", 0.01, 1)
    assert names(curve) == {n for n, r in RELATIONS.items() if r.of != "bits"}
    bare = Points(severity=S, excess=curve.excess)
    assert names(bare) == {n for n, r in RELATIONS.items() if r.of == "fraction"}
    silent = Points(
        severity=S, excess=curve.excess, block_noise=np.zeros(len(S))
    )  # nothing acts inside blocks
    assert "block noise power" not in names(silent)


def test_the_slice_law_is_a_rival_with_nothing_to_fit():
    """Of loss 2 / (1 - s), with noise: what it misses is the noise, seen or not, and AICc prefers it to the
    relation that has a factor of its own."""
    noise = np.random.default_rng(0).normal(0, 0.02, 10)
    excess = (2.0 / (1 - S) - 2.0) * np.exp(np.concatenate([[0.0], noise]))
    found = {c.fit.relation.name: c for c in compare(Points(severity=S, excess=excess, undegraded=2.0))}
    law = found[SLICE_LAW]
    assert law.fit.parameters == {}
    assert law.fit.error == pytest.approx(np.sqrt(np.mean(noise**2)))
    assert law.left_out == pytest.approx(law.fit.error)
    assert law.extrapolated == pytest.approx(np.sqrt(np.mean(noise[-5:] ** 2)))
    assert law.fit.aicc == pytest.approx(10 * np.log(np.mean(noise**2)) + 2 + 4 / 8)
    assert law.fit.aicc < found["odds"].fit.aicc
    whole = Points(severity=S, excess=S, undegraded=2.0).along("slices")
    assert slice_law(S, 2.0 + law.fit.excess(whole)).slope == pytest.approx(-1)


def test_the_slice_law_of_another_loss_misses_by_their_ratio():
    points = Points(severity=S, excess=3.0 / (1 - S) - 3.0, undegraded=2.0)
    best, *rest = compare(points)
    (law,) = (c for c in rest if c.fit.relation.name == SLICE_LAW)
    assert law.left_out == pytest.approx(math.log(3 / 2))
    assert best.left_out < 1e-3


def test_short_curves_have_few_rivals_and_no_extrapolation():
    (found,) = compare(Points(severity=np.array([0, 0.1, 0.2]), excess=np.array([0, 0.1, 0.21])))
    assert found.fit.relation.name == "odds"
    assert math.isnan(found.extrapolated)
