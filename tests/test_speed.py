"""Smaller models timed beside the trained one: turns, energy counters, greedy requests, and the command."""

import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import random_params, random_tokens, shape_of

from wane.eval import energy, speed
from wane.eval.energy import Meter, meter, nvml, rapl
from wane.eval.smaller import in_blocks, smaller, stacked
from wane.eval.speed import Clock, Timing, alternate, compare, forward_run, request_run
from wane.eval.study import Degrade
from wane.launch import cli
from wane.launch.speed import chosen
from wane.launch.studies import load_study
from wane.scaling.edit import Edit

STUDY = str(Path(__file__).parent / "studies" / "structured.py")


def plant(root: Path, domain: str, name: str, microjoules: int, top: int = 1_000_000) -> Path:
    folder = root / domain
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", top)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_packages_are_counted_once_and_begin_again_at_zero(tmp_path):
    first = plant(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = plant(tmp_path, "intel-rapl:1", "package-1", 100_000, top=5_000_000)
    plant(tmp_path, "intel-rapl:0:0", "core", 1)
    plant(tmp_path, "intel-rapl:2", "psys", 2)
    plant(tmp_path, "intel-rapl-mmio:0", "package-0", 3)
    (tmp_path / "intel-rapl").mkdir()
    counter = rapl(tmp_path)
    before = counter.read()
    assert before == pytest.approx([0.9, 0.1])
    (first / "energy_uj").write_text("200000\n")  # over the top of a joule
    (second / "energy_uj").write_text("400000\n")
    assert counter.spent(before, counter.read()) == pytest.approx(0.3 + 0.3)


def test_a_counter_that_stood_still_tells_nothing():
    counter = Meter("made up", lambda: [], (np.inf, 10.0))
    assert counter.spent([3.0, 9.0], [4.5, 1.0]) == 3.5
    assert counter.spent([3.0, 9.0], [3.0, 9.0]) is None
    assert counter.spent([3.0, 9.0], [4.5, 9.0]) is None, "the sum would be too small"


def test_where_nothing_can_be_read_there_is_no_meter(tmp_path, monkeypatch):
    assert rapl(tmp_path / "missing") is None
    (plant(tmp_path, "intel-rapl:0", "package-0", 5) / "energy_uj").unlink()
    assert rapl(tmp_path) is None
    plant(tmp_path, "intel-rapl:0", "package-0", 5)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert meter("cpu").name == "RAPL packages"
    assert meter("tpu") is None


def boards(count: int, handles: list) -> SimpleNamespace:
    """A stand-in for pynvml: every board has spent 3 J."""
    return SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=handles.append,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 3000,
    )


def test_a_board_is_read_where_it_is_known_which_it_is(monkeypatch):
    handles = []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml() is None, "not installed"
    monkeypatch.setitem(sys.modules, "pynvml", boards(1, handles))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert meter("gpu").read() == [3.0]
    monkeypatch.setitem(sys.modules, "pynvml", boards(2, handles))
    assert nvml() is None, "CUDA may number them otherwise"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert nvml().read() == [3.0]
    assert handles == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8ac3")
    assert nvml() is None, "a name, not a number"


