"""A study as cells: every pack of members, then the sweeps, examinations and comparisons that measure them."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from wane.eval.degrade import Degrade
from wane.eval.examine import EXAMINATIONS
from wane.eval.examine.cell import CALIBRATION
from wane.eval.metrics import METRICS
from wane.eval.pairs import METRICS as PAIR_METRICS
from wane.eval.refine import refined
from wane.eval.study import Evaluation, Examine, FixedMask, Study
from wane.eval.subject import Splits
from wane.launch.cells import Cell, ExamineCell, PairCell, SweepCell, TrainCell
from wane.scaling.config import to_json
from wane.scaling.degrade import build
from wane.scaling.identity import VERSIONS, digest_of
from wane.scaling.shape import Shape
from wane.train.data import Stream, open_data
from wane.train.data.calibration import calibration

DRAWS_PER_CELL = 4  # a sweep's block of draws: more draws are new cells, and a kill loses at most a block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decided:
    """What a study fixes after its members are trained and before its curves are measured, for all members alike.

    asked: the evaluation for which it holds.  sequences: evaluation sequences per task; variance: what the pilot
    found (`wane.eval.precision`).  grids: name of a degradation (`grid_name`) -> settings that refinement adds.
    """

    asked: Evaluation
    sequences: int | None = None
    variance: float | None = None
    grids: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


def grid_name(degrade: Degrade) -> str:
    return f"{degrade.name}-{digest_of(degrade)[:10]}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Shapes of one arm and one budget: they train for the same steps on the same tokens in the same order."""

    arm: str
    study: Study  # with the arm's overrides applied
    mask: FixedMask | None
    shapes: tuple[Shape, ...]
    steps: int
    stream: Stream


def cohorts(study: Study) -> list[Cohort]:
    """Every arm and budget of a study, its data opened (read, tokenised, packed).

    A budget in tokens per parameter counts the parameters of a cohort's first shape, so that all its shapes
    see the same tokens.  Raises ValueError in one line for data that cannot be read or shapes that cannot be.
    """
    out = []
    for arm, variant, mask in study.variants():
        data, train = variant.data, variant.train
        opened = open_data(data, steps=1, batch_size=train.batch_size)
        for _, shapes in variant.family.groups(vocab=opened.vocab, context=data.context):
            steps = train.steps(shapes[0], data.context)
            stream = dataclasses.replace(opened, steps=steps)
            if data.unique_fraction < 1:  # then the stream depends on its length
                stream = open_data(data, steps=steps, batch_size=train.batch_size)
            out.append(Cohort(arm=arm, study=variant, mask=mask, shapes=shapes, steps=steps, stream=stream))
    return out


def splits(study: Study, stream: Stream, decided: Decided) -> tuple[Splits, Splits | None]:
    """The evaluation and calibration sequences of a study: those of its primary arm; and the same with the pilot's
    sequences where there is a pilot."""
    settings = study.evaluation
    count, seed = settings.calibration_sequences, settings.calibration_seed
    asked = (degrade.calibration for degrade in (*study.degradations, *study.pairs))
    sources = dict.fromkeys(("same", *asked))
    calibrations = {source: calibration(source, stream, count, seed) for source in sources}
    most = settings.sequences
    if settings.precision is None:
        evaluation = stream.evaluation(most, settings.seed, settings.scored_tokens)
        return Splits(evaluation=evaluation, calibrations=calibrations, stream=stream), None
    drawn = stream.evaluation(
        most + settings.pilot_sequences, settings.seed
    )  # one draw, so that none is in both
    curves, pilot = drawn.of_each_task(0, decided.sequences or most), drawn.of_each_task(most, None)
    common = Splits(evaluation=curves, calibrations=calibrations, stream=stream)
    return common, dataclasses.replace(common, evaluation=pilot)


