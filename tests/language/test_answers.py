"""Which answers of a language model are rewrites: each rule with siblings and counter-examples."""

from __future__ import annotations

import pytest

from granalign_fast import Rewrites
from granalign_fast.language import prompts
from granalign_fast.language.answers import clean, listed_items
from granalign_fast.language.items import find_items
from granalign_fast.language.rewriters import fallback_warning

QUERY = "A woman in sunglasses takes a boat ride."


@pytest.mark.parametrize(
    "answer",
    [
        # It talks about the sentence or the task. The first ones are those of SmolLM2-135M.
        "The subject: Woman",
        "The moment of this sentence is a careful observer's attention to detail.",
        "The subject is a man and the action is dancing.",
        "The subject, action, object, and main subject are all in the same sentence.",
        "The sentence describes a woman on a boat.",
        "This phrase means that a woman is on a boat.",
        "Subject: woman. Action: riding.",
        "Main action: riding a boat",
        "Who: a woman",
        "Before: a woman waits on a pier.",
        "The action is riding a boat.",
        "The main idea is that a woman rides a boat.",
        "A careful observer would describe her as calm.",
        "As a careful observer, a woman takes a boat ride.",
        "The word 'boat' refers to a vessel.",
        "A synonym of ride is trip.",
        "In this context, a woman rides a boat.",
        "This description is about a woman.",
        "I will describe a woman in a boat.",
        "Let me think about the boat.",
        "This rewrite keeps every detail.",
        # It asks for more, or refuses.
        "Please provide the video.",
        "Could you clarify who she is?",
        "I am unable to see the video.",
        # It echoes the request.
        "Keep who or what it is about and what happens.",
        "One line, no quotation marks, no list.",
        "People, animals, things, places, actions.",
        "a man in a blue shirt is driving a car",
        "A woman in sunglasses takes a boat ride",
    ],
)
def test_answers_that_are_no_rewrites(answer: str) -> None:
    request = " ".join((prompts.SYSTEM, *prompts.SIMPLIFIED))
    assert clean(answer, query=QUERY, request=request) is None


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        (QUERY, "A woman with dark glasses rides on a boat."),
        (QUERY, "The moment the boat turns, a woman in sunglasses laughs."),
        (QUERY, "The action takes place on a boat with a woman."),
        ("A painter shows a portrait of a woman.", "The subject of the painting is a woman."),
        ("The subject of the painting: a woman", "The subject is a woman in a painting."),
        ("A teacher writes a sentence on a board.", "The teacher writes the sentence in chalk."),
        ("I walk my dog.", "I walk with my dog."),
        ("A guy in a blue t-shirt drives a car.", "A man in a blue shirt is driving a car."),
        ("A vlogger talks about her day.", "A woman says: I am tired."),
        ("An observer watches the vote.", "The observer looks at the vote."),
        ("A clock shows the time.", "The time is shown on a clock."),
    ],
)
def test_rewrites_that_only_look_like_talk(query: str, answer: str) -> None:
    request = " ".join((prompts.SYSTEM, *prompts.SIMPLIFIED))
    assert clean(answer, query=query, request=request) == answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('The rewritten sentence is: "A woman rides a boat."', "A woman rides a boat."),
        ('The simplified sentence would be "A woman rides."', "A woman rides."),
        ('Rewrite: "A woman rides a boat."', "A woman rides a boat."),
        ("More general sentence: A woman rides a boat.", "A woman rides a boat."),
    ],
)
def test_labels_are_taken_off(answer: str, text: str) -> None:
    assert clean(answer, query=QUERY) == text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A woman rides a boat and the", None),
        ("A woman rides a boat. The boat is", None),
        ("A woman rides a boat.\n\nI left out", "A woman rides a boat."),
        ("A woman rides\n\nI left out", None),
        ("1. A woman rides a boat.\n2. A wom", "A woman rides a boat."),
        ("", None),
    ],
)
def test_an_answer_that_was_cut_off(answer: str, text: str | None) -> None:
    assert clean(answer, query=QUERY, cut_off=True) == text


THOUGHTS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<reasoning>", "</reasoning>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<thought>", "</thought>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<think duration=3>", "</think>"),
    ("<THINK>", "</THINK>"),
]


@pytest.mark.parametrize(("start", "end"), THOUGHTS)
def test_a_thought_is_no_rewrite(start: str, end: str) -> None:
    assert clean(f"{start}\nA cat sleeps.\n{end}\nA dog runs.") == "A dog runs."
    # Cut off, and with its start in the prompt.
    assert clean(f"{start}\nA cat sleeps.\nA dog") is None
    assert clean(f"A cat sleeps.\n{end}\n\nA dog runs.") == "A dog runs."
    assert clean("A cat sleeps.", opened=True) is None
    assert clean(f"A cat sleeps.{end}A dog runs.", opened=True) == "A dog runs."
    # A list of entities in a thought is none.
    assert listed_items("entities", f"{start}entities: a cat\n") is None
    answer = f"{start}entities: a cat\n{end}entities: a dog"
    assert listed_items("entities", answer) == ("a dog",)


def test_marks_around_an_answer_are_taken_off() -> None:
    assert clean("<think>x</think>\n<answer>A dog runs.</answer>") == "A dog runs."


def test_a_list_that_echoes_the_request_is_none() -> None:
    answer = "entities: people, animals and things\nactions: the verbs"
    assert listed_items("entities", answer) is listed_items("actions", answer) is None
    assert listed_items("entities", "entities: people, a dog") == ("people", "a dog")


def test_a_list_that_was_cut_off_loses_its_last_item() -> None:
    assert listed_items("entities", "entities: a dog, a ca", cut_off=True) == ("a dog",)
    answer = "entities: a dog, a cat\nactions: run, ju"
    assert listed_items("entities", answer, cut_off=True) == ("a dog", "a cat")
    assert listed_items("actions", answer, cut_off=True) == ("run",)


@pytest.mark.parametrize(
    ("query", "entities", "actions"),
    [
        ("a dog", ("dog",), ()),
        ("Man talks to the camera.", ("man", "camera"), ("talks",)),
        ("A girl and her mother cooked.", ("girl", "mother"), ("cooked",)),
        ("Woman holds up a green bottle", ("woman", "green bottle"), ("holds",)),
        ("He walks in and sits down", (), ("walks", "sits")),
        ("Two kids playing in the morning", ("two kids", "morning"), ("playing",)),
        ("Blue posts on walls are seen", ("blue posts", "walls", "seen"), ()),
        ("A running man falls", ("running man",), ("falls",)),
        ("it is there", ("it is there",), ()),
    ],
)
def test_rules_find_entities_and_actions(
    query: str, entities: tuple[str, ...], actions: tuple[str, ...]
) -> None:
    assert find_items(query) == (entities, actions)


def test_more_than_half_of_the_rewrites_fell_back() -> None:
    texts = ("a", "b", "c")
    warning = fallback_warning(Rewrites("a dog", texts, texts, fallbacks=4))
    assert warning is not None and "'a dog': 4 of 6 rewrites are the query itself" in warning
    assert fallback_warning(Rewrites("a dog", texts, texts, fallbacks=3)) is None
    assert fallback_warning(Rewrites("a dog")) is None
