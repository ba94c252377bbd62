"""All metrics of one degraded model, batch by batch inside one program."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics import METRICS
from wane.eval.metrics.contract import Kept, PerToken, SequenceMetric, Statistic, Sums, Weights
from wane.eval.metrics.view import Batch, View
from wane.scaling.edit import Edit, Params, merge
from wane.scaling.model import Inner, apply
from wane.scaling.shape import Shape
from wane.train.data import EvalSet

T = TypeVar("T")
ROOM = 2**29  # bytes that one thing that is read of the undegraded model's batches may take
KINDS = (SequenceMetric, PerToken, Statistic)


class Batches(NamedTuple):
    """An evaluation set on the device, cut into n batches: tokens [n, B, T], scored, foil, bytes and entropy
    [n, B, S], options [n, B, S, 4], values [n, B, 2], counted [n, B], direction [n, B, S, D] or None, temperature
    [n, B] or None; see `Batch`."""

    tokens: Array
    scored: Array
    foil: Array
    options: Array
    values: Array
    bytes: Array
    entropy: Array
    counted: Array
    direction: Array | None = None
    temperature: Array | None = None

    @staticmethod
    def of(evaluation: EvalSet, batch: int, temperature: float = 0.0) -> "Batches":
        """N sequences as ceil(N / batch) batches, the last filled with the first sequences again.  All answers are
        said at one temperature."""
        N = len(evaluation.tokens_NT)
        place = np.arange(-(-N // batch) * batch)
        names = "tokens_NT", "scored_NS", "foil_NS", "options_NSO", "values_N2", "bytes_NS", "entropy_NS"
        arrays = [getattr(evaluation, name) for name in names]
        parts = [jnp.asarray(a[place % N].reshape(-1, batch, *a.shape[1:])) for a in arrays]
        counted = (place < N).astype(np.float32).reshape(-1, batch)
        at = jnp.full(counted.shape, temperature, jnp.float32)
        return Batches(*parts, jnp.asarray(counted), temperature=at)


class Measured(NamedTuple):
    """What the metrics of one degraded model give, all f32: of sequence metrics sums and counts [columns,
    sequences], a column per place; of those per token a value each [metrics, sequences, S], nan where it is not
    counted; of statistics the values of all places, one after the other, as `defined` tells them, and how many
    tokens those of each average over [statistics], nan where it does not tell."""

    sums: Array
    counts: Array
    tokens: Array
    values: Array
    averaged: Array


class OfTrained(NamedTuple):
    """What metrics read of the trained model, the same for all points.  sums: of each of its `gathers`; batches: of
    each of the `reads_of_full`, [n, ..], None where it would take more than ROOM.  What is missing of the latter is
    found at every point."""

    sums: Sequence[Sums] = ()
    batches: Sequence[Any] = ()


def gathers(metrics: tuple[str, ...], *, of_trained: bool) -> list[Callable[[View], Sums]]:
    """What is added up over batches, of the trained model alone or of the degraded one."""
    told = [METRICS[name] for name in metrics]
    statistics = [m for m in told if isinstance(m, Statistic) and m.gather and m.of_trained == of_trained]
    known = [f for m in told if of_trained for f in m.known]
    return list(dict.fromkeys([m.gather for m in statistics] + known))


def reads_of_full(metrics: tuple[str, ...]) -> list[Callable[[View], Any]]:
    """What metrics read of the undegraded model's batches (`Metric.full`)."""
    return list(dict.fromkeys(f for name in metrics for f in METRICS[name].full))


def insides(metrics: tuple[str, ...]) -> list[Callable[[Inner], Any]]:
    """What metrics read of each block (`Metric.inside`)."""
    return list(dict.fromkeys(METRICS[name].inside for name in metrics if METRICS[name].inside))


def forward(
    shape: Shape, metrics: tuple[str, ...], params: Params, edit: Edit, batch: Batch
) -> dict[str, Any]:
    """x_BSD and inside of a `View`, where all blocks run.  Each block hands over the parts that metrics read: all
    of it, written for every layer, cost as much as a tenth of the blocks."""
    reads = insides(metrics)
    keep = lambda inner: [read(inner) for read in reads]  # noqa: E731
    out = apply(params, batch.tokens_BT[:, :-1], shape, edit.along(batch.direction_BSD), keep=keep)
    return {"x_BSD": out.x_BSD, "inside": dict(zip(reads, out.inner, strict=True))}


def of_trained(
    shape: Shape, metrics: tuple[str, ...], params: Params, batches: Batches, stream: Array | None
) -> OfTrained:
    """stream: the undegraded one [L + 1, n, B, S, D], or only the last of it [1, ..]; None where no metric compares
    with it."""
    items = batches, jnp.arange(len(batches.tokens))
    sums: dict[Callable[[View], Any], Sums] = {}

    def told(f: Callable[[View], T], item: tuple[Batches, Array]) -> T:
        batch, index = item
        entering = None if stream is None else stream[:, index]
        x_BSD = None if stream is None else entering[-1]
        model = {"params": params, "degraded": params, "edit": Edit(), "x_BSD": x_BSD, "stream": entering}
        return f(View(shape=shape, batch=Batch(*batch), known=sums, **model))

    for gather in gathers(metrics, of_trained=True):
        sums[gather] = over_batches(functools.partial(told, gather), items)
    reads = [functools.partial(told, read) for read in reads_of_full(metrics)]
    first = jax.tree.map(lambda a: a[0], items)
    fits = [len(items[1]) * bytes_of(jax.eval_shape(read, first)) <= ROOM for read in reads]

    def kept(item: tuple[Batches, Array]) -> list:
        return [read(item) if fit else None for read, fit in zip(reads, fits, strict=True)]

    # In one loop: what one reads of another is found once.
    return OfTrained(list(sums.values()), lax.map(kept, items))


