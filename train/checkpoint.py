"""Checkpoints of training states: the only file that knows Orbax.

A step is a directory named by its number, committed by one rename.  It holds the state as a flat
{path: array}, and in digests.json the digest of every file, checked before Orbax opens it (it fails on damage
in pages of traceback or loads a flipped bit without a word), and of every leaf as it was in memory.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from wane.scaling.edit import Params
from wane.scaling.identity import array_digest

Wanted = Callable[[dict[str, Any]], dict[str, jax.ShapeDtypeStruct]]
LOG = logging.getLogger(__name__)
DIGESTS = "digests.json"
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
    unfinished = target.with_name(f"{step}.saving")
    directory.mkdir(parents=True, exist_ok=True)
    _clear_remains(directory)
    leaves = flat(state)
    try:
        ocp.save(unfinished, leaves)
        digests = {
            "files": _file_digests(unfinished),
            "leaves": {k: array_digest(v) for k, v in leaves.items()},
        }
        (unfinished / DIGESTS).write_text(json.dumps(digests))
    except Exception as error:  # Orbax raises OSError, ValueError or XlaRuntimeError, depending on the file
        _clear_remains(directory)
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise OSError(
            f"checkpoint {target} could not be written ({reason}): free disk space and run again; "
            f"steps {steps(directory)} are complete"
        ) from error
    _discard(target)
    unfinished.rename(target)
    _prune(directory, keep)


def restore_newest(directory: Path, abstract: Callable[[int], Any]) -> tuple[int, Any] | None:
    """(step, state) of the newest checkpoint that is whole, or None.  A damaged one is logged and passed over.

    abstract: step -> the state as jax.ShapeDtypeStruct leaves, shardings included where it is sharded.
    """
    for step in reversed(steps(directory)):
        try:
            return step, restore(directory, step, abstract(step))
        except ValueError as error:
            LOG.warning("%s; trying the next older one", error)
    return None


def restore(directory: Path, step: int, abstract: Any) -> Any:
    """The state of one step, on the devices that `abstract` says.

    Raises FileNotFoundError when there is no such step and ValueError when it is damaged or lacks a leaf.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {_name(path): leaf for path, leaf in leaves}

    def check(stored):
        for name, leaf in wanted.items():
            if name not in stored or stored[name].shape != leaf.shape:
                raise ValueError(
                    f"checkpoint {directory / str(step)} has no {name} {leaf.shape}: another model's"
                )
        return wanted

    loaded = _load(directory, step, check)
    return jax.tree.unflatten(tree, [loaded[path] for path in wanted])


def load_params(directory: Path, step: int, replica: int) -> Params:
    """The parameters of one member of a pack, as arrays on the default device.  Errors as restore."""
    loaded = _load(directory, step, lambda stored: _structs(stored, "params/"))
    params: Params = {}
    for path, leaf in loaded.items():
        *parents, name = path.split("/")[1:]
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = _of_pack(leaf, replica)
    return params


def _of_pack(leaf_R: jax.Array, replica: int) -> jax.Array:
    """One member's, cut by numpy: jax would compile a program for every shape."""
    return jax.device_put(np.asarray(leaf_R)[replica])


def load_replica(directory: Path, step: int, replica: int, abstract: Any) -> Any:
    """The state of one member of a pack; abstract: that state, without replica axis.  Errors as restore."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    paths = [_name(path) for path, _ in leaves]
    loaded = _load(directory, step, lambda stored: _structs(stored, ""))
    if missing := [path for path in paths if path not in loaded]:
        raise ValueError(f"checkpoint {directory / str(step)} has no {missing[0]}: another model's")
    return jax.tree.unflatten(tree, [_of_pack(loaded[path], replica) for path in paths])


def flat(tree: Any) -> dict[str, Any]:
    """{"params/blocks/q": leaf} of any pytree; None leaves have no entry."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _structs(stored: dict[str, Any], prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in stored.items() if k.startswith(prefix)}


def _verified(directory: Path, step: int) -> dict[str, str]:
    """Leaf digests of a step whose files are those that were written."""
    path = directory.absolute() / str(step)
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist: complete steps are {steps(directory)}")
    try:
        digests = json.loads((path / DIGESTS).read_text())
        files, leaves = digests["files"], digests["leaves"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(path, f"{DIGESTS} is missing or unreadable") from None
    if wrong := sorted(set(files.items()) ^ set(_file_digests(path).items())):
        raise _damaged(path, f"{wrong[0][0]} is not what was written")
    return leaves


def _load(directory: Path, step: int, wanted: Wanted) -> dict[str, Any]:
    """The leaves of a step that are wanted: from the stored {path: metadata} to {path: jax.ShapeDtypeStruct}."""
    digests = _verified(directory, step)
    path = directory.absolute() / str(step)
    here = SingleDeviceSharding(jax.local_devices()[0])
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)
        for name, leaf in wanted(ocp.metadata(path).metadata).items()
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(path, placed)
    for name, leaf in loaded.items():
        if array_digest(leaf) != digests.get(name):
            raise _damaged(path, f"digest of {name} does not match")
    return loaded


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"checkpoint {path} is damaged ({what}): delete it and run again to compute it again")


def _file_digests(path: Path) -> dict[str, str]:
    """Relative path -> blake2b of the content, of every file but the digests themselves."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != DIGESTS)
    return {
        str(f.relative_to(path)): hashlib.blake2b(f.read_bytes(), digest_size=16).hexdigest() for f in files
    }


def discard_from(directory: Path, first: int) -> None:
    """Delete the checkpoints of step `first` and later: training goes on from the newest older one."""
    for step in steps(directory):
        if step >= first:
            _discard(directory / str(step))


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
        if not path.name.isdigit():
            shutil.rmtree(path)
