"""Executables on disk: found by all that they follow from, never wrong, done without where they cannot be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from wane.eval.metrics import METRICS
from wane.eval.sweep import measurement
from wane.scaling import executables, program
from wane.scaling.degrade import GROUPS, build
from wane.scaling.degrade import METHODS as METHODS_OF_DEGRADE
from wane.scaling.degrade.contract import EVERYTHING, Scope
from wane.scaling.degrade.cost import CostOf, MaskedBits, full_bits, structured_bits
from wane.scaling.degrade.given_mask import write_mask
from wane.scaling.program import Program
from wane.scaling.shape import Shape

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=24, vocab=64, context=16)
X = np.arange(4, dtype=np.float32)


@pytest.fixture(autouse=True, scope="module")
def _jax_keeps_nothing(_compiled_programs_are_let_go):
    """What jax has kept already is not kept again (`wane.scaling.executables.compiled`)."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture
def folder(tmp_path):
    executables.keep_in(tmp_path / "kept")
    yield tmp_path / "kept"
    executables.keep_in(None)


class Traced:
    """x -> {"sum": (sum, x + by)}, counting how often it is traced."""

    def __init__(self, by=1.0):
        self.by, self.times = by, 0

    def __call__(self, x):
        self.times += 1
        return {"sum": (jnp.sum(x), x + self.by)}


def run(f, x=X, computes="plus one", precision="highest", **options):
    """As a new process would: nothing of an earlier program is left."""
    jax.clear_caches()
    return Program(f, precision, computes=computes, **options)(x)


def test_a_second_process_traces_nothing_and_gets_the_same(folder):
    first, second = Traced(), Traced()
    expected, found = run(first), run(second)
    assert (first.times, second.times) == (1, 0)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    np.testing.assert_array_equal(found["sum"][1], X + 1)
    assert float(found["sum"][0]) == X.sum()
    assert len(list(folder.iterdir())) == 1


def test_an_option_that_this_xla_does_not_know_is_left_out(folder, monkeypatch):
    asked = []
    compile_ = jax.stages.Lowered.compile

    def told(self, compiler_options=None):
        asked.append(compiler_options)
        return compile_(self, compiler_options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", told)
    monkeypatch.setattr(program, "LIGHTER", {"xla_of_another_time": True})
    np.testing.assert_array_equal(run(Traced())["sum"][1], X + 1)
    assert asked == [{"xla_of_another_time": True}, None]


def test_a_training_step_is_compiled_with_options_of_its_own():
    assert Program(Traced(), trains=True).cpu_options == program.LIGHT != program.LIGHTER


@pytest.mark.parametrize(
    "other",
    [
        {"computes": "plus two"},
        {"precision": "default"},
        {"x": X[:3]},
        {"x": X.astype(np.int32)},
        {"x": X[None]},
        {"trains": True},
    ],
)
def test_anything_else_is_compiled_anew(folder, other):
    run(Traced())
    again = Traced()
    run(again, **other)
    assert again.times == 1
    assert len(list(folder.iterdir())) == 2


def test_other_code_settings_or_machine_is_another_executable(folder, monkeypatch):
    run(Traced())
    before = executables._surroundings()
    for changed in range(len(before)):
        parts = [*before[:changed], "other", *before[changed + 1 :]]
        monkeypatch.setattr(executables, "_surroundings", lambda parts=parts: tuple(parts))
        again = Traced()
        run(again)
        assert again.times == 1
    monkeypatch.undo()
    with jax.numpy_rank_promotion("raise"), jax.default_prng_impl("rbg"):
        again = Traced()
        run(again)
        assert again.times == 1


def test_the_code_is_that_of_the_package(tmp_path, monkeypatch):
    def digest():
        executables._surroundings.cache_clear()
        return executables._surroundings()[0]

    for part in executables.PARTS:
        (tmp_path / part).mkdir()
    (tmp_path / "scaling/a.py").write_text("x = 1")
    monkeypatch.setattr(executables, "__file__", str(tmp_path / "scaling/executables.py"))
    try:
        one = digest()
        assert digest() == one
        (tmp_path / "scaling/a.py").write_text("x = 2")
        two = digest()
        (tmp_path / "scaling/a.py").rename(tmp_path / "train/a.py")
        three = digest()
        (tmp_path / "eval/b.py").write_text("")
        assert len({one, two, three, digest()}) == 4
    finally:
        executables._surroundings.cache_clear()


def test_a_damaged_file_is_made_again(folder, caplog):
    run(Traced())
    (file,) = folder.iterdir()
    for content in (b"", file.read_bytes()[:-1], bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]):
        file.write_bytes(content)
        again = Traced()
        assert float(run(again)["sum"][0]) == X.sum()
        assert again.times == 1
    assert "is damaged" in caplog.text
    last = Traced()
    run(last)
    assert last.times == 0


