"""Members trained for the known order of methods, and each method's loss on them, paired over seeds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wane.scaling.degrade import build
from wane.scaling.degrade.contract import Where, severity_of
from wane.scaling.edit import merge
from wane.scaling.model import apply, nll
from wane.scaling.program import Program
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data import open_data
from wane.train.step import init_state, train_step


def points(d_model: int) -> dict[str, tuple[str, dict, float]]:
    """Name -> (method, settings, asked).  At 3 bits groups are of 16 inputs and of a quarter of them."""
    grouped = {}
    for size in sorted({16, d_model // 4}):
        grouped[f"rtn 3 bits, groups of {size}"] = ("rtn", {"symmetric": False, "group_size": size}, 3)
        grouped[f"awq 3 bits, groups of {size}"] = ("awq", {"group_size": size}, 3)
    return {
        "random 50 %": ("random_weights", {}, 0.5),
        "magnitude 50 %": ("magnitude_weights", {}, 0.5),
        "wanda 50 %": ("wanda", {}, 0.5),
        "sparsegpt 50 %": ("sparsegpt", {}, 0.5),
        "wanda 2:4": ("wanda", {"group": "n:4"}, 0.5),
        "magnitude 2:4": ("magnitude_weights", {"group": "n:4"}, 0.5),
        "rtn 3 bits": ("rtn", {"symmetric": False}, 3),
        "gptq 3 bits": ("gptq", {}, 3),
        **grouped,
        "rtn 4 bits, groups of 64": ("rtn", {"group_size": 64}, 4),
        "nf4, groups of 64": ("normal_float", {"group_size": 64}, 4),
    }


def order(d_model: int) -> tuple[tuple[str, str, str], ...]:
    """(better, worse, where it must hold: in every seed, in the mean, or it is only reported)."""
    groups = {16: "reported", d_model // 4: "mean"}
    grouped = [[f"{name} 3 bits, groups of {size}" for name in ("awq", "rtn")] for size in groups]
    return (
        ("sparsegpt 50 %", "wanda 50 %", "mean"),
        ("wanda 50 %", "magnitude 50 %", "mean"),
        ("magnitude 50 %", "random 50 %", "every"),
        ("wanda 50 %", "wanda 2:4", "every"),
        ("magnitude 50 %", "magnitude 2:4", "every"),
        ("gptq 3 bits", "rtn 3 bits", "every"),
        *((*pair, must) for pair, must in zip(grouped, groups.values(), strict=True)),
        ("nf4, groups of 64", "rtn 4 bits, groups of 64", "mean"),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What is trained and on what it is measured."""

    shape: Shape
    train: Train
    stream: object
    steps: int
    calibration: int = 128
    evaluation: int = 256


def setting(data, train: Train, calibration: int = 128, evaluation: int = 256, **dimensions) -> Setting:
    stream = open_data(data, steps=1, batch_size=train.batch_size)
    shape = Shape(vocab=stream.vocab, context=data.context, **dimensions)
    return Setting(shape, train, stream, train.steps(shape, data.context), calibration, evaluation)


def member(s: Setting, seed: int) -> dict:
    """Parameters after training."""
    update = functools.partial(train_step, shape=s.shape, train=s.train, steps=s.steps)
    tokens = jnp.asarray(np.stack([s.stream.batch(seed, i) for i in range(s.steps)]))

    def run(tokens):
        state = init_state(jax.random.key(seed), s.shape, s.train)
        return lax.scan(lambda state, batch: (update(state, batch, s.train.lr)[0], None), state, tokens)[0]

    return optimised(Program(run, trains=True))(tokens).params


def optimised(program: Program) -> Program:
    """As users compile, and not as tests do: these run for minutes."""
    program.cpu_options = program.cpu_options | {"xla_backend_optimization_level": 1}
    return program


def losses(s: Setting, seeds) -> dict[str, list[float]]:
    """Point -> loss of every seed's member, on the same sequences; "trained" is the undegraded one."""
    calibration = jnp.asarray(s.stream.calibration(s.calibration, 0))
    evaluation = jnp.asarray(s.stream.evaluation(s.evaluation, 0).tokens_NT)
    members = [member(s, seed) for seed in seeds]

    @optimised
    @Program
    def loss(params, edit):
        def one(tokens_BT):
            x_BSD = apply(params, tokens_BT[:, :-1], s.shape, edit).x_BSD
            return nll(merge(params, edit), x_BSD, tokens_BT, s.shape).mean()

        return lax.map(one, evaluation.reshape(-1, 16, evaluation.shape[1])).mean()

    out = {"trained": [float(loss(params, None)) for params in members]}
    for name, (method_name, settings, asked) in points(s.shape.d_model).items():
        method = build(method_name, s.shape, settings=settings)
        severity = jnp.float32(severity_of(asked, method.unit))

        @optimised
        @Program
        def edit(params, key, method=method, severity=severity):
            fitted = method.fit(params, calibration, key)
            return method.apply(params, fitted, severity, Where.everywhere(s.shape), key)

        keys = [jax.random.fold_in(jax.random.key(9), seed) for seed in seeds]
        out[name] = [
            float(loss(params, edit(params, key))) for params, key in zip(members, keys, strict=True)
        ]
    return out


def margins(found: dict[str, list[float]], d_model: int) -> dict[tuple[str, str], np.ndarray]:
    """(better, worse) -> loss(worse) - loss(better) of every seed."""
    return {(a, b): np.subtract(found[b], found[a]) for a, b, _ in order(d_model)}


def table(found: dict[str, list[float]], d_model: int) -> str:
    """Both as Markdown."""
    rows = ["| point | loss (nats/token), mean | excess over the trained model, per seed |", "|---|---|---|"]
    for name, values in found.items():
        excess = ", ".join(f"{v:+.4f}" for v in np.subtract(values, found["trained"]))
        rows.append(f"| {name} | {np.mean(values):.4f} | {excess} |")
    rows += ["", "| better | worse | margin (nats/token), mean | per seed |", "|---|---|---|---|"]
    for (a, b), m in margins(found, d_model).items():
        rows.append(f"| {a} | {b} | {m.mean():+.4f} | {', '.join(f'{v:+.4f}' for v in m)} |")
    return "\n".join(rows)
