"""`wane bench`: turns, peers, the arithmetic of ratios and of learning rates; PyTorch's model against wane's."""

import dataclasses
import io
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from wane.configs.quickstart import STUDY
from wane.eval.metrics import INSTRUMENTS, METRICS
from wane.eval.study import Degrade, Evaluation
from wane.launch.bench import instruments
from wane.launch.bench import run as bench
from wane.launch.bench import setting as settings
from wane.launch.bench.fewer import bracket
from wane.launch.bench.parametrization import optimum
from wane.launch.bench.peers import Peer
from wane.launch.bench.setting import Setting
from wane.launch.bench.timing import alternate, ratios, spread
from wane.launch.bench.wane_work import shape_of
from wane.scaling.family import exact_ladder
from wane.scaling.model import apply, init_params, nll, unembed
from wane.train.config import Train
from wane.train.data import Data

TINY = {"d_model": 16, "n_layers": 2, "n_heads": 2, "head_dim": 8, "d_ff": 32, "vocab": 32, "context": 16}
SMALL_MEMBER = dataclasses.replace(
    STUDY, family=exact_ladder(16, depths=(1,), head_dim=8), seeds=(0,),
    data=Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0}),
    train=Train(tokens=4096, tokens_per_param=None, batch_size=8),
    degradations=(Degrade(method="random_weights", severities=tuple(i / 16 for i in range(1, 17))),),
    evaluation=Evaluation(sequences=8, batch=4, metrics=("loss",)),
)  # fmt: skip
LRS = [0.001 * 2.0**i for i in range(7)]


@pytest.mark.parametrize("best", [0.0021, 0.004, 0.0113, 0.02])
def test_the_optimum_of_a_parabola_in_log_lr_is_found(best):
    losses = [3 + 0.2 * math.log2(lr / best) ** 2 for lr in LRS]
    assert optimum(LRS, losses) == pytest.approx(best)


def test_rates_that_diverged_do_not_count():
    losses = [3.0, 2.5, 2.0, 2.5, math.nan, math.inf, math.nan]
    assert optimum(LRS, losses) == pytest.approx(LRS[2])
    assert optimum(LRS, [3.0, 2.5, 2.0, math.nan, math.nan, math.nan, math.nan]) == LRS[2]


def test_an_optimum_at_the_end_of_the_grid_is_not_extrapolated():
    assert optimum(LRS, list(np.arange(7.0))) == LRS[0]
    assert optimum(LRS, list(-np.arange(7.0))) == LRS[-1]


def test_work_takes_turns_in_rotating_order():
    calls = []

    def work(name, seconds):
        def timed(repetitions):
            calls.append((name, repetitions))
            return seconds * repetitions

        return timed

    found = alternate({"a": work("a", 0.1), "b": work("b", 0.5)}, rounds=3, seconds=1.0)
    assert calls[:4] == [("a", 1), ("b", 1), ("a", 1), ("b", 1)], "two runs that do not count"
    assert calls[4:] == [("a", 10), ("b", 2), ("b", 2), ("a", 10), ("a", 10), ("b", 2)]
    assert found["a"] == pytest.approx([0.1] * 3)
    assert ratios(found, "a", "b") == pytest.approx([5.0] * 3), "a is five times as fast"


def test_a_spread_is_the_median_and_the_range():
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert str(spread([3.0, 1.0, 2.0])) == "2 [1, 3]"


def test_a_peer_works_in_a_process_of_its_own():
    with Peer("bench_works:sleeping", seconds=0.05) as peer:
        assert peer.facts["pid"] != os.getpid()
        assert 0.15 <= peer.timed("sleep")(3) < 1.0
        assert peer.peak_memory() > 2**20
    assert not peer._process.is_alive()


def test_a_peer_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        Peer("bench_works:failing")
    with Peer("bench_works:dying") as peer, pytest.raises(RuntimeError, match="exit code 3"):
        peer.timed("end")(1)


@pytest.fixture
def tiny(monkeypatch):
    """A setting in which everything takes a moment; (setting, what it printed)."""
    monkeypatch.setitem(settings.SHAPES, "D16-L2", TINY)
    monkeypatch.setattr(settings, "SIDE", 64)
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    return Setting(console=console, shapes=("D16-L2",), batch=4, sequences=8, rounds=2, seconds=0.01), printed


