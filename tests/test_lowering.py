"""Programs lower for TPU and CUDA on a machine that has neither, and none of them calls back to the host.

PROGRAMS is the list to extend: name -> (function, its arguments as arrays or ShapeDtypeStructs).
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wane.eval import pairs, sweep
from wane.eval.metrics import INSTRUMENTS, USUAL, chosen
from wane.scaling import model
from wane.scaling.corrupt import Corruption
from wane.scaling.degrade import GROUPS, METHODS, build
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import SITES, Edit, Lens
from wane.scaling.quantize import Grid
from wane.scaling.shape import Shape
from wane.train import step
from wane.train.config import Train
from wane.train.data.options import OPTIONS

SHAPE = Shape(d_model=16, n_layers=2, n_heads=4, head_dim=4, d_ff=24, vocab=32, context=8, n_kv_heads=2)
PARAMS = jax.eval_shape(lambda key: model.init_params(key, SHAPE), jax.random.key(0))
MOE = dataclasses.replace(SHAPE, n_experts=4, top_k=2)
MOE_PARAMS = jax.eval_shape(lambda key: model.init_params(key, MOE), jax.random.key(0))
TOKENS_BT = jax.ShapeDtypeStruct((2, SHAPE.context + 1), jnp.int32)
TOKENS_BS = jax.ShapeDtypeStruct((2, SHAPE.context), jnp.int32)
X_BSD = jax.ShapeDtypeStruct((2, SHAPE.context, SHAPE.d_model), jnp.float32)


def ones(*size):
    return jax.ShapeDtypeStruct((SHAPE.n_layers, *size), jnp.float32)


X = 2 * SHAPE.n_layers + 1
BITS = {site: ones() for site in SITES}
EDITS = {
    "params": Edit(params={"blocks": {"q": PARAMS["blocks"]["q"]}}),
    "bias": Edit(bias={name: ones(size[1]) for name, size in SHAPE.matrices.items()}),
    "head_LH": Edit(head_LH=ones(SHAPE.n_heads)),
    "neuron_LF": Edit(neuron_LF=ones(SHAPE.d_ff)),
    "attn_L": Edit(attn_L=ones()),
    "mlp_L": Edit(mlp_L=ones()),
    "residual_XD": Edit(residual_XD=jax.ShapeDtypeStruct((X, SHAPE.d_model), jnp.float32)),
    "residual_map": Edit(residual_map=jax.ShapeDtypeStruct((X, SHAPE.d_model, SHAPE.d_model), jnp.float32)),
    "expert_LE": Edit(expert_LE=ones(4)),
    "active_L": Edit(active_L=ones()),
    "cache_bits": Edit(cache_bits={"k": ones(), "v": ones()}),
    "lens": Edit(lens=Lens(jnp.eye(SHAPE.d_model), jnp.zeros(SHAPE.d_model))),
    "corruption": Edit(
        corruption=Corruption(
            key=jax.random.key(0),
            **dict.fromkeys(("substitute", "delete", "noise", "attack"), jnp.float32(0.1)),
        )
    ),
    "activation_bits": Edit(activation_bits=BITS),
    "activation_absmax": Edit(activation_bits=BITS, activation_absmax=BITS),
    "weight_bits": Edit(weight_bits={"q": ones(1, 1)}),
    "before": Edit(before=Edit(head_LH=ones(SHAPE.n_heads))),
    "weight_grid": Edit(weight_grid={"q": Grid(ones(1, 1), ones(1, 1), ones(1, 1))}),
}


def apply(params, tokens, edit=None, start=None):
    return model.apply(params, tokens, SHAPE, edit, start)


def loss(params, tokens_BT):
    x_BSD = model.apply(params, tokens_BT[:, :-1], SHAPE).x_BSD
    return model.nll(params, x_BSD, tokens_BT, SHAPE).mean()


EDITS |= {"cache_range": Edit(cache_bits={"k": ones()}, cache_range={"k": ones(2, 2, SHAPE.head_dim)})}


def training_programs():
    """A pack of two members, one after another and as one program, with and without a mask."""
    train, R = Train(), 2
    seeds_R, lr_R = jax.ShapeDtypeStruct((R,), jnp.uint32), jax.ShapeDtypeStruct((R,), jnp.float32)
    init = functools.partial(step.init_pack, shape=SHAPE, train=train)
    state_R = jax.eval_shape(init, seeds_R)
    mask = {name: jax.ShapeDtypeStruct((R, SHAPE.n_layers, *s), bool) for name, s in SHAPE.matrices.items()}
    tokens = jax.ShapeDtypeStruct((R, *TOKENS_BT.shape), jnp.int32)
    programs = {"init_pack": (init, seeds_R)}
    for packing in ("map", "vmap"):
        update = functools.partial(step.pack_step, shape=SHAPE, train=train, steps=9, packing=packing)
        programs[f"training step, {packing}"] = (update, state_R, tokens, lr_R)
        programs[f"training step under a mask, {packing}"] = (
            update,
            state_R._replace(mask=mask),
            tokens,
            lr_R,
        )
    return programs


def sweep_programs():
    """What a sweep runs: the undegraded forward, and per method the fit and a point, whole and from a prefix, and
    per instrument what it measures."""
    n, where = 3, jax.tree.map(jnp.asarray, Where.everywhere(SHAPE))

    def of_tokens(dtype, *more):
        return jax.ShapeDtypeStruct((n, *TOKENS_BS.shape, *more), dtype)

    batches = sweep.Batches(
        tokens=jax.ShapeDtypeStruct((n, *TOKENS_BT.shape), jnp.int32),
        scored=of_tokens(bool),
        foil=of_tokens(jnp.int32),
        options=of_tokens(jnp.int32, OPTIONS),
        values=jax.ShapeDtypeStruct((n, len(TOKENS_BS), 2), jnp.int32),
        bytes=of_tokens(jnp.int32),
        entropy=of_tokens(jnp.float32),
        counted=jax.ShapeDtypeStruct((n, len(TOKENS_BS)), jnp.float32),
    )
    stream = jax.ShapeDtypeStruct((SHAPE.n_layers + 1, n, *X_BSD.shape), jnp.float32)
    key, layers = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((2,), jnp.int32)
    programs = {
        "undegraded": (sweep.undegraded(SHAPE, "highest").jitted, PARAMS, batches),
        "streams": (sweep.streams(SHAPE, "highest").jitted, PARAMS, batches),
        "plain": (sweep.plain(SHAPE, USUAL, "highest").jitted, PARAMS, batches),
    }
    to_compare = pairs.trained_streams(SHAPE, "highest").jitted
    programs["streams to compare"] = (to_compare, PARAMS, batches)
    member = PARAMS, Edit()
    programs["a pair of members"] = (
        pairs.comparing(SHAPE, "highest").jitted, *member, *member,
        jax.eval_shape(to_compare, PARAMS, batches), batches,
    )  # fmt: skip
    for name in METHODS:
        shape, params = (MOE, MOE_PARAMS) if name in GROUPS["Routing"] else (SHAPE, PARAMS)
        method = build(name, shape)
        fitted = jax.eval_shape(method.fit, params, TOKENS_BT, key)
        programs[f"fit {name}"] = (method.fit, params, TOKENS_BT, key)
        engine = sweep.Engine(shape, method, USUAL, "highest", 2)
        severity = jax.ShapeDtypeStruct((2,), jnp.float32)
        arguments = (params, fitted, severity, where, key)
        programs[f"2 severities of {name}"] = (engine.degrade.jitted, *arguments)
        edits = jax.eval_shape(engine.degrade.jitted, *arguments)
        programs[f"2 costs of {name}"] = (engine.cost.jitted, params, edits, severity)
        edits = jax.eval_shape(Edit.acting, edits)
        programs[f"2 points of {name}"] = (
            engine.measure.jitted,
            params,
            edits,
            batches,
            stream,
            sweep.OfTrained(),
        )
        if name in ("random_weights", "early_exit", "random_dimensions"):
            programs[f"2 points of {name} above a layer"] = (
                engine.measure_from.jitted, params, edits, batches, stream, sweep.OfTrained(), layers, layers,
            )  # fmt: skip
        for instrument in INSTRUMENTS if name == "random_weights" else ():
            measure = sweep.measuring(shape, chosen(("loss", instrument)), "highest", 2)
            summing = sweep.summing(shape, chosen(("loss", instrument)), "highest").jitted
            trained = jax.eval_shape(summing, params, batches, stream)
            programs[f"2 points measured by {instrument}"] = (
                measure.jitted, params, edits, batches, stream, trained
            )  # fmt: skip
            programs[f"sums for {instrument}"] = (summing, params, batches, stream)
    return programs


PROGRAMS = {
    "init_params": (lambda key: model.init_params(key, SHAPE), jax.eval_shape(jax.random.key, 0)),
    "apply": (apply, PARAMS, TOKENS_BS),
    "apply from a later block": (
        lambda params, layer, x_BSD: apply(params, None, None, (layer, x_BSD)),
        PARAMS,
        jax.ShapeDtypeStruct((), jnp.int32),
        X_BSD,
    ),
    "nll": (lambda *args: model.nll(*args, SHAPE), PARAMS, X_BSD, TOKENS_BT),
    "gradient of nll": (jax.grad(loss), PARAMS, TOKENS_BT),
} | {f"apply with edit of {field}": (apply, PARAMS, TOKENS_BS, edit) for field, edit in EDITS.items()}

PROGRAMS |= training_programs() | sweep_programs()


def host_callbacks(function, *args, platforms: tuple[str, ...]) -> list[str]:
    """Targets of custom calls that return to the host, in `function` lowered for `platforms`."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()
    assert "func.func public @main" in text
    targets = re.findall(r"custom_call @([\w.]+)|call_target_name = \"([^\"]+)\"", text)
    return [name for pair in targets for name in pair if "callback" in name]


def test_every_field_of_edit_is_lowered():
    assert EDITS.keys() == Edit.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_lowers_without_host_callback(name):
    """For both at once, which traces each program once."""
    assert host_callbacks(*PROGRAMS[name], platforms=("tpu", "cuda")) == []


def test_a_host_callback_would_be_found():
    def calls_back(x):
        return jax.pure_callback(np.sin, x, x)

    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert host_callbacks(calls_back, x, platforms=("cpu",))
    with pytest.raises(ValueError, match="different from the lowering platform"):
        host_callbacks(calls_back, x, platforms=("tpu",))
