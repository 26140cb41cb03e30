"""Worker processes: whatever a call does, the program goes on, and learns what has happened."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import worker_calls as calls
from helpers.index_worker import write_video

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.runtime.messages import MalformedMessage, decode, encode
from granalign_fast.runtime.workers import Limits, WorkerError, Workers
from granalign_fast.video.frames import DamagedVideoWarning

TIGHT = Limits(seconds=20, processor_seconds=1, memory=1 << 29, file_bytes=1 << 16)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(limits=TIGHT) as made:
        yield made


VALUES = [
    [None, True, -3, 2.5, "é\ud800", [], {"a": {"b": [1]}}],
    ["", b"", b"\0\xff", {}],
]


@pytest.mark.parametrize("value", VALUES)
def test_a_message_gives_the_value_back(value: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "i8", "?", ">i4"])
def test_a_message_gives_an_array_back(dtype: str) -> None:
    for array in (np.arange(12).reshape(3, 4).astype(dtype), np.zeros((2, 0), dtype)):
        for layout in (array, array.T):
            got = decode(encode({"x": [layout, b"after"]}))
            assert got["x"][1] == b"after" and got["x"][0].dtype == layout.dtype
            np.testing.assert_array_equal(got["x"][0], layout)


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([object()]), {"$buffer": [1]}, {1}])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="expected None, a number"):
        encode(value)


BAD = [
    b"",
    b"\xff" * 8,
    (2).to_bytes(8, "little") + b"[",
    *(
        len(text).to_bytes(8, "little") + text + b"1234"
        for text in (
            b'{"$buffer": 5}',
            b'{"$buffer": []}',
            b'{"$buffer": [-1]}',
            b'{"$buffer": [5]}',
            b'{"$buffer": [4, "O", [1]]}',
            b'{"$buffer": [4, "<f4", [2]]}',
            b'{"$buffer": [4, "<f4", [-2]]}',
            b'{"$buffer": [4, 3, 4]}',
            b"[" * 100_000,
            b"\xff\xfe",
        )
    ),
]


@pytest.mark.parametrize("message", BAD)
def test_a_message_that_is_none(message: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(message)


def test_a_result_and_its_types(workers: Workers) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = workers.run(calls.echo, array, ("a", Path("b")), b"c")
    np.testing.assert_array_equal(got[0], array)
    assert got[1:] == [["a", "b"], b"c"]


def test_a_worker_is_kept_and_is_another_process(workers: Workers) -> None:
    first, second = (workers.run(calls.process_id) for _ in range(2))
    assert first == second != os.getpid()


def test_a_worker_for_each_call() -> None:
    with Workers(reuse=False) as workers:
        assert len({workers.run(calls.process_id) for _ in range(3)}) == 3


def test_temporary_files_go_with_their_worker(workers: Workers) -> None:
    folder, file, path = workers.run(calls.environment)
    assert Path(file).parent == Path(folder) and Path(file).exists()
    assert "" not in path
    with pytest.raises(WorkerError):
        workers.run(calls.leave, 3)
    assert not Path(folder).exists()


def test_an_error_of_ours_is_the_same_error(workers: Workers) -> None:
    before = workers.run(calls.process_id)
    with pytest.raises(GranAlignError) as caught:
        workers.run(calls.refuse, "a.mp4: got text,\nexpected a video")
    assert str(caught.value) == "a.mp4: got text, expected a video"
    assert not isinstance(caught.value, WorkerError)
    assert workers.run(calls.process_id) == before


ENDS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str, str]] = {
    "another error": (calls.fail, (KeyError,), "crash", r"unexpected error: KeyError: 'a\\nb'"),
    "an exit": (calls.fail, (SystemExit,), "crash", "unexpected error: SystemExit: a b"),
    "memory": (calls.allocate, (1 << 30,), "memory", "more than 512 MiB of memory"),
    "processors": (calls.spin, (), "time", "more than 1 s of processors"),
    "an exit code": (calls.leave, (3,), "crash", "ended, with exit code 3"),
    "a crash": (calls.end_by, (signal.SIGSEGV,), "crash", "ended by SIGSEGV"),
    "an abort": (calls.end_by, (signal.SIGABRT,), "crash", "SIGABRT, as where .* 512 MiB"),
    "a kill": (calls.end_by, (signal.SIGKILL,), "crash", "SIGKILL, as where the machine"),
    "no value": (calls.echo, ({1: 2},), "crash", "TypeError: got a dict, expected None"),
    "a false length": (calls.send_bytes, (b"\xff" * 8,), "crash", "no answer"),
    "no message": (calls.send_bytes, (b"\x03" + bytes(7) + b"abc",), "crash", "no answer"),
    "a silent one": (calls.send_bytes, (b"\x03" + bytes(7) + b"a",), "time", "more than 1 s"),
}


for words in (["failed"], ["crashed", "a"], ["progress", 1], ["unknown", 1], [[1]], {}, 5):
    message = encode(words)
    data = len(message).to_bytes(8, "little") + message
    ENDS[f"a false {words}"] = (calls.send_bytes, (data,), "crash", "no answer")


@pytest.mark.parametrize("name", ENDS)
def test_a_call_that_ends_badly_costs_only_itself(workers: Workers, name: str) -> None:
    function, arguments, reason, message = ENDS[name]
    with pytest.raises(WorkerError, match=message) as caught:
        workers.run(function, *arguments, seconds=1 if name == "a silent one" else 20)
    assert caught.value.reason == reason and "\n" not in str(caught.value)
    assert workers.run(calls.echo, 1) == [1]


@pytest.mark.parametrize("function", [calls.spin_holding_the_lock, calls.report_until_killed])
def test_a_deadline(workers: Workers, function: Callable[..., Any]) -> None:
    progress = (lambda *_: None) if function is calls.report_until_killed else None
    before, begin = workers.run(calls.process_id), time.monotonic()
    with pytest.raises(WorkerError, match=r"more than 0\.3 s") as caught:
        workers.run(function, seconds=0.3, progress=progress)
    assert caught.value.reason == "time" and time.monotonic() - begin < 5
    assert workers.run(calls.process_id) != before


def test_a_file_that_is_too_large(workers: Workers, tmp_path: Path) -> None:
    workers.run(calls.write, tmp_path / "a", 1 << 16)
    with pytest.raises(WorkerError, match="File too large"):
        workers.run(calls.write, tmp_path / "b", 1 << 18)
    assert (tmp_path / "b").stat().st_size <= 1 << 16


def test_progress_arrives_in_order(workers: Workers) -> None:
    seen: list[tuple[Any, ...]] = []
    assert workers.run(calls.count_to, 50, progress=lambda *values: seen.append(values)) == 50
    assert seen == [(number, 50, "clip") for number in range(50)]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, BrokenPipeError])
def test_an_error_of_progress_ends_the_call(workers: Workers, kind: type[Exception]) -> None:
    def stop(*_: object) -> None:
        raise kind("the client has gone")

    begin = time.monotonic()
    with pytest.raises(kind, match="the client has gone"):
        workers.run(calls.report_until_killed, progress=stop)
    assert workers.run(calls.echo) == [] and time.monotonic() - begin < 4


def test_a_call_is_cancelled(workers: Workers) -> None:
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    begin = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        workers.run(calls.sleep, 60, seconds=60, cancel=cancel)
    assert caught.value.reason == "cancelled" and time.monotonic() - begin < 5
    with pytest.raises(WorkerError):  # before it begins
        workers.run(calls.echo, cancel=cancel)
    assert workers.run(calls.echo, cancel=threading.Event()) == []


def test_a_video_is_indexed_in_a_worker(tmp_path: Path) -> None:
    """A cancelled job is resumed by the same call, as after any other interruption."""
    video = write_video(tmp_path / "a.mp4", 12, 1)
    cancel = threading.Event()
    seen: list[tuple[Any, ...]] = []

    def watch(*values: Any) -> None:
        seen.append(values)
        cancel.set()

    with Workers(limits=Limits(memory=1 << 30)) as workers:
        arguments = calls.index, str(video), str(tmp_path / "out")
        with pytest.raises(WorkerError) as caught:
            workers.run(*arguments, progress=watch, cancel=cancel)
        assert caught.value.reason == "cancelled" and not (tmp_path / "out" / "a").exists()
        folder = workers.run(*arguments, progress=lambda *values: seen.append(values))
    assert seen[0] == (4, 12, "a") and seen[-1] == (12, 12, "a")
    assert len(VideoIndex.load(folder).video.captions) == 12
    assert not (tmp_path / "out" / ".indexing").exists()


def test_warnings_and_log_records_arrive(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "granalign_fast"),
        Workers() as workers,
        pytest.warns(DamagedVideoWarning, match=r"a\.mp4 is damaged near 2 s"),
    ):
        workers.run(calls.speak)
    ours = [record for record in caplog.records if record.name != "other"]
    assert [(record.name, record.getMessage()) for record in ours] == [
        ("granalign_fast.video", "a frame of a.mp4 is damaged")
    ]


def test_calls_at_the_same_time() -> None:
    with Workers(2) as workers:
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda n=n: results.append(workers.run(calls.echo, n)[0]))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(results) == list(range(8))


def test_a_worker_that_cannot_be_replaced_is_replaced_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk of temporary files is full for a while."""

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with Workers() as workers:
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "mkdtemp", full)
            with pytest.raises(WorkerError, match="exit code 3"):
                workers.run(calls.leave, 3)
            for _ in range(2):
                with pytest.raises(GranAlignError, match=r"cannot be started .*No space left"):
                    workers.run(calls.echo)
            with pytest.raises(GranAlignError, match="free disk space or memory"):
                Workers()
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "mkdtemp", lambda **_: str(tmp_path / "made"))
            patch.setattr(subprocess, "Popen", full)
            (tmp_path / "made").mkdir()
            with pytest.raises(GranAlignError, match="cannot be started"):
                workers.run(calls.echo)
            assert not (tmp_path / "made").exists()
        assert workers.run(calls.echo, 1) == [1]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_signals_without_a_name_and_limits_of_the_shell() -> None:
    with Workers(limits=Limits(processor_seconds=None)) as workers:
        with pytest.raises(WorkerError, match="ended by signal 40"):
            workers.run(calls.end_by, 40)
        with pytest.raises(WorkerError, match="more than this program may take") as caught:
            workers.run(calls.end_by, signal.SIGXCPU)
    assert caught.value.reason == "time"