def test_training_is_measured_against_the_ceiling_and_a_pack_by_the_tokens_of_all_its_members(tiny, tmp_path):
    setting, printed = tiny
    setting = dataclasses.replace(setting, pack=3)
    bench.run("train", setting, "quickstart", (), tmp_path, tmp_path / "deep" / "numbers.json")
    numbers = json.loads((tmp_path / "deep" / "numbers.json").read_text())
    row, packed = numbers["training"]
    assert row["flops"] == 4 * 16 * shape_of(TINY, "float32").flops_per_token(backward=True)
    for seconds, tokens, share, rate in zip(
        row["seconds"], row["tokens_per_second"], row["share_of_ceiling"], row["ceiling_flops_per_second"],
        strict=True,
    ):  # fmt: skip
        assert tokens == pytest.approx(4 * 16 / seconds)
        assert share == pytest.approx(row["flops"] / seconds / rate)
    assert all(0 <= share < np.inf for share in row["waiting_for_data"])  # a step takes a millisecond here
    assert numbers["about"]["environment"]["jax_version"] == jax.__version__
    assert "D16-L2" in printed.getvalue()
    assert "[least, largest]" in printed.getvalue()
    assert packed["peer"] == "wane, 3 packed"
    assert packed["flops"] == 3 * row["flops"]
    for i, seconds in enumerate(packed["seconds"]):
        assert packed["tokens_per_second"][i] == pytest.approx(3 * 4 * 16 / seconds)
        faster = packed["tokens_per_second"][i] / row["tokens_per_second"][i]
        assert packed["wane_is_faster_by"][i] == pytest.approx(faster)


