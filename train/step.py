"""One training step of one member, and of a pack of R members as one program."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from wane.scaling.edit import Params
from wane.scaling.model import apply, init_params, nll
from wane.scaling.shape import Shape
from wane.train.config import Train
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


def loss(params: Params, tokens_BT: Array, shape: Shape) -> Array:
    """Mean negative log-likelihood per target token, in nats."""
    output = apply(params, tokens_BT[:, :-1], shape)
    return jnp.mean(nll(params, output.x_BSD, tokens_BT, shape))


def train_step(
    state: State, tokens_BT: Array, lr: Array, *, shape: Shape, train: Train, steps: int
) -> tuple[State, dict[str, Array]]:
    """One update.  Metrics: loss (nats), grad_norm (before the clip), lr (after the schedule)."""
    value, grads = jax.value_and_grad(loss)(state.params, tokens_BT, shape)
    grads = masked(grads, state.mask)  # before the clip: a removed weight must not shrink the others' steps
    updates, opt_state = optimizer(shape, train, steps).update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda w, u: w + lr * u, state.params, updates)
    metrics = {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "lr": lr * schedule(train, steps)(state.step),
    }
    # Masked again: the first moment still carries a weight that was removed in mid-training.
    return State(masked(params, state.mask), opt_state, state.step + 1, state.mask), metrics


def pack_step(
    state_R: State,
    tokens_RBT: Array,
    lr_R: Array,
    *,
    shape: Shape,
    train: Train,
    steps: int,
    packing: Packing,
) -> tuple[State, dict[str, Array]]:
    """train_step of R members: one after another ("map": the bits of each alone) or batched ("vmap": faster
    on accelerators, equal to float tolerance).  Metrics have a leading R."""

    def one(state, tokens_BT, lr):
        return train_step(state, tokens_BT, lr, shape=shape, train=train, steps=steps)

    if packing == "vmap":
        return jax.vmap(one)(state_R, tokens_RBT, lr_R)
    return lax.map(lambda replica: one(*replica), (state_R, tokens_RBT, lr_R))


def init_pack(seeds_R: Array, shape: Shape, train: Train) -> State:
    """init_state of R members from their integer seeds; the same weights for a seed in any pack."""
    return lax.map(lambda seed: init_state(jax.random.key(seed), shape, train), seeds_R)
