"""The application around the commands: version, help, completion, verbosity and progress."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from helpers.command import Granalign
from helpers.fakes import BagOfWords
from helpers.videos import constant, render

from granalign_fast.cli import progress, verbosity

COMMANDS = (
    *("index", "search", "demo", "evaluate", "score", "doctor", "bench", "export"),
    *(f"export {name}" for name in ("sentence-encoder", "clip", "llm", "vlm", "tensorrt")),
    *("models list", "models get"),
)


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A search in captions, by a fake encoder."""
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"vid": "street", "captions": ["a red car", "a dog"]}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoder = "granalign_fast.pipeline.SentenceEncoder"
    monkeypatch.setattr(encoder, lambda *args, **options: BagOfWords())
    return "search", str(captions), "dog"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_the_module_is_the_command() -> None:
    done = python("-m", "granalign_fast", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("granalign-fast 0.1.0 (Python ")


def test_the_version_is_one_line(granalign: Granalign) -> None:
    code, out, err = granalign("--version")
    python_version = ".".join(map(str, sys.version_info[:3]))
    runtime = f"onnxruntime {version('onnxruntime')}"
    assert (code, err) == (0, "")
    assert out == f"granalign-fast 0.1.0 (Python {python_version}, {runtime})\n"


def test_the_version_without_a_runtime(
    granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granalign_fast.cli.diagnosis.installed_version", lambda name: None)
    assert granalign("--version")[1].endswith("no onnxruntime)\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_two_names_and_shows_verbosity(granalign: Granalign, command: str) -> None:
    code, out, err = granalign(*command.split(), "-h")
    assert (code, err) == (0, "")
    assert out == granalign(*command.split(), "--help")[1]
    assert "-h, --help" in out
    if command != "export":
        assert "-v, --verbose" in out and "-q, --quiet" in out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("index", "film.mp4", "--out", ""), "--out: "),
        (("index", "film.mp4", "--out="), "--out: "),
        (("index", "", "--out", "library"), ""),
        (("search", "library", ""), ""),
    ],
)
def test_empty_arguments_are_refused(
    granalign: Granalign,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    name: str,
) -> None:
    """As a path, an empty text is the current folder."""
    monkeypatch.chdir(tmp_path)
    code, out, err = granalign(*arguments)
    assert (code, out) == (2, "") and not list(tmp_path.iterdir())
    assert err == f"granalign: {name}got an empty argument, expected a value\n"


def test_completion_is_offered() -> None:
    test = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = "from granalign_fast.cli import main; import sys; sys.argv[0] = 'granalign'; main()"
    shown = python("-c", script, "--show-completion", "bash", **test)
    assert shown.returncode == 0 and "_GRANALIGN_COMPLETE=complete_bash" in shown.stdout
    words = {"COMP_WORDS": "granalign se", "COMP_CWORD": "1"}
    completed = python("-c", script, _GRANALIGN_COMPLETE="complete_bash", **words)
    assert completed.stdout.split() == ["search", "serve"]


@pytest.mark.parametrize("module", ["granalign_fast", "granalign_fast.cli"])
def test_importing_is_light(module: str) -> None:
    """None of what takes long to import; its time is that of `--help`."""
    heavy = "numpy onnx onnxruntime tokenizers torch cupy matplotlib av PIL pyarrow safetensors"
    code = f"import sys, {module}; print(*set({heavy.split()}) & set(sys.modules))"
    assert python("-c", code).stdout.split() == []


def test_onnx_runtime_keeps_no_events(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    code = "import granalign_fast, onnxruntime"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(tmp_path.iterdir())


def test_the_library_configures_no_logging() -> None:
    code = (
        "import logging, granalign_fast\n"
        "package = logging.getLogger('granalign_fast')\n"
        "package.getChild('files').warning('unseen')\n"
        "print(package.level, [type(h).__name__ for h in package.handlers], logging.root.handlers)"
    )
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("0 ['NullHandler'] []\n", "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-q"], []),
        ([], ["warning: w"]),
        (["-v"], ["info: i", "warning: w"]),
        (["--verbose"], ["info: i", "warning: w"]),
        (["-vv"], ["debug: granalign_fast.search.x: d", "info: i", "warning: w"]),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_levels(
    granalign: Granalign,
    search: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: list[str],
    before: bool,
) -> None:
    """Before the command or behind its arguments, and for Python's warnings as for messages."""
    log = logging.getLogger("granalign_fast.search.x")
    show = importlib.import_module("granalign_fast.output.tables").print_moments

    def noisy(*arguments: Any) -> None:
        log.debug("d")
        log.info("%s\n", "i")
        log.warning("w")
        show(*arguments)

    monkeypatch.setattr("granalign_fast.output.tables.print_moments", noisy)
    arguments = (*options, *search) if before else (*search, *options)
    code, out, err = granalign(*arguments)
    assert code == 0 and "a dog" in out
    lines = err.splitlines()
    assert [line for line in lines if line.endswith((": d", ": i", ": w"))] == [
        f"granalign: {line}" for line in expected
    ]
    assert any(": debug: " in line for line in lines) is (options == ["-vv"])


