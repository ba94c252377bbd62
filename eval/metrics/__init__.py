"""All metrics as one literal table; adding one is a file, its import and an entry of INSTRUMENTS."""

from collections.abc import Iterable, Sequence

from wane.eval.metrics import (
    agreement,
    answers,
    attention,
    compliance,
    continuation,
    copying,
    crossing,
    deployment,
    deviation_steps,
    excess,
    factorial,
    generation,
    loss,
    noise,
    option_space,
    overlap,
    probes,
    ranks,
    representation,
    resolution,
    retrieval,
    signal,
    structure,
    topic,
    truth,
)
from wane.eval.metrics.contract import Metric
from wane.scaling.config import close_matches

# group -> its metrics; a study may name a whole group
INSTRUMENTS: dict[str, tuple[Metric, ...]] = {
    "prediction": loss.METRICS,
    "answers": answers.METRICS,
    "excess": excess.METRICS,
    "resolution": resolution.METRICS,
    "probes": probes.METRICS,
    "structure": structure.METRICS,
    "signal": signal.METRICS,
    "representation": (*representation.METRICS, *noise.METRICS),
    "options": option_space.METRICS,
    "overlap": overlap.METRICS,
    "attention": attention.METRICS,
    "deployment": deployment.METRICS,
    "generation": (*factorial.OF_VOCABULARY, *generation.METRICS, *compliance.METRICS, *topic.METRICS),
    "factorial": factorial.METRICS,
    "retrieval": retrieval.METRICS,
    "agreement": agreement.METRICS,
    "truth": truth.METRICS,
    "copying": copying.METRICS,
    "continuation": continuation.METRICS,
    "crossing": (*crossing.METRICS, *deviation_steps.METRICS),
    "ranks": ranks.METRICS,
}
METRICS: dict[str, Metric] = {m.name: m for metrics in INSTRUMENTS.values() for m in metrics}
OURS = tuple(METRICS.values())  # what a name of theirs means follows from the code of this package
# Forward passes that measuring an instrument adds to one of the loss alone, at context 128 on 2 CPU cores; its
# metrics share their work.
COSTS = {
    "prediction": 0.0, "answers": 0.05, "excess": 0.0, "resolution": 0.06, "probes": 0.01, "structure": 0.09,
    "signal": 0.06, "representation": 0.47, "options": 0.13, "overlap": 0.08, "attention": 0.1, "deployment": 0.0,
    "generation": 30.0, "factorial": 53.0, "retrieval": 0.01, "agreement": 0.05, "truth": 0.06, "copying": 0.1,
    "continuation": 11.0, "crossing": 12.3, "ranks": 0.08,
}  # fmt: skip
USUAL_COST, COSTLY_COST = 0.1, 10.0  # of an instrument that is not named there, by whether it is `costly`
USUAL = tuple(name for name, metric in METRICS.items() if metric.usual)


def reads_streams(names: Iterable[str]) -> bool:
    """Whether one of these metrics reads the undegraded residual stream before every block."""
    return any(METRICS[name].streams for name in names)


def compares(names: Iterable[str]) -> bool:
    """Whether one of these metrics reads the undegraded model's residual stream at all."""
    return any(METRICS[name].relative or METRICS[name].streams for name in names)


def costly(instrument: str) -> bool:
    """Whether the model goes on by itself, token by token, for one of an instrument's metrics: many forward passes,
    which its other metrics share."""
    return any(metric.free_running for metric in INSTRUMENTS[instrument])


def instruments_of(names: Iterable[str]) -> tuple[str, ...]:
    """The instruments that these metrics are of."""
    wanted = set(names)
    return tuple(
        group for group, metrics in INSTRUMENTS.items() if wanted & {metric.name for metric in metrics}
    )


def costly_apart(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(Metrics that one forward pass serves, metrics of costly instruments), both in the order of `names`."""
    theirs = {metric.name for group in INSTRUMENTS if costly(group) for metric in INSTRUMENTS[group]}
    shared = tuple(name for name in names if name not in theirs)
    return shared, tuple(name for name in names if name in theirs)


def extra_forwards(names: Iterable[str]) -> float:
    """Forward passes that these metrics add to one of the loss alone."""
    return sum(
        COSTS.get(group, COSTLY_COST if costly(group) else USUAL_COST) for group in instruments_of(names)
    )


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Names of metrics and of instruments as names of metrics, in the order of METRICS.

    Raises ValueError with the close matches for an unknown one.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in METRICS and name not in INSTRUMENTS:
            close = close_matches(name, [*METRICS, *INSTRUMENTS])
            raise ValueError(f"{name!r} is not a metric{close}; `wane list metrics` shows them all")
        wanted |= {metric.name for metric in INSTRUMENTS.get(name, ())} or {name}
    return tuple(name for name in METRICS if name in wanted)