class Machine:
    """A machine with a clock of its own: a run takes so many seconds and two joules per second."""

    def __init__(self, **seconds: float):
        self.now, self.order = 0.0, []
        self.runs = {name: functools.partial(self.run, name, s) for name, s in seconds.items()}
        self.meter = Meter("made up", lambda: [2 * self.now], (np.inf,))

    def run(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.order.append(name)

    def clock(self) -> float:
        return self.now


def test_runs_take_turns_of_equal_length_in_an_order_that_rotates():
    machine = Machine(slow=4.0, fast=1.0)
    found = alternate(machine.runs, rounds=2, seconds=8.0, meter=machine.meter, clock=machine.clock)
    assert machine.order[:2] == ["slow", "fast"]  # compiles
    assert machine.order[2:4] == ["slow", "fast"]  # counts
    assert machine.order[4:] == ["slow"] * 2 + ["fast"] * 8 + ["fast"] * 8 + ["slow"] * 2
    assert found == {"slow": [(4.0, 8.0)] * 2, "fast": [(1.0, 2.0)] * 2}


def test_what_is_told_of_a_pair():
    machine = Machine(dense=4.0, small=1.0)
    runs = machine.runs["dense"], machine.runs["small"]
    turns = {"rounds": 3, "seconds": 1.0, "clock": machine.clock}
    told = compare(*runs, 64, meter=machine.meter, **turns)
    assert told["speed_up"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert told["small"]["tokens_per_second"]["median"] == 64
    assert told["dense"]["seconds"]["median"] == 4
    assert told["dense"]["joules_per_token"]["median"] == 8 / 64
    assert compare(*runs, 64, **turns)["dense"]["joules_per_token"] is None


def test_where_a_turn_is_missed_no_joules_are_told():
    """A board that counts up every 10 seconds: turns of 4 and of 1 see nothing, or too much."""
    machine = Machine(dense=4.0, small=1.0)
    runs = machine.runs["dense"], machine.runs["small"]
    for every, told in ((10, False), (1, True)):
        slow = Meter("slow", lambda every=every: [2.0 * every * (machine.now // every)], (np.inf,))
        found = compare(*runs, 64, meter=slow, rounds=3, seconds=1.0, clock=machine.clock)
        assert (found["dense"]["joules_per_token"] is not None) == told
        assert (found["small"]["joules_per_token"] is not None) == told
        assert found["speed_up"]["median"] == 4


def test_quartiles_are_of_the_rounds():
    machine = Machine(small=1.0)
    durations = iter([9.0, 9.0, *range(1, 6)])
    machine.runs["dense"] = lambda: machine.run("dense", next(durations))
    told = compare(
        machine.runs["dense"], machine.runs["small"], 1, rounds=5, seconds=1e-9, clock=machine.clock
    )
    assert told["dense"]["seconds"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert told["speed_up"] == {"median": 3.0, "low": 2.0, "high": 4.0}


def halved(shape) -> Edit:
    return Edit(neuron_LF=jnp.ones((shape.n_layers, shape.d_ff)).at[:, ::2].set(0))


def rotated(shape, kept=(9, 12, 16, 11, 7, 16, 13)) -> Edit:
    """SliceGPT's form: another subspace at every place."""
    rng, maps = np.random.default_rng(3), []
    for k in kept:
        q_DK = np.linalg.qr(rng.standard_normal((shape.d_model, k)))[0]
        maps.append(q_DK @ q_DK.T if k < shape.d_model else np.eye(shape.d_model))
    return Edit(residual_map=jnp.asarray(np.stack(maps), jnp.float32))


@pytest.mark.parametrize("edit_of", [None, halved, rotated])
def test_a_request_is_answered_greedily_as_whole_forwards_would(edit_of):
    shape = shape_of("grouped queries")
    params = random_params(shape)
    model = stacked(params, shape) if edit_of is None else smaller(params, edit_of(shape), shape)[0]
    prompt_BS = random_tokens(shape, batch=3)[:, :4]
    said_NB = request_run(model, prompt_BS, 5)()
    whole_BS = np.concatenate([prompt_BS, said_NB.T], axis=1)
    logits_BSV = np.asarray(forward_run(model, jnp.asarray(whole_BS))())
    np.testing.assert_array_equal(whole_BS[:, 4:], logits_BSV[:, 3:-1].argmax(-1))


def test_the_smaller_model_is_the_masked_one_with_fewer_parameters():
    shape = shape_of("llama")
    params, timing = random_params(shape), Timing(batches=(2,))
    clock = Clock(params, shape, timing, None)
    model, dimensions = smaller(params, halved(shape), shape)
    assert dimensions == {
        "d_model": 16, "n_layers": 3, "n_heads": 4, "kv_heads": 4, "d_ff": 10, "n_experts": None,
    }  # fmt: skip
    assert clock.dense.parameters - model.parameters == 3 * 10 * 16 * 3
    assert clock.difference(model, halved(shape)) < 1e-5
    with pytest.raises(ValueError, match="logits differ by .* not timed"):
        clock.difference(model, Edit())
    turned, dimensions = smaller(params, rotated(shape), shape)
    assert dimensions == {"d_model": [9, 12, 16, 11, 7, 16, 13]}
    assert clock.difference(turned, rotated(shape)) < 1e-4


def test_a_model_is_timed_against_the_trained_one_in_its_own_form(monkeypatch):
    shape, compared = shape_of("llama"), []
    params, timing = random_params(shape), Timing(batches=(1,))
    clock = Clock(params, shape, timing, None)

    def stand_in(dense, small, tokens, **turns):
        compared.append(dense)
        return {}

    monkeypatch.setattr(speed, "compare", stand_in)
    clock.time(smaller(params, halved(shape), shape)[0])
    clock.time(smaller(params, rotated(shape), shape)[0])
    scan, blocks = (np.asarray(compared[i]()) for i in (0, 2))  # forwards; requests stand between
    np.testing.assert_allclose(blocks, scan, atol=1e-4)
    leaves = [len(jax.tree.leaves(in_blocks(params, shape, e).weights)) for e in (None, rotated(shape))]
    assert leaves[0] < leaves[1], "the trained one has no shortcuts"
    assert (blocks != scan).any(), "another program"


def test_models_of_one_size_are_timed_once():
    shape = shape_of("llama")
    params = random_params(shape)
    clock = Clock(params, shape, Timing(batches=(1,), rounds=1, seconds=1e-6), None)
    other = Edit(neuron_LF=jnp.ones((3, 20)).at[:, :10].set(0))
    one, two = (clock.time(smaller(params, edit, shape)[0]) for edit in (halved(shape), other))
    assert one is two
    assert set(one) == {"forward", "request"}
    assert (one["forward"][0]["batch"], one["forward"][0]["tokens"]) == (1, shape.context)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batches": ()}, "--batches"),
        ({"batches": (0,)}, "--batches"),
        ({"rounds": 0}, "--rounds"),
        ({"seconds": 0.0}, "--seconds"),
    ],
)
def test_a_timing_that_cannot_be_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        Timing(**fields)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("structured") / "study"
    assert cli.main(["train", STUDY, "--out", str(out)]) == 0
    return out


QUICKLY = ["--rounds", "1", "--seconds", "0.001", "--batches", "2"]


def test_the_command_times_what_shrinks_and_says_why_of_the_rest(trained, capsys):
    assert cli.main(["speed", str(trained), *QUICKLY]) == 0
    assert "remove_layers 0.5: " in capsys.readouterr().out
    record = json.loads((trained / "speed.json").read_text())
    points = {(p["method"], p["setting"]): p for p in record["points"]}
    layers = ("remove_layers", 0.2), ("remove_layers", 0.5), ("remove_layers", 0.7)
    assert set(points) == {*layers, ("slicegpt", 0.5)}
    assert "nothing shrinks" in points[layers[0]]["reason"]
    assert "forward" not in points[layers[0]]
    half = points[layers[1]]
    assert half["dimensions"]["n_layers"] == 2
    assert points[layers[2]]["forward"] == half["forward"], "both take two layers"
    assert half["settings"] == '{"order":"last"}'
    assert half["forward"][0]["speed_up"]["median"] > 0
    assert half["request"][0]["batch"] == 2
    assert half["logit_difference"] < 1e-4
    assert points["slicegpt", 0.5]["dimensions"]["d_model"] == [4] * 8 + [8]
    assert points["slicegpt", 0.5]["forward"] != half["forward"]
    assert points["slicegpt", 0.5]["calibration"] == "same"
    assert record["device"]
    assert record["timing"]["batches"] == [2]


def test_a_degradation_without_severities_is_timed_at_a_quarter_and_a_half():
    study = load_study(STUDY)
    assert [d.severities for d in chosen(study, ["slicegpt"], ())] == [(0.5,)]
    bare = dataclasses.replace(study, degradations=(Degrade(method="slicegpt"),))
    assert [d.severities for d in chosen(bare, (), ())] == [(0.25,), (0.5,)]
    assert [d.severities for d in chosen(bare, (), (0.3,))] == [(0.3,)]
    unstructured = dataclasses.replace(study, degradations=(Degrade(method="wanda"),))
    with pytest.raises(ValueError, match="study structured: no degradation takes whole"):
        chosen(unstructured, (), ())


def test_options_choose_methods_and_severities(trained):
    assert cli.main(["speed", str(trained), *QUICKLY, "--method", "remove_layers", "--severity", "0.5"]) == 0
    record = json.loads((trained / "speed.json").read_text())
    assert [(p["method"], p["setting"]) for p in record["points"]] == [("remove_layers", 0.5)]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--method", "rtn"], ["--method = rtn", "study structured, which has remove_layers, slicegpt"]),
        (["--severity", "1.5"], ["--severity = 1.5", "between 0 and 1"]),
        (["--rounds", "0"], ["--rounds = 0"]),
    ],
)  # fmt: skip
def test_what_cannot_be_timed_is_one_line(trained, capsys, argv, words):
    assert cli.main(["speed", str(trained), *argv]) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    for word in words:
        assert word in printed


def test_a_directory_without_a_study_or_a_member_is_one_line(trained, tmp_path, capsys):
    assert cli.main(["speed", str(tmp_path)]) == 2
    assert "no study.json" in capsys.readouterr().err
    shutil.copy(trained / "study.json", tmp_path)
    assert cli.main(["speed", str(tmp_path)]) == 2
    assert "no member is trained to its end" in capsys.readouterr().err
