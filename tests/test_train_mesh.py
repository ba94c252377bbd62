"""Training on a mesh of 8 forced host devices gives the losses of one device; how arrays are split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from wane.train.mesh import make_mesh

SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np
import jax
from wane.scaling.shape import Shape
from wane.train.checkpoint import restore
from wane.train.config import Train
from wane.train.loop import train
from wane.train.mask import MaskPlan
from mask_cases import random_mask
from wane.train.mesh import make_mesh
from wane.train.placement import Placement
from wane.train.run import Run

shape = Shape(d_model=16, n_layers=2, n_heads=8, head_dim=2, d_ff=32, vocab=32, context=8,
              activation="gelu", tied_embeddings=True)
run = Run(shape=shape, train=Train(batch_size=8, lr=0.01, log_every=1, checkpoints=1), steps=4,
          init_seeds=tuple(range(8)), data_seeds=(0,) * 4 + (1,) * 4, lrs=None, keep_steps=(), packing="vmap",
          mask_from=MaskPlan(at_step=0, mask=random_mask(shape, 0.25, tuple(range(8)))))
root, losses = Path(sys.argv[1]), {}

def batches(seed, step):
    start = np.random.default_rng([seed, step]).integers(0, 32, (8, 1))
    return ((start + np.arange(9)) % 32).astype(np.int32)

def on(name, mesh):
    members = [root / name / str(r) for r in range(8)]
    train(run, batches, root / name, members, lambda point: losses.setdefault(name, []).append(point.losses), mesh)

on("one", None)
for axes in ((2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8)):
    on("x".join(map(str, axes)), make_mesh(*axes))
placed = Placement(run, make_mesh(2, 2, 2))
state = restore(root / "8x1x1" / "checkpoints", 4, placed.abstract(4))
arguments = state, placed.batch(np.stack([batches(s, 4) for s in run.data_seeds])), placed.rates()
placed.update(*arguments)(*arguments)
abstract = placed.abstract(4)
specs = {"q": str(abstract.params["blocks"]["q"].sharding.spec), "o": str(abstract.mask["o"].sharding.spec),
         "mu": str(abstract.opt_state[2].mu["embed"].sharding.spec), "step": str(abstract.step.sharding.spec),
         "norm": str(abstract.params["blocks"]["attn_norm_scale"].sharding.spec)}
errors = []
for axes, replicas, batch in (((4, 1, 1), 8, 8), ((8, 1, 1), 4, 8), ((1, 8, 1), 8, 4)):
    try:
        n = replicas
        smaller = dataclasses.replace(run, init_seeds=(0,) * n, data_seeds=(0,) * n,
                                      train=dataclasses.replace(run.train, batch_size=batch))
        Placement(smaller, make_mesh(*axes))
    except ValueError as error:
        errors.append(str(error))
(root / "result.json").write_text(json.dumps({"losses": losses, "specs": specs, "errors": errors}))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    root = tmp_path_factory.mktemp("mesh")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(root)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(Path(__file__).parent)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "result.json").read_text())


@pytest.mark.parametrize("axes", ["2x2x2", "8x1x1", "1x8x1", "1x1x8"])
def test_losses_are_those_of_one_device(result, axes):
    one = np.array(result["losses"]["one"])
    assert one.shape == (4, 8)
    assert len(set(one[0])) == 8  # eight different members
    np.testing.assert_allclose(result["losses"][axes], one, rtol=1e-5)


def test_leaves_are_split_over_seeds_and_the_model_axis(result):
    assert result["specs"] == {
        "q": str(P("seed", None, None, "model")),
        "o": str(P("seed", None, "model", None)),
        "mu": str(P("seed", "model", None)),
        "norm": str(P("seed", None, None)),
        "step": str(P("seed")),
    }


def test_meshes_that_do_not_fit_are_refused(result):
    assert result["errors"] == [
        "mesh = (4, 1, 1): must multiply to the number of devices, 8",
        "mesh.seed = 8: must divide the 4 replicas of the pack",
        "mesh.data = 8: must divide train.batch_size = 4",
    ]
    with pytest.raises(ValueError, match=rf"must multiply to the number of devices, {jax.device_count()}"):
        make_mesh(3, 5, 7)
