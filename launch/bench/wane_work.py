"""What wane does, as pieces of work that `wane bench` repeats: the programs that training and sweeps really run."""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wane.eval.measure import Batches, OfTrained
from wane.eval.sweep import Engine, Program, engine, measuring_from, plain, streams
from wane.launch.bench.peers import Run, Work
from wane.launch.environment import prepare, resolve
from wane.scaling.degrade import GROUPS, METHODS, build
from wane.scaling.degrade.contract import Degradation, Where
from wane.scaling.edit import Edit
from wane.scaling.model import init_params
from wane.scaling.shape import Parametrization, Shape
from wane.train import run as train_run
from wane.train.config import Train
from wane.train.data import Data, EvalSet, open_data
from wane.train.data.options import OPTIONS
from wane.train.loop import DEPTH
from wane.train.placement import Placement
from wane.train.prefetch import prefetched

METRICS, PRECISION = ("loss",), "highest"  # of an evaluation
HALF = 0.5  # the severity of a point: half of what there is, 8 bits


def shape_of(dims: dict[str, int], dtype: str) -> Shape:
    return Shape(**dims, dtype=dtype, parametrization=Parametrization(name="standard"))


def tokens(shape: Shape, *leading: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, shape.vocab, (*leading, shape.context + 1), np.int32)


def repeated(step: Callable[[], Any]) -> Run:
    """Dispatches all repetitions and waits for the last."""

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            out = step()
        jax.block_until_ready(out)

    return run


def machine(*, size: int, dtype: str) -> Work:
    """The ceilings: a square matrix product; an array of f32 that is read and written.  facts: where this is."""
    a_b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    multiply, scale = jax.jit(lambda a, b: a @ b), jax.jit(lambda x: x * 1.0001, donate_argnums=0)
    held, numbers = [jnp.zeros(2**26)], 2**26

    def copy() -> Any:
        held[0] = scale(held[0])
        return held[0]

    about = {"flops": 2 * size**3, "bytes": 8 * numbers, "environment": resolve(1)}
    return Work({"product": repeated(lambda: multiply(*a_b)), "copy": repeated(copy)}, about)


def training(
    *, dims: dict[str, int], batch: int, dtype: str, replicas: int = 1, packing: str = "map"
) -> Work:
    """One step of a pack a repetition, the same batch again.  waiting: the seconds for which as many steps stand
    still for their batch of the graded language."""
    prepare()
    shape = shape_of(dims, dtype)
    run = train_run.Run(
        shape=shape, train=Train(batch_size=batch), steps=1000, init_seeds=tuple(range(replicas)),
        data_seeds=(0,) * replicas, lrs=None, keep_steps=(), packing=packing,
    )  # fmt: skip
    placement = Placement(run, None)
    held = [placement.start()]
    batch_RBT, rates = placement.batch(tokens(shape, replicas, batch)), placement.rates()
    update = placement.update(held[0], batch_RBT, rates)

    def step() -> Any:
        held[0], metrics = update(held[0], batch_RBT, rates)
        return metrics

    stream = open_data(Data(sources="graded", context=max(32, shape.context)), steps=1, batch_size=batch)

    def drawn(number: int) -> Any:  # costs what it costs in training; folded into the vocabulary of bytes
        tokens_RBT = np.stack([stream.batch(seed, number) for seed in range(replicas)])
        return placement.batch(tokens_RBT[..., : shape.context + 1] % shape.vocab)

    def waiting(repetitions: int) -> float:
        waited = 0.0
        with closing(prefetched(drawn, 0, repetitions, DEPTH)) as ahead:
            for _ in range(repetitions):
                started = time.perf_counter()
                _, tokens_RBT = next(ahead)
                waited += time.perf_counter() - started
                held[0], metrics = update(held[0], tokens_RBT, rates)
                jax.block_until_ready(metrics)
        return waited

    runs = {"training": repeated(step), "waiting": waiting}
    return Work(runs, facts(shape, replicas * batch, backward=True))


def facts(shape: Shape, sequences: int, *, backward: bool) -> dict[str, int]:
    """Tokens of a repetition and the FLOPs that they must cost."""
    tokens = sequences * shape.context
    return {"tokens": tokens, "flops": tokens * shape.flops_per_token(backward=backward, all_experts=True)}


