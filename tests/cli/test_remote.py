"""Models on servers on the command line: index, search and evaluate without a local model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import served_miniatures
from helpers.command import Granalign
from helpers.fakes import BagOfWords
from helpers.model_server import ModelServer, Reply, Request, chat_reply, in_turn
from helpers.videos import constant, render

from granalign_fast import VideoIndex

KEY = "sk-secret-0123456789"


def answer(request: Request) -> Reply:
    """All three models of a search, by the miniatures and by counting words."""
    if request.path.endswith("/embeddings"):
        rows = BagOfWords().encode(request.body["input"]).tolist()
        return Reply.of({"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]})
    return served_miniatures.answer(request)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    served_miniatures.miniatures()


@pytest.fixture(autouse=True)
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_cache: Callable[[Path], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm_cache(tmp_path / "cache")))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return render(tmp_path / "one.mp4", constant(8, 9))


def urls(running: ModelServer) -> list[str]:
    return [f"--{role}-url={running.url}" for role in ("llm", "vlm", "embed")]


def test_the_whole_method_without_a_local_model(
    model_server: ModelServer, granalign: Granalign, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise AssertionError("no local model is needed")

    monkeypatch.setattr("granalign_fast.pipeline.resolve_model", missing)
    model_server.answer = answer
    for role in ("LLM", "VLM", "EMBED"):
        monkeypatch.setenv(f"GRANALIGN_{role}_API_KEY", KEY)
    code, _, err = granalign("index", video, "--out", "lib", *urls(model_server)[1:])
    assert code == 0, err
    index = VideoIndex.load(Path("lib/one"))
    assert index.models.keys() == {"vlm", "sentence-encoder"}
    assert all(name.endswith(f" tiny at {model_server.url}/v1") for name in index.models.values())
    captions = index.video.captions
    assert captions is not None and len(captions) == index.video.clips

    # A second run has nothing to do, and asks for no caption.
    sent = len(model_server.posts)
    assert granalign("index", video, "--out", "lib", *urls(model_server)[1:])[0] == 0
    assert len(model_server.posts) <= sent + 1

    query = "the red circle moves"
    code, out, err = granalign("search", "lib", query, "--json", *urls(model_server))
    assert code == 0, err
    record = json.loads(out)
    assert record["moments"] and record["exists"] is not None and len(record["rewrites"]) > 1
    code, out, err = granalign(
        "search", "lib", query, "--preset", "recognition", *urls(model_server)
    )
    assert code == 0, err

    # The key was sent, and stands nowhere.
    assert {one.headers["authorization"] for one in model_server.posts} == {f"Bearer {KEY}"}
    kept = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in kept)
    assert KEY not in json.dumps(record) + out + err


def test_an_index_is_not_searched_by_other_models(
    model_server: ModelServer, granalign: Granalign, video: Path
) -> None:
    model_server.answer = answer
    assert granalign("index", video, "--out", "lib", *urls(model_server)[1:])[0] == 0
    code, _, err = granalign("search", "lib", "a dog", urls(model_server)[2])
    assert code == 2 and "was made with models that are not given (vlm" in err
    assert "expected --vlm-url with the server that is named" in err
    # Another model on the same server.
    model_server.models = ["other"]
    code, _, err = granalign("search", "lib", "a dog", *urls(model_server))
    assert code == 2 and "embedded by the sentence encoder" in err
    assert f"tiny at {model_server.url}/v1, got " in err and f"other at {model_server.url}" in err


def test_captions_with_rewrites_by_a_server(
    model_server: ModelServer, granalign: Granalign, tmp_path: Path
) -> None:
    lines = {"vid": "street", "captions": ["a dog", "a red car", "a red car", "a tree"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(lines) + "\n")
    model_server.answer = lambda request: (
        answer(request) if "/embeddings" in request.path else chat_reply("A red car drives.")
    )
    found = granalign("search", "captions.jsonl", "the vehicle", "--json", *urls(model_server)[::2])
    assert found[0] == 0, found[2]
    record = json.loads(found[1])
    assert record["moments"][0]["start"] == 2.0
    assert record["rewrites"]["simplified"] == ["A red car drives."] * 3


def test_an_evaluation_by_servers(
    model_server: ModelServer, granalign: Granalign, tmp_path: Path
) -> None:
    captions = {"vid": "street", "captions": ["a dog", "a red car", "a red car", "a tree"]}
    query = {"qid": 1, "query": "the red car", "vid": "street", "duration": 8.0}
    query |= {"relevant_windows": [[2, 6]], "relevant_clip_ids": [1, 2]}
    query |= {"saliency_scores": [[4, 4, 4]] * 2}
    (tmp_path / "captions.jsonl").write_text(json.dumps(captions) + "\n")
    (tmp_path / "val.jsonl").write_text(json.dumps(query) + "\n")
    model_server.answer = lambda request: (
        answer(request) if "/embeddings" in request.path else chat_reply("A red car drives.")
    )
    options = ["--captions", "captions.jsonl", "--rewriter", "models", "--json"]
    code, out, err = granalign(
        "evaluate", "qvhighlights", "val.jsonl", *options, *urls(model_server)[::2]
    )
    assert code == 0, err
    setup = json.loads(out)["setup"]
    assert setup["models"]["llm"]["source"] == f"tiny at {model_server.url}/v1"
    assert f"tiny at {model_server.url}/v1" in setup["encoder"]["fingerprint"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vlm-url", "http://me:hunter2@x"], "--vlm-url: got a URL with a user"),
        (["--vlm-url", "x"], "--vlm-url: got 'x', expected the URL of a server"),
        (["--vlm-model", "x"], "--vlm-model: got a name without a server"),
        (["--vlm-url", "http://127.0.0.1:9", "--remote-timeout", "0"], "--remote-timeout: got 0"),
        (["--vlm-url", "http://127.0.0.1:9", "--remote-timeout", "1"], "cannot be reached"),
        (["--llm-url", "http://127.0.0.1:9"], "got no model of kind 'vlm' or 'clip'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    model_server: ModelServer, granalign: Granalign, video: Path, options: list[str], words: str
) -> None:
    code, out, err = granalign("index", video, "--out", "lib", *options)
    assert code == 2 and out == "" and words in err
    assert err.count("\n") == 1 and "hunter2" not in err and not Path("lib/one").exists()


def test_a_server_that_fails_midway_costs_no_finished_work(
    model_server: ModelServer, granalign: Granalign, tmp_path: Path
) -> None:
    videos = [render(tmp_path / f"{name}.mp4", constant(6, 9)) for name in ("one", "two")]
    options = ["--out", "lib", "--rows", "4", *urls(model_server)[1:]]

    def fails_later(request: Request) -> Reply:
        captions = sum("chat" in one.path for one in model_server.posts)
        return Reply(b"down", 503) if captions > 7 else answer(request)

    model_server.answer = fails_later
    code, _, err = granalign("index", *videos, *options)
    assert code == 2 and "got 503 (down), in 5 attempts" in err and "Traceback" not in err
    model_server.answer = answer
    before = len(model_server.posts)
    assert granalign("index", *videos, *options)[0] == 0
    asked = sum("chat" in one.path for one in model_server.posts[before:])
    assert asked <= 1 + 8, "what was described before is not described again"
    assert {path.name for path in Path("lib").iterdir()} >= {"one", "two"}


def test_two_sentence_encoders_are_refused(model_server: ModelServer, granalign: Granalign) -> None:
    Path("captions.jsonl").write_text(json.dumps({"vid": "a", "captions": ["x"]}) + "\n")
    found = granalign("search", "captions.jsonl", "x", urls(model_server)[2], "--precision", "int8")
    assert found[0] == 2 and "--embed-url: got another sentence encoder as well, int8" in found[2]


def test_recognition_needs_log_probabilities(
    model_server: ModelServer, granalign: Granalign, video: Path
) -> None:
    model_server.answer = in_turn(chat_reply("A dog."))
    search = ["search", video, "a dog", *urls(model_server)]
    code, _, err = granalign(*search, "--preset", "recognition")
    assert code == 2 and "got an answer without log probabilities" in err
