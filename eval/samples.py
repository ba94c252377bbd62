"""What a member says at every severity, beside what it says undegraded: tokens to read, not to measure."""

import functools
import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from wane.eval.metrics.continuation import LONGEST
from wane.eval.metrics.saying import begin, noise_keys, say
from wane.eval.tables import table
from wane.scaling.edit import Edit, Params, merge
from wane.scaling.shape import Shape

SIDES = ("prompt", "undegraded", "degraded")
COLUMNS = ("prompt", "severity", "undegraded", "degraded")


class Sample(NamedTuple):
    """One prompt at one severity, all of it tokens."""

    severity: float
    prompt: tuple[int, ...]
    dense: tuple[int, ...]
    degraded: tuple[int, ...]


def continuations(
    shape: Shape,
    params: Params,
    edits: Mapping[float, Edit],
    prompts_BP: np.ndarray,
    length: int = LONGEST,
    precision: str = "highest",
    temperature: float = 0.0,
) -> list[Sample]:
    """Continuations of every prompt: prompts in their order, severities ascending.

    edits: severity -> the edit of the trained parameters `params`.  precision: of matrix products.  temperature: 0
    for the most likely tokens; else they are drawn, with the same noise at every severity.  Raises ValueError for
    prompts without tokens, a length below 1, a temperature below 0, and what `extend` refuses.
    """
    prompts_BP = np.asarray(prompts_BP)
    if prompts_BP.ndim != 2 or not prompts_BP.size:
        raise ValueError(
            f"prompts_BP has the shape {prompts_BP.shape}: must be [prompts, tokens], one or more"
        )
    if length < 1:
        raise ValueError(f"length = {length}: must be 1 token or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: must be 0 or more")

    def of(edit: Edit) -> np.ndarray:
        return np.asarray(behind(params, edit, prompts_BP, np.float32(temperature), shape, length))

    with jax.default_matmul_precision(precision):
        dense_BC = of(Edit())
        degraded = {severity: of(edits[severity]) for severity in sorted(edits)}
    return [
        Sample(severity, *(tuple(tokens[b].tolist()) for tokens in (prompts_BP, dense_BC, degraded_BC)))
        for b in range(len(prompts_BP))
        for severity, degraded_BC in degraded.items()
    ]


@functools.partial(jax.jit, static_argnames=("shape", "length"))
def behind(
    params: Params, edit: Edit, prompt_BP: Array, temperature: Array, shape: Shape, length: int
) -> Array:
    """The tokens [B, C] that the model under an edit says."""
    params = merge(params, edit)
    begun = begin(params, prompt_BP, length, shape, edit)
    return say(params, begun, noise_keys(prompt_BP), length, shape, edit, temperature[None]).tokens_UBC[0]


def told(samples: Iterable[Sample], decode: Callable[[Sequence[int]], str]) -> list[dict[str, Any]]:
    """In words, JSON-able.  decode: of tokens, the text that they stand for."""
    return [{"severity": s.severity} | dict(zip(SIDES, map(decode, s[1:]), strict=True)) for s in samples]


def samples_text(samples: Iterable[Mapping]) -> str:
    """A Markdown table, a row for each of `told`."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    rows = (" | ".join((_cell(s["prompt"]), f"{s['severity']:g}", *map(_cell, answers(s)))) for s in samples)
    return head + "".join(f"| {row} |\n" for row in rows)


def samples_section(recorded: Mapping) -> str:
    """The report's tables of what `wane samples` recorded; nothing where it has not run."""
    parts = [_samples_table(entry, task) for entry in recorded.values() for task in entry["tasks"]]
    note = (
        '<p class="note">Continuations of first halves of evaluation sequences (<code>wane samples</code>), greedy '
        "where no temperature is named; marked from where the degraded model says something else.</p>"
    )
    return note + "".join(parts) if parts else ""


def _samples_table(entry: Mapping, task: str) -> str:
    name, member, degradation = map(html.escape, (task, entry["member"], entry["degradation"]))
    cells = [
        [html.escape(s["prompt"]), f"{s['severity']:g}", html.escape(s["undegraded"]), _marked(*answers(s))]
        for s in entry["tasks"][task]
    ]
    return f"<h3>{name} <small>{member} · {degradation}</small></h3>" + table(COLUMNS, cells)


def answers(sample: Mapping) -> tuple[str, str]:
    return sample["undegraded"], sample["degraded"]


def _marked(undegraded: str, degraded: str) -> str:
    same = len(os.path.commonprefix([undegraded, degraded]))
    rest = degraded[same:]
    return html.escape(degraded[:same]) + (f"<mark>{html.escape(rest)}</mark>" if rest else "")


def _cell(text: str) -> str:
    """Text that does not end a cell or a row."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "↵")