def cells(
    study: Study,
    cohorts: Sequence[Cohort],
    splits: Splits,
    pilot: Splits | None,
    decided: Decided,
    packs: Sequence[Sequence[int]],
    width: int,
) -> list[Cell]:
    """Every cell of a study in the order in which they run: a member, then what measures it; what is costly behind
    all members.

    packs: seeds of every pack, from `pack_seeds`, each filled to `width`.
    """
    out: list[Cell] = []
    costly: list[SweepCell] = []
    examinations = [(examine, _first_sequences(splits, examine)) for examine in study.examinations]
    primary: dict[tuple, TrainCell] = {}
    for cohort in cohorts:
        for shape in cohort.shapes:
            trained: list[
                tuple[TrainCell, int]
            ] = []  # in order of the seeds; more seeds add pairs at the end
            for pack in packs:
                for setting in cohort.mask.severities if cohort.mask else (None,):
                    source = primary.get((shape, cohort.steps, tuple(pack)))
                    cell = _train_cell(cohort, shape, pack, width, setting, source, splits)
                    if not cohort.arm:
                        primary[shape, cohort.steps, tuple(pack)] = cell
                    out.append(cell)
                    for sweep in _sweeps(study, cell, splits, pilot, decided):
                        (costly if sweep.costly else out).append(sweep)
                    out += _examinations(study, cell, examinations, decided)
                    if cohort.mask is None:
                        trained += [(cell, replica) for replica in range(cell.real)]
            for other, member in itertools.pairwise(trained):
                out += _pairs(study, member, other, splits, decided)
    return out + costly


def _first_sequences(splits: Splits, examine: Examine) -> Splits:
    if examine.sequences is None:
        return splits
    return dataclasses.replace(splits, evaluation=splits.evaluation.of_each_task(0, examine.sequences))


