"""Requests of each route, changed at random: all are answered or refused, and nothing breaks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.changed_requests import Requests
from helpers.mutated_requests import Run, judge
from helpers.service import running


def test_two_hundred_changed_requests(library: Path, indexed: Path, tmp_path: Path) -> None:
    """A few of those that ``python -m helpers.mutated_requests 10000`` sends."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with running(library, "--root", indexed / "videos") as service:
        service.wait_until_ready()
        video = (indexed / "videos" / "new.mp4").read_bytes()
        run = Run(service, library, video, outside)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run.one, range(200)))
        run.end()
        assert service.end() == 0
    assert run.failures == []
    assert {"200", "400", "404", "422"} <= run.statuses.keys(), run.statuses


def test_a_number_makes_the_same_request_again(tmp_path: Path) -> None:
    first, second = (Requests(b"video" * 100, tmp_path) for _ in range(2))
    made = [first.make(number) for number in range(50)]
    assert made == [second.make(number) for number in range(50)]
    assert len({request for request, _ in made}) > 45


def test_what_counts_as_wrong() -> None:
    good = b"HTTP/1.1 200 OK\r\n\r\n"
    assert judge(good) == ("200", None)
    assert judge(b"") == ("closed", None)
    for answer in (
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        good + b"a secret of another folder",
        good + b"Traceback (most recent call last)",
        b"nonsense",
    ):
        assert judge(answer)[1] is not None