def test_closing_ends_calls_and_processes() -> None:
    workers = Workers()
    number = workers.run(calls.process_id)
    threading.Timer(0.2, workers.close).start()
    with pytest.raises(WorkerError, match="closed") as caught:
        workers.run(calls.sleep, 60)
    assert caught.value.reason == "closed" and not Path(f"/proc/{number}").exists()
    with pytest.raises(WorkerError, match="closed"):
        workers.run(calls.echo)
    workers.close()


def test_workers_end_with_a_program_that_is_killed() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "helpers.worker_calls"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    numbers = program.stdout.readline().split()
    time.sleep(1)  # both compute, one of them with Python's lock
    assert len(numbers) == 2 and all(_is_running(number) for number in numbers)
    program.kill()
    program.wait()
    program.stdout.close()
    end = time.monotonic() + 10
    while any(map(_is_running, numbers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(_is_running, numbers))


def _is_running(number: str) -> bool:
    """Return whether a process runs; one that has ended may wait for a parent to see it."""
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def test_what_cannot_be_sent_is_refused(workers: Workers) -> None:
    with pytest.raises(GranAlignError, match="cannot be sent to a worker"):
        workers.run(lambda: 1)
    with pytest.raises(GranAlignError, match="cannot be sent to a worker"):
        workers.run(calls.echo, threading.Lock())


@pytest.mark.parametrize(
    "change", [{"seconds": 0}, {"seconds": None}, {"memory": -1}, {"file_bytes": "1"}]
)
def test_wrong_limits(change: dict[str, Any]) -> None:
    with pytest.raises(GranAlignError, match=r"got .*, expected a number above 0"):
        Limits(**change)


def test_wrong_counts() -> None:
    with pytest.raises(GranAlignError, match="count: got 0, expected an integer from 1"):
        Workers(0)
