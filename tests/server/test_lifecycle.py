"""The life of a service: its start, its end, several processes, traces."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from helpers.service import Service, events, running

from granalign_fast import CaptionedVideo, MomentRetriever, SentenceEncoder
from granalign_fast.config import PRESETS
from granalign_fast.errors import GranAlignError
from granalign_fast.server.engine import Engine
from granalign_fast.server.settings import Settings


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """A library of captions alone, whose service needs no other model and starts soon."""
    folder = tmp_path_factory.mktemp("captions")
    retriever = MomentRetriever(SentenceEncoder(minilm))
    for name in ("street", "yard"):
        texts = tuple(f"a {colour} car in the {name}" for colour in ("red", "blue", "green") * 4)
        retriever.index(CaptionedVideo(name, texts)).save(folder / name)
    return folder


def test_a_service_reads_a_share_of_approximate_indexes(captions: Path) -> None:
    settings = Settings.from_json(Settings(library=captions, approximate=0.25).to_json())
    engine = Engine(settings)
    engine.open()
    configs = [library.retriever.config for library in engine.libraries.values()]
    assert {config.approximate for config in configs} == {0.25}
    assert replace(configs[0], approximate=0.0) in PRESETS.values()


def test_a_service_that_could_index_no_video_does_not_start(library: Path) -> None:
    settings = Settings(library=library, models=Path("miniatures"), frames_per_clip=6)
    with pytest.raises(GranAlignError, match=r"got clips of 6, expected one of: 1.*--read-only"):
        Engine(settings).open(warm_up=False)
    engine = Engine(replace(settings, read_only=True))
    engine.open(warm_up=False)
    assert engine.ready.is_set()


def test_a_service_is_ready_when_its_models_are(captions: Path) -> None:
    with running(captions, "--read-only", models=None) as service:
        first = service.client.get("/health/ready")
        if first.status_code == 503:  # it is loading, as nearly always
            assert int(first.headers["retry-after"]) >= 1
            assert first.json()["type"] == "urn:granalign:problem:not-ready"
            refused = service.client.post("/v1/search", json={"query": "a red car"})
            assert refused.status_code == 503
        assert service.client.get("/health/live").json() == {"status": "alive"}
        service.wait_until_ready()
        answer = service.client.post("/v1/search", json={"query": "a red car"}).json()
        assert answer["results"][0]["moments"][0]["caption"].startswith("a red car")
        assert set(answer["models"]) == {"sentence-encoder"}
        presets = service.client.get("/v1").json()["presets"]
        assert (presets["tuned"] is None and "needs" in presets["visual"]) or presets["visual"]
        # There is no file, and no model that could index one.
        assert service.client.get("/v1/videos/street/media").status_code == 410
        assert service.client.get("/v1/videos/street/export").status_code == 422
        srt = "format=srt&query=a%20red%20car&moment=0-2"
        exported = service.client.get(f"/v1/videos/street/export?{srt}")
        assert exported.text.splitlines()[1] == "00:00:00,000 --> 00:00:02,000"
        metrics = service.client.get("/metrics").text
        assert "granalign_ready 1.0" in metrics and "granalign_library_videos 2.0" in metrics
        assert "granalign_library_clips 24.0" in metrics
        assert re.search(r'granalign_stage_duration_seconds_count{stage="refine"} 1\.0', metrics)
        assert 'granalign_model_loads_total{kind="sentence-encoder"} 1.0' in metrics
        assert service.end() == 0
    with running(captions, models=None) as service:
        service.wait_until_ready()
        upload = service.client.post("/v1/videos?name=a.mp4", content=b"a")
        assert (upload.status_code, upload.json()["status"]) == (501, 501)


def test_a_signal_lets_requests_in_work_end(indexed: Path) -> None:
    with running(indexed / "library", "--read-only") as service, ThreadPoolExecutor(2) as pool:
        service.wait_until_ready()
        queries = [f"a large ring and {number} squares" for number in range(8)]

        def stream() -> list[str]:
            body = {"query": "a large white ring", "stream": True}
            with httpx.stream(
                "POST", f"{service.url}/v1/search", json=body, timeout=60
            ) as response:
                return [name for name, _ in events(response)]

        with httpx.Client(base_url=service.url, timeout=60) as client:
            many = pool.submit(client.post, "/v1/search", json={"queries": queries})
            streamed = pool.submit(stream)
            while _in_work(service) < 2 and not many.done():
                pass
            service.process.send_signal(signal.SIGTERM)
            assert many.result().status_code == 200
            assert len(many.result().json()["results"]) == 8
            assert streamed.result()[-1] == "done"
        assert service.process.wait(60) == 0
        service.end()
    assert not [line for line in service.lines if "Traceback" in line]


def _in_work(service: Service) -> float:
    """Return how many requests are in work beside this one."""
    text = service.client.get("/metrics").text
    (found,) = re.findall(r"^granalign_http_requests_in_progress (\S+)", text, re.MULTILINE)
    return float(found) - 1


def test_several_processes_share_a_port(captions: Path) -> None:
    with running(captions, "--read-only", "--workers", 2, models=None) as service:
        service.wait_until_ready()
        body = {"query": "a blue car"}
        with ThreadPoolExecutor(8) as pool:

            def search(number: int) -> int:
                # Each with a connection of its own, so that both processes get some.
                got = httpx.post(f"{service.url}/v1/search", json=body, timeout=60)
                return got.status_code if got.status_code != 503 else 200

            assert set(pool.map(search, range(24))) == {200}
        service.wait_until_ready()
        text = httpx.get(f"{service.url}/metrics", timeout=60).text
        counts = re.findall(
            r'granalign_http_requests_total{method="POST",route="/v1/search",status="\d+"} (\S+)',
            text,
        )
        assert sum(map(float, counts)) == 24
        assert service.end() == 0


def test_processes_that_cannot_load_their_models_end_the_service(
    indexed: Path, captions: Path
) -> None:
    with running(indexed / "library", "--read-only", "--workers", 2, models=None) as service:
        assert service.process.wait(60) == 2
        service.end()
    assert any("made with models that are not given" in line for line in service.lines)


@contextmanager
def _collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Receive what OpenTelemetry exports; yields the address and the requests."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_traces_are_sent_where_they_are_asked_for(
    captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _collector() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        for options in ([], ["--otlp"]):
            with running(captions, "--read-only", *options, models=None) as service:
                service.wait_until_ready()
                service.client.post("/v1/search", json={"query": "a private query"})
                assert service.end() == 0
            assert bool(got) == bool(options)
    traces = b"".join(body for path, body in got if path == "/v1/traces")
    assert b"/v1/search" in traces and b"private" not in traces
