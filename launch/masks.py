"""The mask that a method makes of a trained member, as a file."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from wane.eval.degrade import Degrade
from wane.launch.members import trained_member
from wane.scaling.degrade.contract import severity_of
from wane.scaling.degrade.given_mask import write_mask
from wane.train.mask import degradation_mask


def export_mask(
    directory: Path, member: str, degrade: Degrade, draw: int, out: Path, console: Console
) -> None:
    """Write what `degrade` at its one severity keeps of the trained weights of a member.

    member: its id, or the beginning of it.  Raises ValueError when no member or several begin so, or when the
    method rounds instead of removing.
    """
    found = trained_member(directory, member)
    method = degrade.built(found.shape)
    if method.unit != "fraction":
        raise ValueError(f"--method = {degrade.method}: must be a method that removes weights")
    (setting,) = degrade.severities
    sequences, keys_R = jnp.asarray(found.calibration(degrade)), found.key(degrade, draw)[None]
    make = degradation_mask(method, found.shape, sequences, severity_of(setting, method.unit), keys_R)
    mask = jax.tree.map(np.asarray, jax.jit(make)(found.params, jnp.int32(0)))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mask(out, mask)
    kept, total = (sum(f(keep) for keep in mask.values()) for f in (np.sum, np.size))
    console.print(f"{out}: keeps {kept:,} of {total:,} weights of {found.id}", highlight=False)
