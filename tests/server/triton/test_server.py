"""Answers of Triton's own server, over HTTP and gRPC, are those of the library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.triton_server import Triton

from granalign_fast.config import PRESETS
from granalign_fast.library import Library, LibraryResult
from granalign_fast.pipeline import ModelFolder, models_folder

pytestmark = pytest.mark.needs_triton

QUERIES = ("a red square", "a blue circle moves", "the green triangle is still")
PROTOCOLS = ("http", "grpc")


def ask(
    triton: Triton, protocol: str, queries: tuple[str, ...], options: dict[str, Any] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Search by Triton's own client; return all outputs."""
    rows = [[query.encode()] for query in queries]
    arrays = {"query": np.array(rows, object)}
    if options is not None:
        arrays["options"] = np.array([[json.dumps(options).encode()]] * len(queries), object)
    return infer(triton, protocol, "granalign_search", arrays)


def infer(
    triton: Triton, protocol: str, model: str, arrays: dict[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Call a model by Triton's own client."""
    from tritonclient.utils import np_to_triton_dtype

    client: Any
    if protocol == "http":
        import tritonclient.http as module
    else:
        import tritonclient.grpc as module
    with module.InferenceServerClient(getattr(triton, protocol)) as client:
        inputs = []
        for name, array in arrays.items():
            given = module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            given.set_data_from_numpy(array)
            inputs.append(given)
        result = client.infer(model, inputs)
        answer = result.get_response()
        outputs = answer["outputs"] if protocol == "http" else answer.outputs
        names = [each["name"] if protocol == "http" else each.name for each in outputs]
        return {name: result.as_numpy(name) for name in names}


@pytest.fixture(scope="module")
def search(indexed: Path) -> Callable[..., LibraryResult]:
    """The same library in this process, with models of its own."""
    models = ModelFolder(models_folder("miniatures"))
    library = Library.open(indexed / "library", models.retriever())
    return lambda query, **options: library.search(query, **options)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_moments_are_those_of_the_library(
    triton: Triton, search: Callable[..., LibraryResult], protocol: str
) -> None:
    outputs = ask(triton, protocol, QUERIES)
    for row, query in enumerate(QUERIES):
        expected = search(query).moments
        assert len(expected) > 1
        count = outputs["count"][row, 0]
        moments = outputs["moments"][row, :count]
        ids = [vid.decode() for vid in outputs["videos"][row, :count]]
        assert ids == [moment.vid for moment in expected]
        times = [[moment.start, moment.end] for moment in expected]
        np.testing.assert_array_equal(moments[:, :2], times)
        # The library packs its texts, which rounds otherwise.
        scores = [moment.score for moment in expected]
        np.testing.assert_allclose(moments[:, 2], scores, atol=2e-6)
        answer = json.loads(outputs["answer"][row, 0])
        (result,) = answer["results"]
        assert [moment["vid"] for moment in result["moments"]] == ids
        assert result["query"] == query
        assert set(answer["models"]) == {"clip", "llm", "sentence-encoder", "vlm"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_options_reach_the_search(
    triton: Triton, search: Callable[..., LibraryResult], protocol: str
) -> None:
    given = {"top": 1, "refine": 1, "filters": {"videos": ["second"]}, "saliency": True}
    outputs = ask(triton, protocol, QUERIES[:1], given)
    assert outputs["count"].tolist() == [[1]]
    (result,) = json.loads(outputs["answer"][0, 0])["results"]
    assert [video["vid"] for video in result["videos"]] == ["second"]
    assert len(result["videos"][0]["saliency"]) == 7
    rewrites = {"simplified": ["a square"], "detailed": ["a red square is on the left"]}
    outputs = ask(triton, protocol, QUERIES[:1], {"rewrites": rewrites})
    (result,) = json.loads(outputs["answer"][0, 0])["results"]
    assert result["rewrites"]["simplified"] == ["a square"]


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("", None, "query"),
        ("a dog", {"top": 0}, "top"),
        ("a dog", {"top": 10**6}, "expected at most 100"),
        ("a dog", {"colour": 1}, "expected an object with keys"),
        ("a dog", {"preset": "none"}, "expected one of"),
        ("a dog" * 5000, None, "4000 characters"),
    ],
)
def test_a_wrong_request_is_refused_in_a_line(
    triton: Triton, query: str, options: dict[str, Any] | None, message: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=message) as refused:
        ask(triton, "grpc", (query,), options)
    assert "\n" not in str(refused.value) and "Traceback" not in str(refused.value)
    assert ask(triton, "grpc", ("a red square",))["count"][0, 0] > 0


def test_requests_at_the_same_time_share_batches(triton: Triton) -> None:
    import tritonclient.grpc

    def counts() -> tuple[int, int]:
        with tritonclient.grpc.InferenceServerClient(triton.grpc) as client:
            (model,) = client.get_inference_statistics("granalign_search").model_stats
            return model.inference_count, model.execution_count

    alone = {query: ask(triton, "grpc", (query,)) for query in QUERIES}
    before = counts()
    queries = QUERIES * 8
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda query: ask(triton, "grpc", (query,)), queries))
    for query, answer in zip(queries, answers, strict=True):
        assert answer["videos"].tolist() == alone[query]["videos"].tolist()
        np.testing.assert_allclose(answer["moments"], alone[query]["moments"], atol=2e-6)
    # The server counts a batch after it has answered.
    until = time.monotonic() + 10
    while counts()[0] - before[0] < len(queries) and time.monotonic() < until:
        time.sleep(0.05)
    inferences, executions = (after - first for after, first in zip(counts(), before, strict=True))
    assert inferences == len(queries)
    assert executions < inferences


def test_an_encoder_embeds_as_the_package_does(triton: Triton) -> None:
    models = ModelFolder(models_folder("miniatures"))
    encoder = models.encoder
    texts = ["a red square", "a dog runs on"]
    rows = np.array(encoder._tokenise(texts)[0:1], np.int32)
    found = infer(triton, "http", "granalign_sentence_encoder", {"input_ids": rows})
    np.testing.assert_allclose(found["embeddings"], encoder.encode(texts[:1]), atol=2e-6)
    frame_encoder = models.frame_encoder
    assert frame_encoder is not None
    height, width = frame_encoder.preprocessing.crop
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    found = infer(triton, "grpc", "granalign_image_encoder", {"frames": frames})
    np.testing.assert_allclose(found["embeddings"], frame_encoder.encode_frames(frames), atol=2e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_searched(triton: Triton, indexed: Path, preset: str) -> None:
    retriever = ModelFolder(models_folder("miniatures")).retriever(preset)
    expected = Library.open(indexed / "library", retriever).search(QUERIES[0])
    outputs = ask(triton, "grpc", QUERIES[:1], {"preset": preset})
    count = outputs["count"][0, 0]
    assert [vid.decode() for vid in outputs["videos"][0, :count]] == [
        moment.vid for moment in expected.moments
    ]
    times = [[moment.start, moment.end] for moment in expected.moments]
    np.testing.assert_array_equal(outputs["moments"][0, :count, :2], times)
