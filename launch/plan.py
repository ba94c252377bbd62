"""What a study will cost before anything starts: shapes, parameters, FLOPs, memory, cells, expected time."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from wane.eval.measure import ROOM, reads_of_full
from wane.eval.metrics import extra_forwards, reads_streams
from wane.eval.study import Study
from wane.eval.subject import Splits
from wane.launch.cells import Cell, ExamineCell, Measuring, PairCell, SweepCell, TrainCell
from wane.launch.environment import available_memory
from wane.launch.expand import Cohort, Decided, cells, cohorts, pack_seeds, splits
from wane.scaling.family import describe
from wane.scaling.shape import Shape
from wane.train.data.graded_facts import CAPACITY, exposure
from wane.train.data.graded_facts import TOKENS as FACT_TASKS

# Share of the machine's matrix-product rate that a small model reaches; measured with `quickstart` on 2 CPU
# cores, and only used to say how long a study will take.
TRAIN_EFFICIENCY, SWEEP_EFFICIENCY = 0.2, 0.3
WALK_FORWARDS = 3  # forwards of the calibration set that a sequential method costs per point, solver included
COMPILE_SECONDS = 2.0  # per executable: one per shape for training, one per shape and method for sweeps


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A resolved study: its data opened, its cells in order, with what has been decided so far."""

    study: Study
    environment: dict
    packs: list[list[int]]
    decided: Decided
    cohorts: list[Cohort]
    splits: Splits
    cells: list[Cell]

    @property
    def shapes(self) -> list[Shape]:
        """Every architecture of the study once, arms included, in order of the cells."""
        return list(dict.fromkeys(cell.shape for cell in self.cells if isinstance(cell, TrainCell)))

    def trained(self, arm: str) -> dict[Shape, TrainCell]:
        """The shapes of one arm, each with the last cell that trains it."""
        return {c.shape: c for c in self.cells if isinstance(c, TrainCell) and c.arm == arm}

    def flops(self, cell: Cell) -> float:
        """Matrix-product FLOPs that a cell computes: of a mixture of experts all experts, whatever the tokens
        visit; what metrics cost is counted as forward passes."""
        if isinstance(cell, TrainCell):
            tokens = cell.steps * cell.train.batch_size * cell.data.context * len(cell.init_seeds)
            return tokens * cell.shape.flops_per_token(backward=True, all_experts=True)
        shape, study = cell.trained.shape, self.study
        tokens = len(cell.splits.evaluation.tokens_NT) * study.data.context
        unembed = 2 * shape.vocab * shape.d_model  # of the undegraded model, for the metrics that compare
        # A pass that changes one layer begins there.
        one_layer = (shape.n_layers + 1) / (2 * shape.n_layers)
        if isinstance(cell, ExamineCell):
            return cell.points() * tokens * one_layer * shape.flops_per_token(all_experts=True)
        members = 2 if isinstance(cell, PairCell) else 1
        share = 1.0 if cell.degrade.each == "whole" else one_layer
        share += extra_forwards(cell.evaluation.metrics)
        per_point = tokens * (share * shape.flops_per_token(all_experts=True) + unembed)
        if cell.method.sequential:
            calibration = len(self.splits.calibrations[cell.degrade.calibration]) * study.data.context
            per_point += WALK_FORWARDS * calibration * shape.flops_per_token(all_experts=True)
        return members * cell.points() * per_point + self._recovery_flops(cell)

    def _recovery_flops(self, cell: SweepCell | PairCell) -> float:
        if cell.degrade.recovery is None:
            return 0.0
        shape, recovery = cell.trained.shape, cell.degrade.recovery
        runs = len({level.severity for level in cell.degrade.grid(shape)}) * len(cell.draws)
        tokens = max(recovery.steps) * recovery.batch_size * self.study.data.context
        return runs * tokens * shape.flops_per_token(backward=True, all_experts=True)

    def memory(self, cell: Cell) -> int:
        """Bytes at the peak of a cell, estimated from above: parameters and optimizer, activations, logits."""
        if isinstance(cell, TrainCell):
            replicas = len(cell.init_seeds) if self.environment["packing"] == "vmap" else 1
            state = 5 * 4 * cell.shape.param_counts()["total"] * len(cell.init_seeds)
            return state + replicas * training_activations(cell.shape, cell.train.batch_size)
        return self._sweep_memory(cell)

    def _sweep_memory(self, cell: Measuring) -> int:
        shape, evaluation, examines = cell.trained.shape, cell.evaluation, isinstance(cell, ExamineCell)
        pairs = isinstance(cell, PairCell)
        points = 2 if pairs else 1 if examines else self.environment["points_per_call"]
        tokens = len(cell.splits.evaluation.tokens_NT) * shape.context
        stream = 4 * tokens * shape.d_model
        every_layer = examines or pairs or cell.degrade.each != "whole" or reads_streams(evaluation.metrics)
        kept = 1 + shape.n_layers if every_layer else 1
        params = 4 * shape.param_counts()["total"] * (3 + points)
        if not examines and cell.method.sequential:
            calibration = self.splits.calibrations[cell.degrade.calibration]
            stream += points * 4 * (2 * calibration.size * shape.d_model + walk_statistics(shape))
        full = kept_of_full(evaluation.metrics, tokens, shape.vocab)
        return params + kept * stream + full + points * forward_activations(shape, evaluation.batch)


