"""What bits depend on besides the config: machine, devices, threads, versions, packing.  Resolved once, before the
first cell, written to study.json and compared on resume."""

import contextlib
import ctypes
import os
import platform
import re
from pathlib import Path

import jax
from threadpoolctl import threadpool_limits

PACK_ON_ACCELERATOR = 8  # members of one shape trained as one program
POINTS_ON_ACCELERATOR = 8  # severities of one draw computed as one program


# Of mallopt(3): no memory goes back to the kernel, and none is asked for piece by piece.
MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_MMAP_MAX": (-4, 0)}


def prepare() -> None:
    """Suits this process to programs on a CPU; to be called before the first one runs."""
    keep_freed_memory()
    one_blas_thread()


def one_blas_thread() -> None:
    """Decompositions run on one thread.  XLA takes LAPACK from scipy, whose OpenBLAS lets its threads spin for tens
    of milliseconds after each call, on the cores that the rest of the program wants: spectra of the weights cost a
    point 60 ms instead of 15."""
    import scipy.linalg  # noqa: F401, so that its OpenBLAS is there to be told

    threadpool_limits(1, user_api="blas")


def keep_freed_memory() -> None:
    """Let the process keep what programs free.

    XLA asks malloc for the temporaries of every execution.  As glibc comes, large ones go back to the kernel, which
    clears every page again at the next step: 18,000 page faults and a fifth of the processor time of a training
    step of a million parameters.  Only the main thread's heap can keep them, so programs run on the thread that
    calls them.  Together 1.2 to 1.4 times as fast.  Where the C library is another, the first part does nothing.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC.values():
            mallopt(parameter, value)


def resolve(seeds: int) -> dict:
    """The environment of this process for a study with so many seeds; plain JSON values.

    On CPU members train one by one and points run one by one: `vmap` over small models was slower per model
    there.  On accelerators both are packed.
    """
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    return {
        "jax_version": jax.__version__,
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "processor": _processor(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "pack": 1 if on_cpu else min(PACK_ON_ACCELERATOR, seeds),
        "packing": "map" if on_cpu else "vmap",
        "points_per_call": 1 if on_cpu else POINTS_ON_ACCELERATOR,
    }


def drift(before: dict, now: dict) -> list[str]:
    """One phrase per difference between the environment of a study directory and this one."""
    keys = sorted((before.keys() | now.keys()) - {"pack", "packing", "points_per_call"})
    return [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def _processor() -> str:
    """Model of the CPU: XLA compiles for its instructions, so bits differ between models."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that a study may use on the first device: free host memory on CPU, the allocator's limit elsewhere;
    None where the platform does not say."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    return None
