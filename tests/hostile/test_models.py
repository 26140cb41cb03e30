"""Models that somebody else made: their files, numbers and tokenizers."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.checkpoint import Checkpoint
from granalign_fast.export.sources.folder import read_model_config
from granalign_fast.files import sha256_of
from granalign_fast.miniatures import pool
from granalign_fast.models.encoder import tokenise
from granalign_fast.models.manifest import FrameEncoderManifest, LlmManifest
from granalign_fast.models.tokenizer_file import fit, load_tokenizer

MODELS = Path(pool.__file__).parent / "models"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A copy of the miniatures' frame encoder, which the test may spoil."""
    return Path(shutil.copytree(MODELS / "clip", tmp_path / "clip"))


def rewrite(folder: Path, **values: Any) -> None:
    """Change values of a manifest; a stranger's hashes always fit."""
    path = folder / "manifest.json"
    record = json.loads(path.read_text()) | values
    record["files"] = {
        name: sha256_of(folder / name) if (folder / name).is_file() else digest
        for name, digest in record["files"].items()
    }
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "chat_template.jinja", "tokenizer_config.json", "MODEL.ONNX", "x.engine"],
)
def test_a_file_that_nobody_listed(clip: Path, name: str) -> None:
    (clip / name).write_text("x")
    with pytest.raises(GranAlignError, match=f"got '{name}' in the folder, expected only files"):
        FrameEncoderManifest.read(clip)


def test_what_no_reader_looks_for_may_lie_there(clip: Path) -> None:
    (clip / "README.md").write_text("x")
    (clip / ".gitattributes").write_text("x")
    (clip / "tensorrt").mkdir()
    FrameEncoderManifest.read(clip)
    (clip / "additional_chat_templates").mkdir()
    with pytest.raises(GranAlignError, match="additional_chat_templates"):
        FrameEncoderManifest.read(clip)


