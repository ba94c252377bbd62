"""The command `wane`.  Heavy imports wait until a command runs, so that --help answers at once."""

import dataclasses
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand

Overrides = Annotated[
    tuple[str, ...],
    arg(name="set", metavar="FIELD=VALUE", help="override a field of the study; may be repeated"),
    UseAppendAction,
]
StudyName = Annotated[
    Positional[str],
    arg(metavar="STUDY", help="a name from `wane list studies`, or the path of your own study file"),
]
Out = Annotated[Path | None, arg(metavar="DIR", help="study directory; default runs/NAME")]
Debug = Annotated[bool, arg(help="show the traceback of an error")]
Directory = Annotated[Positional[Path], arg(metavar="DIR", help="a study directory, such as runs/quickstart")]
Member = Annotated[str, arg(help="id of a member, or the beginning of one")]
Method = Annotated[str, arg(help="a name from `wane list methods`")]
Settings = Annotated[
    tuple[str, ...],
    arg(name="set", metavar="SETTING=VALUE", help="a setting of the method; may be repeated"),
    UseAppendAction,
]
Calibration = Annotated[str, arg(help="where calibration sequences come from, as in a study")]
Draw = Annotated[int, arg(help="of a random method")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Train, sweep and report a study.  Run it again to continue: finished work is never done twice.

    Examples:
      wane run quickstart
      wane run quickstart --set data.sources=python --set seeds=0,1,2 --out runs/python
      wane run my_study.py --set train.lr=0.002
    """

    study: StudyName
    overrides: Overrides = ()
    out: Out = None
    accept_drift: Annotated[
        bool, arg(help="continue a study begun on another machine or version; last bits will differ")
    ] = False
    debug: Debug = False
    stages: tyro.conf.Suppress[tuple[str, ...]] = ("train", "sweep", "report")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOnly(Run):
    """Train the members of a study and stop before the sweeps."""

    stages: tyro.conf.Suppress[tuple[str, ...]] = ("train",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOnly(Run):
    """Sweep the members of a study that are trained, train those that are not, and write curves.parquet."""

    stages: tyro.conf.Suppress[tuple[str, ...]] = ("train", "sweep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Show what a study costs before it starts: shapes, parameters, FLOPs, memory, cells, time."""

    study: StudyName
    overrides: Overrides = ()
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write report/index.html and the figures of a study directory anew from its curves."""

    directory: Directory
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """Show which tasks each shape has learnt, in how many tokens: the competence gate along training.

    A study measures its members along training at its `sweep_steps`.  The gate asks for the weakest part of a task
    where accuracy_by_level was measured, and for all answers together elsewhere (docs/learnability.csv).

    Examples:
      wane learned runs/learnability
      wane learned runs/learnability --csv accuracies.csv      the numbers behind the table
      wane learned docs/learnability.csv                       the table from such a file
    """

    directory: Annotated[
        Positional[Path], arg(metavar="DIR", help="a study directory, or a file that --csv wrote")
    ]
    score: Annotated[float, arg(help="normalised score that a seed must reach")] = 0.9
    seeds: Annotated[float, arg(help="share of the seeds that must reach it")] = 0.8
    csv: Annotated[Path | None, arg(metavar="FILE", help="also write the accuracies at every step there")] = (
        None
    )
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laws:
    """Fit the laws in print to the curves of a study: which family predicts severities that it has not seen, and
    the slope of ln PPL0 / ln PPL against the fraction removed, in print -1 for sliced representation dimensions;
    then, task by task, how ln accuracy falls.

    Example:
      wane laws runs/quickstart
    """

    directory: Directory
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Compute one cell of a study directory: what a launcher starts.  `wane run` has to have begun it."""

    id: Annotated[Positional[str], arg(metavar="ID", help="id of the cell, from study.json")]
    study: Annotated[Path, arg(metavar="DIR", help="the study directory")]
    accept_drift: Annotated[bool, arg(help="as in `wane run`")] = False
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """Write the mask that a pruning method makes of a trained member, to train under it or to give it to others.

    Example:
      wane mask runs/quickstart --member d48-L4-f96-s0 --method wanda --severity 0.5 --set group=n:4 --out mask.npz
    and in a study: FixedMask(method="given_mask", settings={"file": "mask.npz"}, severities=(1.0,))
    """

    directory: Directory
    member: Member
    method: Method
    severity: Annotated[float, arg(help="the share that is removed")]
    settings: Settings = ()
    calibration: Calibration = "same"
    draw: Draw = 0
    out: Annotated[Path, arg(metavar="FILE")] = Path("mask.npz")
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Print what a trained member says, undegraded and at every severity, side by side.

    Prompts are first halves of evaluation sequences; continuations are greedy, or drawn at a temperature with the
    same noise at every severity. `wane report` shows them too.

    Examples:
      wane samples runs/quickstart --member d48-L4-f96-s0 --method wanda --severities 0.3 0.6 --task L2 --task S
      wane samples runs/quickstart --member d48-L4-f96-s0 --method rtn --severities 3 --temperature 0.7
    """

    directory: Directory
    member: Member
    method: Method
    severities: Annotated[tuple[float, ...], arg(help="in the method's unit: fractions removed, or bits")]
    task: Annotated[
        tuple[str, ...],
        arg(metavar="NAME", help="whose sequences; may be repeated; default all"),
        UseAppendAction,
    ] = ()
    prompts: Annotated[int, arg(help="of each task")] = 1
    temperature: Annotated[float, arg(help="0: the most likely tokens")] = 0.0
    settings: Settings = ()
    calibration: Calibration = "same"
    draw: Draw = 0
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Cut the models that structured pruning leaves to size and time them beside the trained ones.

    Of each shape's first seed. Removed neurons, heads, layers and residual dimensions are really taken out of
    the arrays; both models run in turns in one process. Numbers go to DIR/speed.json, anew with every call, and
    `wane report` puts them into its table of costs. A model that does not get smaller (single weights, bits,
    units of some layers only) is not timed, and the file says why. Energy is read where the machine counts it
    and left out where it does not.

    Examples:
      wane speed runs/quickstart
      wane speed runs/quickstart --method random_neurons --method slicegpt --severity 0.5
      wane speed runs/quickstart --batches 1 64 --rounds 21       another load, narrower quartiles
    """

    directory: Directory
    methods: Annotated[
        tuple[str, ...],
        arg(
            name="method",
            metavar="NAME",
            help="only this degradation of the study; may be repeated; default: all structured ones",
        ),
        UseAppendAction,
    ] = ()
    severities: Annotated[
        tuple[float, ...],
        arg(
            name="severity",
            metavar="SHARE",
            help="instead of the study's severities (0.25 and 0.5 where it names none); may be repeated",
        ),
        UseAppendAction,
    ] = ()
    batches: Annotated[
        tuple[int, ...],
        arg(metavar="N", help="sequences scored together, and requests answered together"),
    ] = (1, 8, 32)
    rounds: Annotated[int, arg(help="turns that each of the two models takes")] = 7
    seconds: Annotated[float, arg(help="length of a turn")] = 0.3
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure how fast wane is here, and check that learning rates transfer.

    What there is:
      train        training steps: tokens per second, share of what the machine can multiply
      sweep        forward passes, a whole sweep, points that start in mid-model
      methods      one point of every method, in plain evaluations
      instruments  a sweep with every instrument, and with all of them, in sweeps of the loss alone
      compile      seconds that quickstart spends compiling, in a first and in a second run
      all          the five of them
      coordinates  activation sizes over widths and depths: does the parametrisation keep them level?
      rates        the best learning rate of every shape of a study's family

    Examples:
      wane bench train --against torch
      wane bench all --against torch --json bench.json
      wane bench train --pack 64 --dtype bfloat16 --shapes D128-L4      a GPU: many small members at once
      wane bench train --batch 64 --dtype bfloat16 --shapes D1024-L10   a GPU: model FLOPs utilisation
      wane bench rates --study quickstart
    """

    what: Annotated[
        Positional[
            Literal["train", "sweep", "methods", "instruments", "compile", "all", "coordinates", "rates"]
        ],
        arg(metavar="WHAT"),
    ]
    against: Annotated[
        Literal["torch"] | None, arg(help="also run PyTorch, eager and compiled, in turns (extra `bench`)")
    ] = None
    json: Annotated[Path | None, arg(metavar="FILE", help="write all numbers there")] = None
    shapes: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME",
            help="some of D128-L4, D64-L16, D256-L1, D256-L8 (the default) and D1024-L10, of 105 million",
        ),
    ] = ()
    batch: Annotated[int, arg(help="sequences of 128 bytes in a training step")] = 16
    pack: Annotated[int, arg(help="train: also so many members as one program")] = 1
    dtype: Annotated[Literal["float32", "bfloat16"], arg(help="of activations and products")] = "float32"
    rounds: Annotated[int, arg(help="turns that each piece of work takes")] = 5
    seconds: Annotated[float, arg(help="length of a turn")] = 1.0
    study: Annotated[str, arg(help="rates: whose family and data")] = "quickstart"
    overrides: Overrides = ()
    out: Annotated[Path, arg(metavar="DIR", help="coordinates, rates: where figures and numbers go")] = Path(
        "runs/bench"
    )
    debug: Debug = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """Show what there is: studies, methods, metrics, examinations, tasks, data sources, columns of the table."""

    what: Annotated[
        Positional[Literal["studies", "methods", "metrics", "examinations", "tasks", "data", "columns"]],
        arg(metavar="WHAT"),
    ]
    show: Annotated[
        str | None, arg(metavar="NAME", help="tasks: print a sample; methods: its whole text")
    ] = None
    verbose: Annotated[bool, arg(help="methods: formula, source, cost and promises of each, as Markdown")] = (
        False
    )
    debug: Debug = False


Command = (
    Annotated[Run, subcommand("run")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[TrainOnly, subcommand("train")]
    | Annotated[SweepOnly, subcommand("sweep")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Learned, subcommand("learned")]
    | Annotated[Laws, subcommand("laws")]
    | Annotated[Cell, subcommand("cell")]
    | Annotated[Mask, subcommand("mask")]
    | Annotated[Samples, subcommand("samples")]
    | Annotated[Speed, subcommand("speed")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[List, subcommand("list")]
)


def main(argv: list[str] | None = None) -> int:
    """Entry point.  Exit status: 0 done, 2 bad input, 130 interrupted."""
    command = tyro.cli(
        Command,
        prog="wane",
        description="Graceful degradation of transformers, measured.",
        args=argv,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        from wane.launch import commands

        commands.execute(command)
    except (ValueError, OSError) as error:
        if command.debug:
            traceback.print_exc()
        else:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"wane: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wane: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.close(sys.stdout.fileno())
    return 0