def kept_of_full(metrics: tuple[str, ...], tokens: int, vocab: int) -> int:
    """Bytes of what metrics read of the undegraded model's batches, kept for all points: its logits, where there is
    room for them, and of few tokens what takes less than half of them."""
    if not reads_of_full(metrics):
        return 0
    logits = 4 * tokens * vocab
    return logits // 2 + (logits if logits <= ROOM else 0)


def forward_activations(shape: Shape, batch: int) -> int:
    """Bytes that one block and the unembedding hold for one batch of full windows."""
    tokens = batch * shape.context
    block = 6 * shape.d_model + 3 * hidden(shape) + 3 * shape.n_heads * shape.context
    return 4 * tokens * (block + 4 * shape.vocab)


def walk_statistics(shape: Shape) -> int:
    """Numbers in the second moments of all inputs of one block, and as many in a solver's factor of them."""
    widths = (
        shape.d_model,
        shape.n_heads * shape.head_dim,
        *[shape.d_model, shape.d_ff] * (shape.n_experts or 1),
    )
    return 2 * sum(width**2 for width in widths)


def training_activations(shape: Shape, batch: int) -> int:
    """Bytes that the backward pass keeps: every block's intermediates, or their inputs alone under remat."""
    tokens = batch * shape.context
    block = 10 * shape.d_model + 5 * hidden(shape) + 3 * shape.n_heads * shape.context
    kept = shape.d_model if shape.remat else block
    return 4 * tokens * (shape.n_layers * kept + block + 4 * shape.vocab)


def hidden(shape: Shape) -> int:
    """Hidden units per token of one MLP, of all experts, and what each expert adds to the stream; per matrix."""
    if shape.n_experts is None:
        return shape.d_ff
    return shape.n_experts * (shape.d_ff + shape.d_model)


def make_plan(
    study: Study,
    environment: dict,
    known_packs: Sequence[Sequence[int]] = (),
    decided: Decided | None = None,
    opened: list[Cohort] | None = None,
) -> Plan:
    """Open the data, resolve shapes and cells and check that they fit into memory.

    decided: by an earlier plan of the same study; opened: its data, when it is at hand.
    Raises ValueError in one line for anything that could not run.
    """
    opened = opened or cohorts(study)
    if decided is None or decided.asked != study.evaluation:
        decided = Decided(asked=study.evaluation)
    common, pilot = splits(study, opened[0].stream, decided)
    width = environment["pack"]
    packs = pack_seeds(study.seeds, width, known_packs)
    plan = Plan(
        study=study, environment=environment, packs=packs, decided=decided, cohorts=opened, splits=common,
        cells=cells(study, opened, common, pilot, decided, packs, width),
    )  # fmt: skip
    check_memory(plan, available_memory())
    return plan


def check_memory(plan: Plan, available: int | None) -> None:
    """Raises ValueError naming the cell, its need and what to do when the largest cell cannot fit."""
    largest = max(plan.cells, key=plan.memory)
    need = plan.memory(largest)
    if available is not None and need > available:
        smaller = "train.batch_size" if isinstance(largest, TrainCell) else "evaluation.batch"
        raise ValueError(
            f"not enough memory: {largest.title} needs about {need / 2**30:.1f} GiB and"
            f" {available / 2**30:.1f} GiB are available; use a smaller {smaller}, data.context or family.budget"
        )


def matmul_rate(seconds: float = 0.2) -> float:
    """FLOP/s of f32 matrix products of this machine, measured for so many seconds."""
    n = 512 if jax.devices()[0].platform == "cpu" else 4096
    a = jnp.ones((n, n)) / n
    product = jax.jit(lambda x: x @ a)
    x = jax.block_until_ready(product(a))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        x = jax.block_until_ready(product(x))
        count += 1
    return count * 2 * n**3 / (time.perf_counter() - started)


def expected_seconds(plan: Plan, todo: Sequence[Cell], rate: float) -> float:
    """A rough forecast of the time of cells at a measured matrix-product rate."""
    seconds, programs = 0.0, set()
    for cell in todo:
        if isinstance(cell, TrainCell):
            seconds += plan.flops(cell) / (rate * TRAIN_EFFICIENCY)
            programs.add((cell.shape, cell.steps))
        else:
            seconds += plan.flops(cell) / (rate * SWEEP_EFFICIENCY)
            programs.add((cell.trained.shape, type(cell), cell.what))
    return seconds + COMPILE_SECONDS * len(programs)