@pytest.mark.parametrize("name", ["../a.onnx", "/etc/passwd", "a/b.onnx", "..", "", "a\0b", "a\\b"])
def test_names_that_leave_the_folder(clip: Path, name: str) -> None:
    record = json.loads((clip / "manifest.json").read_text())
    rewrite(clip, files=record["files"] | {name: "0" * 64})
    with pytest.raises(GranAlignError, match="expected one without folders"):
        FrameEncoderManifest.read(clip)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (FrameEncoderManifest, "dim", -1),
        (FrameEncoderManifest, "dim", True),
        (FrameEncoderManifest, "dim", 128.0),
        (FrameEncoderManifest, "max_tokens", 200_000_000),
        (FrameEncoderManifest, "max_tokens", 0),
        (FrameEncoderManifest, "preprocessing", {"resize": [10**9], "crop": [9, 9], "resample": 3}),
        (FrameEncoderManifest, "preprocessing", {"resize": [9], "crop": [-9, 9], "resample": 3}),
        (LlmManifest, "layers", 10**9),
        (LlmManifest, "context", 10**15),
        (LlmManifest, "vocabulary", -5),
        (LlmManifest, "eos_ids", [-1]),
        (LlmManifest, "eos_ids", [1] * 5000),
    ],
)
def test_numbers_of_manifests(tmp_path: Path, kind: Any, name: str, value: object) -> None:
    source = MODELS / kind.kind
    (tmp_path / "m").mkdir()
    record = json.loads((source / "manifest.json").read_text()) | {name: value}
    (tmp_path / "m" / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(GranAlignError, match=r"manifest.json: got \w+ .*, expected ") as caught:
        kind.read(tmp_path / "m")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def graph_with_weights(path: Path, location: str, *, nested: bool = False) -> None:
    """Write a graph with weights in another file, perhaps in a branch of it."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=1)
    for key, value in (("location", location), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    value = helper.make_tensor_value_info
    node = helper.make_node("Constant", [], ["y"], value=weights)
    inner = helper.make_graph([node], "inner", [], [value("y", 1, [4])])
    if nested:
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "outer", [value("c", 9, [1])], [value("y", 1, [4])])
    path.write_bytes(helper.make_model(inner).SerializeToString())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "./README.md", "README.md"])
def test_weights_in_files_that_nobody_listed(clip: Path, location: str, nested: bool) -> None:
    (clip / "README.md").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    graph_with_weights(clip / "text.onnx", location, nested=nested)
    onnx.load(clip / "text.onnx", load_external_data=False)  # a graph, as onnx reads it
    rewrite(clip)
    with pytest.raises(GranAlignError, match=r"text.onnx: got weights in '.*', expected a file"):
        FrameEncoderManifest.read(clip)
    record = json.loads((clip / "manifest.json").read_text())
    if location == "README.md":
        rewrite(clip, files=record["files"] | {"README.md": ""})
        FrameEncoderManifest.read(clip)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x3a\xff\x7f", b"\x0b" * 9, b"\x3a\x02" * 300])
def test_graphs_that_are_none(clip: Path, content: bytes) -> None:
    (clip / "text.onnx").write_bytes(content)
    rewrite(clip)
    with pytest.raises(GranAlignError, match=r"text.onnx: not an ONNX model"):
        FrameEncoderManifest.read(clip)


def step(kind: str, **values: Any) -> dict[str, Any]:
    return {"type": kind} | values


def template(pieces: int, known: dict[str, Any]) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": "X", "type_id": 0}}] * pieces
    return step("TemplateProcessing", single=single, pair=[], special_tokens=known)


DOUBLE = step("Replace", pattern={"String": "a"}, content="aa")
CHARSMAP = base64.b64encode(b"\xff" * 9).decode()

STEPS: dict[str, dict[str, Any]] = {
    "doubles": {"normalizer": step("Sequence", normalizers=[DOUBLE] * 30)},
    "many steps": {"normalizer": step("Sequence", normalizers=[step("NFC")] * 1000)},
    "long content": {"normalizer": step("Replace", pattern={"Regex": "x*"}, content="x" * 100_000)},
    "between characters": {"normalizer": step("Replace", pattern={"Regex": ""}, content="x" * 99)},
    "no characters": {"normalizer": step("Precompiled", precompiled_charsmap=CHARSMAP)},
    "no base64": {"normalizer": step("Precompiled", precompiled_charsmap="?")},
    "no length": {"pre_tokenizer": step("FixedLength", length=0)},
    "no token": {"post_processor": template(1, {})},
    "many tokens": {
        "post_processor": template(1000, {"X": {"id": "X", "ids": [0], "tokens": ["a"]}})
    },
    "many ids": {"post_processor": template(1, {"X": {"id": "X", "ids": [0] * 999, "tokens": []}})},
    "a huge strip": {"decoder": step("Strip", content="a", start=10**12, stop=0)},
}


def write_tokenizer(folder: Path, **values: Any) -> Path:
    record = json.loads((MODELS / "clip" / "tokenizer.json").read_text()) | values
    (folder / "tokenizer.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("name", STEPS)
def test_tokenizers_that_take_too_much(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path, **STEPS[name])
    with pytest.raises(GranAlignError, match=r"tokenizer.json: not a tokenizer \(got "):
        load_tokenizer(tmp_path)


def test_a_key_that_repeats_is_refused(tmp_path: Path) -> None:
    """Python takes the last value of a key, and tokenizers reads each."""
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    hidden = json.dumps(STEPS["no characters"]["normalizer"])
    path.write_text(f'{{"normalizer": {hidden}, ' + path.read_text()[1:])
    with pytest.raises(GranAlignError, match="got an object with a key that repeats"):
        load_tokenizer(tmp_path)


PADDING = {
    "strategy": {"Fixed": 200_000_000},
    "direction": "Right",
    "pad_to_multiple_of": 1 << 40,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "a",
}
TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}


def test_padding_and_truncation_are_ours(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, padding=PADDING, truncation=TRUNCATION)
    tokenizer = fit(load_tokenizer(tmp_path), 12)
    assert [len(ids) for ids in tokenise(tokenizer, ["a dog", "a dog " * 100])] == [12, 12]
    with pytest.raises(GranAlignError, match="got padding to 100,000 tokens"):
        fit(load_tokenizer(tmp_path), 100_000)


def test_a_panic_is_one_line(tmp_path: Path) -> None:
    """A regular expression that tries too often: the package panics, which is no `Exception`."""
    pattern = {"Regex": "(a+)+$"}
    split = step("Split", pattern=pattern, behavior="Isolated", invert=False)
    write_tokenizer(tmp_path, normalizer=None, pre_tokenizer=split)
    code = (
        "import sys; from pathlib import Path\n"
        "from granalign_fast.errors import GranAlignError\n"
        "from granalign_fast.models.encoder import tokenise\n"
        "from granalign_fast.models.tokenizer_file import load_tokenizer\n"
        "try: tokenise(load_tokenizer(Path(sys.argv[1])), ['a' * 4000 + 'b'])\n"
        "except GranAlignError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("tokenizer: cannot take a text (Onig: Regex search error")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "raised", [MemoryError, RecursionError, lambda: RuntimeError("a\nb"), lambda: Exception()]
)
def test_every_exception_becomes_one_line(raised: Callable[[], Exception]) -> None:
    class Tokenizer:
        def encode_batch_fast(self, texts: list[str]) -> None:
            raise raised()

    with pytest.raises(GranAlignError, match=r"cannot take a text \([\w ]+\); copy"):
        tokenise(Tokenizer(), ["a dog"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 10**12}, "got 'hidden_size' 1000000000000, expected at most"),
        ({"text_config": {"num_hidden_layers": 1 << 40}}, "got 'num_hidden_layers' 109951"),
        ({"vision_config": [{"image_size": [9, -(10**10)]}]}, "got 'image_size' -10000000000"),
    ],
)
def test_sizes_of_a_source(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(GranAlignError, match=message):
        read_model_config(tmp_path, "a model", "int4")


def test_a_checkpoint_whose_header_is_too_long(tmp_path: Path) -> None:
    for length in (1 << 62, 200_000_000):
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(GranAlignError, match="not readable as safetensors: torn"):
            Checkpoint(tmp_path)
