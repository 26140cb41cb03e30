from __future__ import annotations

import json
import re

import pytest
from helpers.tiny_llm import LLAMA, write_unchecked

from granalign_fast import GranAlignError, Rewrites, StoredRewriter
from granalign_fast.jsonl import write_jsonl
from granalign_fast.language import prompts as words
from granalign_fast.language.answers import clean
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models.language_model import CausalLM

TASKS = [*words.SIMPLIFIED, *words.DETAILED, words.ENTITIES]


class Scripted:
    """A language model whose token is a character and whose answers are given by task."""

    def __init__(self, answers, *, query_first=False):
        self.answers = answers
        self.query_first = query_first
        self.prefilled: list[str] = []
        self.calls: list[tuple[int, bool]] = []

    def chat(self, messages):
        system, user = (message["content"] for message in messages)
        text = f"{user}|{system}" if self.query_first else f"{system}|{user}"
        return [ord(character) for character in text + ">"]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def prefill(self, token_ids):
        self.prefilled.append(self.decode(token_ids))
        return self.prefilled[-1]

    def prefill_rows(self, prompts, *, prefix):
        return [prefix + self.decode(prompt) for prompt in prompts]

    def generate(self, prompts, *, prefix=None, max_new_tokens):
        self.calls.append((len(prompts), prefix is not None))
        rows = prefix or [""]
        return [
            self.answer(rows[i % len(rows)] + self.decode(prompt))
            for i, prompt in enumerate(prompts)
        ]

    def answer(self, text):
        assert words.SYSTEM in text
        (task,) = (i for i, task in enumerate(TASKS) if task in text)
        query = text.partition("Sentence: ")[2].partition("|" if self.query_first else ">")[0]
        return [ord(c) for c in self.answers[task].replace("QUERY", query)]


GOOD = [f"rewrite {i} of QUERY" for i in range(6)] + ["Entities: a dog, Ball, a dog\nactions: run."]


def test_beginnings_that_take_too_much_are_not_kept(tmp_path):
    """The answers are the same; what the tasks share is computed once all the same."""
    model = CausalLM(write_unchecked(tmp_path, LLAMA | {"max_position_embeddings": 1024}))
    rewriters = [LlmRewriter(model, max_new_tokens=6, kept_bytes=kept) for kept in (None, 1 << 10)]
    answers = [rewriter.answers(["a dog runs", "the sea"]) for rewriter in rewriters]
    assert answers[0] == answers[1]
    prefixes = [rewriter._beginnings[1] for rewriter in rewriters]
    assert [prefix.rows for prefix in prefixes] == [7, 1]
    assert 0 < prefixes[1].nbytes < prefixes[0].nbytes / 7


def test_every_task_is_asked_of_every_query():
    model = Scripted(GOOD)
    (rewrites,) = LlmRewriter(model).rewrite(["a dog runs"])
    assert rewrites == Rewrites(
        query="a dog runs",
        simplified=tuple(f"rewrite {i} of a dog runs" for i in range(3)),
        detailed=tuple(f"rewrite {i} of a dog runs" for i in range(3, 6)),
        entities=("a dog", "ball"),
        actions=("run",),
    )


def test_the_common_beginning_is_computed_once_and_holds_the_instructions():
    model = Scripted(GOOD)
    rewriter = LlmRewriter(model, rows=14)
    queries = ["a dog", "a cat", "a cow"]
    assert [r.query for r in rewriter.rewrite(queries)] == queries
    rewriter.rewrite(["a pig"])
    assert model.calls == [(14, True), (7, True), (7, True)]
    (prefix,) = model.prefilled
    assert words.SYSTEM in prefix


def test_a_template_that_puts_the_query_first_works_without_a_prefix():
    model = Scripted(GOOD, query_first=True)
    (rewrites,) = LlmRewriter(model).rewrite(["a dog"])
    assert rewrites.simplified[0] == "rewrite 0 of a dog"
    assert model.calls == [(7, False)]


