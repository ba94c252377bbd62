"""Checkpoints of training states: the only file that knows Orbax.

A step is a directory named by its number, committed by one rename, and holds the state as a flat
{path: array} with a digest of every leaf: Orbax itself loads a flipped bit without a word.
"""

import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from wane.scaling.edit import Params
from wane.scaling.identity import array_digest

log = logging.getLogger(__name__)
NEWEST = 2  # checkpoints kept to resume from, besides those that a study needs


def steps(directory: Path) -> list[int]:
    """Committed steps, ascending; [] where there is no such directory."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def save(directory: Path, step: int, state: Any, keep: Collection[int] = ()) -> None:
    """Writes `state` (a pytree of arrays; None leaves vanish) and deletes what is neither in `keep` nor among
    the newest two.  Blocks until the step is on the disk; an older checkpoint of that step is replaced.

    Raises OSError in one line when it cannot be written; earlier steps stay loadable.
    """
    target = directory.absolute() / str(step)
    directory.mkdir(parents=True, exist_ok=True)
    _clear_remains(directory)
    _discard(target)
    leaves = flat(state)
    digests = {path: array_digest(leaf) for path, leaf in leaves.items()}
    try:
        ocp.save(target, leaves, custom_metadata={"digests": digests})
    except Exception as error:  # Orbax raises OSError, ValueError or XlaRuntimeError, depending on the file
        _clear_remains(directory)
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise OSError(
            f"checkpoint {target} could not be written ({reason}): free disk space and run again; "
            f"steps {steps(directory)} are complete"
        ) from error
    _prune(directory, keep)


def restore_newest(directory: Path, abstract: Callable[[int], Any]) -> tuple[int, Any] | None:
    """(step, state) of the newest checkpoint that is whole, or None.  A damaged one is logged and passed over.

    abstract: step -> the state as jax.ShapeDtypeStruct leaves, shardings included where it is sharded.
    """
    for step in reversed(steps(directory)):
        try:
            return step, restore(directory, step, abstract(step))
        except ValueError as error:
            log.warning("%s; trying the next older one", error)
    return None


def restore(directory: Path, step: int, abstract: Any) -> Any:
    """The state of one step, on the devices that `abstract` says.

    Raises FileNotFoundError when there is no such step and ValueError when it is damaged.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {_name(path): leaf for path, leaf in leaves}
    loaded = _load(directory, step, wanted)
    return jax.tree.unflatten(tree, [loaded[path] for path in wanted])


def load_params(directory: Path, step: int, replica: int) -> Params:
    """The parameters of one member of a pack at one step, as arrays on the default device.  Errors as restore."""
    stored = _metadata(directory, step).metadata
    wanted = {path: _struct(leaf) for path, leaf in stored.items() if path.startswith("params/")}
    params: Params = {}
    for path, leaf in _load(directory, step, wanted).items():
        *parents, name = path.split("/")[1:]
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf[replica]
    return params


def load_replica(directory: Path, step: int, replica: int, abstract: Any) -> Any:
    """The state of one member of a pack at one step; abstract: a state without replica axis.  Errors as restore."""
    stored = _metadata(directory, step).metadata
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    paths = [_name(path) for path, _ in leaves]
    if missing := [path for path in paths if path not in stored]:
        raise ValueError(
            f"checkpoint {directory / str(step)} has no {missing[0]}: it is of another kind of model"
        )
    loaded = _load(directory, step, {path: _struct(stored[path]) for path in paths})
    return jax.tree.unflatten(tree, [loaded[path][replica] for path in paths])


def flat(tree: Any) -> dict[str, Any]:
    """{"params/blocks/q": leaf} of any pytree; None leaves have no entry."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _metadata(directory: Path, step: int) -> Any:
    path = directory.absolute() / str(step)
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist: complete steps are {steps(directory)}")
    try:
        return ocp.metadata(path)
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise _damaged(path, f"unreadable metadata, {type(error).__name__}") from error


def _load(directory: Path, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    path = directory.absolute() / str(step)
    here = SingleDeviceSharding(jax.local_devices()[0])
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)
        for name, leaf in wanted.items()
    }
    digests = (_metadata(directory, step).custom_metadata or {}).get("digests", {})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            loaded = ocp.load(path, placed)
    except Exception as error:
        raise _damaged(path, f"unreadable, {type(error).__name__}") from error
    for name, leaf in loaded.items():
        if array_digest(leaf) != digests.get(name):
            raise _damaged(path, f"digest of {name} does not match")
    return loaded


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"checkpoint {path} is damaged ({what}): delete it and run again to compute it again")


def _prune(directory: Path, keep: Collection[int]) -> None:
    for step in steps(directory)[:-NEWEST]:
        if step not in keep:
            _discard(directory / str(step))


def _discard(path: Path) -> None:
    """Renamed first: a half-deleted checkpoint must not carry the name of a whole one."""
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.deleted")))


def _clear_remains(directory: Path) -> None:
    """What an interrupted save or deletion left; there is one writer per directory."""
    for path in directory.iterdir():
        if path.is_dir() and (path.name.endswith(".deleted") or ".orbax-checkpoint-tmp" in path.name):
            shutil.rmtree(path)
