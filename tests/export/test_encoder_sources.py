"""Families of sentence encoders against sentence-transformers and transformers themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.encoder_folders import TEXTS, write_encoder
from helpers.sentence_folders import embed_with_sentence_transformers

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks import encoder_tokens
from granalign_fast.export.checks.encoder_tokens import HARD_TEXTS
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.encoders import modernbert, mpnet, roberta
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.models.graph_contract import PACKED_GRAPH
from granalign_fast.pipeline import SentenceEncoder

pytestmark = [pytest.mark.needs_torch, pytest.mark.filterwarnings("ignore")]

THETAS = {
    "full_attention": {"rope_type": "default", "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
}
"""Bases of rotary positions, as transformers 5 has them."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "xlm-roberta": ("xlm-roberta", {}),
    "xlm-roberta, one head, cls": (
        "xlm-roberta",
        {"num_attention_heads": 1, "pooling": "cls", "normalise": False, "seed": 1},
    ),
    "xlm-roberta, long": (
        "xlm-roberta",
        {"max_position_embeddings": 258, "num_hidden_layers": 3, "seed": 2},
    ),
    "roberta": ("roberta", {"seed": 3}),
    "mpnet": ("mpnet", {}),
    "mpnet, short, cls": (
        "mpnet",
        {"max_position_embeddings": 21, "pooling": "cls", "normalise": False, "seed": 1},
    ),
    "mpnet, three layers": (
        "mpnet",
        {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 48, "seed": 2},
    ),
    "modernbert": ("modernbert", {}),
    "modernbert, two local layers in three, biases": (
        "modernbert",
        {
            "global_attn_every_n_layers": 3,
            "num_hidden_layers": 5,
            "local_attention": 5,
            "rope_parameters": THETAS,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "pooling": "cls",
            "normalise": False,
            "seed": 1,
        },
    ),
    "modernbert, every layer in turn": (
        "modernbert",
        {
            "global_attn_every_n_layers": 2,
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "intermediate_size": 40,
            "num_attention_heads": 3,
            "local_attention": 32,
            "norm_bias": True,
            "rope_parameters": THETAS,
            "seed": 2,
        },
    ),
    "modernbert, all layers global": (
        "modernbert",
        {"global_attn_every_n_layers": 1, "mlp_bias": True, "pooling": "cls", "seed": 3},
    ),
}
"""Families and settings: odd numbers of heads and layers, texts beyond every distance's bucket."""


@pytest.fixture(scope="module", params=sorted(CASES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers")
    family, settings = CASES[request.param]
    return write_encoder(tmp_path_factory.mktemp("saved") / "source", family, **settings)


def test_embeddings_are_sentence_transformers(saved: Path, tmp_path: Path) -> None:
    expected = embed_with_sentence_transformers(saved, TEXTS)
    out = export_sentence_encoder(saved, tmp_path / "out", check=True)
    for graph in ("model.onnx", PACKED_GRAPH):
        encoder = SentenceEncoder(out, graph=graph)
        got = encoder.encode(TEXTS)
        np.testing.assert_allclose(got, expected, 0, 2e-6)
        assert ((got.astype(np.float64) * expected).sum(axis=1) > 1 - 1e-6).all()
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(got, alone, 0, 1e-6)
    # Texts must differ, or the comparison would be empty.
    assert np.abs(expected[1] - expected[2]).max() > 1e-2


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_precisions(saved: Path, tmp_path: Path, precision: str) -> None:
    """Each is within the tolerance of its precision, against transformers."""
    out = export_sentence_encoder(saved, tmp_path / "out", precision=precision, check=True)
    manifest = json.loads((out / "manifest.json").read_text())
    assert "transformers" in manifest["comparison"]
    expected = embed_with_sentence_transformers(saved, TEXTS)
    cosines = (SentenceEncoder(out).encode(TEXTS) * expected).sum(axis=1)
    assert cosines.min() > {"fp16": 0.9999, "int8": 0.98}[precision]


def test_ids_are_auto_tokenizer_s(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    model = SentenceModel.read(saved)
    monkeypatch.setattr(encoder_tokens.TokenJudge, "source", lambda *_: None)
    texts = [*HARD_TEXTS, *TEXTS]
    judge = AutoTokenizer.from_pretrained(saved, local_files_only=True)
    expected = judge(texts, truncation=True, max_length=model.max_tokens)["input_ids"]
    assert model.tokenise(texts) == expected
    assert max(map(len, expected)) == model.max_tokens
    assert encoder_tokens.check_sentence_tokens(model) is model


def offset_by_one(patch: pytest.MonkeyPatch) -> None:
    """Positions begin one row later."""
    patch.setattr(
        roberta,
        "count_from_padding",
        lambda model: replace(model, positions=model.positions[2:], uncounted=1),
    )


def bucket_by_one(patch: pytest.MonkeyPatch) -> None:
    """Far distances have the bucket before theirs."""
    right = mpnet.buckets
    patch.setattr(mpnet, "buckets", lambda d: right(d) - (np.abs(d) >= 20))


def swapped_directions(patch: pytest.MonkeyPatch) -> None:
    """Keys before and behind a query change places."""
    right = mpnet.buckets
    patch.setattr(mpnet, "buckets", lambda d: right(-d))


def window_by_one(patch: pytest.MonkeyPatch) -> None:
    """Local layers attend to one token more in each direction."""
    change_modernbert(patch, lambda model: replace(model, window=model.window + 1))


def smaller_window(patch: pytest.MonkeyPatch) -> None:
    """Local layers attend to one token less in each direction."""
    change_modernbert(patch, lambda model: replace(model, window=model.window - 1))


def swapped_thetas(patch: pytest.MonkeyPatch) -> None:
    """Local layers have the base of rotary positions of the others, and the other way round."""
    change_modernbert(patch, lambda model: replace(model, thetas=model.thetas[::-1]))


def change_modernbert(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Change every ModernBERT that is read."""
    read = modernbert._read
    patch.setattr(modernbert, "_read", lambda *arguments: change(read(*arguments)))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("modernbert", window_by_one),
        ("modernbert", smaller_window),
        ("modernbert", swapped_thetas),
        ("xlm-roberta", offset_by_one),
        ("mpnet", bucket_by_one),
        ("mpnet", swapped_directions),
    ],
)
def test_the_comparison_finds_wrong_weights(
    tmp_path: Path,
    family: str,
    change: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What graph and self-check both misread, transformers does not."""
    pytest.importorskip("sentence_transformers")
    source = write_encoder(tmp_path / "source", family, length=60)
    change(monkeypatch)
    export_sentence_encoder(source, tmp_path / "unchecked", check=False)
    with pytest.raises(GranAlignError, match="differs from its source"):
        export_sentence_encoder(source, tmp_path / "out", check=True)
    assert not (tmp_path / "out").exists()
