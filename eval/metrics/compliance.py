"""Whether an answer has the form that an instruction asks for, apart from what it says (task I),
free-running.

The rules are those of `wane.train.data.graded_instruct`, which scores answers one by one.  Here the right
answer stands in the tokens: it is asked for by the kinds of its tokens (symbol, class, digit, markers) and
their number. An answer is heard for as many tokens as the right one has, END included, and is cut off there:
of one that is too long no more than one token too many is heard, which the loose reading forgives and the
strict one does not. Answers that the row cuts off are left out.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wane.eval.metrics.contract import SequenceMetric, TokenMetric, per_sequence
from wane.eval.metrics.generation import said, whole_bounds
from wane.eval.metrics.once import once
from wane.eval.metrics.task_rows import is_task
from wane.eval.metrics.view import View
from wane.train.data.graded_instruct import KIND_BEGIN, KIND_V, LONGEST
from wane.train.data.vocabulary import END, SIZE


class Answers(NamedTuple):
    """At every position the answer that may begin there, A = LONGEST tokens of it, 0 behind its end: the
    right one and the one that is said.  begins_BS: where one does, and ends inside the row."""

    right_BSA: Array
    said_BSA: Array
    begins_BS: Array


@once
def answers(view: View) -> Answers:
    scored_BS = view.scored_BS
    ahead_BSA = ahead(scored_BS)
    inside_BSA = jnp.cumprod(ahead_BSA, axis=-1).astype(bool)
    right_BSA, said_BSA = (jnp.where(inside_BSA, ahead(t_BS), 0) for t_BS in (view.targets_BS, said(view)))
    first_BS = scored_BS & ~jnp.pad(scored_BS[:, :-1], ((0, 0), (1, 0)))
    whole_BS = (right_BSA == END).any(axis=-1)
    return Answers(right_BSA, said_BSA, first_BS & whole_BS & is_task(view, "I")[:, None])


def ahead(of_BS: Array) -> Array:
    """Each position's own value and those behind it, [B, S, A]; 0 beyond the row."""
    S = of_BS.shape[1]
    return jnp.pad(of_BS, ((0, 0), (0, LONGEST)))[:, jnp.arange(S)[:, None] + jnp.arange(LONGEST)]


def kind(tokens: Array) -> Array:
    """Kinds of tokens, as `graded_instruct` tells them; 0 of what stands in no answer."""
    return jnp.asarray(KIND_V)[jnp.minimum(tokens, SIZE - 1)]


def strict(right_BSA: Array, said_BSA: Array) -> Array:
    """bool [B, S]: a token of the right kind at every place, and END where it belongs."""
    same = jnp.where(right_BSA == END, said_BSA == END, kind(said_BSA) == kind(right_BSA))
    return jnp.all(same | (right_BSA == 0), axis=-1)


def loose(right_BSA: Array, said_BSA: Array) -> Array:
    """bool [B, S]: all that is asked for in one run, whatever ends it, with at most one token too many before
    it and one behind it."""
    wanted, heard = kind(right_BSA), kind(said_BSA)
    later = jnp.pad(heard[..., 1:], ((0, 0), (0, 0), (0, 1)))  # without the first token
    at_once, with_preface = (jnp.all((kinds == wanted) | (wanted == 0), axis=-1) for kinds in (heard, later))
    return at_once | (with_preface & (heard[..., 0] > 0))


def same_content(right_BSA: Array, said_BSA: Array) -> Array:
    """bool [B, S]: the right symbols, classes or digit in the right order, whatever markers and END do."""
    return jnp.all(content(right_BSA) == content(said_BSA), axis=-1)


def content(answer_BSA: Array) -> Array:
    """What stands before the first token that no answer holds, without markers, at the front; then 0."""
    kinds = kind(answer_BSA)
    running = jnp.cumprod(kinds > 0, axis=-1).astype(bool)
    says = running & (kinds < KIND_BEGIN)
    place = jnp.cumsum(says, axis=-1) - 1
    moved = says[..., None] & (place[..., None] == jnp.arange(LONGEST))
    return jnp.einsum("bsa,bsap->bsp", answer_BSA, moved.astype(answer_BSA.dtype))


def by(rule):
    """Value f32 and counted bool [B, S] of one of the three rules."""

    def measure(view: View) -> tuple[Array, Array]:
        right_BSA, said_BSA, begins_BS = answers(view)
        return rule(right_BSA, said_BSA).astype(jnp.float32), begins_BS

    return measure


RULES = {
    "compliance_strict": (
        strict,
        "share of instructions answered, free-running, in the form that was asked for, END included (task I)",
    ),
    "compliance_loose": (
        loose,
        "compliance_strict, but any end and one token too many before and behind are forgiven",
    ),
    "compliance_content": (
        same_content,
        "share of instructions whose answer, free-running, says the right things in order, whatever its form",
    ),
}

METRICS = (
    *(
        SequenceMetric(
            name=name,
            unit="fraction",
            meaning=meaning,
            better="higher",
            measure=per_sequence(by(rule)),
            free_running=True,
            bounds=whole_bounds,
        )
        for name, (rule, meaning) in RULES.items()
    ),
    *(
        TokenMetric(
            name=f"{name}_by_level",
            unit="fraction",
            meaning=f"{name} of each format, and whether this length of it is held out of training",
            better="higher",
            measure=by(rule),
            free_running=True,
            by="level",
            bounds=whole_bounds,
        )
        for name, (rule, _) in RULES.items()
    ),
)