def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan: one table of shapes, one of cells, and the forecast."""
    study = plan.study
    console.print(f"[bold]{study.name}[/bold]  {study.note}", highlight=False)
    for arm, variant, _ in study.variants():
        console.print(shape_table(plan, arm, variant))
    device, rate = plan.environment["device_kind"], matmul_rate()
    console.print(cell_table(plan, rate))
    for line in fact_lines(plan):
        console.print(line, highlight=False)
    data = plan.splits.evaluation
    for source in plan.cohorts[0].stream.describe()["sources"]:
        values = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in source.items()}
        facts = ", ".join(f"{name} {value}" for name, value in values.items())
        console.print(f"data: {facts}", highlight=False)
    most = "at most " if study.evaluation.precision else ""
    console.print(
        f"evaluation: {most}{len(data.tokens_NT)} sequences of {study.data.context} tokens, digest {data.digest};"
        f" calibration: {study.evaluation.calibration_sequences} sequences from"
        f" {', '.join(plan.splits.calibrations)}",
        highlight=False,
    )
    available = available_memory()
    peak = max(plan.memory(cell) for cell in plan.cells)
    console.print(
        f"on {plan.environment['device_count']} x {device}, {rate / 1e9:.0f} GFLOP/s:"
        f" about {clock(expected_seconds(plan, plan.cells, rate))},"
        f" peak memory about {bytes_text(peak)} of {bytes_text(available) if available else 'unknown'}",
        highlight=False,
    )


def shape_table(plan: Plan, arm: str, variant: Study) -> Table:
    """Dimensions, exact counts and mismatch of every shape of one arm.  Of experts, FLOPs per token are those
    that a token visits; `active` counts their parameters."""
    trained = plan.trained(arm)
    table = Table(title=f"family{f', arm {arm}' if arm else ''}", title_justify="left")
    for column in ("shape", "d_model", "layers", "heads", "d_ff", "experts", "vocab", "d/L", "blocks", "norms",
                   "non-embedding", "active", "total", "mismatch", "MFLOPs/token", "steps", "tokens"):  # fmt: skip
        table.add_column(column, justify="left" if column == "shape" else "right")
    for row, (shape, cell) in zip(describe(list(trained), variant.family), trained.items(), strict=True):
        table.add_row(
            shape.name, str(shape.d_model), str(shape.n_layers), str(shape.n_heads), str(shape.d_ff),
            f"{shape.top_k} of {shape.n_experts}" if shape.n_experts else "", str(shape.vocab),
            f"{shape.aspect_ratio:.3g}", f"{row['blocks']:,}", f"{row['norms']:,}", f"{row['non_embedding']:,}",
            f"{row['active']:,}", f"{row['total']:,}", f"{row['mismatch']:+.2%}",
            f"{shape.flops_per_token() / 1e6:.2f}", f"{cell.steps:,}",
            f"{cell.steps * cell.train.batch_size * cell.data.context:,}",
        )  # fmt: skip
    return table


def fact_lines(plan: Plan) -> Iterator[str]:
    """What each shape can be asked to know: load and exposures of the tasks of facts, and the feasible region of
    this share and token budget."""
    for arm, *_ in plan.study.variants():
        for shape, cell in plan.trained(arm).items():
            for source in cell.stream.describe()["sources"]:
                if (task := source["task"]) not in FACT_TASKS:
                    continue
                rows = cell.steps * cell.train.batch_size * source["share of rows"]
                scored = rows * source["scored tokens per row"]
                found = exposure(task, cell.data.facts, shape.param_counts()["non_embedding"], scored)
                entities = int(cell.data.facts * found.most / found.load)
                verdict = (
                    "feasible" if found.load <= found.most else f"NOT feasible: data.facts={entities} is"
                )
                ends = " and ".join(
                    f"{min(bits, found.product / n):.3g} at {n}" for n, bits in CAPACITY.items()
                )
                yield (
                    f"facts ({task}) of {shape.name}{f', arm {arm}' if arm else ''}: {found.load:.3g} bits per"
                    f" parameter, each stated {found.exposures:.3g} times: {verdict}; the feasible region of this"
                    f" budget ends at {ends} exposures, {entities} entities"
                )


def cell_table(plan: Plan, rate: float) -> Table:
    """Number, points, FLOPs, memory and, at a matrix-product rate, time of the cells of each kind."""
    table = Table(title="cells", title_justify="left")
    for column in ("kind", "cells", "points", "FLOPs", "memory", "time"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    kinds: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        kinds.setdefault(kind_of(cell), []).append(cell)
    for kind, members in kinds.items():
        points = sum(cell.points() for cell in members if isinstance(cell, Measuring))
        table.add_row(
            kind, str(len(members)), str(points) if points else "", f"{sum(map(plan.flops, members)):.2g}",
            bytes_text(max(map(plan.memory, members))), clock(expected_seconds(plan, members, rate)),
        )  # fmt: skip
    return table


def kind_of(cell: Cell) -> str:
    """What a cell is counted as in the plan's table."""
    if isinstance(cell, TrainCell):
        return f"train {cell.arm}".strip()
    return f"{cell.kind} {cell.what}{', at most' if cell.tentative else ''}"


def bytes_text(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def clock(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
