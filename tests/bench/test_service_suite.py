"""The suite of the service: what a load is, what counts as its time, and a run of all of it."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.load import CUT, HUNG, Plan, Sent, arrivals, put_load
from granalign_fast.bench.harness.load_figures import COLUMNS, figures, read_metrics
from granalign_fast.bench.harness.plots import draw_report
from granalign_fast.bench.harness.records import Report
from granalign_fast.bench.harness.report import markdown
from granalign_fast.bench.harness.runner import Settings, run_suites
from granalign_fast.bench.harness.served import Served
from granalign_fast.bench.harness.workloads import sentences
from granalign_fast.bench.suites.service import Queries, _read_queries
from granalign_fast.errors import GranAlignError

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})


class Slow(socketserver.StreamRequestHandler):
    """Answers one request after another, each after 20 ms, whatever connection it came by."""

    turn = threading.Lock()
    under_way = 0
    most = 0
    bodies: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        while head := self.rfile.readline():
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body, kind = self.rfile.read(length), type(self)
            kind.bodies.append(body)
            assert head.startswith(b"POST ")
            kind.under_way += 1
            kind.most = max(kind.most, kind.under_way)
            with self.turn:
                time.sleep(0.02)
            kind.under_way -= 1
            if body == b"cut":
                return
            if body == b"half":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}")
                return
            if body == b"hang":
                time.sleep(1)
            status = b"429 Too Many" if body == b"full" else b"200 OK"
            self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def slow() -> Iterator[Plan]:
    """A plan for a slow server."""
    Slow.under_way = Slow.most = 0
    Slow.bodies.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Plan(host="127.0.0.1", port=server.server_address[1], bodies=[])
        server.shutdown()
        thread.join()


def test_arrivals_are_a_poisson_process_of_a_seed() -> None:
    times = np.array(arrivals(200.0, 50.0, 3))
    assert times.tolist() == arrivals(200.0, 50.0, 3) != arrivals(200.0, 50.0, 4)
    assert times[0] == 0 and (np.diff(times) > 0).all() and times[-1] < 50
    assert abs(len(times) - 10_000) < 400  # four standard deviations
    gaps = np.diff(times)
    assert abs(gaps.mean() - gaps.std()) < 0.05 * gaps.mean()  # equal, of exponential gaps


def test_an_open_loop_counts_the_time_from_when_a_request_was_planned(slow: Plan) -> None:
    """The server takes 20 ms for each, so of ten that are planned at once the last waits 200."""
    sent = put_load(replace(slow, bodies=["{}"] * 10, times=[0.1] * 10))
    waits = sorted(one.seconds for one in sent)
    assert [one.planned for one in sent] == [0.1] * 10
    assert all(one.status == 200 for one in sent)
    for number, wait in enumerate(waits, 1):
        assert 0.02 * number <= wait
    assert Slow.most > 5  # nobody waited for the answers before sending


def test_a_closed_loop_has_no_more_requests_than_clients(slow: Plan) -> None:
    sent = put_load(replace(slow, bodies=["{}"] * 40, clients=3, seconds=0.3))
    assert Slow.most == 3
    assert 3 <= len(sent) < 40 and max(one.planned for one in sent) < 0.3


def test_every_request_has_an_end(slow: Plan) -> None:
    bodies = ["{}", "full", "cut", "hang", "{}"]
    sent = put_load(replace(slow, bodies=bodies, times=[0.1] * 5, patience=0.6))
    assert sorted(one.status for one in sent) == [HUNG, CUT, 200, 200, 429]
    nobody = put_load(replace(slow, port=1, bodies=["{}"], clients=1))
    assert [one.status for one in nobody] == [CUT]


def test_an_answer_that_breaks_off_is_not_asked_for_again(slow: Plan) -> None:
    """Only a connection that was closed while nobody used it is replaced in silence."""
    bodies = ["{}", "half", "{}", "cut", "{}"]
    sent = put_load(replace(slow, bodies=bodies, clients=1, seconds=60.0))
    assert [one.status for one in sent] == [200, CUT, 200, CUT, 200]
    assert Slow.bodies.count(b"half") == 1 and Slow.bodies.count(b"cut") == 2


def test_figures_are_those_of_the_requests_and_of_the_metrics() -> None:
    sent = [Sent(0.1 * i, 0.1 * i + 0.01 * (i + 1), 200) for i in range(10)]
    sent += [Sent(0.5, 0.502, 429), Sent(0.6, 0.601, 429), Sent(0.7, 2.0, CUT)]
    page = """# HELP granalign_search_batch_size Queries of a batch.
