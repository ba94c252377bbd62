"""Where the errors of generation come from, by crossing what is degraded with what is not.

Of a continuation three things may be the degraded model's: the parameters that read it, the keys and values of the
prompt that they find, and the tokens that were said, greedily.  All eight combinations are compared with the one in
which nothing is degraded.  Inside a layer, on the undegraded stream, attention weights and values are crossed.
Letters as in `saying.py`; Q queries, C their keys.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.continuation import MODELS, begun, model_of, said
from wane.eval.metrics.contract import Place, SequenceMetric
from wane.eval.metrics.deviation import kl
from wane.eval.metrics.few import EVERY, of_few
from wane.eval.metrics.once import once
from wane.eval.metrics.saying import repeated
from wane.eval.metrics.structure import share_of
from wane.eval.metrics.view import View
from wane.scaling.attention import attention_map, per_query_head
from wane.scaling.edit import Edit, Params
from wane.scaling.generate import advance
from wane.scaling.model import block, enter, init_cache, unembed
from wane.scaling.shape import Shape

# (parameters, prompt cache, generated tokens), the first varying slowest
COMBINATIONS = tuple(itertools.product(MODELS, repeat=3))
PATHS = ("weights", "values", "both")
QUERIES = (
    16  # of every sequence, evenly spread: maps of all of them would be the largest arrays of the evaluation
)


def combinations(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place(part=",".join(names)) for names in COMBINATIONS)


def paths_of_layers(shape: Shape) -> tuple[Place, ...]:
    return tuple(Place("layer", float(l), part=part) for l in range(shape.n_layers) for part in PATHS)


@once
def crossed_states(view: View) -> Array:
    """The residual stream behind the last block at every token of the continuation, [8, B, C, D] in the order of
    COMBINATIONS."""
    caches = [repeated(begun(view)[name].caches, len(MODELS)) for name in MODELS]
    caches = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1) if a[0].ndim > 1 else a[0], *caches)
    greedy_RC = jnp.concatenate([said(view)[name].tokens_UBC[0] for name in MODELS])
    both_RC = jnp.concatenate([greedy_RC] * len(MODELS))  # of each cache

    def read(name: str) -> Array:
        params, edit = model_of(view, name)
        x_RCD, _ = advance(params, both_RC, caches, view.shape, edit)
        return x_RCD.reshape(len(MODELS) ** 2, -1, *x_RCD.shape[1:])

    return jnp.concatenate([read(name) for name in MODELS])


def crossed(view: View) -> Array:
    """Logits behind every token of the continuation, [8, B, C, V]."""
    of_reader = zip(MODELS, jnp.split(crossed_states(view), len(MODELS)), strict=True)
    return jnp.concatenate([unembed(model_of(view, name)[0], x, view.shape) for name, x in of_reader])


def crossed_kl(view: View) -> tuple[Array, Array]:
    """(sum, count) [B, 8] over the continuation."""
    logits_XBCV = crossed(view)
    kl_XBC = kl(logits_XBCV[0], logits_XBCV, 1.0)
    return kl_XBC.sum(axis=-1).T, jnp.full(kl_XBC.shape[1::-1], kl_XBC.shape[-1], jnp.float32)


def queries(S: int) -> np.ndarray:
    """The positions that are read, the last one included."""
    count = min(QUERIES, S)
    return S - 1 - np.arange(count) * S // count


def attended(
    params_l: Params, x_BSD: Array, at_Q: np.ndarray, shape: Shape, edit_l: Edit
) -> tuple[Array, Array]:
    """Of one layer on its input: the weights [B, H, Q, C] and the values [B, C, H, K] as they are attended to, in
    f32; the multipliers of heads and of the sublayer count with the values."""
    _, inner, cache = block(params_l, x_BSD, shape, edit_l, init_cache(*x_BSD.shape[:2], shape))
    v_BCHK = per_query_head(cache["v"], inner["q"]).astype(jnp.float32)
    if edit_l.head_LH is not None:
        v_BCHK = v_BCHK * edit_l.head_LH[:, None]
    if edit_l.attn_L is not None:
        v_BCHK = v_BCHK * edit_l.attn_L
    return attention_map(inner["q"][:, at_Q], cache["k"], at_Q), v_BCHK


def mixed(map_BHQC: Array, v_BCHK: Array) -> Array:
    """The heads' outputs [B, Q, H, K]."""
    return jnp.einsum("bhqc,bchk->bqhk", map_BHQC, v_BCHK)


def length(y_BQHK: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(y_BQHK), axis=(-2, -1)))


def stream_edits(edit: Edit) -> Edit:
    """Multipliers and maps of the stream that stands before every block, [L, 1, ..], as `enter` reads them."""
    before = {name: getattr(edit, name) for name in ("residual_XD", "residual_map")}
    return Edit(**{name: None if a is None else a[:-1:2][:, None] for name, a in before.items()})


@once
def path_changes(view: View) -> Array:
    """Length of the change of the heads' outputs over their length, [L, 3, b, Q] in the order of PATHS, of few
    sequences."""
    at_Q, shape = queries(view.targets_BS.shape[1]), view.shape

    def one(layer: tuple) -> Array:
        trained_l, degraded_l, edit_l, before_l, x_BSD = layer
        map_BHQC, v_BCHK = attended(trained_l, x_BSD, at_Q, shape, Edit())
        new_map, new_v = attended(degraded_l, enter(x_BSD, before_l), at_Q, shape, edit_l)
        whole = mixed(map_BHQC, v_BCHK)
        changes = (
            mixed(new_map - map_BHQC, v_BCHK),
            mixed(map_BHQC, new_v - v_BCHK),
            mixed(new_map, new_v) - whole,
        )
        return jnp.stack([share_of(length(change), length(whole)) for change in changes])

    blocks = view.params["blocks"], view.degraded["blocks"]
    return lax.map(one, (*blocks, view.edit.per_layer(), stream_edits(view.edit), view.stream[:-1, ::EVERY]))


def path_change(view: View) -> tuple[Array, Array]:
    """(sum, count) [B, 3 L] over the queries; count 0 where a sequence is not looked at."""
    change_LPbQ = path_changes(view)
    *_, b, Q = change_LPbQ.shape
    return of_few(change_LPbQ.sum(axis=-1).reshape(-1, b), Q, len(view.targets_BS))


METRICS = (
    SequenceMetric(
        name="crossed_kl",
        unit="nats/token",
        meaning="KL(undegraded || crossed) of the next token along a greedy continuation; part: whose are the"
        " parameters that read it, the prompt's keys and values, and the tokens said",
        better="lower",
        measure=crossed_kl,
        places=combinations,
        free_running=True,
        relative=True,
    ),
    SequenceMetric(
        name="attention_path_change",
        unit="ratio",
        meaning="length of the change of the heads' outputs over their length, on the undegraded stream, where only"
        f" the attention weights, only the values, or both are degraded; {QUERIES} queries, a sequence of 20",
        better="lower",
        measure=path_change,
        places=paths_of_layers,
        relative=True,
        streams=True,
        version=2,
    ),
)
