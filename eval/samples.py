"""What a member says at every severity, beside what it says undegraded: tokens to read, not to measure."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from wane.eval.metrics.continuation import LONGEST
from wane.eval.metrics.saying import begin, noise_keys, say
from wane.scaling.edit import Edit, Params, merge
from wane.scaling.shape import Shape


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
) -> list[Sample]:
    """The most likely continuations of every prompt: prompts in their order, severities ascending.

    edits: severity -> the edit of the trained parameters `params`.  precision: of matrix products.  Raises
    ValueError for prompts without tokens, a length below 1, and what `extend` refuses.
    """
    prompts_BP = np.asarray(prompts_BP)
    if prompts_BP.ndim != 2 or not prompts_BP.size:
        raise ValueError(
            f"prompts_BP has the shape {prompts_BP.shape}: must be [prompts, tokens], one or more"
        )
    if length < 1:
        raise ValueError(f"length = {length}: must be 1 token or more")
    with jax.default_matmul_precision(precision):
        dense_BC = np.asarray(greedy(params, Edit(), prompts_BP, shape, length))
        degraded = {s: np.asarray(greedy(params, edits[s], prompts_BP, shape, length)) for s in sorted(edits)}
    return [
        Sample(severity, *(tuple(tokens[b].tolist()) for tokens in (prompts_BP, dense_BC, degraded_BC)))
        for b in range(len(prompts_BP))
        for severity, degraded_BC in degraded.items()
    ]


@functools.partial(jax.jit, static_argnames=("shape", "length"))
def greedy(params: Params, edit: Edit, prompt_BP: Array, shape: Shape, length: int) -> Array:
    """The tokens [B, C] that the model under an edit says."""
    params = merge(params, edit)
    begun = begin(params, prompt_BP, length, shape, edit)
    return say(params, begun, noise_keys(prompt_BP), length, shape, edit, (0.0,)).tokens_UBC[0]


def samples_text(samples: Iterable[Sample], decode: Callable[[Sequence[int]], str]) -> str:
    """A Markdown table, a row for each sample.  decode: of tokens, the text that they stand for."""
    head = "| prompt | severity | undegraded | degraded |\n|---|---|---|---|\n"
    rows = ((_cell(decode(s.prompt)), f"{s.severity:g}", *(_cell(decode(t)) for t in s[2:])) for s in samples)
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    """Text that does not end a cell or a row."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "↵")
