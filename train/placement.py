"""Where a pack lives: its programs and arrays on one device or on a mesh."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from wane.scaling.program import Program
from wane.scaling.shape import Shape
from wane.train.checkpoint import load_replica
from wane.train.config import Train
from wane.train.mask import masked, masks_of_pack
from wane.train.mesh import batch_sharding, check_mesh, replica_sharding, state_sharding
from wane.train.run import Run
from wane.train.step import Packing, State, init_pack, init_state, pack_step

Update = Callable[[State, Array, Array], tuple[State, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A run and the mesh that it trains on; mesh None: the default device."""

    run: Run
    mesh: Mesh | None

    def __post_init__(self):
        if self.mesh is not None:
            check_mesh(self.mesh, self.run.replicas, self.run.train.batch_size)

    def abstract(self, step: int) -> State:
        """The pack's state after `step` updates, as jax.ShapeDtypeStruct with shardings."""
        run = self.run
        state_R = jax.eval_shape(partial(init_pack, shape=run.shape, train=run.train), self._seeds_R())
        if run.masks(step):
            mask_R = jax.eval_shape(partial(masks_of_pack, run.mask_from), state_R.params)
            state_R = state_R._replace(mask=mask_R)
        if self.mesh is None:
            return state_R
        shardings = state_sharding(self.mesh, state_R)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state_R, shardings
        )

    def start(self) -> State:
        """The state before the first update: initialisation, or what run.start_from says."""
        run = self.run
        if run.start_from is None:
            return self.put_state(_init_program(run.shape, run.train)(self._seeds_R()))
        one = jax.eval_shape(lambda: init_state(jax.random.key(0), run.shape, run.train))
        states = [load_replica(s.checkpoints, s.step, s.replica, one) for s in run.start_from]
        return self.put_state(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

    def mask(self, state_R: State) -> State:
        """The state under the run's mask, weights that it removes set to 0."""
        mask_R = jax.jit(partial(masks_of_pack, self.run.mask_from))(state_R.params)
        params_R = jax.jit(jax.vmap(masked))(state_R.params, mask_R)
        return self.put_state(state_R._replace(params=params_R, mask=mask_R))

    def update(self, state_R: State, marked_RBT: Array, rates_R: Array) -> Update:
        """The compiled pack_step for arguments like these, of which it consumes the state."""
        run = self.run
        if self.mesh is None:
            program = _update_program(run.shape, run.train, run.steps, run.packing)
            return program.executable(state_R, marked_RBT, rates_R)
        leaves, tree = jax.tree.flatten(state_sharding(self.mesh, state_R))
        return _sharded_update(run.shape, run.train, run.steps, run.packing, tuple(leaves), tree)

    def rates(self) -> Array:
        """Learning rate of each replica, f32 [R]."""
        sharding = None if self.mesh is None else replica_sharding(self.mesh)
        return jax.device_put(np.asarray(self.run.rates, np.float32), sharding)

    def batch(self, marked_RBT: np.ndarray) -> Array:
        return jax.device_put(marked_RBT, None if self.mesh is None else batch_sharding(self.mesh))

    def put_state(self, state_R: State) -> State:
        return state_R if self.mesh is None else jax.device_put(state_R, state_sharding(self.mesh, state_R))

    def _seeds_R(self) -> Array:
        return jnp.array(self.run.init_seeds, jnp.uint32)


@lru_cache(maxsize=8)
def _init_program(shape: Shape, train: Train) -> Program:
    program = partial(init_pack, shape=shape, train=train)
    return Program(program, computes=f"init_pack of {shape} {train}")


@lru_cache(maxsize=8)
def _update_program(shape: Shape, train: Train, steps: int, packing: Packing) -> Program:
    """Cached, so that the packs of one shape compile once."""
    program = partial(pack_step, shape=shape, train=train, steps=steps, packing=packing)
    computes = f"pack_step of {shape} {train} in {steps} steps, {packing}"
    return Program(program, computes=computes, trains=True, donate_argnums=0)


@lru_cache(maxsize=8)
def _sharded_update(
    shape: Shape, train: Train, steps: int, packing: Packing, leaves: tuple[Any, ...], tree: Any
) -> Update:
    """leaves, tree: the state's shardings, flattened because a key of the cache must be hashable; where they are
    not pinned the partitioner may choose others for the new state and the next call compiles again."""
    shardings = jax.tree.unflatten(tree, leaves), replica_sharding(leaves[0].mesh)
    program = partial(pack_step, shape=shape, train=train, steps=steps, packing=packing)
    return jax.jit(program, donate_argnums=0, out_shardings=shardings)
