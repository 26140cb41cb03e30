"""Chat servers: the form of requests, and replies that nobody should trust."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from helpers.model_server import ModelServer, Reply, Request, chat_reply, in_turn

from granalign_fast import GranAlignError
from granalign_fast.models.remote.address import Address
from granalign_fast.models.remote.chat import Answer, ChatServer, TokenOdds
from granalign_fast.models.remote.server import Server

CHAT = [{"role": "user", "content": "hello"}]


def chat_of(running: ModelServer, model: str | None = None) -> ChatServer:
    return ChatServer(Server(Address.parse("llm", running.url)), model)


def test_a_request_is_greedy_and_names_the_only_model(model_server: ModelServer) -> None:
    assert chat_of(model_server).answers([CHAT, CHAT], 9) == [Answer("A dog runs.", False)] * 2
    assert [one.path for one in model_server.requests][1:] == ["/v1/chat/completions"] * 2
    body = model_server.posts[0].body
    assert body["model"] == "tiny" and body["messages"] == CHAT and body["max_tokens"] == 9
    assert body["temperature"] == 0 and body["stream"] is False
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_optional_fields_are_left_out_where_they_are_refused(model_server: ModelServer) -> None:
    def strict(request: Request) -> Reply:
        known = {"model", "messages", "temperature", "stream", "max_tokens"}
        extra = sorted(set(request.body) - known)
        return Reply.of({"error": f"unknown {extra}"}, status=422) if extra else chat_reply("hi")

    model_server.answer = strict
    chat = chat_of(model_server)
    assert chat.answers([CHAT], 9) == [Answer("hi", False)]
    sent = [set(one.body) - set(model_server.posts[-1].body) for one in model_server.posts]
    penalty = {"repetition_penalty", "repeat_penalty"}
    assert sent == [penalty | {"chat_template_kwargs"}, {"chat_template_kwargs"}, set()]
    before = len(model_server.posts)
    assert chat.answers([CHAT] * 3, 9) == [Answer("hi", False)] * 3
    assert len(model_server.posts) == before + 3, "the refusal is remembered"
    # Another reason for a refusal is not taken for this one.
    model_server.answer = lambda request: (
        strict(request)
        if "chat_template_kwargs" in request.body
        else Reply.of({"error": {"message": "too long"}}, status=400)
    )
    fresh = chat_of(model_server)
    with pytest.raises(GranAlignError, match=r"got 400 \(too long\)"):
        fresh.answers([CHAT], 9)
    model_server.answer = in_turn(chat_reply("hi"))
    fresh.answers([CHAT], 9)
    assert "chat_template_kwargs" in model_server.posts[-1].body


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a", "b"], "got several models: a, b, expected one; name one with --llm-model"),
        ([f"m{i}" for i in range(9)], "m3, m4 and 4 more, expected one"),
        ([], "got no model, expected one; name one with --llm-model"),
        (None, "does not say which models it has; name one with --llm-model"),
        (["a\x1b[2J"], "got a name of 5 characters"),
        (["x" * 10_000], "got a name of 10000 characters"),
    ],
)
def test_a_model_has_to_be_named(
    model_server: ModelServer, models: list[str] | None, words: str
) -> None:
    model_server.models = models
    with pytest.raises(GranAlignError) as error:
        chat_of(model_server).answers([CHAT], 9)
    assert words in str(error.value) and str(error.value).isprintable()
    assert chat_of(model_server, "a").answers([CHAT], 9)[0].text == "A dog runs."


@pytest.mark.parametrize("data", [5, True, "ab", {"id": "a"}, [5], [{"id": 5}], None])
def test_a_list_of_models_that_is_none(model_server: ModelServer, data: object) -> None:
    model_server.reply_to = lambda _: Reply.of({"data": data})  # type: ignore[method-assign]
    with pytest.raises(GranAlignError, match="got no model, expected one"):
        _ = chat_of(model_server).name


def test_the_fingerprint_names_server_and_model(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = chat_of(model_server)
    assert chat.name == f"tiny at {model_server.url}/v1"
    assert chat.identity == chat_of(model_server, "tiny").identity
    others = {chat_of(model_server, "b").identity}
    others.add(ChatServer(Server(Address.parse("llm", "http://other")), "tiny").identity)
    assert len(others | {chat.identity}) == 3
    monkeypatch.setenv("GRANALIGN_LLM_API_KEY", "k")
    assert chat_of(model_server).identity == chat.identity, "a key is no part of it"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        (["a"], ""),
        ("a\x00\x1b[2J\nb\u200d", "a  [2J\nb\u200d"),
        ("\ud800x", "?x"),
        ("y" * 5000, "y" * 4000),
    ],
)
def test_answers_are_bounded_texts(model_server: ModelServer, content: Any, text: str) -> None:
    model_server.answer = in_turn(chat_reply(content))
    assert chat_of(model_server).answers([CHAT], 9) == [Answer(text, len(text) == 4000)]


def test_an_answer_that_is_cut_off_says_so(model_server: ModelServer) -> None:
    model_server.answer = in_turn(chat_reply("A dog", finish="length"))
    assert chat_of(model_server).answers([CHAT], 9) == [Answer("A dog", True)]


@pytest.mark.parametrize(
    "reply",
    [[], {}, None, 7, {"choices": []}, {"choices": [None]}, {"choices": [{"message": "x"}]}],
)
def test_a_reply_of_another_form_is_refused(model_server: ModelServer, reply: Any) -> None:
    model_server.answer = in_turn(Reply.of(reply))
    with pytest.raises(GranAlignError, match=r"without choices\[0\].message.*check --llm-url"):
        chat_of(model_server).answers([CHAT], 9)


def test_the_odds_of_the_first_token(model_server: ModelServer) -> None:
    model_server.answer = in_turn(chat_reply("Yes", odds={"Yes": -0.5, " no": -1.5, "x": -9999}))
    (odds,) = chat_of(model_server).first_tokens([CHAT])
    assert odds == [
        TokenOdds("Yes", math.exp(-0.5)),
        TokenOdds(" no", math.exp(-1.5)),
        TokenOdds("x", 0.0),
    ]
    body = model_server.posts[0].body
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        {"content": None},
        {"content": []},
        {"content": [7]},
        {"content": [{"top_logprobs": None}]},
        {"content": [{"top_logprobs": [7, {"token": 7, "logprob": 0}, {"token": "a"}]}]},
        {"content": [{"top_logprobs": [{"token": "a", "logprob": "0"}]}]},
        {"content": [{"top_logprobs": [{"token": "a", "logprob": math.nan}]}]},
    ],
)
def test_log_probabilities_of_another_form_are_none(
    model_server: ModelServer, logprobs: Any
) -> None:
    choice = {"message": {"content": "Yes"}, "logprobs": logprobs}
    model_server.answer = in_turn(Reply(json.dumps({"choices": [choice]}).encode()))
    assert chat_of(model_server).first_tokens([CHAT]) == [[]]


def test_odd_numbers_become_probabilities(model_server: ModelServer) -> None:
    top = [{"token": "a", "logprob": p} for p in (3, -math.inf, -(10**30), -0.0)] * 9
    choice = {"message": {}, "logprobs": {"content": [{"top_logprobs": top}]}}
    model_server.answer = in_turn(Reply(json.dumps({"choices": [choice]}).encode()))
    (odds,) = chat_of(model_server).first_tokens([CHAT])
    assert [one.probability for one in odds] == [1, 0, 0, 1] * 5
