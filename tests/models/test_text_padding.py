"""Padded texts: each has the embedding that it has alone, and runs cost no more than they must."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_bert import edit_json, write_tiny_bert

from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.bert import Bert
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.models import text_padding
from granalign_fast.models.graph_contract import PADDED_IDS
from granalign_fast.models.manifest import fingerprint
from granalign_fast.pipeline import SentenceEncoder

TEXTS = ["a", "b c d.", "zebra " * 50, "UPPER", "", "d e f g h"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_graph_knows_what_is_no_token(tmp_path: Path, pooling: str, normalise: bool) -> None:
    """Its own output, before anybody gives it unit length, against the reference in float64."""
    source = write_tiny_bert(tmp_path / "source", pooling=pooling, normalise=normalise)
    encoder = SentenceEncoder(export_sentence_encoder(source, tmp_path / "out", precision="fp16"))
    assert encoder._session.inputs == (PADDED_IDS,)
    model = SentenceModel.read(source)
    bert = Bert.load(model.weights, model.config, np.float64)
    tokens = model.tokenise(tuple(TEXTS))
    expected = bert.embed(tokens, pooling=pooling, normalise=normalise)
    for longest in (16, 24):  # as many rows of zeros more
        given = np.zeros((len(tokens), longest), np.int32)
        for row, ids in zip(given, tokens, strict=True):
            row[: len(ids)] = np.array(ids) + 1
        found = encoder._session(**{PADDED_IDS: given})["embeddings"]
        np.testing.assert_allclose(found, expected, atol=4e-3 * np.abs(expected).max())
    # What is no token is nothing to look at: 16 bits are the same with and without it.
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-6)


def test_a_batch_by_hand() -> None:
    found = text_padding.pad([[5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8]], 100)
    assert found.dtype == np.int32
    assert found.tolist() == [[6, 7, *[0] * 14], [*range(1, 10), *[0] * 7]]
    assert text_padding.pad([[1] * 9], 10).shape == (1, 10), "the model's length bounds it"


def cost(batches: list[list[int]], budget: int) -> int:
    """In tokens, of batches of lengths in multiples of eight."""
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
    ways = []  # to join neighbouring widths, all of them
    for cuts in itertools.product([False, True], repeat=len(groups) - 1):
        way = [list(groups[0])]
        for cut, group in zip(cuts, groups[1:], strict=True):
            way = [*way, list(group)] if cut else [*way[:-1], way[-1] + group]
        ways.append(cost(way, budget))
    padded = [[math.ceil(lengths[i] / 8) * 8 for i in batch] for batch in batches]
    assert cost(padded, budget) == min(ways)
    assert all(len(own) * max(own) <= budget or len(own) == 1 for own in padded)
    if len(lengths) < 10 and budget > 512:
        assert len(batches) == 1, "a query and its rewrites are one run"


def test_no_texts() -> None:
    assert text_padding.batches([], 512, 256) == []


def test_an_earlier_export_is_left_where_it_is(tmp_path: Path) -> None:
    """Its graph takes texts of one length: it runs when it is named, a new one is made else."""
    source, cache = write_tiny_bert(tmp_path / "source"), tmp_path / "cache"
    model = SentenceModel.read(source)
    earlier = export_sentence_encoder(source, cache / fingerprint(model.sha256, "fp16"))
    edit_json(earlier / "manifest.json", precision="fp16")
    by_name = SentenceEncoder(earlier, graph="model.onnx")
    assert by_name._session.inputs == ("input_ids",)
    ours = SentenceEncoder(source, precision="fp16", cache_dir=cache)
    assert ours._session.inputs == (PADDED_IDS,) and len(list(cache.iterdir())) == 2
    assert ours.fingerprint == by_name.fingerprint, "embeddings of both may be compared"
    np.testing.assert_allclose(ours.encode(TEXTS), by_name.encode(TEXTS), atol=2e-3)
    again = SentenceEncoder(source, precision="fp16", cache_dir=cache)
    assert again._session.path == ours._session.path and len(list(cache.iterdir())) == 2