granalign_search_batch_size_count {batches}
granalign_search_batch_size_sum {queries}
granalign_stage_duration_seconds_sum{{stage="embed"}} {embed}
process_cpu_seconds_total {cpu}
process_resident_memory_bytes 1.5e+09
"""
    before = read_metrics(page.format(batches=2.0, queries=2.0, embed=1.0, cpu=5.0))
    after = read_metrics(page.format(batches=6.0, queries=12.0, embed=1.5, cpu=5.5))
    found = figures(sent, before, after, share=0.8, offered=13.0)
    assert (found.answered, found.seconds, found.rate) == (10, 2.0, 5.0)
    assert (found.p50, found.p99) == pytest.approx((0.055, 0.0991))
    assert found.others == {"429": 2, "cut": 1}
    assert found.batch == 2.5 and found.stages == {"embed": 0.05}
    assert found.processor == pytest.approx(0.05) and found.memory == 1.5e9
    cells = dict(zip(COLUMNS, found.cells(), strict=True))
    assert cells["load"] == "80% of capacity" and cells["p50"] == "55"
    assert cells["other answers"].startswith("2 x 429, 1 x cut")
    assert figures(sent, before, after, share=0.8, length=4.0).rate == 2.5
    nothing = figures([], {}, {}, clients=1)
    assert (nothing.rate, nothing.p50, nothing.batch, nothing.memory) == (0.0, None, None, None)


def test_no_two_requests_have_one_query() -> None:
    queries = [" ".join(f"{word}{number}" for word in "abcde") for number in range(12)]
    made = Queries(queries).exactly(0, 144)
    assert made[:12] == queries and len(set(made)) == 144
    assert made[12] == "a0 b0 c0 c1 d1 e1"
    # Queries that begin alike: what would be equal is left out.
    alike = [f"a man {does} in {place}" for does in ("runs", "sits") for place in ("rain", "snow")]
    mixed = Queries(alike)
    found = mixed.take(0, 100)
    assert len(set(found)) == len(found) < 16 and mixed.take(2, 3) == found[2:5]
    with pytest.raises(GranAlignError, match=f"got ones for {len(found)} requests, expected 101"):
        mixed.exactly(1, 100)
    of_words = Queries(sentences(np.random.default_rng(1), 512)).exactly(0, 60_000)
    assert len(set(of_words)) == 60_000


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:80", "https://a", "http://a:b", "http://", "http://a:0"),
        *("http://a:80/app", "http://a?b", "http://user:word@a"),
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(GranAlignError, match="expected an address such as"):
        Served.at(url)
    with pytest.raises(GranAlignError, match="cannot be reached"):
        Served.at("http://127.0.0.1:1").is_ready()


def test_the_suite_runs_a_service_and_loads_it(tmp_path: Path) -> None:
    settings = Settings(size=0.04, rounds=3, seconds=0.5)
    report = run_suites(["service"], settings, limits=LIMITS)
    assert not report.failures
    names = [load.name for load in report.loads]
    assert names == [
        "1 client",
        "16 clients",
        "10% of capacity",
        "80% of capacity",
        "1000% of capacity",
    ]
    assert all(load.answered and load.p50 and load.batch for load in report.loads)
    assert set(report.loads[-1].others) <= {"429"}
    constants = report.suites["service"].constants
    assert constants["service: throughput, 16 clients over 1"] > 0
    assert constants["service: first stage over HTTP, seconds"] > 0
    report.write(tmp_path / "run.json")
    again = Report.read(tmp_path / "run.json")
    assert again.loads == report.loads
    assert any(line.startswith("| 16 clients |") for line in markdown(again))
    pictures = draw_report(again, tmp_path / "plots")
    assert "service.png" in {path.name for path in pictures}


@pytest.mark.parametrize("query", ["5", "null", '" "', '["a"]'])
def test_a_query_of_a_file_is_a_text(tmp_path: Path, query: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(f'{{"query": "a dog"}}\n{{"query": {query}}}\n', encoding="utf-8")
    with pytest.raises(GranAlignError, match=r"queries\.jsonl:2: got the query .*expected a text"):
        _read_queries(path)
    path.write_text('{"query": "a dog"}\n{"query": "a dog"}\n', encoding="utf-8")
    assert _read_queries(path) == ["a dog"]
