"""Sentence encoders of the decoder type against sentence-transformers, from texts to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sentence_folders import Edit, edit
from helpers.tiny_bert import write_json, write_tiny_bert
from helpers.tiny_decoder import (
    CONFIGURATIONS,
    GEMMA_DOCUMENT,
    GEMMA_QUERY,
    QUERY,
    write_bare_decoder,
    write_tiny_decoder,
)
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export import encoder_families
from granalign_fast.export.checks.encoder_tokens import HARD_TEXTS, check_sentence_tokens
from granalign_fast.export.graphs import decoder_encoder
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.specs import PRECISIONS
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder

# The windows of the configurations end before the longest texts do.
TEXTS = [
    "a dog",
    "The dog runs in the the park",
    "",
    "naïve café 🐕",
    "x y " * 100,
    "the the the",
    "A woman opens the door, and a man looks at the dog.",
]


@dataclass(frozen=True)
class Truth:
    """A folder, and what sentence-transformers makes of `TEXTS`."""

    folder: Path
    documents: Any
    queries: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Truth]:
    """Return the truth of a configuration, computed once."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    known: dict[str, Truth] = {}

    def of(name: str) -> Truth:
        if name not in known:
            folder = write_tiny_decoder(tmp_path_factory.mktemp("decoder") / "source", name)
            model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
            # Batches of several lengths, which it pads.
            rows = [
                encode(TEXTS, batch_size=3, show_progress_bar=False)
                for encode in (model.encode_document, model.encode_query)
            ]
            known[name] = Truth(folder, *rows, model.tokenizer)
        return known[name]

    return of


# Against sentence-transformers.


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_embeddings(truth: Callable[[str], Truth], tmp_path: Path, name: str) -> None:
    """Queries and captions behind their prompts, in every precision and form of a batch."""
    expected = truth(name)
    assert (expected.documents @ expected.documents.T)[0, 1:].max() < 0.99
    for precision in PRECISIONS:
        out = export_sentence_encoder(expected.folder, tmp_path / precision, precision=precision)
        encoder = OnnxSentenceEncoder(out)
        assert encoder.dim == expected.documents.shape[1]
        rows = encoder.encode(TEXTS), encoder.for_queries.encode(TEXTS)
        tolerance = PRECISIONS[precision].tolerance
        for got, theirs in zip(rows, (expected.documents, expected.queries), strict=True):
            np.testing.assert_allclose(got, theirs, 0, tolerance.max_abs_error)
            cosine = (got * theirs).sum(1)
            assert cosine.min() > (1 - 1e-6 if precision == "fp32" else tolerance.min_cosine)
        # Texts by themselves, whatever the form of the batch: packed, of one length, or padded.
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(alone, rows[0], 0, 5e-7 if precision == "fp32" else 1e-3)
    plain = OnnxSentenceEncoder(tmp_path / "fp32", graph="model.onnx")
    np.testing.assert_allclose(plain.encode(TEXTS), expected.documents, 0, 1e-5)


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_token_ids(truth: Callable[[str], Truth], name: str) -> None:
    """The folder's own files give transformers' ids, behind each of the prompts."""
    expected = truth(name)
    model = SentenceModel.read(expected.folder)
    assert check_sentence_tokens(model) is model
    for prompt in (model.prompt, model.query_prompt):
        texts = [prompt + text for text in HARD_TEXTS]
        ids = expected.tokenizer(texts, truncation=True, max_length=model.max_tokens)["input_ids"]
        assert model.tokenise(HARD_TEXTS, prompt) == ids


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
def test_names_of_a_language_model(truth: Callable[[str], Truth], tmp_path: Path) -> None:
    """A checkpoint with `model.` before its names, and a last product, gives the same."""
    source = write_tiny_decoder(tmp_path / "source", "qwen3")
    path = source / "model.safetensors"
    tensors = {f"model.{name}": value for name, value in load_file(path).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, path, {"format": "pt"})
    encoder = OnnxSentenceEncoder(export_sentence_encoder(source, tmp_path / "out", check=False))
    np.testing.assert_allclose(encoder.encode(TEXTS), truth("qwen3").documents, 0, 1e-5)


# Wrong graphs are found.


