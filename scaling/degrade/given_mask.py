"""A mask from a file: what some method removed, given to another model or back to training."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from wane.scaling.degrade.contract import EVERYTHING, FRACTIONS, Degradation, Promises, Scope, Where
from wane.scaling.degrade.cost import CostOf, MaskedBits
from wane.scaling.degrade.hold import hold_zeros
from wane.scaling.degrade.rank import count
from wane.scaling.degrade.weights import rank_weights
from wane.scaling.edit import Edit, Params
from wane.scaling.identity import tree_digest
from wane.scaling.shape import Shape


def given_mask(shape: Shape, scope: Scope = EVERYTHING, *, file: str = "") -> Degradation:
    """Removes the weights that a mask file removes: severity 1 is the file's mask.

    Severity s removes floor(s n) of the n weights that the mask removes inside the scope, those of smallest
    absolute value first.  file: as `wane mask` and `write_mask` write it, an .npz of booleans per matrix, True =
    kept; "" removes nothing.  Raises ValueError or FileNotFoundError in one line when it does not fit the shape.
    """
    scope.check(shape)
    in_scope = scope.weights(shape)
    mask = read_mask(file, shape) if file else {}
    removed = {
        name: inside & ~mask[name] if name in mask else np.zeros(shape.full(name), bool)
        for name, inside in in_scope.items()
    }
    n = np.int32(sum(gone.sum() for gone in removed.values()))

    def fit(params: Params, calibration_NT: Array, key: Array) -> dict[str, Array]:
        return rank_weights({name: jnp.abs(params["blocks"][name]) for name in removed}, removed, "global")

    def apply(params: Params, fitted: Any, severity: Array, where: Where, key: Array) -> Edit:
        degraded = {}
        for name, gone in removed.items():
            zero = gone & where.entries(name, shape) & (fitted[name] < count(n, severity))
            degraded[name] = jnp.where(zero, 0, params["blocks"][name])
        return Edit(params={"blocks": degraded})

    return Degradation(
        name="given_mask",
        scope=scope,
        settings={"file": f"{Path(file).name}#{tree_digest(mask)[:8]}" if file else ""},
        unit="fraction",
        severities=FRACTIONS,
        random=False,
        promises=Promises(nested=True),
        fit=fit,
        apply=apply,
        hold=functools.partial(hold_zeros, shape=shape),
        cost=CostOf(shape, MaskedBits(shape, scope)),
    )


def write_mask(path: str | Path, mask: Mapping[str, Array]) -> None:
    """Write matrix name -> bool (True = kept) as an .npz file."""
    np.savez_compressed(path, **{name: np.asarray(keep, bool) for name, keep in mask.items()})


def read_mask(path: str | Path, shape: Shape) -> dict[str, np.ndarray]:
    """What `write_mask` wrote.  Raises ValueError naming the file and the matrix that does not fit the shape."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mask = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"given_mask.file = {path}: no such file; `wane mask` writes one") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"given_mask.file = {path}: not an .npz of masks ({error})") from None
    for name, keep in mask.items():
        expected = shape.full(name) if name in shape.matrices else None
        if keep.shape != expected or keep.dtype != bool:
            needs = (
                f"must be bool {list(expected)}"
                if expected
                else f"{shape.name} has {', '.join(shape.matrices)}"
            )
            raise ValueError(
                f"given_mask.file = {path}: {name} is {keep.dtype} {list(keep.shape)}; {needs}; give a mask of "
                "this shape"
            )
    return mask
