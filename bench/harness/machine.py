"""Describe the machine of a measurement, and measure peak memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from granalign_fast.models.encoder import cpu_threads
from granalign_fast.runtime.device import Device

_PACKAGES = (
    *(
        "granalign-fast",
        "numpy",
        "onnxruntime",
        "onnxruntime-gpu",
        "av",
        "tokenizers",
        "cupy-cuda13x",
    ),
    *("torch", "transformers", "optimum-onnx", "sentence-transformers", "optimum-intel"),
    *("openvino", "onnxruntime-genai", "opencv-python-headless", "torchcodec"),
)


def facts(device: str) -> dict[str, Any]:
    """Return processor, memory, versions, commit and GPU: everything a figure depends on."""
    record: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": cpu_threads(None),
        "caches": _caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "clock_mhz": _clock_mhz(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": _commit(),
        "device": device,
    }
    if Device.parse(device).kind != "cpu":
        record["gpu"] = _gpu()
    return record


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _clock_mhz() -> float | None:
    """Return the first core's current clock; a virtual machine often sees a nominal value."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2])
    return None


def _caches() -> dict[str, int]:
    """Return the bytes of each cache that the first core uses, by name, such as ``L3``."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level = _read(index / "type"), _read(index / "level")
        size = _read(index / "size")
        if kind in ("Data", "Unified") and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) << 10
    return sizes


def _commit() -> str | None:
    """Return this checkout's commit, None outside of one. A ``+`` marks changed files."""
    command = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit, changed = (
            subprocess.run(
                [*command, *rest], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for rest in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + "+" * bool(changed)


def _gpu() -> dict[str, Any]:
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "l2_bytes": int(properties["l2CacheSize"]),
        "clock_mhz": properties["clockRate"] / 1e3,
        "driver": _driver() or runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
    }


def _driver() -> str | None:
    """Return the driver's release, such as ``580.95.05``; None without ``nvidia-smi``."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None


def last_cache_bytes(device: str) -> int:
    """Return the bytes of the largest cache; before a cold run it must be overwritten."""
    if Device.parse(device).kind != "cpu":
        return int(_gpu()["l2_bytes"])
    return max(_caches().values(), default=32 << 20)


def available_bytes() -> int:
    """Return the bytes of memory that a workload can use without swapping."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


class PeakMemory:
    """Peak memory of this process and of its pool on a device, since this object was created.

    Only Linux can reset the peak; elsewhere it counts from the start of the process.
    """

    def __init__(self, device: str) -> None:
        self._on_device = Device.parse(device).kind != "cpu"
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if self._on_device:
            import cupy

            cupy.get_default_memory_pool().free_all_blocks()

    def host_bytes(self) -> int:
        """Return the peak of resident memory, in bytes."""
        for line in _read("/proc/self/status").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10

    def device_bytes(self) -> int | None:
        """Return the bytes of CuPy's pool; None on a CPU. ONNX Runtime's arenas do not count."""
        if not self._on_device:
            return None
        import cupy

        return int(cupy.get_default_memory_pool().total_bytes())


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
