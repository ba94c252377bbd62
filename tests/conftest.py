"""What every test file leaves behind is cleared; and how programs that tests jit themselves are compiled."""

import gc
import os
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from wane.scaling.executables import keep_in

# Tests mostly compile: without optimisation, and with the older emitters of fusions, in two thirds of the time.
# Programs of the package say themselves how they are compiled (wane.scaling.program).
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure():
    """Before XLA reads its flags, and before workers start, which inherit them."""
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = QUICK
        start = [sys.executable, "-c", "import jax; jax.devices()"]
        if subprocess.run(
            start, capture_output=True
        ).returncode:  # XLA ends a process with flags that it does not know
            os.environ["XLA_FLAGS"] = ""


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    """Thousands of executables in one process exceed the system's number of memory maps, and XLA crashes.  The
    command line, run in a test, turns the cache on disk on; other tests would pay for writing to it."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()  # or jax goes on with the folder that it has opened
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
