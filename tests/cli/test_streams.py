"""Streams that are closed, or whose encoding lacks characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"vid": "日本", "captions": ["a red car", "a dog é"]}))
    return path


def run(*words: object, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "granalign_fast", *map(str, words)]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)


def test_a_closed_stdout_is_no_mistake(captions: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "moments.html"
    words = ("search", captions, "a dog", "--report", drawn)
    done = run(*words, shell=">&-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert drawn.read_text().startswith("<!DOCTYPE html>")


def test_closed_streams_keep_the_exit_code(tmp_path: Path) -> None:
    assert run("search", tmp_path / "no.jsonl", "a dog", shell="<&- >&- 2>&-").returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_terminal_lacks_is_a_code(captions: Path, encoding: str) -> None:
    done = run("search", captions, "a dog", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"(\u65e5\u672c)" in done.stdout
    assert (rb"a dog \xe9" if encoding == "ascii" else b"a dog \xe9") in done.stdout


def test_a_file_on_stdout_is_utf_8(captions: Path) -> None:
    words = ("search", captions, "a dog", "--format", "srt")
    done = run(*words, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "a dog é" in done.stdout.decode("utf-8")
