"""Recovery: a short fine-tune of a degraded model with the degradation in force."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from wane.scaling.edit import Edit, Params, merge
from wane.scaling.model import apply, nll, only
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data.marks import is_scored, unmarked
from wane.train.optimizer import optimizer
from wane.train.step import mean_loss

Hold = Callable[[Params, Edit], Params]


class Recovering(NamedTuple):
    """A degraded model in training: parameters before `hold`, optimizer state, updates made."""

    params: Params
    opt_state: Any
    step: Array


def begin(params: Params, edit: Edit, shape: Shape, train: Train) -> Recovering:
    """The degraded model before its first update: the edit's own parameters, so that 0 steps are the plain
    degraded model."""
    start = merge(params, edit)
    return Recovering(start, optimizer(shape, train, 1).init(start), jnp.int32(0))


def advance(
    state: Recovering, edit: Edit, marked_nBT: Array, until: Array, *, hold: Hold, shape: Shape, train: Train
) -> Recovering:
    """Updates up to number `until` (traced), on batch i of marked_nBT at update i.

    Removed weights stay removed and rounded weights on their lattice: each step runs hold(params, edit), whose
    gradient goes straight through.  Constant learning rate train.lr, scaled per parameter group as in training.
    """
    acting = dataclasses.replace(edit, params=None)
    rule = optimizer(shape, train, len(marked_nBT))

    def loss(params: Params, marked_BT: Array) -> Array:
        held, tokens_BT = hold(params, edit), unmarked(marked_BT)
        x_BSD = apply(held, tokens_BT[:, :-1], shape, acting, keep=only()).x_BSD
        nll_BS = nll(held, x_BSD, tokens_BT, shape)
        return mean_loss(nll_BS, is_scored(marked_BT[:, 1:]), train.unscored_weight)

    def update(state: Recovering) -> Recovering:
        marked_BT = lax.dynamic_index_in_dim(marked_nBT, state.step, keepdims=False)
        grads = jax.grad(loss)(state.params, marked_BT)
        updates, opt_state = rule.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda w, u: w + train.lr * u, state.params, updates)
        return Recovering(params, opt_state, state.step + 1)

    return lax.while_loop(lambda state: state.step < until, update, state)


def recovered(state: Recovering, edit: Edit, hold: Hold) -> Edit:
    """The edit of the model as it stands after recovery."""
    return dataclasses.replace(edit, params=hold(state.params, edit))
