"""One training step of one member, and of a pack of R members as one program."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from wane.scaling.edit import Params
from wane.scaling.model import Inner, apply, init_params, nll, only
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data.marks import is_scored, unmarked
from wane.train.mask import Mask, masked
from wane.train.optimizer import optimizer, schedule

Packing = Literal["map", "vmap"]


class State(NamedTuple):
    """All that training changes.  In a pack every leaf has a leading replica axis R."""

    params: Params
    opt_state: Any
    step: Array  # int32, updates made
    mask: Mask | None  # block matrix -> bool [L, I, O], True = kept; None: nothing is masked


def init_state(key: Array, shape: Shape, train: Train, mask: Mask | None = None) -> State:
    """Step 0 of one member; removed weights are 0 from the start."""
    params = masked(init_params(key, shape), mask)
    # The number of steps is read by updates only, not by the state.
    return State(params, optimizer(shape, train, 1).init(params), jnp.int32(0), mask)


def objective(
    params: Params, marked_BT: Array, shape: Shape, load_balance: float, unscored_weight: float = 1.0
) -> tuple[Array, dict[str, Array]]:
    """(what is minimised, what it is made of): `loss` (`mean_loss`), and with experts load_balance times
    `imbalance`.  marked_BT: tokens, with marks (`wane.train.data.marks`) or without."""
    tokens_BT = unmarked(marked_BT)
    routing = () if shape.n_experts is None else ("router", "route")
    x_BSD, inner = apply(params, tokens_BT[:, :-1], shape, keep=only(*routing))
    value = mean_loss(nll(params, x_BSD, tokens_BT, shape), is_scored(marked_BT[:, 1:]), unscored_weight)
    if shape.n_experts is None:
        return value, {"loss": value}
    uneven = imbalance(inner)
    return value + load_balance * uneven, {"loss": value, "imbalance": uneven}


def mean_loss(nll_BS: Array, scored_BS: Array, unscored_weight: float) -> Array:
    """Mean negative log-likelihood per target token in nats, tokens that are not scored counted `unscored_weight`
    times.  Graded sequences are mostly random tokens: the gradients of what nobody can predict are noise."""
    if unscored_weight == 1:
        return jnp.mean(nll_BS)
    weight_BS = jnp.where(scored_BS, 1.0, unscored_weight)
    return jnp.sum(weight_BS * nll_BS) / jnp.sum(weight_BS)


def imbalance(inner: Inner) -> Array:
    """E sum_e f_e P_e, mean over layers (Fedus et al. 2022, arXiv 2101.03961, eq. 4 to 6): 1 where experts serve
    equally many tokens, E where one serves all (with top k, E / k).

    f_e: share of all (token, chosen expert) pairs of the batch, P_e: mean router probability.
    """
    probability_LE = jnp.mean(inner["router"], axis=(1, 2))
    chosen_LE = jnp.mean(inner["route"] > 0, axis=(1, 2))
    share_LE = chosen_LE / jnp.sum(chosen_LE, axis=-1, keepdims=True)
    return jnp.mean(jnp.sum(share_LE * probability_LE, axis=-1)) * probability_LE.shape[-1]


def train_step(
    state: State, marked_BT: Array, lr: Array, *, shape: Shape, train: Train, steps: int
) -> tuple[State, dict[str, Array]]:
    """One update.  Metrics: loss (nats), grad_norm (before the clip), lr (after the schedule), with experts
    imbalance."""
    coefficients = train.load_balance, train.unscored_weight
    grads, parts = jax.grad(objective, has_aux=True)(state.params, marked_BT, shape, *coefficients)
    grads = masked(grads, state.mask)  # before the clip: a removed weight must not shrink the others' steps
    updates, opt_state = optimizer(shape, train, steps).update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda w, u: w + lr * u, state.params, updates)
    metrics = {
        **parts,
        "grad_norm": optax.tree.norm(grads),
        "lr": lr * schedule(train, steps)(state.step),
    }
    # Masked again: the first moment still carries a weight that was removed in mid-training.
    return State(masked(params, state.mask), opt_state, state.step + 1, state.mask), metrics


def pack_step(
    state_R: State,
    marked_RBT: Array,
    lr_R: Array,
    *,
    shape: Shape,
    train: Train,
    steps: int,
    packing: Packing,
) -> tuple[State, dict[str, Array]]:
    """train_step of R members: one after another ("map": the bits of each alone) or batched ("vmap": faster
    on accelerators, equal to float tolerance).  Metrics have a leading R."""

    def one(state, marked_BT, lr):
        return train_step(state, marked_BT, lr, shape=shape, train=train, steps=steps)

    if packing == "vmap":
        return jax.vmap(one)(state_R, marked_RBT, lr_R)
    return lax.map(lambda replica: one(*replica), (state_R, marked_RBT, lr_R))


def init_pack(seeds_R: Array, shape: Shape, train: Train) -> State:
    """init_state of R members from their integer seeds; the same weights for a seed in any pack."""
    return lax.map(lambda seed: init_state(jax.random.key(seed), shape, train), seeds_R)
