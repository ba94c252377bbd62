"""Names by content, and golden numbers: when one of them moves, the version of its stage must be raised."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from degrade_cases import AS_USUAL, complete, logits_of

from wane.eval.cell import sweep
from wane.eval.metrics import METRICS
from wane.eval.study import Degrade, Evaluation
from wane.eval.subject import Member, Splits, Subject
from wane.scaling.degrade import GROUPS, METHODS, build
from wane.scaling.degrade.contract import Where
from wane.scaling.edit import fold
from wane.scaling.identity import VERSIONS, array_digest, digest_of, tree_digest
from wane.scaling.model import init_params
from wane.scaling.shape import Shape
from wane.train.config import Train
from wane.train.data import Data, open_data
from wane.train.step import init_state, train_step

# Of these a number that lies between two codes, or a choice between two scales as good, falls otherwise where
# products are summed in another order: processors with AVX2 and with AVX-512 differ by 1.4e-3.
ROUGH = ("activations", "awq")
GOLDEN = Path(__file__).parent / "golden" / "identity.json"
SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=24, vocab=512, context=64)


def stream():
    return open_data(Data(sources="graded", context=64, facts=16), steps=3, batch_size=4)


def data_numbers():
    opened = stream()
    arrays = [opened.batch(5, step) for step in range(2)]
    arrays += [opened.evaluation(2, 1).tokens_NT, opened.calibration(3, 1)]
    return [array_digest(np.asarray(a, np.int32)) for a in arrays]


def train_numbers():
    opened, train = stream(), Train(tokens=768, tokens_per_param=None, batch_size=4)
    state, losses = init_state(jax.random.key(3), SHAPE, train), []
    step = jax.jit(lambda s, t: train_step(s, t, 0.01, shape=SHAPE, train=train, steps=3))
    for i in range(3):
        state, metrics = step(state, opened.batch(5, i))
        losses += [float(metrics["loss"]), float(metrics["grad_norm"])]
    return [
        *losses,
        float(np.abs(state.params["blocks"]["q"]).sum()),
        float(np.abs(state.params["embed"]).sum()),
    ]


def method_numbers():
    tokens, numbers = jnp.asarray(stream().calibration(2, 0)), {}
    for name in METHODS:
        shape = dataclasses.replace(SHAPE, n_experts=2) if name in GROUPS["Routing"] else SHAPE
        init = jax.jit(init_params, static_argnums=1, **AS_USUAL)  # roundings have ties
        params, method = init(jax.random.key(3), shape), build(name, shape)
        severity = {"bits": 1 - 4 / 16, "ratio": 1 - 1 / 4}.get(method.unit, 0.5)

        @functools.partial(jax.jit, **AS_USUAL)
        def run(params, shape=shape, method=method, severity=severity):
            fitted = method.fit(params, tokens, jax.random.key(1))
            edit = method.apply(
                params, fitted, jnp.float32(severity), Where.everywhere(shape), jax.random.key(2)
            )
            return fold(params, edit, shape), edit

        after, edit = run(params)
        filled = complete(params, edit, shape)  # so that one program runs all methods
        logits = logits_of(params, filled, tokens, shape)
        numbers[name] = [*(float(np.abs(w).sum()) for w in after.values()), float(np.abs(logits).sum())]
    return numbers


def metric_numbers():
    """Metric -> sum of the absolute values of all its rows, of one point of a model of random weights."""
    shape = dataclasses.replace(SHAPE, vocab=512)
    data = Data(sources="graded", context=32, facts=16, task_shares={"L1": 1, "L2": 1, "S": 1})
    stream = open_data(data, steps=4, batch_size=4)
    splits = Splits(
        evaluation=stream.evaluation(2, 0), calibrations={"same": stream.calibration(4, 0)}, stream=stream
    )
    member = Member(
        id="m", study="s", arm="", shape=shape, init_seed=0, data_seed=0, step=1, tokens=1, packing=1,
        checkpoint_digest="x",
    )  # fmt: skip
    params = jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(0), shape))
    subject = Subject(member, params, splits, Evaluation(metrics=tuple(METRICS)))
    degrade = Degrade(method="random_weights", severities=(0.5,))
    rows, _ = sweep(subject, degrade, range(1), "cell", 1, lambda n: None)
    numbers = dict.fromkeys(METRICS, 0.0)
    for row in rows:
        numbers[row["metric"]] += abs(row["value"] or 0) * (row["severity"] > 0)
    return numbers


NUMBERS = {"data": data_numbers, "train": train_numbers, "method": method_numbers, "metric": metric_numbers}


@pytest.mark.parametrize("stage", sorted(VERSIONS))
def test_numbers_move_only_with_the_version(stage):
    """To raise: change VERSIONS, then `python tests/test_identity.py` writes the new golden numbers."""
    golden = json.loads(GOLDEN.read_text())[f"{stage}{VERSIONS[stage]}"]
    now = json.loads(json.dumps(NUMBERS[stage]()))
    assert jax.tree.structure(golden) == jax.tree.structure(now), f"{stage}: raise its version"
    pairs = zip(jax.tree.leaves_with_path(golden), jax.tree.leaves(now), strict=True)
    for (path, before), after in pairs:
        rtol = 3e-3 if any(getattr(part, "key", None) in ROUGH for part in path) else 2e-4
        same = before == after if isinstance(before, str) else np.isclose(before, after, rtol=rtol, atol=1e-5)
        assert same, (
            f"{stage} computes {after} where version {VERSIONS[stage]} computed {before}: raise its version"
        )


def test_digests_name_content():
    a = {"x": np.arange(6, dtype=np.float32), "y": {"z": np.int32(3)}}
    assert tree_digest(a) == tree_digest({"y": {"z": np.int32(3)}, "x": np.arange(6, dtype=np.float32)})
    assert tree_digest(a) != tree_digest({**a, "x": np.arange(6, dtype=np.float64)})
    assert tree_digest(a) != tree_digest({**a, "x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    flipped = a["x"].copy()
    flipped.view(np.uint8)[5] ^= 1
    assert tree_digest(a) != tree_digest({**a, "x": flipped})
    assert tree_digest(a) != tree_digest({"w": a["x"], "y": a["y"]})
    assert array_digest(np.zeros((2, 3)).T) == array_digest(np.zeros((3, 2)))
    assert digest_of({"a": 1, "b": (1, 2)}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})


if __name__ == "__main__":
    numbers = {f"{stage}{VERSIONS[stage]}": compute() for stage, compute in NUMBERS.items()}
    GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")