@pytest.mark.parametrize("quiet", [True, False])
def test_a_python_warning_is_a_warning(
    granalign: Granalign, search: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    def warn(*arguments: Any) -> None:
        warnings.warn("frame 3\nis damaged", stacklevel=1)

    monkeypatch.setattr("granalign_fast.output.tables.print_moments", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        err = granalign(*search, *["-q"] * quiet)[2]
    assert err == ("" if quiet else "granalign: warning: frame 3 is damaged\n")


def test_a_warning_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A model logs it, and the command repeats it with the answer."""
    with verbosity.logging_to_stderr():
        for name in ("language.llm_rewriter", "cli.search_outputs"):
            logging.getLogger(f"granalign_fast.{name}").warning("%s of 6 rewrites", 5)
    assert capsys.readouterr().err == "granalign: warning: 5 of 6 rewrites\n"


def test_an_error_is_not_quiet(granalign: Granalign) -> None:
    code, out, err = granalign("search", "no.jsonl", "dog", "-q")
    assert (code, out) == (2, "") and err.startswith("granalign: no.jsonl: no such file")


def test_quiet_and_verbose_exclude_each_other(
    granalign: Granalign, search: tuple[str, ...]
) -> None:
    code, out, err = granalign(*search, "-q", "-v")
    assert (code, out) == (2, "")
    assert err == "granalign: --quiet and --verbose: got both, expected one of them\n"


def test_logging_is_as_it_was_after_the_command(
    granalign: Granalign, search: tuple[str, ...]
) -> None:
    package = logging.getLogger("granalign_fast")
    before = package.level, list(package.handlers)
    granalign(*search, "-vv")
    assert (package.level, package.handlers) == before


def test_verbose_says_what_was_loaded_and_cached(
    granalign: Granalign,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_cache: Callable[[Path], Path],
) -> None:
    """With the miniatures: models by name and time, and each batch and video of an index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm_cache(tmp_path / "cache")))
    monkeypatch.chdir(tmp_path)
    render(Path("a.mp4"), constant(5, 8))
    arguments = ("index", "a.mp4", "--out=o", "--models=miniatures", "--rows=2")
    code, out, err = granalign(*arguments, "-v")
    assert (code, out) == (0, "indexed: o/a\n")
    assert "vision.onnx by CPUExecutionProvider in " in err
    assert "granalign: info: stored a batch: 2 of " in err
    assert "granalign: info: indexed " in err


class FakeTime:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTime(monkeypatch)
    with progress.progress_bar("indexing", "clips") as advance:
        assert advance is not None
        for _ in range(12):
            fake.now += 2
            advance(10, 120)
    assert capsys.readouterr().err.splitlines() == [
        "indexing: 30 of 120 clips, 6 s, 18 s left",
        "indexing: 60 of 120 clips, 12 s, 12 s left",
        "indexing: 90 of 120 clips, 18 s, 6 s left",
        "indexing: 120 of 120 clips, 24 s, 0 s left",
    ]


def test_work_without_steps_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.02)
    with progress.status("exporting a in fp16"):
        deadline = time.monotonic() + 10
        while not (err := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert err.startswith("exporting a in fp16, 0 s\n")


def test_no_progress_when_quiet_or_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with progress.progress_bar("indexing", "clips", hidden=True) as advance:
        assert advance is None
    with verbosity.logging_to_stderr():
        verbosity.set_verbosity(0, quiet=True)
        with progress.progress_bar("indexing", "clips") as advance, progress.status("exporting"):
            assert advance is None
            time.sleep(0.02)
    assert capsys.readouterr().err == ""


def test_indexing_writes_progress_but_not_beside_json(
    granalign: Granalign,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_cache: Callable[[Path], Path],
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm_cache(tmp_path / "cache")))
    monkeypatch.chdir(tmp_path)
    render(Path("a.mp4"), constant(5, 8))
    arguments = ("index", "a.mp4", "--models=miniatures", "--rows=2")
    begin = "reading: 1 of 1 MiB, 0 s, 0 s left\nindexing: 2 of "
    assert granalign(*arguments, "--out=1")[2].startswith(begin)
    for number, option in enumerate(("-q", "--json")):
        assert granalign(*arguments, f"--out={2 + number}", option)[2] == ""
