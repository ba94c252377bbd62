"""AdamW whose learning rate, epsilon and weight decay follow each parameter group (CompleteP or standard)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from wane.scaling.shape import Shape
from wane.train.config import Train


class Group(NamedTuple):
    """Multipliers of one parameter group on the base shape's learning rate, weight decay and epsilon."""

    lr: float
    weight_decay: float
    eps: float


def groups(shape: Shape) -> dict[str, Group]:
    """The parameter groups of Dey et al. 2025 (arXiv 2505.01618, Table 1); all 1 under the standard
    parametrisation, where norms still have no decay.

    The table leaves the final norm's epsilon open: it is read by the unembedding and takes that one's.

    router: [d_model, n_experts] has one infinite side, its input, and so is an output weight, like the
    unembedding (Malasnicki et al. 2025, arXiv 2508.09752).  The unembedding divides its product by m_N; here the
    equivalent is in the weight: initial values and learning rate over m_N, weight decay times m_N, and a
    gradient m_N times as large, m_L^-alpha as of everything in a block.
    """
    p = shape.parametrization
    m_N, m_L, alpha = p.width_ratio(shape.d_model), p.depth_ratio(shape.n_layers), p.residual_exponent
    depth_lr = m_L ** (alpha - 1)
    block_eps, edge_eps = 1 / m_N * m_L**-alpha, 1 / m_N
    return {
        "matrix": Group(lr=depth_lr / m_N, weight_decay=m_N, eps=block_eps),
        "router": Group(lr=depth_lr / m_N, weight_decay=m_N, eps=m_L**-alpha),
        "block_norm": Group(lr=depth_lr, weight_decay=0.0, eps=block_eps),
        "embedding": Group(lr=1.0, weight_decay=1.0, eps=edge_eps),
        "final_norm": Group(lr=1.0, weight_decay=0.0, eps=edge_eps),
    }


def group_of(path: tuple[Any, ...], shape: Shape) -> str:
    """Name of the group of the parameter at a path of jax.tree_util keys."""
    top, leaf = path[0].key, path[-1].key
    if top == "blocks":
        return "matrix" if leaf in shape.matrices else "router" if leaf == "router" else "block_norm"
    return {"embed": "embedding", "unembed": "embedding", "final_norm": "final_norm"}[top]


def schedule(train: Train, steps: int) -> Callable[[Array], Array]:
    """Step (from 0) -> multiplier of lr.  Warm-up reaches 1 with update number warmup_fraction * steps, the
    last update has final_lr_fraction."""
    warmup = min(round(train.warmup_fraction * steps), steps - 1)
    rise = optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)
    if train.schedule == "cosine":
        fall = optax.cosine_decay_schedule(1.0, steps - warmup, alpha=train.final_lr_fraction)
        joined = optax.join_schedules([rise, fall], [warmup])
    else:
        decay = min(max(1, round(train.decay_fraction * steps)), steps - warmup)
        fall = optax.linear_schedule(1.0, train.final_lr_fraction, decay)
        joined = optax.join_schedules(
            [rise, optax.constant_schedule(1.0), fall], [warmup, max(warmup, steps - decay)]
        )
    # Updates are numbered from 1: at 0 a warm-up would spend the first batch on a learning rate of 0.
    return lambda step: joined(step + 1)


def scale_leaves(factor: Callable[[Group], float], shape: Shape) -> optax.GradientTransformation:
    """Multiplies every leaf by a factor of its group."""
    table = groups(shape)

    def update(updates, state, params=None):
        def scale(path, u):
            return u * factor(table[group_of(path, shape)])

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_weights(weight_decay: float, shape: Shape) -> optax.GradientTransformation:
    """Adds weight_decay times the group's factor times the weight."""
    table = groups(shape)

    def update(updates, state, params):
        def decay(path, u, w):
            factor = table[group_of(path, shape)].weight_decay
            return u + (weight_decay * factor) * w if factor else u

        return jax.tree_util.tree_map_with_path(decay, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def optimizer(shape: Shape, train: Train, steps: int) -> optax.GradientTransformation:
    """Everything but the learning rate: `params + lr * updates` is the step, lr a traced scalar.

    updates = -schedule * group lr * (Adam direction of the clipped gradient + group weight decay * weights).
    """
    b1, b2 = train.betas
    multiplier = schedule(train, steps)
    return optax.chain(
        optax.clip_by_global_norm(train.clip),
        # Adam is scale-free but for epsilon: g / c with epsilon e is g with epsilon c * e, so one Adam
        # serves all groups, and its second moment does not underflow where gradients are small.
        scale_leaves(lambda group: 1 / group.eps, shape),
        optax.scale_by_adam(b1, b2, train.eps),
        decay_weights(train.weight_decay, shape),
        scale_leaves(lambda group: group.lr, shape),
        optax.scale_by_schedule(lambda count: -multiplier(count)),
    )
