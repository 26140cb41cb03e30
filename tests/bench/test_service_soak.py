"""Mixed traffic on a service: what is measured, what counts as a missed bar, and a short run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from granalign_fast.bench.commands import service_soak
from granalign_fast.bench.commands.service_soak import Sample, failures, growth, report
from granalign_fast.bench.harness.process_usage import Usage, open_files, usage


def test_what_a_process_holds_is_seen() -> None:
    before = usage(os.getpid())
    assert before.resident > before.anonymous > 10 << 20
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    line = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with (
        Path(os.devnull).open() as _,
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        thread.start()
        held = usage(os.getpid())
        done.set()
        thread.join()
        assert held.descriptors == before.descriptors + 3  # the file, and two pipes
        assert held.threads == before.threads + 1
        assert held.children == before.children + 1
        assert held.child_resident > before.child_resident + (1 << 20)
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    assert usage(os.getpid()).children == before.children
    with pytest.raises(OSError):
        usage(child.pid)


def test_open_files_are_named_also_if_they_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w"):
        assert str(path) in open_files(os.getpid())
        path.unlink()
        assert f"{path} (deleted)" in open_files(os.getpid())
    assert not any(str(path) in one for one in open_files(os.getpid()))


def test_growth_compares_quarters_after_warm_up() -> None:
    def sample(second: int, resident: int) -> Sample:
        return Sample(second, Usage(resident, 0, 0, 0, 0, 0))

    warm = [sample(second, 10 * second) for second in range(20)]
    flat = [sample(second, 500) for second in range(20, 60)]
    last = [sample(second, 550) for second in range(60, 101)]
    assert growth([*warm, *flat, *last], 20.0) == (500, 550)


AFTER = {
    "descriptors": 52,
    "catalogue_files": 22,  # one segment more
    "other_descriptors": 30,
    "deleted_files": 0,
    "threads": 19,
    "children": 1,
}
FOUND: dict[str, Any] = {
    "seconds": 100.0,
    "resident_first": 100e6,
    "resident_last": 100.9e6,
    "growth": 0.009,
    "warm_up_threads": 20,
    "most_descriptors": 90,
    "most_threads": 21,
    "before": AFTER | {"descriptors": 41, "catalogue_files": 11, "threads": 14},
    "after": AFTER,
    "answers": {"search": {"200": 7}, "leave_search": {"gone": 2}},
    "wrong": [],
    "log": [],
    "exit_code": 0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"growth": 0.011}, "memory grew by 1.10%"),
        ({"after": AFTER | {"other_descriptors": 31}}, "31 other descriptors after"),
        ({"after": AFTER | {"deleted_files": 1}}, "1 deleted files after"),
        ({"after": AFTER | {"threads": 21}}, "21 threads after"),
        ({"after": AFTER | {"children": 2}}, "2 children after"),
        ({"wrong": ["search: 500"]}, "nobody asked for: search: 500"),
        ({"log": ["Traceback"]}, "the log: Traceback"),
        ({"exit_code": -9}, "the exit code is -9"),
    ],
)
def test_a_missed_bar_is_named(change: dict[str, Any], message: str) -> None:
    assert failures(FOUND) == []
    (missed,) = failures(FOUND | change)
    assert message in missed
    assert "| search | 7 x 200 |" in report(FOUND) and "+0.90%" in report(FOUND)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seconds 5", "--every: got 10, expected at most 0.9375"),
        ("--seconds -1", "--seconds: got -1.0, expected a number above 0"),
        ("--rate nan", "--rate: got nan"),
        ("--warm-up 1", "--warm-up: got 1.0"),
        ("--out none/soak.csv", "no such folder"),
    ],
)
def test_options_that_cannot_be(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        service_soak.main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_short_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of the traffic is taken, and the service answers as it should."""
    monkeypatch.setattr(service_soak, "_QUIET_SECONDS", 1.0)
    words = ["--seconds", "3", "--rate", "3", "--every", "0.5", "--warm-up", "0"]
    files = ["--out", tmp_path / "soak.csv", "--json", tmp_path / "soak.json"]
    service_soak.main([*words, *map(str, files)])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["wrong"] == [] and found["log"] == [] and found["exit_code"] == 0
    assert {"search", "upload", "clip", "delete", "cancel", "leave_upload"} <= found[
        "answers"
    ].keys()
    lines = (tmp_path / "soak.csv").read_text().splitlines()
    assert lines[0].startswith("seconds,resident,") and len(lines) > 4
    assert "memory" in capsys.readouterr().out
