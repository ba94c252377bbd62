"""The option-token subspace against the full vocabulary: how far an answer's distribution has moved among its four
options, and how far among all tokens, at the same places.

The multiple-choice half of "Demystifying When Pruning Works via Representation Hierarchies": it restricts
probabilities to the option tokens and renormalises them, and claims that this subspace is stable where the
distribution over all tokens is fragile.  Its script gives 1-D tensors to `kl_div(batchmean)`, which divides the KL
by the number of options, and that of the full vocabulary by V: two units.  Here both are the KL itself, in nats.

Counted are scored tokens with four options (of a task with fewer values the subspace would be another one), in the
sequences that `rank_of_options` reads, one of four: the full vocabulary is what costs.  `_full` is told of the same
tokens, so that the two can be subtracted or divided.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wane.eval.metrics import loss
from wane.eval.metrics.contract import Place, SequenceMetric
from wane.eval.metrics.deviation import cosine, kl
from wane.eval.metrics.largest import choice
from wane.eval.metrics.ranks import SOME
from wane.eval.metrics.view import View, full_logits
from wane.scaling.shape import Shape

# Centred: less their mean over the same tokens, which softmax does not see and which brings cosines near 1.
SPACES = ("logit", "centred logit", "probability")
READ = full_logits, loss.full_choice, loss.full_norm  # of the undegraded model
Measure = Callable[[View], tuple[Array, Array]]


class Pair(NamedTuple):
    """Logits of the undegraded and of the degraded model over the same X tokens, [b, S, X], b = B / SOME."""

    undegraded: Array
    degraded: Array


def over_all(view: View) -> Pair:
    """Over the full vocabulary, [b, S, V]."""
    return Pair(view.full_BSV[::SOME], view.logits_BSV[::SOME])


def over_options(view: View) -> Pair:
    """[b, S, O]; the logit of token 0 where there is no option, which is not counted."""
    index_bSO = jnp.maximum(view.batch.options_BSO[::SOME], 0)
    return Pair(*(jnp.take_along_axis(z_bSV, index_bSO, axis=-1) for z_bSV in over_all(view)))


def divergence(pair: Pair) -> Array:
    """KL(undegraded || degraded) in nats of the distributions renormalised over these tokens, [1, b, S]."""
    return kl(pair.undegraded, pair.degraded, 1.0)[None]


def cosines(pair: Pair) -> Array:
    """Cosine between undegraded and degraded in each of SPACES, [P, b, S]."""
    centred = (z - z.mean(axis=-1, keepdims=True) for z in pair)
    p = (jax.nn.softmax(z, axis=-1) for z in pair)
    return jnp.stack([cosine(*pair), cosine(*centred), cosine(*p)])


def same_choice(pair: Pair) -> Array:
    """Whether both models prefer the same of these tokens, f32 [1, b, S]."""
    return (choice(pair.undegraded) == choice(pair.degraded)).astype(jnp.float32)[None]


def at_answers(of_tokens: Callable[[View], Array]) -> Measure:
    """(sum, count) [B, P] of values [P, b, S] over the counted tokens; 0 for sequences that are not read."""

    def measure(view: View) -> tuple[Array, Array]:
        value_PbS = of_tokens(view)
        counted_bS = (view.scored_BS & jnp.all(view.batch.options_BSO >= 0, axis=-1))[::SOME]
        total_bP = jnp.where(counted_bS, value_PbS, 0.0).sum(axis=-1).T
        count_b1 = counted_bS.sum(axis=1, keepdims=True)
        none_BP = jnp.zeros((len(view.scored_BS), len(value_PbS)))
        return none_BP.at[::SOME].set(total_bP), none_BP.at[::SOME].set(count_b1)

    return measure


def spaces(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=part) for part in SPACES)


def beside(
    name: str, of_pair: Callable[[Pair], Array], of_all: Callable[[View], Array], meaning: str, **about: Any
) -> tuple[SequenceMetric, ...]:
    """The metric over an answer's options, and `of_all`, the same over the full vocabulary."""
    told = {
        name: (lambda view: of_pair(over_options(view)), f"{meaning}; one sequence of four"),
        f"{name}_full": (of_all, f"{name}, over the full vocabulary at the same tokens"),
    }
    return tuple(
        SequenceMetric(
            name=each,
            meaning=said,
            measure=at_answers(of_tokens),
            relative=True,
            full=READ,
            version=2,
            **about,
        )
        for each, (of_tokens, said) in told.items()
    )


METRICS = (
    *beside(
        "option_kl",
        divergence,
        lambda view: loss.divergence(view)[None, ::SOME],
        "KL(undegraded || degraded) of the distribution renormalised over an answer's 4 options",
        unit="nats/token",
        better="lower",
    ),
    *beside(
        "option_cosine",
        cosines,
        lambda view: cosines(over_all(view)),
        "cosine between degraded and undegraded over an answer's 4 options: of logits, of logits less their mean,"
        " of renormalised probabilities",
        unit="",
        better="higher",
        places=spaces,
    ),
    *beside(
        "option_agreement",
        same_choice,
        lambda view: loss.same_choice(view)[None, ::SOME].astype(jnp.float32),
        "share of answers whose most likely of 4 options is that of the undegraded model",
        unit="fraction",
        better="higher",
    ),
)
