"""The sentence encoder: order, shapes, batches that change nothing, and the real MiniLM."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.tiny_bert import edit_json, write_tiny_bert

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.models import sentence_encoder as encoders
from granalign_fast.models import text_packing
from granalign_fast.models.encoder import equal_length_batches
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.array_device import ArrayDevice

GOLDEN = Path(__file__).parents[1] / "fixtures" / "minilm_golden.json"
TEXTS = ["a b c", "d", "a b c", "", "hello world.", "e f", "x " * 40, "d", "z"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def encoder(request: pytest.FixtureRequest, source: Path, cache: Path) -> SentenceEncoder:
    return SentenceEncoder(source, precision=request.param, threads=2, cache_dir=cache)


@pytest.fixture(scope="module")
def encoders_of(minilm: Path, cache: Path) -> dict[str, SentenceEncoder]:
    return {
        name: SentenceEncoder(minilm, precision=name, cache_dir=cache) for name in ("fp32", "int8")
    }


def test_shape_and_order(encoder: SentenceEncoder) -> None:
    rows = encoder.encode(TEXTS)
    assert rows.shape == (len(TEXTS), encoder.dim) and rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], row, atol=2e-6, err_msg=repr(text))


@pytest.mark.parametrize("texts", [[], (), np.array([], dtype=str)])
def test_no_texts(encoder: SentenceEncoder, texts: list[str]) -> None:
    rows = encoder.encode(texts)
    assert rows.shape == (0, encoder.dim) and rows.dtype == np.float32


@pytest.mark.parametrize(("window", "gpu"), [("_WINDOW", None), ("_GPU_WINDOW", 0)])
def test_progress_counts_every_text_once(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch, window: str, gpu: int | None
) -> None:
    """For a GPU, the next window of texts is tokenised on another thread."""
    expected = encoder.encode(TEXTS)
    monkeypatch.setattr(encoders, window, 3)
    monkeypatch.setattr(encoder, "_gpu", gpu)
    steps: list[int] = []
    np.testing.assert_allclose(encoder.encode(TEXTS, progress=steps.append), expected, atol=2e-6)
    assert sum(steps) == len(TEXTS) and min(steps) > 0 and len(steps) > 1
    with pytest.raises(GranAlignError, match="not valid Unicode"):
        encoder.encode([*"abcdefgh", "\ud800", *"ijk"])


def test_threads_share_an_encoder(encoder: SentenceEncoder) -> None:
    expected = encoder.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(encoder.encode, [TEXTS] * 16):
            np.testing.assert_allclose(rows, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 3], r"texts\[1\]: got int, expected str"),
        (["a", None], r"texts\[1\]: got NoneType"),
        ([b"a"], r"texts\[0\]: got bytes"),
        ("a b", "got the string 'a b', expected a list"),
        (["a", "half \ud83d pair"], "not valid Unicode"),
    ],
)
def test_bad_texts(encoder: SentenceEncoder, texts: list[str], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        encoder.encode(texts)


class GpuSession:
    """A session on a GPU, which refuses arrays of the host. Its embeddings have norm `length`."""

    def __init__(self, session: Any, length: float) -> None:
        self.session, self.inputs, self.length = session, session.inputs, length

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        assert all(isinstance(array, fake_cupy.ndarray) for array in arrays.values())
        outputs = self.session(**{name: np.asarray(array) for name, array in arrays.items()})
        return {n: self.length * array.view(fake_cupy.ndarray) for n, array in outputs.items()}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["a"] * 3, []])
def test_embeddings_stay_on_a_gpu(
    source: Path, cache: Path, texts: list[str], normalise: bool
) -> None:
    encoder = SentenceEncoder(source, cache_dir=cache, graph="model.onnx")
    encoder.manifest = replace(encoder.manifest, normalise=normalise)
    expected = encoder.encode(texts)
    encoder._session, encoder._gpu = GpuSession(encoder._session, 1 if normalise else 3), 0
    fake_cupy.UPLOADED.clear(), fake_cupy.FETCHED.clear()
    rows = encoder.encode_on(texts, ArrayDevice(fake_cupy, 0))
    assert isinstance(rows, fake_cupy.ndarray) and rows.flags.c_contiguous
    assert rows.dtype == np.float32 and not fake_cupy.FETCHED
    assert not texts or all(dtype.kind == "i" for _, dtype in fake_cupy.UPLOADED)
    np.testing.assert_allclose(np.asarray(rows), expected, atol=2e-6)


@pytest.mark.parametrize("gpu", [None, 1])
def test_embeddings_of_another_device_are_copied(
    source: Path, cache: Path, gpu: int | None
) -> None:
    encoder = SentenceEncoder(source, cache_dir=cache)
    expected = encoder.encode(TEXTS)
    assert type(encoder.encode_on(TEXTS, ArrayDevice(np))) is np.ndarray
    encoder._gpu = gpu
    rows = encoder.encode_on(TEXTS, ArrayDevice(fake_cupy, 0))
    assert isinstance(rows, fake_cupy.ndarray)
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "texts",
    [TEXTS, TEXTS[:1], ["a", "b", "c"], ["", "a b c d"], [f"{'x ' * n}y" for n in range(60)]],
    ids=["mixed", "one", "equally long", "few", "many"],
)
def test_packing_changes_no_embedding(tmp_path: Path, pooling: str, texts: list[str]) -> None:
    source = write_tiny_bert(tmp_path / "tiny", pooling=pooling)
    packs, plain = (
        SentenceEncoder(source, cache_dir=tmp_path / "cache", graph=graph)
        for graph in (None, "model.onnx")
    )
    assert (packs._packs, plain._packs) == (True, False)
    alone = np.concatenate([plain.encode([text]) for text in texts])
    np.testing.assert_allclose(packs.encode(texts), alone, atol=2e-6)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    "lengths",
    [[5], [7, 7, 7], [9, 3, 5, 4], [700, 3, 4], [3, 4] * 40, [12] * 40 + [13, 14], [200, 90]],
)
def test_texts_of_many_lengths_share_rows(lengths: list[int], workers: int) -> None:
    batches = text_packing.batches([[0] * n for n in lengths], 512, workers)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    tokens = [[lengths[i] for i in batch] for batch in batches]
    rows = [batch for batch in tokens if len(set(batch)) > 1]
    # A packed row exceeds its 128 tokens by one text at most; a batch of one length has up to 512.
    assert all(sum(row) <= 128 + max(row) for row in rows)
    assert all(sum(batch) <= 512 or len(batch) == 1 for batch in tokens)
    if 1 < sum(lengths) <= 128:  # all workers have something to do
        assert len(batches) == min(workers, len(lengths))


def test_a_packed_row_by_hand() -> None:
    packed = text_packing.pack([[5, 6], [7]], "mean")
    assert packed["input_ids"].tolist() == [[5, 6, 7]]
    assert packed["positions"].tolist() == [[0, 1, 0]]
    assert packed["pool"].tolist() == [[[0.5, 0.5, 0], [0, 0, 1]]]
    inf = np.inf
    assert packed["mask"].tolist() == [[0, 0, -inf], [0, 0, -inf], [-inf, -inf, 0]]
    assert text_packing.pack([[5, 6], [7]], "cls")["pool"].tolist() == [[[1, 0, 0], [0, 0, 1]]]
    equal = text_packing.pack([[5, 6], [7, 8]], "cls")
    assert equal["input_ids"].shape == (2, 2) and not equal["mask"].any()
    assert equal["pool"].tolist() == [[[1, 0]], [[1, 0]]]


def test_batches_have_one_length_and_hold_each_text_once() -> None:
    lengths = [3, 5, 3, 3, 700, 5, 1]
    batches = equal_length_batches([[0] * n for n in lengths], budget=6)
    assert [[lengths[i] for i in batch] for batch in batches] == [[700], [5], [5], [3, 3], [3], [1]]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))


def test_the_cache_is_used_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = SentenceEncoder(source)
    (folder,) = (tmp_path / "granalign-fast").iterdir()
    assert folder.name == first.fingerprint
    written = (folder / "model.onnx").stat().st_mtime_ns
    assert SentenceEncoder(source).fingerprint == first.fingerprint
    assert (folder / "model.onnx").stat().st_mtime_ns == written
    assert SentenceEncoder(folder).fingerprint == first.fingerprint


def test_fingerprints_tell_models_and_precisions_apart(tmp_path: Path, cache: Path) -> None:
    other = write_tiny_bert(tmp_path / "other", seed=1)
    names = [
        SentenceEncoder(other, precision=p, cache_dir=cache).fingerprint for p in ("fp32", "int8")
    ]
    edit_json(other / "sentence_bert_config.json", max_seq_length=8)
    names.append(SentenceEncoder(other, cache_dir=cache).fingerprint)
    assert len(set(names)) == 3


def test_an_exported_folder_has_one_precision(source: Path, cache: Path) -> None:
    folder = cache / SentenceEncoder(source, precision="int8", cache_dir=cache).fingerprint
    assert SentenceEncoder(folder).manifest.precision == "int8"
    with pytest.raises(GranAlignError, match="got precision 'int8', expected 'fp32'"):
        SentenceEncoder(folder, precision="fp32")


def test_unusable_settings(source: Path, cache: Path) -> None:
    with pytest.raises(GranAlignError, match="precision 'int4'"):
        SentenceEncoder(source, precision="int4", cache_dir=cache)
    with pytest.raises(GranAlignError, match="device 'gpu'"):
        SentenceEncoder(source, device="gpu", cache_dir=cache)
    with pytest.raises(GranAlignError, match="at least 1"):
        SentenceEncoder(source, threads=0, cache_dir=cache)
    with pytest.raises(GranAlignError, match="'int8': got device 'cuda'"):
        SentenceEncoder(source, precision="int8", device="cuda", cache_dir=cache)


def test_a_gpu_without_its_provider(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingExtraError, match=r"\[cuda\]"):
        SentenceEncoder(source, device="cuda", cache_dir=cache)


def test_minilm_equals_sentence_transformers(
    encoders_of: dict[str, SentenceEncoder],
) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    texts = [sentence["text"] for sentence in golden["sentences"]]
    expected = np.array([sentence["embedding"] for sentence in golden["sentences"]])
    got = encoders_of["fp32"].encode(texts)
    np.testing.assert_allclose(got[:, : golden["columns"]], expected, atol=1e-6)
    # In 8 bits, for texts from three words to over the model's length, the least measured cosine is
    # 0.9947.
    assert (encoders_of["int8"].encode(texts) * got).sum(axis=1).min() > 0.99


def test_minilm_in_8_bits_does_not_depend_on_the_batch(
    encoders_of: dict[str, SentenceEncoder],
) -> None:
    texts = [f"A {thing} on the table" for thing in ("cat", "dog", "hat", "map", "pen", "cup")]
    together = encoders_of["int8"].encode([*texts, "an outlier: ?!?!", "x" * 500])
    for text, row in zip(texts, together, strict=False):
        np.testing.assert_allclose(encoders_of["int8"].encode([text])[0], row, atol=1e-6)


def test_nothing_imports_torch_or_the_exporter(source: Path, cache: Path) -> None:
    """Loading an exported folder and encoding imports no torch, onnx or huggingface_hub."""
    folder = cache / SentenceEncoder(source, cache_dir=cache).fingerprint
    code = (
        "import sys; from granalign_fast.pipeline import SentenceEncoder; "
        "assert not {'onnxruntime', 'tokenizers'} & set(sys.modules), 'heavy at import'; "
        f"SentenceEncoder({str(folder)!r}).encode(['a b']); "
        "print(sorted({'torch', 'onnx', 'huggingface_hub', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
