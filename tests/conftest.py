"""What every test file leaves behind is cleared."""

import gc
import re

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    """Thousands of executables in one process exceed the system's number of memory maps, and XLA crashes.  The
    command line, run in a test, turns the cache on disk on; other tests would pay for writing to it."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.clear_caches()
    gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Under `--dist loadgroup` a file stays on one worker; of the table of promises the rows of one case and shape
    do, which share their programs, and all workers take part."""
    for item in items:
        group = item.nodeid.split("::")[0]
        if group.endswith("test_promises.py") and (row := re.search(r"\[(.*)\]", item.nodeid)):
            group = row[1]
        item.add_marker(pytest.mark.xdist_group(group))
