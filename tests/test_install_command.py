"""The command that adds an extra works for the way in which the package was installed."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from granalign_fast import errors
from granalign_fast.errors import MissingExtraError, install_command

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The distributions of ONNX Runtime that are installed: none at first."""
    names: set[str] = set()
    monkeypatch.setattr(errors, "_is_installed", names.__contains__)
    return names


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtimes: set[str]) -> Any:
    """Lets the package be one in site-packages, with this direct_url.json; None: from an index."""

    class Distribution:
        record: Any = None

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if self.record is None else json.dumps(self.record)

    package = Distribution()
    module = tmp_path / "site-packages" / "granalign_fast" / "errors.py"
    monkeypatch.setattr(errors, "__file__", str(module))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)

    def set_origin(record: Any) -> None:
        package.record = record

    return set_origin


def test_in_a_checkout_it_is_the_checkout(runtimes: set[str]) -> None:
    assert shlex.split(install_command("plot")) == ["pip", "install", "-e", f"{ROOT}[plot]"]


def test_from_an_index_it_is_the_name(installed: Any) -> None:
    assert install_command("cuda") == "pip install 'granalign-fast[cuda]'"


@pytest.mark.parametrize("name", ["granalign_fast-0.1.0-py3-none-any.whl", "a folder"])
def test_from_a_file_or_folder_it_is_its_path(installed: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    installed({"url": path.as_uri(), "archive_info": {}})
    assert shlex.split(install_command("plot")) == ["pip", "install", f"{path}[plot]"]


def test_a_wheel_that_is_gone(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "numpy<3,>=2.1",
        'onnxruntime>=1.23; extra == "cpu"',
        'onnxruntime-gpu[cuda,cudnn]>=1.31; extra == "cuda"',
        'cupy-cuda13x[ctk]>=14; extra == "cuda"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: texts)
    installed({"url": "file:///no/such/granalign_fast.whl", "archive_info": {}})
    packages = ["onnxruntime-gpu[cuda,cudnn]>=1.31", "cupy-cuda13x[ctk]>=14"]
    assert shlex.split(install_command("cuda")) == ["pip", "install", *packages]


@pytest.mark.parametrize(
    ("record", "url"),
    [
        ({"url": "https://a.b/c.whl", "archive_info": {}}, "https://a.b/c.whl"),
        (
            {"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            "git+https://a.b/c@12ab",
        ),
    ],
)
def test_from_a_url_it_is_the_url(installed: Any, record: Any, url: str) -> None:
    installed(record)
    command = shlex.split(install_command("hub"))
    assert command == ["pip", "install", f"granalign-fast[hub] @ {url}"]


@pytest.mark.parametrize(
    ("extra", "present", "removed"),
    [
        ("cuda", {"onnxruntime"}, "onnxruntime"),
        ("tensorrt", {"onnxruntime", "onnxruntime-gpu"}, "onnxruntime"),
        ("cpu", {"onnxruntime-gpu"}, "onnxruntime-gpu"),
        ("cuda", {"onnxruntime-gpu"}, None),
        ("cpu", {"onnxruntime"}, None),
        ("plot", {"onnxruntime", "onnxruntime-gpu"}, None),
    ],
)
def test_never_a_second_onnx_runtime(
    installed: Any, runtimes: set[str], extra: str, present: set[str], removed: str | None
) -> None:
    runtimes |= present
    command = install_command(extra)
    before, _, after = command.rpartition(" && ")
    assert before == (f"pip uninstall -y {removed}" if removed else "")
    assert after == f"pip install 'granalign-fast[{extra}]'"


def test_a_missing_extra_says_the_command(installed: Any) -> None:
    text = str(MissingExtraError("drawing", "plot"))
    assert text.endswith("not installed: run pip install 'granalign-fast[plot]'")


def test_pip_accepts_the_command_of_a_checkout() -> None:
    """Read by pip itself: the path and the extra are what it takes them for."""
    code = (
        "import sys; from pip._internal.req.constructors import install_req_from_editable as read;"
        "r = read(sys.argv[1]); print(sorted(r.extras), r.link.file_path)"
    )
    requirement = shlex.split(install_command("plot"))[-1]
    command = [sys.executable, "-W", "ignore", "-c", code, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"['plot'] {ROOT}\n"
