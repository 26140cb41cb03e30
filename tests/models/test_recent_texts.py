"""Embeddings of texts that are kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast.models.recent_texts import RecentTexts


class Counting(BagOfWords):
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str], **options: Any) -> Any:
        self.calls.append(list(texts))
        return super().encode(texts, **options)


def test_a_text_is_embedded_once() -> None:
    inner, seen = Counting(), []
    encoder = RecentTexts(inner, seen=lambda *pair: seen.append(pair))
    texts = ["a dog", "a car", "a dog"]
    done: list[int] = []
    first = encoder.encode(texts, progress=done.append)
    again = encoder.encode(["a car", "a man", "a dog"])
    assert inner.calls == [["a dog", "a car"], ["a man"]]
    assert seen == [(0, 2), (2, 1)] and done == [3]
    expected = BagOfWords()
    assert np.array_equal(first, expected.encode(texts))
    assert np.array_equal(again, expected.encode(["a car", "a man", "a dog"]))
    assert encoder.fingerprint == "bag-of-words"
    assert encoder.encode([]).shape == (0, 64)
    again[:] = 0  # the caller's own array
    assert np.array_equal(encoder.encode(texts), first)


@pytest.mark.parametrize("most", [1, 3])
def test_the_last_used_stay(most: int) -> None:
    inner = Counting()
    encoder = RecentTexts(inner, most)
    texts = [f"word{number}" for number in range(5)]
    assert np.array_equal(encoder.encode(texts), BagOfWords().encode(texts))
    assert len(encoder) == most
    encoder.encode(texts[-most:])
    assert len(inner.calls) == 1
    encoder.encode(["word0"])
    encoder.encode([texts[-1]])
    assert inner.calls[1] == ["word0"] and len(inner.calls) == (3 if most == 1 else 2)