def one_further(windows: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return tuple(None if window is None else window + 1 for window in windows)


SHAPES: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "a window that is off by one": (
        "gemma3-plain",
        lambda shape: {"windows": one_further(shape.windows)},
    ),
    "a causal window that is off by one": (
        "qwen3-window",
        lambda shape: {"windows": one_further(shape.windows)},
    ),
    "swapped bases": ("gemma3-plain", lambda shape: {"thetas": shape.thetas[::-1]}),
    "words without their factor": ("gemma3-plain", lambda shape: {"words_scale": 1.0}),
    "another scale of scores": ("gemma3-plain", lambda shape: {"scale": 32**-0.5}),
    "gains without their 1": ("gemma3-plain", lambda shape: {"gain": 0.0}),
    "attention to one side": ("gemma3-plain", lambda shape: {"causal": True}),
    "attention to both sides": ("qwen3", lambda shape: {"causal": False}),
}


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", SHAPES)
def test_wrong_settings_are_found(
    truth: Callable[[str], Truth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """NumPy computes the same wrong embeddings; the comparison with transformers finds them."""
    name, change = SHAPES[what]
    kind = "gemma3_text" if name.startswith("gemma3") else "qwen3"
    family = encoder_families.ENCODER_FAMILIES[kind]

    def load(*arguments: Any, **more: Any) -> Any:
        model = family.load(*arguments, **more)
        return replace(model, shape=replace(model.shape, **change(model.shape)))

    wrong = dict(encoder_families.ENCODER_FAMILIES) | {kind: replace(family, load=load)}
    monkeypatch.setattr(encoder_families, "ENCODER_FAMILIES", wrong)
    source = truth(name).folder
    with pytest.raises(GranAlignError, match="the export differs from its source"):
        export_sentence_encoder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "pooling"), [("qwen3", "mean"), ("qwen3", "cls"), ("gemma3", "last")]
)
def test_another_pooling_differs(
    truth: Callable[[str], Truth], tmp_path: Path, name: str, pooling: str
) -> None:
    expected = truth(name)
    source = write_tiny_decoder(tmp_path / "source", name)
    mode = {"mean": "mean", "cls": "cls", "last": "lasttoken"}[pooling]
    edit("1_Pooling/config.json", pooling_mode=mode)(source)
    encoder = OnnxSentenceEncoder(export_sentence_encoder(source, tmp_path / "out", check=False))
    assert np.abs(encoder.encode(TEXTS) - expected.documents).max() > 1e-2


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_query_without_its_prompt_differs(
    truth: Callable[[str], Truth], tmp_path: Path, name: str
) -> None:
    expected = truth(name)
    encoder = OnnxSentenceEncoder(export_sentence_encoder(expected.folder, tmp_path / "out"))
    assert np.abs(encoder.encode(TEXTS) - expected.queries).max() > 1e-2
    assert np.abs(expected.documents - expected.queries).max() > 1e-2


# Without torch.


def last_but_one(self: Any, x: str, pooling: str, normalise: bool) -> None:
    index = self._array(-2, np.int64)
    x = self._op("Unsqueeze", self._op("Gather", x, index, axis=1), self._integers(1))
    return right_pool(self, x, pooling, normalise)


right_pool = decoder_encoder.DecoderEncoderGraph._pool


def doubled_positions(self: Any, positions: str, theta: float) -> tuple[str, str]:
    """A shift would change nothing: only distances matter to rotated tokens."""
    moved = self._op("Add", positions, positions)
    return right_angles(self, moved, theta)


right_angles = decoder_encoder.DecoderEncoderGraph._angles


@pytest.mark.parametrize(
    ("name", "method", "wrong"),
    [("qwen3", "_pool", last_but_one), ("gemma3", "_angles", doubled_positions)],
)
def test_the_self_check_finds_a_wrong_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str, wrong: Any
) -> None:
    """NumPy's embeddings come from the weights alone."""
    source = write_bare_decoder(tmp_path / "source", name)
    monkeypatch.setattr(decoder_encoder.DecoderEncoderGraph, method, wrong)
    with pytest.raises(GranAlignError, match="the export differs from its source"):
        export_sentence_encoder(source, tmp_path / "out", precision="int8", check=False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_self_check_needs_no_torch(tmp_path: Path, name: str, precision: str) -> None:
    source = write_bare_decoder(tmp_path / "source", name)
    out = export_sentence_encoder(source, tmp_path / "out", precision=precision, check=False)
    encoder = OnnxSentenceEncoder(out)
    graphs = {"packed.onnx"} if precision == "fp32" else set()
    common = {"model.onnx", "model.onnx_data", "tokenizer.json"}
    assert set(encoder.manifest.files) == graphs | common
    rows = encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, 0, 1e-5)
    assert (
        encoder.manifest.self_check["max_abs_error"]
        <= PRECISIONS[precision].tolerance.max_abs_error
    )


