"""A service whose models are on servers: it indexes an upload and searches without local ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import served_miniatures
from helpers.fakes import BagOfWords
from helpers.model_server import ModelServer, Reply, Request
from helpers.service import running
from helpers.videos import constant, render

KEY = "sk-secret-0123456789"


def answer(request: Request) -> Reply:
    """All models, by the miniatures and by counting words."""
    if request.path.endswith("/embeddings"):
        rows = BagOfWords().encode(request.body["input"]).tolist()
        return Reply.of({"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]})
    return served_miniatures.answer(request)


def test_an_upload_is_captioned_and_searched_by_servers(
    model_server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served_miniatures.miniatures()
    model_server.answer = answer
    for role in ("LLM", "VLM", "EMBED"):
        monkeypatch.setenv(f"GRANALIGN_{role}_API_KEY", KEY)
    (tmp_path / "library").mkdir()
    video = render(tmp_path / "one.mp4", constant(8, 9))
    urls = [f"--{role}-url={model_server.url}" for role in ("llm", "vlm", "embed")]
    with running(tmp_path / "library", *urls, models=None) as service:
        service.wait_until_ready()
        with video.open("rb") as file:
            job = service.client.post("/v1/videos", files={"file": ("one.mp4", file)}).json()
        done = service.wait_for(job["id"], "done", "failed")
        assert done["state"] == "done", done
        found = service.client.post("/v1/search", json={"query": "the red circle moves"}).json()
        moments = found["results"][0]["moments"]
        assert moments and moments[0]["refined"] and moments[0]["exists"] is not None
        assert found["models"].keys() == {"llm", "vlm", "sentence-encoder"}
        assert all(model["name"].startswith("tiny at ") for model in found["models"].values())
        assert not any(KEY in line for line in service.lines)
    assert all(
        request.headers["authorization"] == f"Bearer {KEY}" for request in model_server.posts
    )
