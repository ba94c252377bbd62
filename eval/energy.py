"""Joules that the machine says it has spent: RAPL counters of processors, NVML counters of GPUs.  Where it says
nothing there is no meter, or no number, and nothing is estimated."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")


class Meter(NamedTuple):
    """name: where the numbers come from.  read() -> joules of each counter; wraps_at: joules at which each
    begins again at 0, infinite where it never does."""

    name: str
    read: Callable[[], list[float]]
    wraps_at: tuple[float, ...]

    def spent(self, before: list[float], after: list[float]) -> float | None:
        """Joules between two readings, of all counters together; None where one of them stood still: it is counted
        up more rarely than that, or not at all.  A counter may have begun again once."""
        steps = zip(before, after, self.wraps_at, strict=True)
        joules = [b - a if b >= a else b - a + top for a, b, top in steps]
        return sum(joules) if all(joules) else None


def meter(platform: str) -> Meter | None:
    """The meter of the device that jax calls `platform`; None where the machine has none that may be read."""
    if platform == "cpu":
        return rapl(POWERCAP)
    return nvml() if platform in ("gpu", "cuda") else None


def rapl(root: Path) -> Meter | None:
    """Whole processor packages, with all that runs on them.

    root: where the kernel keeps intel-rapl:N (of AMD too), with name, energy_uj and max_energy_range_uj.
    Domains inside a package (intel-rapl:N:M) are counted in it; `psys` and intel-rapl-mmio:N count the
    packages again.  All three are left out.
    """
    try:
        domains = sorted(root.glob("intel-rapl:*"))
        packages = [p for p in domains if (p / "name").read_text().startswith("package")]
        tops = tuple(_microjoules(p / "max_energy_range_uj") for p in packages)

        def read() -> list[float]:
            return [_microjoules(p / "energy_uj") for p in packages]

        read()  # most kernels let only root read it
    except (OSError, ValueError):
        return None
    return Meter("RAPL packages", read, tops) if packages else None


def _microjoules(path: Path) -> float:
    return int(path.read_text()) * 1e-6


def nvml() -> Meter | None:
    """The whole board of the first visible NVIDIA GPU.  None without pynvml, on GPUs that do not count, and
    where several boards stand and nothing says that CUDA numbers them as NVML does."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if pynvml.nvmlDeviceGetCount() > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            return None
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible))

        def read() -> list[float]:
            return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3]

        read()
    except (pynvml.NVMLError, ValueError):
        return None
    return Meter("NVML board", read, (math.inf,))
