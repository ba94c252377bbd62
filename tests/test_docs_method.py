"""docs/adding_a_method.md: its example is a complete method."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from degrade_cases import SHAPES, tokens, trained

from wane.scaling import degrade
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import fold

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_method.md"
SHAPE = SHAPES["mha-swiglu"]


def test_the_example_is_a_method_of_15_lines(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    namespace = {}
    exec(compile(code, PAGE.name, "exec"), namespace)
    monkeypatch.setitem(degrade.METHODS, "near_mean_weights", namespace["near_mean_weights"])
    assert degrade.describe("near_mean_weights").summary.startswith("Removes the weights nearest")
    method = degrade.build("near_mean_weights", SHAPE)
    params = trained(SHAPE)
    fitted = method.fit(params, tokens(SHAPE), jax.random.key(0))
    edit = method.apply(params, fitted, jnp.float32(0.25), Where.everywhere(SHAPE), jax.random.key(0))
    for name, w in fold(params, edit, SHAPE).items():
        before, after = np.asarray(params["blocks"][name]), np.asarray(w)
        distance = np.abs(before - before.mean(axis=-2, keepdims=True))
        assert ((after == 0).sum(axis=-2) == before.shape[-2] // 4).all()
        gone = np.where(after == 0, distance, -np.inf).max(axis=-2)
        kept = np.where(after == 0, np.inf, distance).min(axis=-2)
        assert (gone < kept).all()