def test_the_first_layers_of_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose weights are large is checked by its first layers, in a folder of its own."""
    monkeypatch.setattr("granalign_fast.export.checks.encoder._SMALL", 0)
    source = write_bare_decoder(tmp_path / "source", "gemma3")
    out = export_sentence_encoder(source, tmp_path / "out", check=False)
    assert OnnxSentenceEncoder(out).manifest.self_check["layers"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_the_longest_text_is_bounded(tmp_path: Path) -> None:
    """A model that states 32,768 positions, as the published one, takes texts of 8,192 tokens."""
    source = write_bare_decoder(tmp_path / "source", "qwen3")
    edit("config.json", max_position_embeddings=32_768)(source)
    model = SentenceModel.read(source)
    assert model.max_tokens == model.positions == 8192
    assert len(model.tokenise(["x " * 10_000])[0]) == 8192


def test_prompts_shape_the_fingerprint(tmp_path: Path) -> None:
    """Another prompt, for queries or for captions, is another model to an index."""
    source = write_bare_decoder(tmp_path / "source", "gemma3")
    model = SentenceModel.read(source)
    assert (model.query_prompt, model.prompt) == (GEMMA_QUERY, GEMMA_DOCUMENT)
    hashes = {model.sha256}
    for prompts in (
        {"query": "q: ", "document": GEMMA_DOCUMENT},
        {"query": GEMMA_QUERY, "passage": "d: "},
        {"query": GEMMA_QUERY},
        {},
    ):
        edit("config_sentence_transformers.json", prompts=prompts)(source)
        hashes.add(SentenceModel.read(source).sha256)
    assert len(hashes) == 5
    out = export_sentence_encoder(source, tmp_path / "out", check=False)
    encoder = OnnxSentenceEncoder(out)
    assert encoder.for_queries is encoder, "without prompts there is one encoder"


def test_queries_have_names_of_their_own(tmp_path: Path) -> None:
    source = write_bare_decoder(tmp_path / "source", "qwen3")
    encoder = OnnxSentenceEncoder(export_sentence_encoder(source, tmp_path / "out", check=False))
    asking = encoder.for_queries
    assert (encoder.manifest.prompt, encoder.manifest.query_prompt) == ("", QUERY)
    assert asking.for_queries is asking
    assert asking.fingerprint == encoder.fingerprint
    assert asking.content_key != encoder.content_key
    np.testing.assert_array_equal(asking.encode(["a"]), encoder.encode([QUERY + "a"]))


# Refusals.


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "qwen3",
            edit("config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "got rope_scaling .*yarn.*, expected none",
        ),
        ("qwen3", edit("config.json", hidden_act="mish"), "got the activation 'mish'"),
        ("qwen3", edit("config.json", head_dim=15), "got 4 heads of 15 values"),
        ("qwen3", edit("config.json", hidden_size=47), "has shape .*, expected"),
        ("gemma3", edit("config.json", layer_types=["full_attention"]), "expected 4 of"),
        (
            "gemma3",
            edit("config.json", attn_logit_softcapping=50.0),
            "attn_logit_softcapping 50.0, expected none",
        ),
        ("gemma3", edit("2_Dense/config.json", in_features=40), "has shape .*, expected"),
        (
            "gemma3",
            edit("2_Dense/config.json", activation_function="torch.nn.modules.activation.ReLU"),
            "got the activation .*ReLU.*choose another model",
        ),
        ("gemma3", edit("2_Dense/config.json", use_residual=True), "got use_residual True"),
        (
            "gemma3",
            edit("config_sentence_transformers.json", prompts={"query": 3}),
            "got the prompt 3 for a query, expected a text",
        ),
    ],
)
def test_refused(tmp_path: Path, name: str, change: Edit, message: str) -> None:
    source = write_bare_decoder(tmp_path / "source", name)
    change(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_sentence_encoder(source, tmp_path / "out", check=False)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_layers_in_another_order_are_refused(tmp_path: Path) -> None:
    source = write_bare_decoder(tmp_path / "source", "gemma3")
    steps = ["Transformer", "Dense", "Pooling", "Dense", "Normalize"]
    paths = ["", "2_Dense", "1_Pooling", "3_Dense", "4_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{step}"}
        for i, (step, path) in enumerate(zip(steps, paths, strict=True))
    ]
    write_json(source / "modules.json", modules)
    with pytest.raises(GranAlignError, match="expected Transformer, Pooling and perhaps Normalize"):
        SentenceModel.read(source)
    bert = write_tiny_bert(tmp_path / "bert")
    write_json(bert / "modules.json", [modules[i] for i in (0, 2, 1)])
    with pytest.raises(
        GranAlignError, match=r"got the modules \['Transformer', 'Pooling', 'Dense'"
    ):
        SentenceModel.read(bert)
