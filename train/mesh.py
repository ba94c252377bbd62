"""One mesh for all parallelism: replicas over "seed", the batch over "data", matrices over "model"."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

READS_MODEL_AXIS = (
    "o",
    "down",
    "embed",
)  # sharded on their input: what q, k, v, gate and up wrote (Megatron)


def make_mesh(seed: int, data: int, model: int) -> Mesh:
    """A mesh over all devices.  Raises ValueError when the axes do not multiply to their number."""
    if seed * data * model != jax.device_count():
        raise ValueError(
            f"mesh = ({seed}, {data}, {model}): must multiply to the number of devices, {jax.device_count()}"
        )
    # Auto axes: the default, Explicit, breaks vmap of an optimizer's init.
    return jax.make_mesh((seed, data, model), ("seed", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def check_mesh(mesh: Mesh, replicas: int, batch_size: int) -> None:
    """Raises ValueError when the replicas or the batch do not divide over the mesh."""
    if replicas % mesh.shape["seed"]:
        raise ValueError(f"mesh.seed = {mesh.shape['seed']}: must divide the {replicas} replicas of the pack")
    if batch_size % mesh.shape["data"]:
        raise ValueError(f"mesh.data = {mesh.shape['data']}: must divide train.batch_size = {batch_size}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of tokens_RBT."""
    return NamedSharding(mesh, P("seed", "data"))


def replica_sharding(mesh: Mesh) -> NamedSharding:
    """Of anything that has only a replica axis."""
    return NamedSharding(mesh, P("seed"))


def state_sharding(mesh: Mesh, state_R: Any) -> Any:
    """A NamedSharding for every leaf of a pack's state (arrays or ShapeDtypeStruct).

    Matrices, their moments and masks, [R, ..., I, O], are split over "model" on the axis that keeps a block to
    one exchange per sublayer, on the other one where that does not divide, and not at all where neither does.
    Experts are split each like a dense MLP; the router, which every device needs whole, is not.
    """

    def leaf_sharding(path, leaf):
        name = getattr(path[-1], "key", None)
        return NamedSharding(mesh, P("seed", *_model_axis(name, leaf.shape[1:], mesh.shape["model"])))

    return jax.tree_util.tree_map_with_path(leaf_sharding, state_R)


def _model_axis(name: str | None, size: tuple[int, ...], ways: int) -> tuple[str | None, ...]:
    """ "model" at the axis of one replica's leaf that is split."""
    axes: list[str | None] = [None] * len(size)
    matrix = name in ("embed", "unembed") or len(size) >= 3 and name != "router"
    order = (-2, -1) if name in READS_MODEL_AXIS else (-1, -2)
    divisible = [axis for axis in order if matrix and size[axis] % ways == 0]
    if divisible:
        axes[divisible[0]] = "model"
    return tuple(axes)