def test_what_jax_has_read_from_its_own_cache_is_not_written_once_more(folder, tmp_path):
    """As after a kill between jax's writing and ours: written once more it would not run."""
    names = "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"
    before = [getattr(jax.config, name) for name in names]
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    try:
        for name in names:
            jax.config.update(name, -1)
        run(Traced())
        assert list((tmp_path / "xla").iterdir())
        (file,) = folder.iterdir()
        file.unlink()
        for _ in range(2):
            assert float(run(Traced())["sum"][0]) == X.sum()
        assert not list(folder.iterdir())
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    executables.keep_in(tmp_path / "file" / "kept")
    try:
        assert float(run(Traced())["sum"][0]) == X.sum()
    finally:
        executables.keep_in(None)
    assert "cannot keep an executable" in caplog.text


def test_what_cannot_be_named_is_not_kept(folder):
    run(Traced(), computes=None)
    assert not folder.exists()
    held = jnp.arange(4.0)
    for by in (held, held + 1):  # two closures under one name: an array of their own is not in it
        np.testing.assert_array_equal(run(Traced(by), computes=None)["sum"][1], X + by)


def test_a_donated_argument_stays_one(folder):
    for _ in range(2):
        given = jnp.asarray(X)
        run(Traced(), given, donate_argnums=0)
        assert given.is_deleted()


def test_measurements_are_named_by_metrics_of_this_package_only(monkeypatch):
    names = ("loss", "kl")
    assert measurement("measuring", SHAPE, names, 1) != measurement("measuring", SHAPE, names, 8)
    assert measurement("measuring", SHAPE, names, 1) != measurement("measuring", SHAPE, ("loss",), 1)
    monkeypatch.setitem(METRICS, "mine", METRICS["kl"].__class__(**{**vars(METRICS["kl"]), "name": "mine"}))
    assert measurement("measuring", SHAPE, ("loss", "mine"), 1) is None


def test_methods_are_named_by_all_that_they_follow_from(monkeypatch):
    experts = dataclasses.replace(SHAPE, n_experts=2, top_k=1)
    named = [build(n, experts if n in GROUPS["Routing"] else SHAPE).computes for n in METHODS_OF_DEGRADE]
    named += [
        build("rtn", SHAPE, settings={"group_size": 4}).computes,
        build("rtn", SHAPE, Scope(layers=(1, 2))).computes,
        build("rtn", dataclasses.replace(SHAPE, d_ff=32)).computes,
    ]
    assert None not in named
    assert len(set(named)) == len(named) > 30
    assert not any("0x" in name for name in named)
    ours = METHODS_OF_DEGRADE["rtn"]

    @functools.wraps(ours)
    def theirs(*args, **settings):
        return ours(*args, **settings)

    monkeypatch.setitem(METHODS_OF_DEGRADE, "rtn", theirs)
    assert build("rtn", dataclasses.replace(SHAPE, d_ff=40)).computes is None


def test_a_mask_is_not_named_by_its_path(tmp_path):
    kept = {name: np.ones(SHAPE.full(name), bool) for name in SHAPE.matrices}
    write_mask(tmp_path / "mask.npz", kept)
    assert build("given_mask", SHAPE, settings={"file": str(tmp_path / "mask.npz")}).computes is None


def test_costs_are_named_by_values_and_functions_of_this_package_only():
    named = {
        name: CostOf(shape, bits).computes
        for name, shape, bits in (
            ("units", SHAPE, structured_bits),
            ("other shape", dataclasses.replace(SHAPE, d_ff=32), structured_bits),
            ("untouched", SHAPE, full_bits),
            ("mask", SHAPE, MaskedBits(SHAPE, EVERYTHING)),
            ("mask of q", SHAPE, MaskedBits(SHAPE, Scope(matrices=("q",)))),
        )
    }
    assert None not in named.values()
    assert len(set(named.values())) == len(named)
    assert not any("0x" in name for name in named.values())
    assert build("magnitude_weights", SHAPE).cost.computes == named["mask"]
    groups = [build("rtn", SHAPE, settings={"group_size": size}).cost.computes for size in (4, 8)]
    assert None not in groups
    assert len({*groups, named["mask"]}) == 3
    for held in (X, jnp.asarray(X), structured_bits):  # what a field holds must be told in words, too
        assert CostOf(SHAPE, MaskedBits(SHAPE, held)).computes is None
    assert CostOf(SHAPE, lambda removed, edit: 0.0).computes is None
    assert CostOf(SHAPE, dict).computes is None
