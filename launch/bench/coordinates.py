"""Two checks that one learning rate serves every shape: the coordinate check and the learning-rate sweep.

Both return rows (plain dicts) and have a function that draws them.  Under CompleteP sizes of activations stay
level as shapes grow and the best learning rates agree; under the standard parametrisation neither holds
(Dey et al. 2025, arXiv 2505.01618, Figures 1 and 2; Yang et al. 2022, arXiv 2203.03466).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from wane.scaling.edit import Params
from wane.scaling.model import apply, unembed
from wane.scaling.shape import Parametrization, Shape
from wane.train.config import Train
from wane.train.loop import Batches
from wane.train.step import Packing, init_pack, pack_step

Row = dict[str, Any]
SITES = ("block_outputs", "attention_logits", "logits")


def activation_sizes(params: Params, tokens_BS: Array, shape: Shape) -> dict[str, Array]:
    """Mean absolute value of the residual stream after each block, of the causal attention logits and of the
    final logits; scalars."""
    x_BSD, inner = apply(params, tokens_BS, shape)
    outputs_LBSD = jnp.concatenate([inner["block_in"][1:], x_BSD[None]])
    k_LBSHK = jnp.repeat(inner["k"], shape.n_heads // shape.kv_heads, axis=3)
    scores = jnp.einsum("lbshk,lbchk->lbhsc", inner["q"], k_LBSHK) * shape.head_dim**-0.5
    causal_SC = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return {
        "block_outputs": jnp.mean(jnp.abs(outputs_LBSD)),
        "attention_logits": jnp.mean(jnp.abs(scores), where=causal_SC),
        "logits": jnp.mean(jnp.abs(unembed(params, x_BSD, shape))),
    }


def coordinate_shapes(
    parametrization: Parametrization,
    widths: Sequence[int],
    depths: Sequence[int],
    head_dim: int,
    vocab: int,
    context: int,
) -> Iterator[tuple[str, Shape]]:
    """("width", shapes of base depth) and ("depth", shapes of base width); d_ff = 4 d_model, GELU."""
    p = parametrization
    grid = [("width", d, p.base_n_layers) for d in widths] + [("depth", p.base_d_model, n) for n in depths]
    for axis, d_model, n_layers in grid:
        if d_model % head_dim:
            raise ValueError(f"coordinates.widths has {d_model}: must be a multiple of head_dim = {head_dim}")
        yield axis, Shape(
            d_model=d_model, n_layers=n_layers, n_heads=d_model // head_dim, head_dim=head_dim, d_ff=4 * d_model,
            vocab=vocab, context=context, activation="gelu", parametrization=p,
        )  # fmt: skip


def coordinate_check(
    parametrization: Parametrization,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    steps: int,
    seeds: Sequence[int],
    train: Train,
    batches: Batches,
    head_dim: int,
    vocab: int,
    context: int,
) -> list[Row]:
    """Activation sizes before every one of the first `steps` updates and after the last, mean over seeds.

    Rows: parametrization, axis ("width" or "depth"), d_model, n_layers, step, seed and the three SITES.
    Learning rate constant, train.lr at the base shape.  Raises ValueError for a width that heads do not fill.
    """
    train = dataclasses.replace(train, warmup_fraction=0.0, final_lr_fraction=1.0)
    rows = []
    for axis, shape in coordinate_shapes(parametrization, widths, depths, head_dim, vocab, context):
        state_R = jax.jit(partial(init_pack, shape=shape, train=train))(jnp.array(seeds, jnp.uint32))
        update = _update(shape, train, steps, "map")
        measure = jax.jit(partial(jax.lax.map, lambda a, s=shape: activation_sizes(*a, s)))
        lr_R = jnp.full(len(seeds), train.lr)
        for step in range(steps + 1):
            tokens_RBT = np.stack([batches(seed, step) for seed in seeds])
            sizes = jax.device_get(measure((state_R.params, tokens_RBT[..., :-1])))
            at = {"parametrization": parametrization.name, "axis": axis, "step": step}
            at |= {"d_model": shape.d_model, "n_layers": shape.n_layers}
            rows += [
                at | {"seed": s} | {n: float(v[r]) for n, v in sizes.items()} for r, s in enumerate(seeds)
            ]
            if step < steps:
                state_R, _ = update(state_R, tokens_RBT, lr_R)
    return rows


def learning_rate_sweep(
    shapes: Sequence[Shape],
    lrs: Sequence[float],
    seeds: Sequence[int],
    batches: Batches,
    train: Train,
    packing: Packing,
    report: Callable[[str], None],
) -> list[Row]:
    """Final training loss of every shape, learning rate and seed: mean over the last tenth of the steps; NaN
    where it diverged.  All rates and seeds of a shape train as one program.

    Rows: parametrization, d_model, n_layers, lr, seed, steps, loss.  Seeds set initialisation and data.
    """
    cells = [(lr, seed) for lr in lrs for seed in seeds]
    rows = []
    for shape in shapes:
        steps = train.steps(shape, shape.context)
        state_R = jax.jit(partial(init_pack, shape=shape, train=train))(
            jnp.array([s for _, s in cells], jnp.uint32)
        )
        update, last = _update(shape, train, steps, packing), []
        lr_R = jnp.array([lr for lr, _ in cells], jnp.float32)
        for step in range(steps):
            drawn = {seed: batches(seed, step) for seed in seeds}
            state_R, metrics_R = update(state_R, np.stack([drawn[seed] for _, seed in cells]), lr_R)
            if step >= steps - max(1, steps // 10):
                last.append(metrics_R["loss"])
            if step % 100 == 0:
                report(f"{shape.name}: step {step}/{steps}")
        loss_R = np.mean(jax.device_get(last), axis=0)
        at = {
            "parametrization": shape.parametrization.name,
            "d_model": shape.d_model,
            "n_layers": shape.n_layers,
        }
        rows += [
            at | {"lr": lr, "seed": seed, "steps": steps, "loss": float(loss_R[r])}
            for r, (lr, seed) in enumerate(cells)
        ]
    return rows


def _update(shape: Shape, train: Train, steps: int, packing: Packing) -> Callable:
    program = partial(pack_step, shape=shape, train=train, steps=steps, packing=packing)
    return jax.jit(program, donate_argnums=0)


def draw_coordinates(rows: Sequence[Row], path: Path) -> None:
    """Sizes against width and against depth, one line per step; one row of panels per parametrisation."""
    names = list(dict.fromkeys(row["parametrization"] for row in rows))
    panels = [(axis, site) for axis in ("width", "depth") for site in SITES]
    figure, axes = _figure(len(names), len(panels))
    for axes_row, name in zip(axes, names, strict=True):
        for ax, (axis, site) in zip(axes_row, panels, strict=True):
            size = {"width": "d_model", "depth": "n_layers"}[axis]
            chosen = [row for row in rows if (row["parametrization"], row["axis"]) == (name, axis)]
            for step, points in _groups(chosen, "step"):
                ax.plot(*_means(points, size, site), marker="o", markersize=3, label=f"step {step}")
            ax.set(xlabel=size, ylabel=f"mean |{site.replace('_', ' ')}|", title=name, yscale="log")
            ax.set_xscale("log", base=2)
    axes[0][0].legend(fontsize="x-small")
    figure.savefig(path)


def draw_rates(rows: Sequence[Row], path: Path) -> None:
    """Final loss against learning rate, one line per shape, one panel per parametrisation."""
    names = list(dict.fromkeys(row["parametrization"] for row in rows))
    figure, axes = _figure(1, len(names))
    for ax, name in zip(axes[0], names, strict=True):
        labelled = [
            r | {"shape": f"d{r['d_model']}-L{r['n_layers']}"} for r in rows if r["parametrization"] == name
        ]
        for shape, points in _groups(labelled, "shape"):
            ax.plot(*_means(points, "lr", "loss"), marker="o", markersize=3, label=shape)
        ax.set(xlabel="learning rate of the base shape", ylabel="final training loss (nats)", title=name)
        ax.set_xscale("log", base=2)
        ax.legend(fontsize="x-small")
    figure.savefig(path)


def _figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """Without pyplot: no global state, no display."""
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _groups(rows: Sequence[Row], key: str) -> list[tuple[Any, list[Row]]]:
    return [(value, [r for r in rows if r[key] == value]) for value in dict.fromkeys(r[key] for r in rows)]


def _means(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """y averaged over seeds, at each x in ascending order."""
    pairs = [(value, float(np.mean([r[y] for r in points]))) for value, points in _groups(rows, x)]
    xs, ys = zip(*sorted(pairs), strict=True)
    return list(xs), list(ys)
