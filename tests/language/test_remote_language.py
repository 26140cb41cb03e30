"""Rewriter, captioner and recogniser on servers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers import served_miniatures
from helpers.model_server import ModelServer, Reply, Request, chat_reply, in_turn
from PIL import Image

from granalign_fast import GranAlignError
from granalign_fast.language import prompts, remote_captioner
from granalign_fast.language.remote_captioner import (
    SIDE,
    RemoteCaptioner,
    RemoteRecogniser,
    data_url,
    share_of_yes,
)
from granalign_fast.language.remote_models import RemoteModels
from granalign_fast.models.remote.chat import TokenOdds
from granalign_fast.protocols import BatchCaptioner, Recogniser
from granalign_fast.types import FrameSet

random = np.random.default_rng(3)
FRAMES = FrameSet.of([random.integers(0, 255, (60, 80, 3), dtype=np.uint8) for _ in range(5)])


def captioner_of(running: ModelServer, **options: Any) -> RemoteRecogniser:
    chat = RemoteModels(vlm_url=running.url, vlm_model="tiny", **options)._chat("vlm")
    return RemoteRecogniser(chat)


def rewriter_of(running: ModelServer) -> Any:
    return RemoteModels(llm_url=running.url).rewriter


def test_the_classes_are_what_they_say(model_server: ModelServer) -> None:
    recogniser = captioner_of(model_server)
    assert isinstance(recogniser, Recogniser) and isinstance(recogniser, BatchCaptioner)
    assert not isinstance(RemoteCaptioner(recogniser.chat), Recogniser)


def test_a_query_becomes_seven_requests_and_one_record(model_server: ModelServer) -> None:
    def answer(request: Request) -> Reply:
        if prompts.ENTITIES in request.text:
            return chat_reply("entities: dog, ball\nactions: runs")
        if prompts.DETAILED[1] in request.text:
            return chat_reply("I'm sorry, I cannot do that.")
        if prompts.DETAILED[2] in request.text:
            return chat_reply("A dog runs after a", finish="length")
        return chat_reply(f"Sure! Here it is: The {request.text.split()[-1]} moves.")

    model_server.answer = answer
    dog, car = rewriter_of(model_server).rewrite(["a brown dog", "a red car"])
    assert dog.simplified == ("The dog moves.",) * 3
    assert dog.detailed == ("The dog moves.", "a brown dog", "a brown dog") and dog.fallbacks == 2
    assert dog.entities == ("dog", "ball") and dog.actions == ("runs",)
    assert car.simplified == ("The car moves.",) * 3
    systems = {one.body["messages"][0]["content"] for one in model_server.posts}
    assert systems == {prompts.SYSTEM} and len(model_server.posts) == 14


def test_answers_of_a_hostile_server_stay_within_bounds(model_server: ModelServer) -> None:
    words = ", ".join(f"w{i}" for i in range(900))
    model_server.answer = lambda request: chat_reply(
        f"entities: {words}\nactions: {words}" if prompts.ENTITIES in request.text else "x " * 9000
    )
    (rewrites,) = rewriter_of(model_server).rewrite(["a dog"])
    assert rewrites.fallbacks == 6 and len(rewrites.entities) == 64
    model_server.answer = in_turn(chat_reply("<think>x</think>a\x1b[2J\n\n dog" + "!" * 9000))
    (caption,) = captioner_of(model_server).agnostic(FRAMES.take([0]))
    assert caption.startswith("a [2J dog!!") and len(caption) < 4000


def test_pictures_come_first_and_the_question_last(model_server: ModelServer) -> None:
    captioner = captioner_of(model_server)
    assert captioner.agnostic(FRAMES) == ["A dog runs."] * 5
    captioner.aware_many(
        [(FRAMES.take([1, 2]), ["dog"]), (FRAMES.take([3]), ["red car", "drives"])]
    )
    texts = []
    for request in model_server.posts:
        system, user = request.body["messages"]
        picture, text = user["content"]
        assert system == {"role": "system", "content": prompts.VISION_SYSTEM}
        assert picture["type"] == "image_url" and text["type"] == "text"
        assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
        texts.append(text["text"])
    assert texts[:5] == [prompts.AGNOSTIC_CAPTION] * 5
    assert sorted(texts[5:]) == sorted(
        [prompts.aware_caption(["dog"])] * 2 + [prompts.aware_caption(["red car", "drives"])]
    )


def test_a_clip_is_sent_as_several_pictures_in_order(model_server: ModelServer) -> None:
    def means(request: Request) -> list[int]:
        parts = request.body["messages"][1]["content"]
        assert [part["type"] for part in parts] == ["image_url"] * 4 + ["text"]
        urls = [part["image_url"]["url"] for part in parts[:-1]]
        opened = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
        return [round(int(np.asarray(Image.open(one)).mean()) / 10) for one in opened]

    model_server.answer = lambda request: chat_reply(" ".join(map(str, means(request))))
    values = np.arange(20).reshape(5, 4) * 10
    clips = [np.stack([np.full((20, 30, 3), v, np.uint8) for v in row]) for row in values]
    captioner, frames = captioner_of(model_server), FrameSet.of(clips, frame_seconds=0.5)
    expected = [" ".join(str(v // 10) for v in row) for row in values.tolist()]
    assert captioner.agnostic(frames) == expected
    # Single frames and clips in one call: each gets its own prompt.
    model_server.posts.clear()
    model_server.answer = lambda request: chat_reply(
        str(len(request.body["messages"][1]["content"]))
    )
    found = captioner.aware_many([(FRAMES.take([1]), ["a"]), (frames, ["b"]), (FRAMES, ["c"])])
    assert found == [["2"], ["5"] * 5, ["2"] * 5]
    systems = {
        len(r.body["messages"][1]["content"]): r.body["messages"][0]["content"]
        for r in (model_server.posts)
    }
    assert systems == {2: prompts.VISION_SYSTEM, 5: prompts.CLIP_SYSTEM}
    texts = {r.body["messages"][1]["content"][-1]["text"] for r in model_server.posts}
    assert prompts.aware_caption(["b"], 4) in texts and prompts.aware_caption(["c"]) in texts


def test_each_picture_is_that_of_its_frame(model_server: ModelServer) -> None:
    """Answers come back in another order than requests, and each names the picture it saw."""

    def answer(request: Request) -> Reply:
        url = request.body["messages"][1]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        mean = int(np.asarray(picture).mean())
        return chat_reply(str(mean), wait=0.05 if mean < 100 else 0)

    model_server.answer = answer
    frames = [np.full((20, 30, 3), value, np.uint8) for value in range(0, 250, 10)]
    captions = captioner_of(model_server).agnostic(FrameSet.of(frames))
    assert [abs(int(text) - 10 * i) <= 1 for i, text in enumerate(captions)] == [True] * 25


def test_more_requests_take_more_frames_together(model_server: ModelServer) -> None:
    model_server.answer = lambda _: chat_reply("x", wait=0.3)
    frames = [np.full((8, 8, 3), value, np.uint8) for value in range(40)]
    captioner_of(model_server, requests=40).agnostic(FrameSet.of(frames))
    assert model_server.most_at_once > remote_captioner.ROWS


def test_clips_use_all_requests_and_few_are_decoded(model_server: ModelServer) -> None:
    model_server.answer = lambda _: chat_reply("x", wait=0.3)
    clips = [np.full((6, 8, 8, 3), value, np.uint8) for value in range(16)]
    whole, loaded = FrameSet.of(clips), list[int]()

    def load(numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        loaded.append(len(numbers))
        return list(whole.load(numbers))

    frames = replace(whole, load=load)
    assert captioner_of(model_server, requests=8).agnostic(frames) == ["x"] * 16
    assert model_server.most_at_once == 8
    assert sum(loaded) == 16 and 6 * max(loaded) <= remote_captioner.ROWS


@pytest.mark.parametrize("shape", [(60, 80, 3), (2160, 3840, 3), (3, 4000, 3)])
def test_frames_as_pictures(shape: tuple[int, ...]) -> None:
    frame = random.integers(0, 255, shape, dtype=np.uint8)

    def decoded(lossless: bool) -> Any:
        url = data_url(frame, lossless=lossless)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

    assert np.array_equal(decoded(True), frame)
    small = decoded(False)
    assert max(small.shape) <= SIDE and min(small.shape) >= 1
    if max(shape) <= SIDE:
        assert np.abs(small.astype(int) - frame).mean() < 12


def test_the_fingerprint_names_what_shapes_a_caption(model_server: ModelServer) -> None:
    captioner = captioner_of(model_server)
    chat = captioner.chat
    assert captioner.fingerprint.endswith(f" tiny at {model_server.url}/v1")
    others = {
        captioner.fingerprint,
        RemoteCaptioner(chat, max_new_tokens=9).fingerprint,
        RemoteCaptioner(chat, lossless=True).fingerprint,
    }
    assert len(others) == 3 and len({name[:16] for name in others}) == 1


def test_recognition(model_server: ModelServer) -> None:
    def answer(request: Request) -> Reply:
        if "cat" in request.text:
            return chat_reply("No", odds={"No": -0.1, " yes": -3.0, "Yes": -4.0})
        return chat_reply("Yes", odds={"Yes": -0.05, "It": -4.0})

    model_server.answer = answer
    probabilities = captioner_of(model_server, requests=1).recognise(FRAMES, ["a cat", "a dog"])
    assert probabilities.shape == (2, 5) and probabilities.dtype == np.float32
    yes = np.exp(-3.0) + np.exp(-4.0)
    np.testing.assert_allclose(probabilities[0], yes / (yes + np.exp(-0.1)), rtol=1e-6)
    bound = np.exp(-4.0)  # "no" is not listed
    np.testing.assert_allclose(probabilities[1], np.exp(-0.05) / (np.exp(-0.05) + bound), rtol=1e-6)
    # The questions about a frame follow each other.
    pictures = [p.body["messages"][1]["content"][0]["image_url"]["url"] for p in model_server.posts]
    assert [pictures.index(url) for url in pictures] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


def test_neither_yes_nor_no_is_said(
    model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    model_server.answer = in_turn(chat_reply("<think>", odds={"<think>": -0.01, "The": -5.0}))
    assert (captioner_of(model_server).recognise(FRAMES, ["a cat"]) == 0.5).all()
    assert "5 answers of 5 have neither yes nor no" in caplog.text


@pytest.mark.parametrize("seed", range(50))
def test_the_share_of_yes_lies_within_what_is_possible(seed: int) -> None:
    """Against the greatest and least share that any probabilities of the missing words allow."""
    draw = np.random.default_rng(seed)
    tokens = draw.choice(["yes", " No", "It", "\u2581Yes", "no"], draw.integers(0, 7))
    weights = np.exp(draw.uniform(-9, 0, len(tokens)))
    odds = [
        TokenOdds(str(token), float(weight / max(weights.sum(), 1.0)))
        for token, weight in zip(tokens, weights, strict=True)
    ]
    share = share_of_yes(odds)
    yes = sum(one.probability for one in odds if one.token in ("yes", "\u2581Yes"))
    no = sum(one.probability for one in odds if one.token in (" No", "no"))
    if not yes and not no:
        assert share is None
        return
    assert share is not None
    most = min(one.probability for one in odds)
    low = yes / (yes + no + (0 if no else most))
    high = (yes + (0 if yes else most)) / (yes + (0 if yes else most) + no)
    assert low - 1e-8 <= share <= high + 1e-8


def test_a_word_that_is_not_listed_is_not_impossible() -> None:
    assert share_of_yes([TokenOdds("Yes", 0.6), TokenOdds("It", 0.3)]) == pytest.approx(0.6 / 0.7)
    assert share_of_yes([TokenOdds("no", 0.5), TokenOdds("It", 0.01)]) == pytest.approx(0.01 / 0.51)


@pytest.mark.parametrize("status", [200, 400, 422])
def test_a_server_without_log_probabilities(
    model_server: ModelServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    def answer(request: Request) -> Reply:
        if "logprobs" in request.body and status != 200:
            return Reply.of({"error": {"message": "no logprobs"}}, status=status)
        return chat_reply("A dog.")

    model_server.answer = answer
    models = RemoteModels(vlm_url=model_server.url)
    assert not isinstance(models.captioner, Recogniser)
    assert "the server gives no log probabilities, so that no model judges" in caplog.text
    assert models.captioner.agnostic(FRAMES) == ["A dog."] * 5
    with pytest.raises(GranAlignError, match="serve the model with vLLM, SGLang or"):
        models.check_recognition()


def test_log_probabilities_that_stop(model_server: ModelServer) -> None:
    model_server.answer = in_turn(chat_reply("Yes"))
    with pytest.raises(GranAlignError, match="got an answer without log probabilities"):
        captioner_of(model_server).recognise(FRAMES, ["a cat"])


def test_a_server_that_takes_no_pictures(model_server: ModelServer) -> None:
    model_server.answer = in_turn(Reply.of({"error": {"message": "text only"}}, status=400))
    with pytest.raises(GranAlignError, match=r"got 400 \(text only\)"):
        _ = RemoteModels(vlm_url=model_server.url).captioner


@pytest.mark.parametrize("call", ["agnostic", "aware", "recognise", "rewrite"])
def test_bad_input_costs_no_request(model_server: ModelServer, call: str) -> None:
    captioner: Any = captioner_of(model_server)
    calls = {
        "agnostic": lambda: captioner.agnostic(FrameSet(("x",), _fail)),
        "aware": lambda: captioner.aware(FRAMES, []),
        "recognise": lambda: captioner.recognise(FRAMES, ["ok", " "]),
        "rewrite": lambda: rewriter_of(model_server).rewrite(["ok", ""]),
    }
    with pytest.raises(GranAlignError):
        calls[call]()
    assert not model_server.posts


def _fail(_: Any) -> Any:
    raise GranAlignError("the video is gone")


def test_models_without_their_server_are_refused() -> None:
    with pytest.raises(GranAlignError, match="--vlm-model: got a name without a server"):
        RemoteModels(vlm_model="x")
    assert not RemoteModels() and "llm" not in RemoteModels()


def test_miniatures_answer_through_a_server_as_they_do_here(
    model_server: ModelServer,
) -> None:
    """The prompts arrive whole, and the pictures to the bit."""
    model_server.answer = served_miniatures.answer
    local = served_miniatures.miniatures()
    remote = RemoteModels(llm_url=model_server.url, vlm_url=model_server.url)
    queries = ["the red circle moves right", "a blue square"]
    assert remote.rewriter.rewrite(queries) == local.rewriter.rewrite(queries)
    here: Any = local.captioner
    exact = RemoteRecogniser(remote._chat("vlm"), lossless=True)
    assert exact.agnostic(FRAMES) == here.agnostic(FRAMES)
    assert exact.aware(FRAMES, ["circle"]) == here.aware(FRAMES, ["circle"])
    np.testing.assert_allclose(
        exact.recognise(FRAMES, queries), here.recognise(FRAMES, queries), atol=1e-4
    )
