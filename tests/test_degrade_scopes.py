"""A scope is a wall: what is outside keeps its bits, what is inside goes at severity 1."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import SHAPES, Case, tokens, trained

from wane.scaling.degrade.contract import Scope, Where, severity_of
from wane.scaling.edit import SITES, fold

SHAPE = SHAPES["gqa-gelu"]
DEEP = SHAPES["mha-swiglu"]
RANGE, LAYER = Scope(layers=(1, 3)), Scope(layers=(0, 1))
HEAD, MATRIX, MATRICES = Scope(head=2), Scope(matrices=("down",)), Scope(matrices=("o", "up"))
BOTH = Scope(layers=(1, 2), head=1, matrices=("q", "k", "o"))

WEIGHTS = (RANGE, LAYER, HEAD, MATRIX, MATRICES, BOTH)
ALLOWED = {
    Case.of("random_weights", group="row"): WEIGHTS,
    Case.of("random_weights", replace="rescale"): WEIGHTS,
    Case.of("random_weights", group="global", replace="mean"): WEIGHTS,
    Case.of("magnitude_weights"): WEIGHTS,
    Case.of("random_neurons"): (RANGE, LAYER),
    Case.of("random_neurons", group="global", replace="rescale"): (RANGE,),
    Case.of("random_heads"): (RANGE, LAYER, HEAD),
    Case.of("random_heads", group="layer"): (HEAD,),
    Case.of("remove_layers"): (RANGE, LAYER),
    Case.of("rtn", group_size=4): WEIGHTS,
    Case.of("gaussian_noise"): WEIGHTS,
    Case.of("gaussian_noise", match="rtn"): (HEAD, MATRIX),
    Case.of("activations"): (RANGE, LAYER, MATRIX),
}
TABLE = [
    pytest.param(case, scope, id=f"{case}-{scope}") for case, scopes in ALLOWED.items() for scope in scopes
]


def inside(scope: Scope, shape) -> dict[str, np.ndarray]:
    """Matrix -> bool [L, I, O], entry by entry."""
    K, per_group = shape.head_dim, shape.n_heads // shape.kv_heads
    first, end = scope.layers or (0, shape.n_layers)
    masks = {}
    for name, size in shape.matrices.items():
        mask = np.zeros((shape.n_layers, *size), bool)
        for (l, i, o), _ in np.ndenumerate(mask):
            ok = first <= l < end and (scope.matrices is None or name in scope.matrices)
            if scope.head is not None:
                unit = {"q": o // K, "o": i // K}.get(name)
                if name in ("k", "v"):
                    ok &= o // K == scope.head // per_group
                else:
                    ok &= unit == scope.head
            mask[l, i, o] = ok
        masks[name] = mask
    return masks


def edit_of(method, shape, severity, where=None):
    params = trained(shape)
    fitted = method.fit(params, tokens(shape), jax.random.key(4))
    where = where or Where.everywhere(shape)
    return method.apply(params, fitted, jnp.float32(severity), where, jax.random.key(0))


@pytest.mark.parametrize(("case", "scope"), TABLE)
def test_outside_the_scope_nothing_changes(case, scope):
    shape = DEEP if scope is RANGE else SHAPE
    method, masks = case.build(shape, scope), inside(scope, shape)
    strong = {"fraction": 1.0, "bits": 2, "sigma": 1.0}[method.unit]
    edit = edit_of(method, shape, severity_of(strong, method.unit))
    params = trained(shape)
    folded = fold(params, edit, shape)
    touched = 0
    for name, mask in masks.items():
        before, after = np.asarray(params["blocks"][name]), np.asarray(folded[name])
        np.testing.assert_array_equal(after[~mask], before[~mask])
        touched += (after[mask] != before[mask]).sum()
        if case.method.endswith("weights"):
            assert (after[mask] == 0).all()
        if edit.bias is not None:
            b_LO = np.asarray(edit.bias.get(name, np.zeros(1)))
            assert not b_LO[~mask.any(1)].any() if name in edit.bias else not mask.any()
    for site, bits_L in (edit.activation_bits or {}).items():
        read = np.stack([masks[name].any((1, 2)) for name in SITES[site] if name in masks]).all(0)
        np.testing.assert_array_equal(bits_L, np.where(read, 2, 16))
        touched += read.sum()
    assert touched > 0


def test_one_head_under_grouped_queries_leaves_shared_keys_to_the_others():
    method = Case.of("random_heads").build(SHAPE, HEAD)
    folded = fold(trained(SHAPE), edit_of(method, SHAPE, 1.0), SHAPE)
    assert all((np.asarray(folded[name]) != 0).all() for name in "kv")
    assert (np.asarray(folded["q"]) == 0).sum() == SHAPE.n_layers * SHAPE.d_model * SHAPE.head_dim


@pytest.mark.parametrize("case", [c for c, scopes in ALLOWED.items() if HEAD in scopes], ids=str)
def test_where_selects_one_head(case):
    """The head gets what it gets when all are degraded; all else is as trained, the layer's MLP included."""
    method, layer, head = case.build(SHAPE), 1, 2
    severity = severity_of({"fraction": 1.0, "bits": 3, "sigma": 0.5}[method.unit], method.unit)
    only = Where.only(SHAPE, layer, head)
    params = trained(SHAPE)
    every, one = (fold(params, edit_of(method, SHAPE, severity, w), SHAPE) for w in (None, only))
    masks = inside(Scope(layers=(layer, layer + 1), head=head), SHAPE)
    shared = case.method == "random_heads"  # the other query head of the group still reads k and v
    for name, mask in masks.items():
        degraded = mask & ~np.array(shared and name in "kv")
        expected = np.where(degraded, every[name], params["blocks"][name])
        np.testing.assert_array_equal(one[name], expected)


BAD = [
    ("random_weights", Scope(layers=(0, 3)), "scope.layers"),
    ("random_weights", Scope(layers=(1, 1)), "scope.layers"),
    ("random_weights", Scope(head=4), "scope.head"),
    ("random_weights", Scope(matrices=("gate",)), "scope.matrices"),
    ("random_weights", Scope(matrices=()), "scope.matrices"),
    ("random_weights", Scope(head=0, matrices=("up",)), "scope.matrices"),
    ("random_neurons", Scope(head=0), "scope.head"),
    ("random_neurons", MATRIX, "scope.matrices"),
    ("random_heads", MATRIX, "scope.matrices"),
    ("remove_layers", HEAD, "scope.head"),
    ("remove_layers", MATRIX, "scope.matrices"),
    ("activations", HEAD, "scope.head"),
    ("activations", Scope(matrices=("q", "k")), "add v"),
]


@pytest.mark.parametrize(("name", "scope", "words"), BAD)
def test_a_scope_that_means_nothing_is_refused_in_one_line(name, scope, words):
    with pytest.raises(ValueError, match=words) as error:
        Case.of(name).build(SHAPE, scope)
    assert "\n" not in str(error.value)


def test_a_draw_does_not_depend_on_the_scope():
    wide, narrow = (Case.of("random_weights").build(SHAPE, s) for s in (Scope(), MATRIX))
    ranks = [m.fit(trained(SHAPE), None, jax.random.key(3))["rank"]["down"] for m in (wide, narrow)]
    np.testing.assert_array_equal(*ranks)


def test_equal_arguments_build_the_same_object():
    assert Case.of("rtn").build(SHAPE, HEAD) is Case.of("rtn", symmetric=True).build(
        dataclasses.replace(SHAPE), Scope(head=2)
    )
    assert len({Case.of("rtn").build(SHAPE), Case.of("rtn").build(SHAPE, HEAD)}) == 2
