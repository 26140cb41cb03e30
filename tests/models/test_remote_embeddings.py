"""Servers of embeddings, by OpenAI's protocol and by TEI's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.model_server import ModelServer, Reply, Request, in_turn

from granalign_fast import CaptionedVideo, GranAlignError, MomentRetriever
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.models.remote.address import Address
from granalign_fast.models.remote.embeddings import BATCH, RemoteEncoder
from granalign_fast.models.remote.server import Server

TEXTS = [f"a dog {number}" for number in range(3 * BATCH + 5)]


def openai(request: Request) -> Reply:
    """OpenAI's form; the entries come in another order than the texts."""
    rows = (3 * BagOfWords().encode(request.body["input"])).tolist()
    data = [{"index": number, "embedding": row} for number, row in enumerate(rows)]
    return Reply.of({"object": "list", "data": data[::-1]})


def tei(request: Request) -> Reply:
    if len(request.body["inputs"]) > 32:
        return Reply.of({"error": "batch size > 32", "error_type": "Validation"}, status=422)
    return Reply.of(BagOfWords().encode(request.body["inputs"]).tolist())


def encoder_of(running: ModelServer, route: str = "", **options: Any) -> RemoteEncoder:
    return RemoteEncoder(Server(Address.parse("embed", running.url + route), **options))


def test_openai(model_server: ModelServer) -> None:
    model_server.answer = openai
    encoder, done = encoder_of(model_server, requests=2), []
    rows = encoder.encode([*TEXTS, *TEXTS], progress=done.append)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    np.testing.assert_allclose(rows, BagOfWords().encode([*TEXTS, *TEXTS]), atol=1e-6)
    assert sum(done) == 2 * len(TEXTS) and len(done) == 2
    assert len(model_server.posts) == 4, "equal texts are sent once, 32 in a request"
    assert {one.path for one in model_server.posts} == {"/v1/embeddings"}
    body = model_server.posts[0].body
    assert body["model"] == "tiny" and body["encoding_format"] == "float"
    assert encoder.fingerprint.endswith(f"-remote tiny at {model_server.url}/v1")


def test_tei(model_server: ModelServer) -> None:
    model_server.answer = tei
    model_server.info = {"model_id": "org/minilm", "model_sha": "abc"}
    encoder = encoder_of(model_server, "/embed")
    np.testing.assert_allclose(encoder.encode(TEXTS), BagOfWords().encode(TEXTS), atol=1e-6)
    assert {one.path for one in model_server.posts} == {"/embed"}
    assert model_server.posts[0].body["truncate"] is True
    assert encoder.name == f"org/minilm@abc at {model_server.url}"
    model_server.info = {"version": "1"}
    with pytest.raises(GranAlignError, match="does not say in /info which model it has"):
        _ = encoder_of(model_server, "/embed").fingerprint


def test_an_empty_text_is_sent_as_a_space(model_server: ModelServer) -> None:
    model_server.answer = openai
    encoder_of(model_server).encode(["", "a"])
    assert model_server.posts[0].body["input"] == [" ", "a"]


def test_no_text_has_no_embedding(model_server: ModelServer) -> None:
    model_server.answer = openai
    assert encoder_of(model_server).encode([]).shape == (0, BagOfWords.dim)


def test_embeddings_are_kept(model_server: ModelServer, tmp_path: Any) -> None:
    model_server.answer = openai
    first = CachedEncoder(encoder_of(model_server), tmp_path).encode(TEXTS)
    sent = len(model_server.posts)
    again = CachedEncoder(encoder_of(model_server), tmp_path).encode(TEXTS)
    assert np.array_equal(first, again)
    assert len(model_server.posts) == sent + 1, "one request for the number of values"


def test_a_search_by_it_is_one_by_the_same_encoder_here(model_server: ModelServer) -> None:
    model_server.answer = openai
    video = CaptionedVideo("v", ("a car", "a dog runs", "a dog runs", "a red road", "a road"))
    results = []
    for encoder in (encoder_of(model_server), BagOfWords()):
        retriever = MomentRetriever(encoder)
        results.append(retriever.search(retriever.index(video), "the dog runs"))
    assert [m.start for m in results[0].moments] == [m.start for m in results[1].moments]
    np.testing.assert_allclose(results[0].saliency, results[1].saliency, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1, 2]], "got 1 embeddings of 2 texts"),
        ([[1, 2]] * 3, "got 3 embeddings of 2 texts"),
        ({"error": 1}, r"got \{'error': 1\} embeddings of 2 texts"),
        ([[1, 2], [1]], "lists of other things than numbers"),
        ([[1, "x"], [1, 2]], "lists of other things than numbers"),
        ([[0, 0], [1, 2]], "zero or not a number"),
        ([[float("nan"), 0], [1, 2]], "zero or not a number"),
        ([[None, 0], [1, 2]], "zero or not a number"),
        ([[], []], r"an array of the shape \(2, 0\)"),
        ([[[1]], [[2]]], r"an array of the shape \(2, 1, 1\)"),
        ([1, 2], r"an array of the shape \(2,\)"),
    ],
)
def test_replies_of_another_form_are_refused(
    model_server: ModelServer, rows: Any, words: str
) -> None:
    model_server.answer = in_turn(Reply.of(rows))
    with pytest.raises(GranAlignError, match=f"got .*{words.removeprefix('got ')}"):
        encoder_of(model_server, "/embed").encode(["a", "b"])


@pytest.mark.parametrize("reply", [{}, [], {"data": 7}, {"data": [7, {"index": "x"}]}])
def test_openai_replies_of_another_form_are_refused(model_server: ModelServer, reply: Any) -> None:
    model_server.answer = in_turn(Reply.of(reply))
    with pytest.raises(GranAlignError, match="check that --embed-url is a server of embeddings"):
        encoder_of(model_server).encode(["a"])


def test_embeddings_of_several_lengths_are_refused(model_server: ModelServer) -> None:
    model_server.answer = lambda request: Reply.of(
        [[1.0] * len(request.body["inputs"])] * len(request.body["inputs"])
    )
    with pytest.raises(GranAlignError, match="embeddings of several lengths"):
        encoder_of(model_server, "/embed").encode(TEXTS)