def test_useless_answers_fall_back_to_the_query_and_are_counted():
    bad = ["", "a a a a a a", "I'm sorry, I cannot help with that.", "word " * 80, "Sure:", "fine"]
    (rewrites,) = LlmRewriter(Scripted([*bad, "no list at all"])).rewrite(["a dog"])
    assert rewrites.simplified == ("a dog",) * 3
    assert rewrites.detailed == ("a dog", "a dog", "fine")
    assert rewrites.fallbacks == 5
    assert (rewrites.entities, rewrites.actions) == (("dog",), ())  # found by rules


def test_it_is_logged_if_more_than_half_of_the_rewrites_fell_back(caplog):
    LlmRewriter(Scripted([*GOOD[:3], *("" for _ in range(3)), "x"])).rewrite(["a dog"])
    assert not caplog.messages
    LlmRewriter(Scripted([*GOOD[:2], *("" for _ in range(4)), "x"])).rewrite(["a dog"])
    (message,) = caplog.messages
    assert message.startswith("query 'a dog': 4 of 6 rewrites are the query itself")


def test_an_answer_of_the_greatest_length_was_cut_off():
    answers = [*GOOD[:5], "A dog runs in a p", "entities: a dog, a ca\n"]
    whole = LlmRewriter(Scripted(answers), max_new_tokens=64).rewrite(["a dog"])[0]
    assert (whole.detailed[2], whole.fallbacks) == ("A dog runs in a p", 0)
    cut = LlmRewriter(Scripted(answers), max_new_tokens=len(answers[5])).rewrite(["a dog"])[0]
    assert (cut.detailed[2], cut.fallbacks) == ("a dog", 1)


def test_an_answer_to_a_prompt_that_opens_a_thought_begins_in_it():
    class Reasoning(Scripted):
        def chat(self, messages):
            return [*super().chat(messages)[:-1], *map(ord, "><think>\n")]

    answers = ["A cat sleeps.", *(f"No.</think>{answer}" for answer in GOOD[1:])]
    (rewrites,) = LlmRewriter(Reasoning(answers)).rewrite(["a dog"])
    assert rewrites.simplified == ("a dog", "rewrite 1 of a dog", "rewrite 2 of a dog")
    assert rewrites.fallbacks == 1 and rewrites.entities == ("a dog", "ball")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A dog runs.", "A dog runs."),
        ('  "A dog runs."\n\nI left out the colour.', "A dog runs."),
        ("Sure, here is the simplified sentence: A dog runs.", "A dog runs."),
        ("Sure! Here's a rewrite:\n\nA dog runs.", "A dog runs."),
        ("1. A dog runs.\n2. A dog walks.", "A dog runs."),
        ("- **A dog runs.**", "A dog runs."),
        ("Rewritten sentence: A dog runs.", "A dog runs."),
        ("\u201cA dog runs\u201d", "A dog runs"),
        ("A man says: stop", "A man says: stop"),
        ("Okay the dog runs", "Okay the dog runs"),
        ("2 dogs run", "2 dogs run"),
        ("Sure!\n\nA dog runs.", "A dog runs."),
        ("Certainly!\nHere is the rewritten sentence:\nA dog runs.", "A dog runs."),
        ("Okay. A dog runs.", "A dog runs."),
        ("Sure,\nA dog runs.", "A dog runs."),
        ("Great", None),
        ("Here a clock shows 10:45.", "Here a clock shows 10:45."),
        ("Here is a clock that shows 10:45.", "Here is a clock that shows 10:45."),
        ('Here is the sentence:"A dog runs."', "A dog runs."),
        ("**Simplified:** A dog runs.", "A dog runs."),
        ("**Simplified sentence**: A dog runs.", "A dog runs."),
        ("Rewritten sentence\nA dog runs.", "A dog runs."),
        ("General", "General"),
        ("<think>\nA cat?\n</think>\n\nA dog runs.", "A dog runs."),
        ("A cat?\n</think>\n\nA dog runs.", "A dog runs."),
        ("<think>\nA cat? No, a", None),
        ("", None),
        ("...", None),
        ("Here are the rewrites:", None),
        ("run run run run", None),
        ("the dog and the cat " * 6, None),
    ],
)
def test_cleaning(answer, text):
    assert clean(answer) == text