def test_sweeps_are_measured_against_their_floors(tiny, tmp_path, monkeypatch):
    setting, printed = tiny
    monkeypatch.setattr(bench.fewer, "MEMBER", SMALL_MEMBER)
    monkeypatch.setattr(bench.sweeping, "METHODS", ("random_weights", "rtn"))
    bench.run("sweep", setting, "quickstart", (), tmp_path, tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert {row["method"] for row in numbers["sweep"]} == set(bench.sweeping.METHODS)
    assert all(len(row["seconds"]["wane"]) == bench.sweeping.DRAWS for row in numbers["sweep"])
    ceiling = numbers["about"]["product_flops_per_second"][0]
    for row in numbers["sweep"]:
        shares = [16 * row["flops"] / s / ceiling for s in row["seconds"]["wane"]]
        assert row["share_of_ceiling"] == pytest.approx(shares)
    assert row["flops"] == numbers["forward"][0]["flops"]
    (floor,) = numbers["floors"]
    seconds = {name: np.array(values) for name, values in floor["seconds"].items()}
    blocks = seconds["plain"] - seconds["head"]
    # Two layers: points run two blocks and one.
    np.testing.assert_allclose(
        floor["sensitivity"], seconds["sensitivity"] / (1.5 * blocks + 2 * seconds["head"])
    )
    np.testing.assert_allclose(floor["exits"], seconds["exits"] / (seconds["plain"] + 2 * seconds["head"]))
    assert "all early exits" in printed.getvalue()
    (passes,) = numbers["fewer_passes"]
    context, points = 32, 1 + len(bench.fewer.COARSE) + bench.fewer.REFINED
    pilot = (1 + len(bench.fewer.COARSE)) * 16 * 2
    assert passes["without"]["tokens"] == 17 * 2 * 8 * context
    assert passes["with"]["tokens"] == (points * passes["sequences"] + pilot) * context
    assert "times fewer" in printed.getvalue()


def test_memory_of_a_point_is_told_beside_its_time():
    """A mask of weights holds something for each of them; one of layers next to nothing."""
    with Peer(
        "wane.launch.bench.wane_work:points", dims=TINY, experts=False, sequences=8, batch=4, dtype="float32"
    ) as peer:
        weights, layers = (peer.timed(f"{name} memory")(1) for name in ("random_weights", "remove_layers"))
    assert layers < 0.1 < 0.5 < weights < 2


class PlannedPeer:
    """Stands for a process: a point of `a` takes 1.21 plain evaluations on the first shape and 1 on the second."""

    def __init__(self, build, dims, experts, **common):
        self.deep = dims["n_layers"] > 2
        self.facts = {} if experts else {name: {"kind": "simple", "flops": 100} for name in ("a", "b")}

    def timed(self, name):
        return {
            "plain": lambda times: 2.0 * times,
            "a": lambda times: (2.0 if self.deep else 2.42) * times,
            "b": lambda times: 2.01 * times,
            "a memory": lambda times: 0.5,
            "b memory": lambda times: 0.25,
        }[name]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


def test_points_are_told_by_shape_and_by_their_geometric_mean(tiny, monkeypatch):
    setting, _ = tiny
    monkeypatch.setitem(settings.SHAPES, "D16-L3", TINY | {"n_layers": 3})
    monkeypatch.setattr(bench.points, "Peer", PlannedPeer)
    setting = dataclasses.replace(setting, shapes=("D16-L2", "D16-L3"), ceiling=100.0)
    rows = bench.points.measure(setting)
    found = {(row["method"], row["shape"]): row for row in rows}
    assert len(found) == len(rows) == 4
    assert found["a", "D16-L2"]["ratio"] == pytest.approx([1.21, 1.21])
    assert found["a", "D16-L2"]["share_of_ceiling"] == pytest.approx([1 / 2.42] * 2)
    assert found["b", "D16-L3"]["memory"] == 0.25
    table = bench.points.table(rows)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["method"] == ["b"] * 3 + ["a"] * 3, "the dearest last"
    assert cells["shape"] == ["D16-L2", "D16-L3", "geometric mean"] * 2
    assert cells["plain evaluations"][-1] == "1.1"


def test_a_sweep_with_instruments_is_timed_beside_one_of_the_loss(monkeypatch):
    """All of them but what goes on by itself, each once."""
    found = instruments.asked()
    costly = ("generation", "factorial", "continuation", "crossing")
    left_out = {m.name for name in costly for m in INSTRUMENTS[name]}
    assert found["loss"] == ("loss",)
    assert set(found[instruments.ALL]) == set(METRICS) - left_out
    assert all(set(names) <= set(found[instruments.ALL]) for names in found.values())
    monkeypatch.setattr(instruments, "DEPTHS", (4,))
    monkeypatch.setattr(instruments, "asked", lambda: {name: found[name] for name in ("loss", "answers")})
    setting = Setting(console=Console(file=io.StringIO()), rounds=2, seconds=0.0)
    (row,) = instruments.measure(setting, sequences=1)
    assert (row["shape"], row["instrument"], len(row["ratio"])) == ("d96-L4-f192", "answers", 2)
    assert min(row["seconds"]) > 0
    assert "answers" in [cell for column in instruments.table([row]).columns for cell in column.cells]


class TestBracket:
    """The interval of a critical severity, on sequences whose losses are drawn."""

    severity = np.linspace(0, 1, 9)

    def losses(self, rng, sequences=50, common=0.05):
        """Two tasks; sequences differ by 1 nat, a degradation's changes by `common`."""
        base = rng.normal(3, 1, 2 * sequences)
        return np.stack([base + s + rng.normal(0, common, 2 * sequences) * (s > 0) for s in self.severity])

    def test_covers_the_truth(self):
        """Excess is the severity itself, so that the critical one is the threshold."""
        rng = np.random.default_rng(0)
        found = [bracket(self.severity, self.losses(rng), 2, common=True) for _ in range(60)]
        covered = np.mean([row["low"] <= bench.fewer.THRESHOLD <= row["high"] for row in found])
        assert covered >= 0.88

    def test_common_sequences_narrow_it_by_the_ratio_of_the_spreads(self):
        losses = self.losses(np.random.default_rng(1), sequences=400)
        with_, without = (bracket(self.severity, losses, 2, common=c) for c in (True, False))
        widths = [row["high"] - row["low"] for row in (with_, without)]
        assert widths[1] > 10 * widths[0]
        assert with_["critical"] == without["critical"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shapes": ("D3-L1",)}, "bench --shapes D3-L1: must be some of D128-L4"),
        ({"rounds": 0}, "bench --rounds 0"),
        ({"pack": 0}, "bench --pack 0"),
        ({"seconds": -1.0}, "--seconds -1.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Setting(console=Console(), **fields)


def gpt(torch, params):
    """PyTorch's model with wane's parameters."""
    from wane.launch.bench.torch_work import GPT

    model = GPT(**TINY)
    tensor = lambda a: torch.tensor(np.array(a))  # noqa: E731
    with torch.no_grad():
        model.embed.weight.copy_(tensor(params["embed"]))
        model.unembed.weight.copy_(tensor(params["unembed"].T))
        model.final_norm.weight.copy_(tensor(params["final_norm"]["scale"]))
        for l, block in enumerate(model.blocks):
            p = {name: tensor(leaf[l]) for name, leaf in params["blocks"].items()}
            block.attention.qkv.weight.copy_(torch.cat([p["q"], p["k"], p["v"]], 1).T)
            for name, layer in (
                ("o", block.attention.o),
                ("gate", block.gate),
                ("up", block.up),
                ("down", block.down),
            ):
                layer.weight.copy_(p[name].T)
            block.attn_norm.weight.copy_(p["attn_norm_scale"])
            block.mlp_norm.weight.copy_(p["mlp_norm_scale"])
    return model


@pytest.mark.parity
def test_the_peer_is_the_same_model():
    """Same logits, same loss, same gradient: what is compared does the same."""
    torch = pytest.importorskip("torch")
    from wane.launch.bench.torch_work import evaluate, loss_of

    shape = shape_of(TINY, "float32")
    params = jax.tree.map(lambda w: w + 0.01, init_params(jax.random.key(0), shape))
    tokens = np.random.default_rng(0).integers(0, TINY["vocab"], (3, TINY["context"] + 1))
    model, theirs = gpt(torch, params), torch.tensor(tokens)

    def loss(params):
        return nll(
            params, apply(params, jnp.asarray(tokens)[:, :-1], shape).x_BSD, jnp.asarray(tokens), shape
        ).mean()

    logits = unembed(params, apply(params, jnp.asarray(tokens)[:, :-1], shape).x_BSD, shape)
    np.testing.assert_allclose(model(theirs[:, :-1]).detach(), logits, atol=2e-5)
    found = loss_of(model(theirs[:, :-1]), theirs)
    found.backward()
    value, grads = jax.value_and_grad(loss)(params)
    assert found.item() == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(model.embed.weight.grad, grads["embed"], atol=1e-5)
    np.testing.assert_allclose(model.blocks[0].down.weight.grad.T, grads["blocks"]["down"][0], atol=1e-5)
    np.testing.assert_allclose(evaluate(model, theirs, 2, "float32").mean().item(), float(value), rtol=1e-6)


@pytest.mark.parity
def test_the_loop_degrades_as_it_says():
    torch = pytest.importorskip("torch")
    from wane.launch.bench.torch_work import GPT, METHODS, matrices

    def degraded(name, severity):
        torch.manual_seed(0)
        model = GPT(**TINY)
        before = torch.cat([m.weight.detach().flatten().clone() for m in matrices(model)])
        with torch.no_grad():
            METHODS[name](model, severity)
        after = torch.cat([m.weight.detach().flatten() for m in matrices(model)])
        return before, after

    for name in METHODS:
        before, after = degraded(name, 0.0)
        assert torch.allclose(before, after, atol=1e-4), name
    before, after = degraded("random_weights", 0.5)
    assert math.isclose((after == 0).float().mean(), 0.5, abs_tol=0.01)
    before, after = degraded("rtn", 0.75)  # 4 bits
    assert 0.01 < (after - before).norm() / before.norm() < 0.2


def test_a_missing_peer_is_said_at_once(monkeypatch):
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="PyTorch is not installed; pip install"):
        bench.run("train", Setting(console=Console(), against="torch"), "quickstart", (), None, None)