def pack_seeds(seeds: Sequence[int], width: int, known: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """Seeds in packs of a fixed width: packs that exist stay as they are, new seeds open new packs."""
    packs = [list(pack) for pack in known if set(pack) <= set(seeds)]
    new = [seed for seed in seeds if not any(seed in pack for pack in packs)]
    return packs + [new[i : i + width] for i in range(0, len(new), width)]


def _train_cell(
    cohort: Cohort, shape: Shape, pack, width: int, setting: float | None, source: TrainCell | None, splits: Splits
) -> TrainCell:  # fmt: skip
    study, mask, steps = cohort.study, cohort.mask, cohort.steps
    padded = tuple(pack) + (pack[-1],) * (width - len(pack))
    pairs = dict(zip(study.seeds, study.data_seeds or study.seeds, strict=True))
    needs = source if mask and mask.scores == "finished" else None
    if mask and mask.scores == "finished" and needs is None:
        raise ValueError(
            f"arms.{cohort.arm}: takes a finished member, but its overrides change the shape or length"
        )
    if mask and build(mask.method, shape, settings=mask.settings).unit != "fraction":
        raise ValueError(
            f"arms.{cohort.arm}.mask.method = {mask.method!r}: must be a method that removes weights"
        )
    fields = {
        "shape": shape, "train": study.train, "data": study.data, "steps": steps,
        "keep_steps": _kept(study, steps), "init_seeds": padded, "data_seeds": tuple(pairs[s] for s in padded),
        "real": len(pack), "mask": mask, "mask_setting": setting,
    }  # fmt: skip
    hashed = to_json(fields) | {
        "arm": cohort.arm,
        "stream": cohort.stream.digest,
        "needs": needs.id if needs else None,
        "calibration": splits.calibration_digest("same") if mask else None,
        "draw_seed": study.evaluation.draw_seed if mask else None,
        "mask_settings": dict(build(mask.method, shape, settings=mask.settings).settings) if mask else None,
        "versions": [VERSIONS["data"], VERSIONS["train"], VERSIONS["method"] if mask else 0],
    }
    return TrainCell(id=digest_of(hashed), arm=cohort.arm, finished=needs, stream=cohort.stream, **fields)


def _kept(study: Study, steps: int) -> tuple[int, ...]:
    """Steps whose checkpoints stay: where a sweep or a rewinding arm starts, and the last."""
    for step in study.sweep_steps:
        if not 0 <= step <= steps:
            raise ValueError(f"sweep_steps = {step}: training has {steps} steps; must be from 0 to {steps}")
    rewinds = {mask_step(arm.mask, steps) for arm in study.arms if arm.mask and arm.mask.weights == "rewound"}
    return tuple(sorted({*study.sweep_steps, *rewinds, steps}))


def mask_step(mask: FixedMask, steps: int) -> int:
    """The training step at which a mask is fixed."""
    return round(mask.at * steps)


def _counted(study: Study, decided: Decided) -> tuple[Evaluation, bool]:
    """The evaluation with the number of sequences that is used, and whether that is still open."""
    count = decided.sequences or study.evaluation.sequences
    open_count = bool(study.evaluation.precision) and decided.sequences is None
    return dataclasses.replace(study.evaluation, sequences=count, precision=None), open_count


def _examinations(
    study: Study, trained: TrainCell, examinations: Sequence[tuple[Examine, Splits]], decided: Decided
) -> Iterator[ExamineCell]:
    """One cell for each member, but for those trained under a mask and for shapes that have nothing to examine."""
    evaluation, open_count = _counted(study, decided)
    # What it measures does not depend on the metrics of the curves: another list of them is no other cell.
    evaluation = dataclasses.replace(evaluation, metrics=("loss",), temperature=0.0)
    for replica in range(trained.real if trained.mask is None else 0):
        for examine, splits in examinations:
            count = evaluation.sequences
            if examine.sequences:
                count = examine.sequences if evaluation.scored_tokens else min(examine.sequences, count)
            asked = dataclasses.replace(evaluation, sequences=count)
            cell = _examine_cell(trained, replica, examine, splits, asked, tentative=open_count)
            if cell.points():
                yield cell


def _examine_cell(
    trained: TrainCell, replica: int, examine: Examine, splits: Splits, evaluation: Evaluation, *, tentative: bool
) -> ExamineCell:  # fmt: skip
    examination = EXAMINATIONS[examine.name]
    learns = examination.needs_calibration
    hashed = {
        "member": trained.member_id(replica),
        "trained": trained.id,
        "step": trained.steps,
        "examination": examine.name,
        "settings": examine.resolved,
        "evaluation": evaluation,
        "sequences": splits.evaluation.digest,
        "calibration": splits.calibration_digest(CALIBRATION) if learns else None,
        "versions": [VERSIONS["metric"], examination.version],
        "metrics": {metric.name: metric.version for metric in examination.metrics},
    }
    return ExamineCell(
        id=digest_of(hashed), trained=trained, replica=replica, step=trained.steps, examine=examine,
        splits=splits, evaluation=evaluation, tentative=tentative,
    )  # fmt: skip


def _sweeps(
    study: Study, trained: TrainCell, splits: Splits, pilot: Splits | None, decided: Decided
) -> Iterator[SweepCell]:
    evaluation, open_count = _counted(study, decided)
    for replica in range(trained.real):
        if trained.mask is not None:
            mask = trained.mask
            degrade = Degrade(method=mask.method, settings=mask.settings, severities=(trained.mask_setting,))
            for measured in evaluation.of_cells(degrade):
                if all(METRICS[name].relative for name in measured.metrics):
                    continue  # with what it compares, the model before the mask, is not known
                yield _sweep_cell(
                    trained, replica, trained.steps, degrade, range(1), splits, measured, tentative=open_count
                )
            continue
        for degrade in study.degradations if open_count else ():
            if degrade.piloted:
                few = dataclasses.replace(evaluation, sequences=study.evaluation.pilot_sequences)
                yield _sweep_cell(
                    trained, replica, trained.steps, degrade.coarse, range(1), pilot, few.of_cells(degrade)[0],
                    pilot=True,
                )  # fmt: skip
        for step in sorted({*study.sweep_steps, trained.steps}):
            for degrade in study.degradations:
                for part, open_grid in _parts(degrade, trained.shape, decided):
                    each = itertools.product(blocks(degrade, trained.shape), evaluation.of_cells(degrade))
                    for block, measured in each:
                        yield _sweep_cell(
                            trained, replica, step, part, block, splits, measured,
                            tentative=open_count or open_grid,
                        )  # fmt: skip


def blocks(degrade: Degrade, shape: Shape) -> list[range]:
    """The draws of a degradation, as cells take them."""
    draws = degrade.draws if degrade.built(shape).random else 1
    return [range(i, min(i + DRAWS_PER_CELL, draws)) for i in range(0, draws, DRAWS_PER_CELL)]


def _parts(degrade: Degrade, shape: Shape, decided: Decided) -> Iterator[tuple[Degrade, bool]]:
    """The coarse grid, then the refinement; and whether the latter's severities are still open."""
    yield degrade.coarse, False
    if degrade.refine:
        settings = decided.grids.get(grid_name(degrade))
        known = settings is not None
        if not known:
            coarse = [level.setting for level in degrade.grid(shape)]
            settings = refined(coarse, np.empty((0, len(coarse))), degrade.built(shape).unit, degrade.refine)
        if settings:
            yield degrade.refinement(settings), not known


def _sweep_cell(
    trained: TrainCell, replica: int, step: int, degrade: Degrade, draws: range, splits: Splits,
    evaluation: Evaluation, *, pilot: bool = False, tentative: bool = False,
) -> SweepCell:  # fmt: skip
    # Of metrics that a degradation names itself those that are measured here.
    asked = dataclasses.replace(degrade, metrics=degrade.metrics and evaluation.metrics)
    hashed = _of_points(trained.shape, asked, draws, splits, evaluation) | {
        "member": trained.member_id(replica),
        "trained": trained.id,
        "step": step,
        "stream": splits.stream.digest if degrade.recovery else None,
        "metrics": [METRICS[name].version for name in evaluation.metrics],
    }
    return SweepCell(
        id=digest_of(hashed), trained=trained, replica=replica, step=step, degrade=degrade, draws=draws,
        splits=splits, evaluation=evaluation, pilot=pilot, tentative=tentative,
    )  # fmt: skip


def _of_points(shape: Shape, degrade: Degrade, draws: range, splits: Splits, evaluation: Evaluation) -> dict:
    """What the points of a cell depend on, whatever is measured there and of which members."""
    return {
        "degrade": degrade,
        "settings": dict(degrade.built(shape).settings),  # of a file, the digest of what it holds
        "grid": degrade.grid(shape),
        "draws": list(draws),
        "evaluation": evaluation,
        "sequences": splits.evaluation.digest,
        "calibration": splits.calibration_digest(degrade.calibration),
        "versions": [VERSIONS["method"], VERSIONS["metric"]],
    }


def _pairs(
    study: Study,
    member: tuple[TrainCell, int],
    other: tuple[TrainCell, int],
    splits: Splits,
    decided: Decided,
) -> Iterator[PairCell]:
    evaluation, open_count = _counted(study, decided)
    evaluation = dataclasses.replace(evaluation, metrics=("loss",))  # as of an examination
    (trained, replica), (other_trained, other_replica) = member, other
    for degrade in study.pairs:
        for draws in blocks(degrade, trained.shape):
            hashed = _of_points(trained.shape, degrade, draws, splits, evaluation) | {
                "members": [cell.member_id(r) for cell, r in (member, other)],
                "trained": [cell.id for cell, _ in (member, other)],
                "step": trained.steps,
                "metrics": {metric.name: metric.version for metric in PAIR_METRICS},
            }
            yield PairCell(
                id=digest_of(hashed), trained=trained, replica=replica, other=other_trained,
                other_replica=other_replica, step=trained.steps, degrade=degrade, draws=draws, splits=splits,
                evaluation=evaluation, tentative=open_count,
            )  # fmt: skip
