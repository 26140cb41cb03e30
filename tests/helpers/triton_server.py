"""Triton's own server with the Python back end, in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

NUMPY_1 = Path(sys.prefix) / "numpy1"
"""NumPy 1 and a pyarrow that takes it, for the server alone. PyPI's server is version 2.51, whose
Python back end takes the arrays of NumPy 2 for empty."""
_STANDING_IN = Path(__file__).parent / "numpy1"
"""A start of Python that adds what NumPy 1 lacks."""
_SECONDS = 90
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_ROOT = Path(__file__).resolve().parents[2]


class Triton(NamedTuple):
    """The addresses of a running server, ``host:port``."""

    http: str
    grpc: str
    metrics: str


def is_installed() -> bool:
    """Whether the server, its NumPy and its client are there."""
    return (
        NUMPY_1.is_dir()
        and find_spec("pytriton") is not None
        and find_spec("tritonclient") is not None
    )


@contextmanager
def running(repository: Path, folder: Path) -> Iterator[Triton]:
    """Start a server of a model repository; yield when all models are ready.

    Args:
        repository: of the models.
        folder: receives the back end and the log.

    Raises:
        RuntimeError: it does not start.
    """
    spec = find_spec("pytriton")
    assert spec is not None and spec.submodule_search_locations is not None
    site = Path(spec.submodule_search_locations[0]).parent
    server = site / "pytriton" / "tritonserver"
    # The stub of this Python goes beside the back end.
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    shutil.copy2(stub, backends / "python" / stub.name)
    ports = _free_ports(3)
    words = [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--http-address=127.0.0.1",
        f"--http-port={ports[0]}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={ports[1]}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={ports[2]}",
    ]
    environment = os.environ | {
        # The stub takes the library of this Python, and not the system's.
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{site / 'nvidia_pytriton.libs'}",
        "PATH": f"{_make_python(folder)}:{os.environ['PATH']}",
        "NPY_PROMOTION_STATE": "weak",  # types as NumPy 2 chooses them
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(words, stdout=sink, stderr=sink, env=environment)
        try:
            _await(f"http://127.0.0.1:{ports[0]}/v2/health/ready", process, log)
            yield Triton(*(f"127.0.0.1:{port}" for port in ports))
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _make_python(folder: Path) -> Path:
    """Return the folder of commands of the server's own Python.

    The server takes the packages of the `python3` on its PATH, and ignores PYTHONPATH.
    """
    venv.create(folder / "python", with_pip=False)
    packages = folder / "python" / "lib" / f"python{_VERSION}" / "site-packages"
    places = [_STANDING_IN, NUMPY_1, _ROOT, sysconfig.get_paths()["purelib"]]
    (packages / "places.pth").write_text("".join(f"{place}\n" for place in places))
    return folder / "python" / "bin"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server is ready."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"does not start: {log.read_text(errors='replace')[-4000:]}")