def bytes_of(arrays: Any) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arrays))


def over_batches(of_batch: Callable[[Any], Sums], items: Any) -> Sums:
    """The sums of all batches, one at a time."""

    def add(totals: Sums, item: Any) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, totals, of_batch(item)), None

    return lax.scan(add, zeros_of(of_batch, jax.tree.map(lambda a: a[0], items)), items)[0]


def measure(
    shape: Shape, metrics: tuple[str, ...], params: Params, edit: Edit, run: Callable, batches: Batches,
    trained: OfTrained,
) -> Measured:  # fmt: skip
    """run(batch, its index) -> what a `View` holds of that batch: x_BSD, stream, inside."""
    degraded = merge(params, edit)
    of_kind = {kind: [METRICS[n] for n in metrics if isinstance(METRICS[n], kind)] for kind in KINDS}
    in_batch = [metric for metric in of_kind[SequenceMetric] if not metric.keeps]
    keeps = list(dict.fromkeys(metric.keeps for metric in of_kind[SequenceMetric] if metric.keeps))
    summed = gathers(metrics, of_trained=False)
    known = dict(zip(gathers(metrics, of_trained=True), trained.sums, strict=True))
    reads = zip(reads_of_full(metrics), trained.batches, strict=False)
    kept = {read: of_batches for read, of_batches in reads if of_batches is not None}

    def view(item: tuple[Batches, Array]) -> View:
        batch = Batch(*item[0])
        seen = run(batch, item[1]) | {"full": of_one(kept, item[1])}
        model = {"params": params, "degraded": degraded, "edit": edit}
        return View(shape=shape, batch=batch, known=known, **model, **seen)

    def one(totals: list, item: tuple[Batches, Array]) -> tuple[list, tuple[Array, Array, Array, list]]:
        seen = view(item)
        pairs = [metric.measure(seen) for metric in in_batch]
        none = jnp.zeros((len(seen.batch.counted_B), 0))
        sums, counts = (_columns([none, *(pair[i] for pair in pairs)]) for i in range(2))
        told = [metric.measure(seen) for metric in of_kind[PerToken]]
        tokens = [jnp.where(counted, value, jnp.nan) for value, counted in told]
        totals = jax.tree.map(jnp.add, totals, [gather(seen) for gather in summed])
        tokens = jnp.stack(tokens, axis=1) if tokens else jnp.zeros((len(sums), 0, 0))
        return totals, (sums, counts, tokens, [keep(seen) for keep in keeps])

    items = batches, jnp.arange(len(batches.tokens))
    first = jax.tree.map(lambda a: a[0], items)
    zeros = zeros_of(lambda item: [gather(view(item)) for gather in summed], first)
    totals, (*out, keeping) = lax.scan(one, zeros, items)
    gathered = dict(zip(summed, totals, strict=True)) | {None: None} | known
    weights = Weights(shape, params, degraded, edit)
    values, averaged, sound = [], [], finite(degraded)
    for metric in of_kind[Statistic]:
        sums = gathered[metric.gather]
        values.append(defined(jnp.ravel(metric.values(sums, weights)), sound & finite(sums)))
        averaged.append(metric.count(sums) if metric.count else jnp.nan)
    *of_batches, tokens = (jnp.moveaxis(_in_a_row(a), 1, 0) for a in out)
    of_all = {keep: Kept(jax.tree.map(_in_a_row, of)) for keep, of in zip(keeps, keeping, strict=True)}
    whole = {m: m.measure(of_all[m.keeps]) for m in of_kind[SequenceMetric] if m.keeps}
    columns = [
        jnp.concatenate(
            list(_in_order(of_kind[SequenceMetric], shape, a, {m: w[i] for m, w in whole.items()}))
        )
        for i, a in enumerate(of_batches)
    ]
    values = jnp.concatenate(values) if values else jnp.zeros(0)
    return Measured(*columns, tokens, values, jnp.asarray(averaged, jnp.float32))


def of_one(kept: dict, batch: Array) -> dict:
    """Of one batch, from what was kept of all."""
    return {read: jax.tree.map(lambda a: a[batch], of_batches) for read, of_batches in kept.items()}


def finite(of: Any) -> Array:
    """bool: whether all numbers of a pytree of arrays are."""
    return jnp.array([True, *(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(of))]).all()


def defined(value: Array, sound: Array) -> Array:
    """A statistic's value: nan where it is not defined, infinite where it is no number because what it is of is not
    finite (sound)."""
    return jnp.where(jnp.isnan(value) & ~sound, jnp.inf, value)


def zeros_of(f: Callable, *args: Any) -> Any:
    """Zeros like what f(*args) gives."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(f, *args))


def _in_a_row(a: Array) -> Array:
    """[batches, B, ...] as [sequences, ...]."""
    return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])


def _columns(parts: list[Array]) -> Array:
    """[B] and [B, P] side by side."""
    return jnp.concatenate([part[:, None] if part.ndim == 1 else part for part in parts], axis=1)


def _in_order(
    metrics: list[SequenceMetric], shape: Shape, of_batches: Array, whole: dict[SequenceMetric, Array]
) -> Iterator[Array]:
    """The columns [places, N] of each metric: from `whole`, [N] or [N, P], or the next ones of `of_batches`."""
    first = 0
    for metric in metrics:
        if metric in whole:
            yield _columns([whole[metric]]).T
        else:
            end = first + len(metric.places(shape))
            yield of_batches[first:end]
            first = end
