"""Padded texts: embeddings equal those of each text alone, and batches have the least cost."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_bert import edit_json, write_tiny_bert

from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.encoders.bert import Bert
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.models import text_padding
from granalign_fast.models.graph_contract import PADDED_IDS
from granalign_fast.models.manifest import fingerprint
from granalign_fast.pipeline import SentenceEncoder

TEXTS = ["a", "b c d.", "zebra " * 50, "UPPER", "", "d e f g h"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_padding_changes_no_embedding(tmp_path: Path, pooling: str, normalise: bool) -> None:
    """The graph's own output, before the encoder normalises it, equals a float64 reference."""
    source = write_tiny_bert(tmp_path / "source", pooling=pooling, normalise=normalise)
    encoder = SentenceEncoder(export_sentence_encoder(source, tmp_path / "out", precision="fp16"))
    assert encoder._session.inputs == (PADDED_IDS,)
    model = SentenceModel.read(source)
    bert = Bert.load(model.weights, model.config, np.float64)
    tokens = model.tokenise(tuple(TEXTS))
    expected = bert.embed(tokens, pooling=pooling, normalise=normalise)
    for width in (16, 24):  # with 8 more columns of padding
        padded = np.zeros((len(tokens), width), np.int32)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = np.array(ids) + 1
        actual = encoder._session(**{PADDED_IDS: padded})["embeddings"]
        np.testing.assert_allclose(actual, expected, atol=4e-3 * np.abs(expected).max())
    # Masked padding takes no part: even 16-bit results are the same with and without it.
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-6)


def test_a_batch_by_hand() -> None:
    padded = text_padding.pad([[5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8]], 100)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[6, 7, *[0] * 14], [*range(1, 10), *[0] * 7]]
    assert text_padding.pad([[1] * 9], 10).shape == (1, 10), "the model's length bounds it"


def cost(batches: list[list[int]], budget: int) -> int:
    """Return the cost in tokens of batches of padded lengths."""
    total = 0
    for widths in batches:
        rows = 2 ** int(math.log2(max(1, budget // max(widths))))
        total += math.ceil(len(widths) / rows) * (budget // 16) + len(widths) * max(widths)
    return total


@pytest.mark.parametrize("budget", [512, 32768])
@pytest.mark.parametrize(
    "lengths",
    [[5], [24] * 70, [11, 14, 19, 19, 22, 23], [3] * 900 + [250], [250] * 90 + [9] * 300 + [30]],
    ids=["one", "equal", "query", "outlier", "mixed"],
)
def test_batches_cost_the_least(lengths: list[int], budget: int) -> None:
    batches = text_padding.batches(lengths, budget, 256)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    widths = sorted((math.ceil(n / 8) * 8 for n in lengths), reverse=True)
    groups = [list(group) for _, group in itertools.groupby(widths)]
    costs = []  # of every way to join groups of neighbouring widths
    for splits in itertools.product([False, True], repeat=len(groups) - 1):
        joined = [list(groups[0])]
        for split, group in zip(splits, groups[1:], strict=True):
            joined = [*joined, list(group)] if split else [*joined[:-1], joined[-1] + group]
        costs.append(cost(joined, budget))
    padded = [[math.ceil(lengths[i] / 8) * 8 for i in batch] for batch in batches]
    assert cost(padded, budget) == min(costs)
    assert all(len(batch) * max(batch) <= budget or len(batch) == 1 for batch in padded)
    if len(lengths) < 10 and budget > 512:
        assert len(batches) == 1, "a query and its rewrites are one run"


def test_no_texts() -> None:
    assert text_padding.batches([], 512, 256) == []


def test_an_export_without_padding_stays_in_the_cache(tmp_path: Path) -> None:
    """An early fp16 graph takes texts of one length. It is used only if named; otherwise a new
    export is written beside it."""
    source, cache = write_tiny_bert(tmp_path / "source"), tmp_path / "cache"
    model = SentenceModel.read(source)
    earlier = export_sentence_encoder(source, cache / fingerprint(model.sha256, "fp16"))
    edit_json(earlier / "manifest.json", precision="fp16")
    by_name = SentenceEncoder(earlier, graph="model.onnx")
    assert by_name._session.inputs == ("input_ids",)
    new = SentenceEncoder(source, precision="fp16", cache_dir=cache)
    assert new._session.inputs == (PADDED_IDS,) and len(list(cache.iterdir())) == 2
    assert new.fingerprint == by_name.fingerprint, "their embeddings can be compared"
    np.testing.assert_allclose(new.encode(TEXTS), by_name.encode(TEXTS), atol=2e-3)
    again = SentenceEncoder(source, precision="fp16", cache_dir=cache)
    assert again._session.path == new._session.path and len(list(cache.iterdir())) == 2
