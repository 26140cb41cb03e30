"""Searches over HTTP, of a real service."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from helpers.service import Service, events

from granalign_fast.library import Library
from granalign_fast.pipeline import open_models

QUERY = "a large white ring"


def test_the_answer_is_that_of_the_library(service: Service, indexed: Path) -> None:
    answer = service.client.post("/v1/search", json={"query": QUERY, "top": 3}).json()
    assert (answer["version"], answer["preset"]) == ("1", "tuned")
    assert set(answer["models"]) == {"clip", "llm", "sentence-encoder", "vlm"}
    (result,) = answer["results"]
    library = Library.open(indexed / "library", open_models("miniatures").retriever())
    expected = library.search(QUERY, top=3)
    assert [(one["vid"], one["start"], one["end"]) for one in result["moments"]] == [
        (one.vid, one.start, one.end) for one in expected.moments
    ]
    assert result["rewrites"] == expected.query.to_record()
    assert result["searched"] == 2 and result["complete"]
    assert [hit["exists"] for hit in result["videos"]] == [
        pytest.approx(hit.result.exists, abs=1e-3) for hit in expected.videos if hit.result
    ]
    assert {"rewrite", "embed", "first_stage", "refine"} == set(result["seconds"])


def test_several_queries_filters_and_saliency(service: Service) -> None:
    body = {
        "queries": ["a square", {"query": QUERY, "simplified": ["a ring"]}],
        "filters": {"videos": ["second"]},
        "saliency": True,
        "preset": "visual",
    }
    answer = service.client.post("/v1/search", json=body).json()
    assert answer["preset"] == "visual"
    first, second = answer["results"]
    assert (first["query"], second["query"]) == ("a square", QUERY)
    assert second["rewrites"]["simplified"] == ["a ring"]
    for result in answer["results"]:
        (video,) = result["videos"]
        assert video["vid"] == "second" and video["file"] == "second.mp4"
        assert len(video["saliency"]) == -(-video["seconds"] // video["clip_seconds"])
        assert all(0 <= value <= 1 for value in video["saliency"])
        assert result["left_out"] == {"not chosen by the filters": 1}


def test_a_stream_begins_with_the_first_stage(service: Service) -> None:
    body = {"query": QUERY, "stream": True, "top": 2}
    with service.client.stream("POST", "/v1/search", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        got = list(events(response))
    assert [name for name, _ in got] == ["first", "refined", "done"]
    results = [data["results"][0] for _, data in got]
    assert not any(moment["refined"] for moment in results[0]["moments"])
    assert [result["complete"] for result in results] == [False, False, True]
    whole = service.client.post("/v1/search", json={"query": QUERY, "top": 2}).json()
    assert results[-1]["moments"] == whole["results"][0]["moments"]


def test_a_budget_ends_the_second_stage(service: Service) -> None:
    body = {"query": QUERY, "budget": 0}
    (result,) = service.client.post("/v1/search", json=body).json()["results"]
    assert not result["complete"] and not any(one["refined"] for one in result["videos"])
    with service.client.stream("POST", "/v1/search", json=body | {"stream": True}) as response:
        assert [name for name, _ in events(response)] == ["done"]


def test_time_that_is_up(service: Service) -> None:
    body = {"query": QUERY, "timeout": 0.001}
    response = service.client.post("/v1/search", json=body)
    assert response.status_code == 504
    assert response.json()["type"] == "urn:granalign:problem:too-late"
    with service.client.stream("POST", "/v1/search", json=body | {"stream": True}) as stream:
        ((name, problem),) = events(stream)
    assert (name, problem["status"]) == ("error", 504)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({}, 422, "query, queries: expected one of the two"),
        ({"query": "a", "queries": ["b"]}, 422, "expected one of the two"),
        ({"queries": []}, 422, "queries: got 0, expected 1 to 16"),
        ({"queries": ["a"] * 17}, 422, "queries: got 17, expected 1 to 16"),
        ({"queries": ["a", "b"], "stream": True}, 422, "stream: got 2 queries, expected one"),
        ({"query": ""}, 422, "at least 1 character"),
        ({"query": " \n"}, 422, "expected a text that is not empty"),
        ({"query": "a" * 4001}, 422, "at most 4000"),
        ({"query": "a", "top": 101}, 422, "top: got 101, expected at most 100"),
        ({"query": "a", "refine": 101}, 422, "refine: got 101"),
        ({"query": "a", "top": 0}, 422, "greater than or equal to 1"),
        ({"query": "a", "top": True}, 422, "valid integer"),
        ({"query": "a", "preset": "none"}, 422, "preset: got 'none', expected one of"),
        ({"query": "a", "filters": {"after": "soon"}}, 422, "after: got 'soon', expected a date"),
        ({"query": "a", "wrong": 1}, 422, "Extra inputs are not permitted"),
        ({"query": {"query": "a", "simplified": [""]}}, 422, "at least 1 character"),
        ([], 422, "valid dictionary"),
        ({"query": 3}, 422, '"detail": "body.query.text: Input should be a valid string; got 3"'),
        (
            {"query": {"query": "a", "simplified": "b"}},
            422,
            '"detail": "body.query.object.simplified: Input should be a valid list; got \'b\'"',
        ),
        (
            {"queries": ["a", {"query": "a", "wrong": 1}]},
            422,
            '"detail": "body.queries.1.object.wrong: Extra inputs are not permitted; got 1"',
        ),
        ({"query": "a", "timeout": 1e-9}, 504, "got no answer in 1e-09 s; ask for less"),
    ],
)
def test_what_cannot_be_searched(service: Service, body: object, status: int, detail: str) -> None:
    response = service.client.post("/v1/search", json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert detail in json.dumps(problem, ensure_ascii=False)
    assert problem["status"] == status and problem["request_id"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "bad-request"),
        (b'{"query": "\\ud800"}', "invalid"),
        (b'{"query": NaN}', "invalid"),
        (b'{"query": "a", "budget": 1e999}', "invalid"),
        (b"\xff\xfe", "bad-request"),
        (b"[" * 50_000, "bad-request"),
    ],
)
def test_what_is_no_json(service: Service, content: bytes, kind: str) -> None:
    response = service.client.post(
        "/v1/search", content=content, headers={"content-type": "application/json"}
    )
    assert response.json()["type"] == f"urn:granalign:problem:{kind}", response.text


def test_the_openapi_describes_the_answers(service: Service) -> None:
    openapi = service.client.get("/openapi.json").json()
    assert openapi["openapi"].startswith("3.1")
    post = openapi["paths"]["/v1/search"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    examples = openapi["components"]["schemas"][schema.rpartition("/")[2]]["examples"]
    for example in examples:
        assert service.client.post("/v1/search", json=example).status_code == 200
    page = service.client.get("/docs")
    assert "POST /v1/search" in page.text
    assert "http://" not in page.text and "https://" not in page.text
    assert "script" not in page.headers["content-security-policy"]


def test_a_client_that_goes_is_not_searched_for(service: Service) -> None:
    def dropped() -> float:
        text = service.client.get("/metrics").text
        (line,) = [
            line for line in text.splitlines() if line.startswith("granalign_search_dropped_total ")
        ]
        return float(line.split()[1])

    before = dropped()
    until, number = time.monotonic() + 30, 0
    with httpx.Client(base_url=service.url, timeout=0.05) as client:
        while dropped() == before and time.monotonic() < until:
            # Queries that were never asked take longest: their embeddings are not kept.
            number += 8
            queries = [f"{QUERY} {number + place}" for place in range(8)]
            with suppress(httpx.TimeoutException):
                client.post("/v1/search", json={"queries": queries})
    assert dropped() > before