@pytest.mark.parametrize(
    ("answer", "entities", "actions"),
    [
        ("entities: none\nactions: none.", (), ()),
        ("Entities: a dog, N/A\nActions: n/a", ("a dog",), ()),
        ("**Entities:** a dog\n**Actions:** (none)", ("a dog",), ()),
        ("<think>entities: a cat\n</think>entities: a dog\nactions: run", ("a dog",), ("run",)),
        ("entities: a nun\nactions: run", ("a nun",), ("run",)),
    ],
)
def test_entities_and_actions_of_a_query(answer, entities, actions):
    (rewrites,) = LlmRewriter(Scripted([*GOOD[:6], answer])).rewrite(["a dog"])
    assert (rewrites.entities, rewrites.actions) == (entities, actions)


def test_a_query_that_is_not_valid_text_is_named():
    model = Scripted(GOOD)
    expected = r"^query: got 'a dog \\udcff', expected valid Unicode; character 7 is half of a surr"
    with pytest.raises(GranAlignError, match=expected) as error:
        LlmRewriter(model).rewrite(["a dog", "a dog \udcff"])
    assert "Sentence" not in str(error.value) and model.calls == []


def test_a_query_that_is_too_long_for_the_context_is_named(tmp_path):
    folder = write_unchecked(tmp_path, LLAMA | {"max_position_embeddings": 2048})
    rewriter = LlmRewriter(CausalLM(folder), max_new_tokens=4)
    queries = ["a dog runs", "the sea and " * 330]
    with pytest.raises(GranAlignError) as error:
        rewriter.rewrite(queries)
    message = str(error.value)
    assert re.fullmatch(
        r"query 'the sea and the sea.*\.\.\..* and ': got \d+ \+ \d+ tokens and 4 new ones, "
        r"expected at most the context of 2048; shorten the query",
        message,
    )
    assert "prompts[" not in message and "Sentence" not in message and len(message) < 250


def test_no_query_no_work():
    model = Scripted(GOOD)
    assert LlmRewriter(model).rewrite([]) == []
    with pytest.raises(GranAlignError, match="query: got ''"):
        LlmRewriter(model).rewrite(["a dog", ""])
    assert model.calls == []


def test_rewrites_are_stored_and_replayed(tmp_path):
    rewrites = LlmRewriter(Scripted(GOOD)).rewrite(["a dog", "a cat"])
    write_jsonl(tmp_path / "r.jsonl.gz", (r.to_record() for r in rewrites))
    assert StoredRewriter(tmp_path / "r.jsonl.gz").rewrite(["a cat", "a dog"]) == rewrites[::-1]
    assert json.loads(json.dumps(rewrites[0].to_record()))["entities"] == ["a dog", "ball"]


def test_an_exported_model_rewrites_alike_with_and_without_the_common_prefix(tmp_path):
    """Weights are random, so answers are noise; with and without a prefix it is the same noise."""
    folder = write_unchecked(tmp_path, LLAMA | {"max_position_embeddings": 2048})
    model = CausalLM(folder)
    rewriter = LlmRewriter(model, max_new_tokens=12)
    queries = ["a dog runs", "the sea"]
    together = rewriter.rewrite(queries)
    assert [r.query for r in together] == queries
    assert together == [LlmRewriter(model, max_new_tokens=12).rewrite([q])[0] for q in queries]

    starts, prefix = rewriter._beginnings
    assert prefix.next_positions.tolist() == list(map(len, starts))
    assert min(map(len, starts)) > len(words.SYSTEM)
    whole = [rewriter._prompt(task, "a dog runs") for task in TASKS]
    pairs = list(zip(whole, starts, strict=True))
    assert all(ids[: len(start)] == start for ids, start in pairs)
    behind = [ids[len(start) :] for ids, start in pairs]
    assert model.generate(behind, prefix=prefix, max_new_tokens=12) == model.generate(
        whole, max_new_tokens=12
    )
