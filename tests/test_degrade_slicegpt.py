"""SliceGPT against recorded vectors, principal components in float64, and models that were really sliced."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import AS_USUAL, QUICK
from model_cases import random_params, random_tokens, shape_of
from test_model_parity import toy_model

from wane.scaling import model
from wane.scaling.degrade.contract import Scope, Where
from wane.scaling.degrade.sliced_stream import sliced_logits
from wane.scaling.degrade.slicegpt import principal_components, slicegpt
from wane.scaling.degrade.slicing import READS, kept_dimensions, slice_model
from wane.scaling.edit import Edit
from wane.scaling.shape import Shape

GOLDEN = Path(__file__).parent / "golden"
PCA = np.load(GOLDEN / "slicegpt_pca.npz")
TOY = np.load(GOLDEN / "toy_slicegpt.npz")
KEY = jax.random.key(0)


@functools.cache
def toy():
    """(shape, params, calibration, evaluation tokens); windows gain a last token, which only a loss would read."""
    shape, params, arrays = toy_model()
    calibration = np.pad(arrays["calib_tokens"], ((0, 0), (0, 1)))
    return shape, params, jnp.asarray(calibration), jnp.asarray(arrays["eval_tokens"])


@functools.cache
def small(option: str):
    """(shape, params, calibration tokens) of a model with embeddings whose mean is not 0."""
    experts = {"n_experts": 3, "top_k": 2} if option == "experts" else {}
    shape = shape_of("llama" if experts else option, norm_position="before", **experts)
    params = random_params(shape)
    params["embed"] = params["embed"] + 0.3
    return shape, params, random_tokens(shape, batch=9, extra=1)


def slicer(method, params, calibration):
    """Jitted (severity, where) -> Edit."""
    fitted = method.fit(params, calibration, KEY)
    return jax.jit(lambda severity, where: method.apply(params, fitted, severity, where, KEY), **AS_USUAL)


@functools.cache
def toy_edit(kept: int, slice_head: bool) -> Edit:
    shape, *_ = toy()
    return _toy_slicer(slice_head)(jnp.float32(1 - kept / shape.d_model), Where.everywhere(shape))


@functools.cache
def _toy_slicer(slice_head: bool):
    shape, params, calibration, _ = toy()
    return slicer(slicegpt(shape, slice_head=slice_head, round_to=8), params, calibration)


@functools.partial(jax.jit, static_argnums=2, **QUICK)
def forward(params, tokens_BS, shape, edit):
    """(logits, intermediates)."""
    output = model.apply(params, tokens_BS, shape, edit)
    return model.unembed(params, output.x_BSD, shape), output.inner | {"last": output.x_BSD}


def stream_before_map(params, tokens_BS, shape, edit, x: int):
    """The residual stream on which map x acts, the maps before it acting too."""
    maps = edit.residual_map.at[x].set(jnp.eye(shape.d_model))
    inner = forward(params, tokens_BS, shape, Edit(residual_map=maps))[1]
    layer, odd = divmod(x, 2)
    if odd:
        return inner["mid"][layer]
    return inner["block_in"][layer] if layer < shape.n_layers else inner["last"]


def components(x, centred: bool):
    """(eigenvalues, eigenvectors) of the damped Gram matrix, descending, in float64."""
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    if centred:
        x = x - x.mean(1, keepdims=True)
    gram = x.T @ x
    value, vector = np.linalg.eigh(gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram)))
    return value[::-1], vector[:, ::-1]


@pytest.mark.parametrize(("mask", "suffix"), [(False, ""), (True, "_masked")])
def test_principal_components_are_the_recorded_ones(mask, suffix):
    x = PCA["X"] * PCA["attention_mask"][..., None] if mask else PCA["X"]
    x = x.reshape(-1, x.shape[-1])
    value, vector = principal_components(jnp.asarray(x.T @ x), centred=False)
    np.testing.assert_allclose(value, PCA["eigval" + suffix], rtol=2e-4)
    # The weakest two are nearly as strong as each other: sums in another order turn them by a 40th.
    np.testing.assert_allclose(np.abs((PCA["Q" + suffix] * vector).sum(0)), 1, atol=1e-3)


def test_the_mean_comes_last_where_calibration_data_leave_directions_open():
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    x -= x.mean(1, keepdims=True)
    vector = np.asarray(principal_components(jnp.asarray(x.T @ x), centred=True)[1])
    np.testing.assert_allclose(np.abs(np.ones(16) / 4 @ vector), np.eye(16)[-1], atol=1e-3)


@pytest.mark.parametrize("k", PCA["dims"])
def test_sliced_matrices_make_the_recorded_errors(k):
    x = PCA["X"].reshape(-1, PCA["X"].shape[-1])
    kept = np.asarray(principal_components(jnp.asarray(x.T @ x), centred=False)[1])[:, :k]
    sign = np.sign((kept * PCA["Q"][:, :k]).sum(0))
    np.testing.assert_allclose((PCA["W_in"] @ kept) * sign, PCA[f"W_in_sliced_{k}"], atol=1e-3)
    np.testing.assert_allclose((kept.T @ PCA["W_out"]) * sign[:, None], PCA[f"W_out_sliced_{k}"], atol=1e-3)
    error = np.linalg.norm(x - x @ kept @ kept.T) / np.linalg.norm(x)
    np.testing.assert_allclose(error, PCA[f"x_recon_relerr_{k}"], rtol=1e-4)


@pytest.mark.parametrize("slice_head", [False, True])
@pytest.mark.parametrize("k", TOY["dims"])
def test_the_toy_decoder_sliced_gives_the_recorded_logits(k, slice_head):
    shape, params, _, tokens = toy()
    edit = toy_edit(int(k), slice_head)
    recorded = TOY[f"d{k}_headsliced.logits" if slice_head else f"d{k}.logits"]
    np.testing.assert_allclose(forward(params, tokens, shape, edit)[0], recorded, atol=1e-3)
    kept = [k] * (2 * shape.n_layers) + [k if slice_head else shape.d_model]
    np.testing.assert_array_equal(kept_dimensions(edit.residual_map), kept)


@pytest.mark.parametrize("k", TOY["dims"])
def test_signals_on_the_way_have_the_recorded_eigenvalues(k):
    """Which the error of earlier slices has already changed."""
    shape, params, calibration, _ = toy()
    edit = toy_edit(int(k), False)
    for x in range(2 * shape.n_layers + 1):
        stream = stream_before_map(params, calibration[:, :-1], shape, edit, x)
        flat = jnp.reshape(stream, (-1, shape.d_model))
        value, _ = principal_components(flat.T @ flat, centred=False)
        np.testing.assert_allclose(value, TOY[f"d{k}.eigval.{x}"], rtol=1e-3)


@pytest.mark.parametrize("k", TOY["dims"])
def test_sliced_shapes_are_the_recorded_ones(k):
    shape, params, *_ = toy()
    sliced = slice_model(params, toy_edit(int(k), False), shape)
    first, last = sliced.blocks[0], sliced.blocks[-1]
    ours = (
        sliced.embed, first["q"].T, first["o"].T, first.get("attn_shortcut"), first["gate"].T, first["down"].T,
        first.get("mlp_shortcut"), last["down"].T, last.get("mlp_shortcut"), sliced.unembed.T,
    )  # fmt: skip
    for w, recorded in zip(ours, TOY[f"d{k}.shapes"], strict=True):
        if w is None:  # the reference stores a rotation where ours is the identity
            assert k == shape.d_model
        else:
            assert w.shape == tuple(recorded)


OPTIONS = ["layernorm", "no residual", "experts"]


@functools.cache
def small_slicer(option: str):
    shape, params, calibration = small(option)
    return slicer(slicegpt(shape, profile=(1.0, 1.5, 0.5), slice_head=True), params, calibration)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_projector_is_the_pca_of_what_the_sliced_model_makes(option):
    shape, params, calibration = small(option)
    edit = small_slicer(option)(jnp.float32(0.3), Where.everywhere(shape))
    centred = option == "layernorm"
    kept = [16 - 4, *[16 - 4] * 2, *[16 - 7] * 2, *[16 - 2] * 2]
    np.testing.assert_array_equal(kept_dimensions(edit.residual_map), kept)
    for x, k in enumerate(kept):
        stream = stream_before_map(params, calibration[:, :-1], shape, edit, x)
        value, vector = components(stream, centred)
        leading = vector[:, :k]
        gap = (value[k - 1] - value[k]) / value[0]  # close eigenvalues turn their vectors into each other
        np.testing.assert_allclose(edit.residual_map[x], leading @ leading.T, atol=1e-5 + 2e-8 / gap)


@pytest.mark.parametrize("option", ["llama", "no norm", "no residual", "all at once"])
def test_real_slicing_gives_the_logits_of_the_masked_form(option):
    shape, params, _ = small(option)
    edit = random_projectors(shape, (9, 12, 16, 16, 7, 16, 13))
    tokens = random_tokens(shape, seed=4)
    logits = jax.jit(sliced_logits, static_argnums=2, **QUICK)(
        slice_model(params, edit, shape), tokens, shape
    )
    masked = forward(params, tokens, shape, edit)[0]
    np.testing.assert_allclose(logits, masked, atol=1e-4 * np.abs(masked).max())
    assert np.abs(masked - forward(params, tokens, shape, Edit())[0]).max() > 0.1


def random_projectors(shape: Shape, kept: tuple[int, ...]) -> Edit:
    """Projectors onto random subspaces, for LayerNorm without the mean; the identity where all is kept."""
    rng = np.random.default_rng(3)
    D, maps = shape.d_model, []
    for k in kept:
        x = rng.standard_normal((D, k))
        if shape.norm == "layernorm":
            x -= x.mean(0)
        q = np.linalg.qr(x)[0]
        maps.append(np.eye(D) if k == D else q @ q.T)
    return Edit(residual_map=jnp.asarray(np.stack(maps), jnp.float32))


@pytest.mark.parametrize("option", ["no residual", "all at once"])
@pytest.mark.parametrize("kept", [(9, 12, 16, 16, 7, 16, 13), (15,) * 7, (16,) * 7, (0,) * 7])
def test_cost_is_what_the_sliced_model_stores(option, kept):
    shape, params, _ = small(option)
    edit = random_projectors(shape, kept)
    cost = slicegpt(shape).cost(params, edit, jnp.float32(0))
    if 0 in kept:
        net = 0
    else:
        stored = slice_model(params, edit, shape).blocks
        net = sum(w.size for block in stored for name, w in block.items() if name != "bias" and w.ndim == 2)
    removed = 1 - net / shape.param_counts()["blocks"]
    np.testing.assert_allclose(cost.removed_fraction, removed, atol=1e-6)
    np.testing.assert_allclose(cost.bits_per_weight, 16 * (1 - removed), atol=1e-5)
    if kept == (15,) * 7 and option != "no residual":
        assert removed < 0  # shortcuts cost more than one dimension saves
    if kept == (16,) * 7:
        assert tuple(cost) == (0, 0, 16, 1)


def test_weight_error_is_that_of_the_fused_matrices():
    shape, params, _ = small("grouped queries")
    edit = random_projectors(shape, (9, 12, 16, 16, 7, 16, 13))
    lost = total = 0.0
    for name in shape.matrices:
        for l in range(shape.n_layers):
            w = np.asarray(params["blocks"][name][l], np.float64)
            if name in READS:
                w = np.asarray(params["blocks"][f"{READS[name]}_norm_scale"][l])[:, None] * w
            place = {"attn": 2 * l, "mlp": 2 * l + 1}.get(READS.get(name), 2 * l + 1 + (name == "down"))
            p = np.asarray(edit.residual_map[place], np.float64)
            after = p @ w if name in READS else w @ p
            lost, total = lost + ((w - after) ** 2).sum(), total + (w**2).sum()
    cost = slicegpt(shape).cost(params, edit, jnp.float32(0))
    np.testing.assert_allclose(cost.relative_weight_error, lost / total, rtol=1e-5)


def test_what_is_sliced_follows_severity_scope_where_and_rounding():
    shape, params, calibration = small("llama")
    run = slicer(slicegpt(shape, Scope(layers=(0, 2)), round_to=5), params, calibration)

    def kept(severity: float, where: Where) -> list[int]:
        return kept_dimensions(run(jnp.float32(severity), where).residual_map).tolist()

    everywhere, one = Where.everywhere(shape), Where.only(shape, 1)
    assert kept(0.25, everywhere) == [10] * 5 + [16] * 2  # 12, rounded down
    assert kept(0.4, everywhere) == [10] * 5 + [16] * 2  # 6 of 16 are gone
    assert kept(0.5, one) == [16, 16, 16, 5, 5, 16, 16]
    assert kept(1.0, everywhere) == [0] * 5 + [16] * 2
    unchanged = run(jnp.float32(0), everywhere).residual_map
    np.testing.assert_array_equal(unchanged, np.broadcast_to(np.eye(16), (7, 16, 16)))


def test_the_mean_of_the_embeddings_goes_only_where_asked_for():
    shape, params, calibration = small("llama")
    where, ones = Where.everywhere(shape), np.ones(16) / 4

    def first_map(flag: bool) -> np.ndarray:
        method = slicegpt(shape, subtract_embedding_mean=flag)
        run = jax.jit(
            lambda severity: method.apply(params, calibration, severity, where, KEY).residual_map[0]
        )
        return np.asarray(run(jnp.float32(0.25)))

    plain, centred = first_map(False), first_map(True)
    assert np.abs(ones @ centred).max() < 1e-6
    assert np.linalg.norm(ones @ plain) > 0.9
    leading = components(params["embed"][calibration[:, :-1]], centred=True)[1][:, :12]
    np.testing.assert_allclose(centred, leading @ leading.T, atol=1e-4)


def test_layernorm_loses_nothing_with_the_last_dimension():
    shape, params, _ = small("layernorm")
    edit = small_slicer("layernorm")(jnp.float32(1 / 8), Where.only(shape, 2))
    assert kept_dimensions(edit.residual_map).tolist() == [16] * 5 + [15] * 2
    tokens = random_tokens(shape, seed=4)
    plain = forward(params, tokens, shape, Edit())[0]
    np.testing.assert_allclose(forward(params, tokens, shape, edit)[0], plain, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "settings", "message"),
    [
        ("norm after", {}, 'shape.norm_position = "after": .* use "before"'),
        ("llama", {"round_to": 0}, "round_to = 0: must be .* from 1"),
        ("llama", {"profile": (1.0, 2.0)}, r"profile = \(1.0, 2.0\): must be empty or 3 numbers"),
        ("llama", {"profile": (1.0, -1.0, 0.0)}, "profile = .* each 0 or larger"),
        ("llama", {"scope": Scope(head=1)}, "scope.head = 1: .* leave it out"),
        ("llama", {"scope": Scope(matrices=("q",))}, "scope.matrices = .* leave it out"),
    ],
)
def test_what_cannot_be_sliced_is_one_line(option, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        slicegpt(shape_of(option), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"n_experts": 2}, {"norm_position": "after"}])
def test_only_dense_models_with_norms_in_front_are_really_sliced(changes):
    shape = shape_of("llama", **changes)
    with pytest.raises(ValueError, match="shape.n_experts|shape.norm_position"):
        slice_model({}, Edit(), shape)