class Bench:
    """A member with random parameters and an evaluation set: what points are measured on."""

    def __init__(self, dims: dict[str, int], sequences: int, batch: int, dtype: str):
        prepare()
        self.shape = shape_of(dims, dtype)
        self.params = init_params(jax.random.key(0), self.shape)
        tokens_NT = tokens(self.shape, sequences)
        everywhere = np.ones((sequences, self.shape.context), np.int32)
        no_options = np.full((*everywhere.shape, OPTIONS), -1, np.int32)
        self.batches = Batches.of(
            EvalSet(
                tokens_NT=tokens_NT, task_N=np.zeros(sequences, np.int32), tasks=(),
                scored_NS=everywhere.astype(bool), level_NS=everywhere, bytes_NS=everywhere,
                foil_NS=-everywhere, options_NSO=no_options, values_N2=np.zeros((sequences, 2), np.int32),
            ),
            batch,
        )  # fmt: skip
        self.calibration_NT = jnp.asarray(tokens(self.shape, sequences))

    def plain(self) -> Any:
        return self.plain_program(self.params, self.batches)

    @property
    def plain_program(self) -> Program:
        return plain(self.shape, METRICS, PRECISION)

    @functools.cached_property
    def stream(self) -> jax.Array:
        return streams(self.shape, PRECISION)(self.params, self.batches)

    def engine(self, method: str, points: int = 1) -> Engine:
        return engine(self.shape, build(method, self.shape), METRICS, PRECISION, points)

    def fitted(self, method: str, draw: int = 0) -> Any:
        return self.engine(method).fit(self.params, self.calibration_NT, jax.random.key(draw))

    def sweep(
        self, method: str, fitted: Any, severities: Sequence[float], points: int, layer: int | None = None,
        batches: Batches | None = None,
    ):  # fmt: skip
        """Points, as a sweep cell asks for them.  batches: `Engine.known`, where that was asked before."""
        programs = self.engine(method, points)
        where = Where.everywhere(self.shape) if layer is None else Where.only(self.shape, layer)
        starts = programs.starts(severities, layer)
        if batches is None:
            batches = programs.known(self.params, fitted, self.batches)
        return programs.sweep(
            self.params, fitted, severities, where, jax.random.key(0), batches,
            self.stream if starts else None, starts,
        )  # fmt: skip


def forward(**setting: Any) -> Work:
    """The loss of every sequence of an evaluation set a repetition."""
    bench = Bench(**setting)
    return Work({"forward": repeated(bench.plain)}, facts(bench.shape, setting["sequences"], backward=False))


def sweeping(*, methods: list[str], severities: list[float], **setting: Any) -> Work:
    """One draw of a method a repetition: fit, then a point for every severity, its sums on the host."""
    bench, points = Bench(**setting), resolve(1)["points_per_call"]

    def run(method: str, repetitions: int) -> None:
        for draw in range(repetitions):
            for point in bench.sweep(method, bench.fitted(method, draw), severities, points):
                np.asarray(point.measured.sums)

    runs = {method: functools.partial(run, method) for method in methods}
    return Work(runs, facts(bench.shape, setting["sequences"], backward=False))


def points(*, experts: bool, **setting: Any) -> Work:
    """One point of every method a repetition, beside the plain evaluation.  memory: bytes of a point over those of
    the plain evaluation, in parameters of the model; facts: of each method what decides its cost, and the FLOPs of
    the plain evaluation."""
    bench = Bench(**setting)
    names = [name for name in METHODS if (name in GROUPS["Routing"]) == experts]

    @functools.cache
    def common(method: str) -> tuple[Any, Batches]:
        """What all severities share."""
        fitted = bench.fitted(method)
        return fitted, bench.engine(method).known(bench.params, fitted, bench.batches)

    def point(method: str) -> Any:
        fitted, batches = common(method)
        return next(bench.sweep(method, fitted, [HALF], 1, batches=batches))

    def memory(method: str, _: int) -> float:
        point(method), bench.plain()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(bench.params))
        direction = common(method)[1].direction  # it stands beside the batches for all severities
        kept = 0 if direction is None else direction.nbytes
        return (bench.engine(method).memory() + kept - sum(bench.plain_program.memory())) / size

    runs = {name: repeated(functools.partial(point, name)) for name in names}
    runs |= {f"{name} memory": functools.partial(memory, name) for name in names}
    flops = facts(bench.shape, setting["sequences"], backward=False)["flops"]
    about = {name: {"kind": kind(build(name, bench.shape)), "flops": flops} for name in names}
    return Work(runs | {"plain": repeated(bench.plain)}, about)


def partial(**setting: Any) -> Work:
    """Parts of a forward: the plain one, its head and loss alone, one point for every layer of a sensitivity sweep
    (the streams that it starts from are there), and exits from every layer (making the streams included)."""
    bench = Bench(**setting)
    shape, where = bench.shape, Where.everywhere(bench.shape)
    head = measuring_from(shape, METRICS, PRECISION, 1)
    untouched = Edit()
    fitted = bench.fitted("random_weights")
    exits = [i / shape.n_layers for i in range(1, shape.n_layers + 1)]
    programs = bench.engine("early_exit")

    def sensitivity() -> Any:
        points = [
            next(bench.sweep("random_weights", fitted, [HALF], 1, layer)) for layer in range(shape.n_layers)
        ]
        return points[-1]

    def all_exits() -> Any:
        stream = streams(shape, PRECISION)(bench.params, bench.batches)
        starts = programs.starts(exits, None)
        return list(
            programs.sweep(
                bench.params,
                None,
                exits,
                where,
                jax.random.key(0),
                bench.batches,
                stream,
                starts,
            )
        )[-1]

    def head_alone() -> Any:
        last = np.int32(shape.n_layers)
        return head(bench.params, untouched, bench.batches, bench.stream, OfTrained(), last, last)

    runs = {"plain": bench.plain, "head": head_alone, "sensitivity": sensitivity, "exits": all_exits}
    return Work({name: repeated(run) for name, run in runs.items()})


def kind(method: Degradation) -> str:
    """What decides the cost of its points."""
    if method.sequential:
        return "sequential"
    return "exit" if method.exit else "simple"
