"""Queries get a model's prompt for queries, and captions do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.devices import emulated_hopper
from helpers.fakes import BagOfWords
from helpers.tiny_decoder import write_bare_decoder

from granalign_fast import CaptionedVideo, MomentRetriever, Request, Rewrites
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.library.spaces import Spaces
from granalign_fast.models.deferred_encoder import DeferredEncoder
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.models.recent_texts import RecentTexts
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder
from granalign_fast.protocols import query_encoder

STREET = CaptionedVideo("street", ("a red car", "a dog runs", "a dog", "an empty road"))
QUERY = Rewrites("a dog", ("one dog", "a dog"), ("a brown dog runs",))
AWARE = {1: "a dog", 2: "a dog that runs"}
"""One of these captions equals the query."""


class Prompted(BagOfWords):
    """An encoder that notes its calls, and puts words before queries."""

    def __init__(self, prompt: str = "", calls: list[Any] | None = None) -> None:
        self.prompt = prompt
        self.calls: list[Any] = [] if calls is None else calls
        self.content_key = f"prompted {prompt}"

    @property
    def for_queries(self) -> Prompted:
        return self if self.prompt else Prompted("asked: ", self.calls)

    def encode(self, texts: Sequence[str], *, progress: Any = None) -> Any:
        self.calls.append((self.prompt, *dict.fromkeys(texts)))
        return super().encode([self.prompt + text for text in texts], progress=progress)


def test_each_text_gets_the_prompt_of_its_role() -> None:
    encoder = Prompted()
    retriever = MomentRetriever(encoder, "tuned")
    index = retriever.index(STREET)
    retriever.search(index, QUERY, aware=AWARE)
    indexed, asked, captions = encoder.calls
    assert indexed == ("", *STREET.captions)
    assert asked[0] == "asked: " and set(asked[1:]) == {"a dog", "one dog", "a brown dog runs"}
    assert captions == ("", "a dog", "a dog that runs")


def test_a_caption_that_equals_the_query_keeps_its_own_embedding() -> None:
    """The curve is that of an encoder whose captions and queries are different texts anyway."""
    captions = {clip: f"{text} seen" for clip, text in AWARE.items()}

    class Seen(Prompted):
        def encode(self, texts: Sequence[str], *, progress: Any = None) -> Any:
            return super().encode([text.removesuffix(" seen") for text in texts])

    equal, apart = MomentRetriever(Prompted(), "tuned"), MomentRetriever(Seen(), "tuned")
    index = equal.index(STREET)
    one, other = equal.search(index, QUERY, aware=AWARE), apart.search(index, QUERY, aware=captions)
    np.testing.assert_allclose(one.saliency, other.saliency, 0, 1e-6)
    # Without its prompt a query is another one.
    plain = MomentRetriever(BagOfWords(), "tuned").search(index, QUERY, aware=AWARE)
    assert np.abs(plain.saliency - one.saliency).max() > 1e-3


def test_an_encoder_without_prompts_is_called_once() -> None:
    class Plain(BagOfWords):
        calls = 0

        def encode(self, texts: Sequence[str], *, progress: Any = None) -> Any:
            Plain.calls += 1
            return super().encode(texts, progress=progress)

    retriever = MomentRetriever(Plain(), "tuned")
    index = retriever.index(STREET)
    Plain.calls = 0
    retriever.search(index, QUERY, aware=AWARE)
    assert Plain.calls == 1


def test_known_queries_are_not_taken_for_captions() -> None:
    encoder = Prompted()
    retriever = MomentRetriever(encoder, "tuned")
    index = retriever.index(STREET)
    expected = retriever.search(index, QUERY, aware=AWARE)
    texts = ["a dog", "one dog", "a brown dog runs"]
    known = dict(zip(texts, encoder.for_queries.encode(texts), strict=True))
    encoder.calls.clear()
    (found,) = retriever.search_many([Request(index, QUERY, AWARE)], known=known)
    np.testing.assert_array_equal(found.saliency, expected.saliency)
    assert encoder.calls == [("", "a dog", "a dog that runs")]


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows of both roles are joined there, and curves are the host's."""
    with emulated_hopper(monkeypatch, tmp_path):
        encoder = Prompted()
        host, gpu = (MomentRetriever(encoder, "tuned", device=d) for d in ("cpu", "cuda"))
        index = host.index(STREET)
        one, other = (r.search(index, QUERY, aware=AWARE) for r in (host, gpu))
    np.testing.assert_allclose(one.saliency, other.saliency, 0, 1e-4)


def test_the_first_stage_of_a_library_asks() -> None:
    encoder = Prompted()
    (texts,) = Spaces(MomentRetriever(encoder, "tuned")).embed([QUERY])
    assert {call[0] for call in encoder.calls} == {"asked: "}
    np.testing.assert_array_equal(texts.captions.rows[0], encoder.for_queries.encode(["a dog"])[0])


def test_wrappers_keep_roles_apart(tmp_path: Path) -> None:
    encoder = Prompted()
    recent = RecentTexts(encoder)
    deferred = DeferredEncoder(lambda: encoder)
    for wrapped in (recent, CachedEncoder(encoder, tmp_path), deferred, RecentTexts(deferred)):
        for one, model in ((wrapped, encoder), (query_encoder(wrapped), encoder.for_queries)):
            for _ in range(2):
                np.testing.assert_array_equal(one.encode(["a dog"]), model.encode(["a dog"]))
    assert recent.for_queries is recent.for_queries.for_queries
    plain: Any = BagOfWords()
    assert RecentTexts(plain).for_queries.encoder is plain
    assert query_encoder(plain) is plain


def test_a_real_model(tmp_path: Path) -> None:
    """A search with an exported model: its folder's prompts reach the query and the captions."""
    source = write_bare_decoder(tmp_path / "source", "gemma3")
    encoder = OnnxSentenceEncoder(export_sentence_encoder(source, tmp_path / "out", check=False))
    retriever = MomentRetriever(encoder, "tuned")
    index = retriever.index(STREET)
    rows = encoder.encode(STREET.captions)
    np.testing.assert_allclose(np.asarray(index.caption_embeddings, np.float32), rows, 0, 1e-6)
    result = retriever.search(index, QUERY)

    class Bare:
        """The same model without its prompt for queries."""

        encode = staticmethod(encoder.encode)

    bare: Any = Bare()
    other = MomentRetriever(bare, "tuned").search(index, QUERY)
    assert np.abs(result.saliency - other.saliency).max() > 1e-3
