"""What every test file leaves behind is cleared; and how programs are compiled and kept while tests run."""

import gc
import os
import subprocess
import sys
import tempfile

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from wane.scaling import program
from wane.scaling.executables import keep_in

# Tests mostly compile: without optimisation, and with the older emitters of fusions, in two thirds of the time.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
KEPT = "WANE_TESTS_KEEP_PROGRAMS_IN"  # a folder that all workers of one call share
WORTH_KEEPING = 0.02  # seconds of compilation
# The longest stand first, or one worker would end minutes after the other.
LONG = (
    "test_run.py", "test_method_order.py", "test_identity.py", "test_promises.py", "test_bench.py",
    "test_decide.py", "test_sweep.py",
)  # fmt: skip


def pytest_configure(config):
    """Before XLA reads its flags, and before workers start, which inherit them."""
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = QUICK
        start = [sys.executable, "-c", "import jax; jax.devices()"]
        if subprocess.run(
            start, capture_output=True
        ).returncode:  # XLA ends a process with flags that it does not know
            os.environ["XLA_FLAGS"] = ""
    for options in (program.LIGHT, program.LIGHTER):
        options["xla_backend_optimization_level"] = 0
    if KEPT not in os.environ:
        kept = tempfile.TemporaryDirectory(prefix="wane-tests-")
        os.environ[KEPT] = kept.name
        config.add_cleanup(kept.cleanup)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    """Thousands of executables in one process exceed the system's number of memory maps, and XLA crashes.  The
    command line, run in a test, keeps programs in folders of its own."""
    jax.config.update("jax_compilation_cache_dir", os.environ[KEPT])
    compilation_cache.reset_cache()  # or jax goes on with the folder that it has opened
    yield
    keep_in(None)
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
    """Of the table of promises the rows of one case and shape stand together: they share programs, of which only
    the last few are kept (degrade_cases.bench)."""
    places = [i for i, item in enumerate(items) if item.path.name == "test_promises.py"]
    rows = sorted((items[i] for i in places), key=lambda item: item.name.partition("[")[2])
    for i, item in zip(places, rows, strict=True):
        items[i] = item
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
