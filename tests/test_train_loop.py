"""The loop: interrupted and resumed runs end with the same bits, and what it leaves behind says what happened."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from mask_cases import random_mask
from tensorboardX.proto.event_pb2 import Event

from wane.scaling.identity import tree_digest
from wane.scaling.shape import Shape
from wane.train import checkpoint
from wane.train.config import Train
from wane.train.journal import read_outcome
from wane.train.loop import train
from wane.train.mask import MaskPlan
from wane.train.prefetch import prefetched
from wane.train.run import Run, Start

SHAPE = Shape(
    d_model=8, n_layers=2, n_heads=1, head_dim=8, d_ff=8, vocab=16, context=6,
    activation="gelu", norm="none", tied_embeddings=True,
)  # fmt: skip
TRAIN = Train(batch_size=2, lr=0.01, log_every=4, checkpoints=4)
RUN = Run(
    shape=SHAPE, train=TRAIN, steps=20, init_seeds=(3,), data_seeds=(0,), lrs=None, keep_steps=(0, 7), packing="map"
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs are compiled once for all tests and subprocesses; cached ones have the same bits."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    directory = str(tmp_path_factory.mktemp("xla"))
    jax.config.update(names[0], directory)
    jax.config.update(names[1], 0)
    yield directory
    for name, value in before.items():
        jax.config.update(name, value)


def batches(data_seed, step):
    start = np.random.default_rng([data_seed, step]).integers(0, 16, (2, 1))
    return ((start + np.arange(7)) % 16).astype(np.int32)


def quiet(point):
    pass


def member(run, directory, batches=batches, report=quiet):
    return train(run, batches, directory, (directory,), report)[0]


def rows(directory):
    return [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]


def timeless(directory):
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows(directory)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compilation_cache):
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, member(RUN, directory)


def test_a_run_leaves_logs_checkpoints_and_its_outcome(whole):
    directory, outcome = whole
    assert outcome.status == "ok"
    assert outcome.step == 20
    assert outcome == read_outcome(directory)
    assert outcome.digest == tree_digest(checkpoint.load_params(directory / "checkpoints", 20, 0))
    assert checkpoint.steps(directory / "checkpoints") == [0, 7, 15, 20]
    log = rows(directory)
    assert [row["step"] for row in log] == [4, 5, 7, 8, 10, 12, 15, 16, 20]
    assert [row["tokens"] for row in log] == [12 * row["step"] for row in log]
    assert set(log[0]) == {"step", "tokens", "loss", "grad_norm", "lr", "tokens_per_s"}
    assert log[-1]["lr"] == pytest.approx(0.001)
    assert log[-1]["loss"] < log[0]["loss"]


def test_tensorboard_files_hold_the_same_scalars(whole):
    directory, _ = whole
    found = {}
    for path in (directory / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # a record: length u64, its crc u32, the event, its crc u32
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + length :]
    for row in rows(directory):
        for name in ("loss", "grad_norm", "lr"):
            assert found[name, row["step"]] == pytest.approx(row[name])


def test_logged_loss_is_the_mean_since_the_last_log_point(whole, tmp_path):
    directory, _ = whole
    every = dataclasses.replace(RUN, train=dataclasses.replace(TRAIN, log_every=1))
    member(every, tmp_path)
    loss = {row["step"]: row["loss"] for row in rows(tmp_path)}
    log = {row["step"]: row["loss"] for row in rows(directory)}
    assert log[4] == pytest.approx(np.mean([loss[s] for s in (1, 2, 3, 4)]), rel=1e-6)
    assert log[7] == pytest.approx(np.mean([loss[s] for s in (6, 7)]), rel=1e-6)


def test_a_finished_run_returns_without_work(whole):
    directory, outcome = whole

    def no_batches(data_seed, step):
        raise AssertionError("no work is left")

    assert member(RUN, directory, batches=no_batches) == outcome


@pytest.mark.parametrize("failing", [3, 9, 13, 19])
def test_an_interrupted_run_ends_with_the_same_bits(whole, tmp_path, failing):
    directory, outcome = whole

    def interrupted(data_seed, step):
        if step == failing:
            raise KeyboardInterrupt
        return batches(data_seed, step)

    with pytest.raises(KeyboardInterrupt):
        member(RUN, tmp_path, batches=interrupted)
    assert read_outcome(tmp_path) is None
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"step": 2')  # killed in mid-line
    steps = []
    assert member(RUN, tmp_path, report=lambda p: steps.append(p.step)) == outcome
    assert steps[0] > max(s for s in (0, 5, 7, 10, 15) if s <= failing)
    assert timeless(tmp_path) == timeless(directory)


def test_a_damaged_checkpoint_is_computed_again(whole, tmp_path):
    _, outcome = whole
    member(RUN, tmp_path)
    (tmp_path / "status.json").unlink()
    digests = tmp_path / "checkpoints" / "20" / checkpoint.DIGESTS
    digests.write_text(digests.read_text().replace("a", "b"))
    assert member(RUN, tmp_path) == outcome
    assert checkpoint.steps(tmp_path / "checkpoints") == [0, 7, 15, 20]
    assert outcome.digest == tree_digest(checkpoint.load_params(tmp_path / "checkpoints", 20, 0))


def test_a_run_killed_in_mid_save_ends_with_the_same_bits(tmp_path, compilation_cache):
    """SIGKILL at random moments of a run that saves after every step, in a process of its own."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, dataclasses\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        + textwrap.dedent("""
            import test_train_loop as t
            run = dataclasses.replace(t.RUN, train=dataclasses.replace(t.TRAIN, checkpoints=20))
            t.member(run, Path(sys.argv[1]), report=lambda p: print(p.step, flush=True))
        """)
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": compilation_cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(script), str(tmp_path / "m")]
    for seed in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert read_outcome(tmp_path / "m") is None
    assert max(checkpoint.steps(tmp_path / "m" / "checkpoints")) >= 4
    for name in ("m", "whole"):
        subprocess.run(
            [*command[:2], str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL, env=environment
        )
    assert read_outcome(tmp_path / "m") == read_outcome(tmp_path / "whole") is not None


def test_divergence_is_recorded_and_the_others_go_on(tmp_path):
    run = dataclasses.replace(RUN, init_seeds=(3, 3), data_seeds=(0, 0), lrs=(0.01, 1e30))
    members = (tmp_path / "a", tmp_path / "b")
    good, bad = train(run, batches, tmp_path, members, quiet)
    assert (good.status, good.step) == ("ok", 20)
    assert (bad.status, bad.step) == ("diverged", 4)
    assert "loss nan, gradient norm nan at learning rate 9.4" in bad.reason
    assert json.loads((members[1] / "status.json").read_text())["status"] == "diverged"
    assert rows(members[1])[0]["loss"] is None
    assert train(run, batches, tmp_path, members, quiet) == (good, bad)

    steps = []
    alone = dataclasses.replace(RUN, lrs=(1e30,))
    outcome = member(alone, tmp_path / "alone", report=lambda p: steps.append(p.step))
    assert (outcome.status, outcome.step) == ("diverged", 4)
    assert steps == [4]
    assert member(alone, tmp_path / "alone", batches=None) == outcome


def test_a_replica_without_directory_only_fills_the_pack(whole, tmp_path):
    directory, outcome = whole
    run = dataclasses.replace(RUN, init_seeds=(3, 3), data_seeds=(0, 0))
    filled = train(run, batches, tmp_path, (tmp_path / "a", None), quiet)
    assert filled == (outcome, None)
    assert timeless(tmp_path / "a") == timeless(directory)


@pytest.fixture(scope="module")
def mask_digests():
    """Interrupted at -> digest at the end."""
    return {}


@pytest.mark.parametrize("failing", [None, 4, 12])
def test_a_mask_from_a_later_step_survives_interruption(tmp_path, failing, mask_digests):
    """at_step 6: weights are whole at 6, removed at 7 and at the end; an interruption on either side of it
    changes nothing."""
    plan = MaskPlan(at_step=6, mask=random_mask(SHAPE, 0.5, (0,)))
    run = dataclasses.replace(RUN, mask_from=plan, keep_steps=(0, 6, 7))

    def interrupted(data_seed, step):
        if step == failing:
            raise KeyboardInterrupt
        return batches(data_seed, step)

    if failing is not None:
        with pytest.raises(KeyboardInterrupt):
            member(run, tmp_path, batches=interrupted)
    mask_digests[failing] = member(run, tmp_path).digest
    zeros = {
        step: (
            np.asarray(checkpoint.load_params(tmp_path / "checkpoints", step, 0)["blocks"]["q"]) == 0
        ).mean()
        for step in (6, 7, 20)
    }
    assert zeros == {6: 0.0, 7: 0.5, 20: 0.5}
    assert len(set(mask_digests.values())) == 1


def test_rewinding_starts_from_a_stored_state(whole, tmp_path):
    """The rest of a run from its own step 7 is the run; under a mask it is another one, zero where removed."""
    directory, outcome = whole
    start = (Start(checkpoints=directory / "checkpoints", step=7, replica=0),)
    run = dataclasses.replace(RUN, start_from=start, keep_steps=(7,))
    assert member(run, tmp_path / "again") == outcome
    assert [row["step"] for row in rows(tmp_path / "again")] == [8, 10, 12, 15, 16, 20]
    plan = MaskPlan(at_step=0, mask=random_mask(SHAPE, 0.5, (0,)))
    ticket = dataclasses.replace(run, mask_from=plan)
    assert member(ticket, tmp_path / "ticket").digest != outcome.digest
    params = checkpoint.load_params(tmp_path / "ticket" / "checkpoints", 20, 0)
    assert (np.asarray(params["blocks"]["down"]) == 0).mean() == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_seeds": (0, 1)}, "run.data_seeds has 2 entries: needs one per init seed, 1"),
        ({"lrs": (0.1, 0.2)}, "run.lrs has 2 entries"),
        ({"steps": 0}, "run.steps = 0"),
        ({"keep_steps": (30,)}, "run.keep_steps has 30: must be between 0 and steps = 20"),
    ],
)
def test_run_errors_name_the_field(fields, message):
    with pytest.raises(ValueError, match="run") as error:
        dataclasses.replace(RUN, **fields)
    assert message in str(error.value)


def test_batches_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(1, 2, 6\): must be \(1, 2, 7\)"):
        member(RUN, tmp_path, batches=lambda seed, step: batches(seed, step)[:, :-1])
    with pytest.raises(ValueError, match=r"tokens up to 115: must be below shape.vocab = 16"):
        member(
            RUN, tmp_path, batches=lambda seed, step: 100 + np.arange(14).reshape(2, 7).astype(np.int32) + 2
        )
    with pytest.raises(ValueError, match="members has 2 directories: needs one per replica, 1"):
        train(RUN, batches, tmp_path, (tmp_path, tmp_path), quiet)


def test_batches_are_made_ahead_in_order():
    made = []
    ahead = prefetched(lambda step: made.append(step) or step * 10, 3, 7, depth=2)
    assert next(ahead) == (3, 30)
    time.sleep(0.05)
    assert made == [3, 4, 5]
    assert list(ahead) == [(4, 40), (5, 50), (6, 60)]
