"""Servers of models that other people wrote, each in a process of its own.

Run as a program, with the server's name and its arguments, this module starts one of them.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TORCHVISION = Path(sys.prefix) / "torchvision"
"""The folder of torchvision. Its wheel wants CUDA's libraries, so only the server imports it."""
_SECONDS = 240
"""Time to load a model on a machine that has other work."""


@contextmanager
def running(name: str, *arguments: str | Path, log: Path) -> Iterator[str]:
    """Start a server; yield its URL when it answers, and end it after the block.

    Args:
        name: ``llama_cpp`` or ``transformers``.
        arguments: of its command, without host and port.
        log: receives what it prints.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, __file__, name, *map(str, arguments)]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as sink:
        server = subprocess.Popen(words, stdout=sink, stderr=sink, env=environment)
        try:
            _await(f"http://127.0.0.1:{port}/v1/models", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{server.args}: does not start: {log.read_text(errors='replace')[-2000:]}")


def _serve_llama_cpp() -> None:
    """Run ``llama_cpp.server`` without the AMX kernels, which fault on some virtual machines."""
    import llama_cpp
    from llama_cpp.server.__main__ import main

    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    main()


def _serve_transformers() -> None:
    """Run ``transformers serve`` with torchvision's Python alone.

    Pillow decodes the pictures.
    """
    sys.path += [str(TORCHVISION), str(Path(__file__).parents[1])]
    import numpy as np
    import torch
    from PIL import Image

    from helpers.python_torchvision import declare_operators

    declare_operators()
    import torchvision

    def decode_image(data: Any, **_: Any) -> Any:
        picture = Image.open(io.BytesIO(data.numpy().tobytes())).convert("RGB")
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)

    torchvision.io.decode_image = decode_image
    from transformers.cli.transformers import main

    main()


if __name__ == "__main__":
    server = sys.argv.pop(1)
    {"llama_cpp": _serve_llama_cpp, "transformers": _serve_transformers}[server]()
