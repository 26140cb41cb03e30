"""Folders of exported models: found by kind, loaded when first used, checked by the doctor."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_clip import write_clip_source
from helpers.tiny_llm import write_unchecked
from helpers.tiny_vlm import write_unchecked_vlm
from helpers.videos import constant, render

from granalign_fast import GranAlignError, RuleRewriter, VideoIndex
from granalign_fast.cli.diagnosis import examine
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.files import sha256_of
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.miniatures import MODELS
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.models.manifest import LlmManifest, exported_models, read_manifest
from granalign_fast.pipeline import ModelFolder, models_folder, open_retriever


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and a vision-language model, in folders of odd names."""
    root = tmp_path_factory.mktemp("models")
    for name, write in (("rewriter", write_unchecked), ("eyes", write_unchecked_vlm)):
        (root / "drafts" / name).mkdir(parents=True)
        write(root / "drafts" / name).rename(root / name)
    return root


def test_models_are_found_by_what_they_are(folder: Path) -> None:
    assert exported_models(folder) == {"llm": folder / "rewriter", "vlm": folder / "eyes"}
    models = ModelFolder(folder)
    assert "vlm" in models and "clip" not in models
    assert isinstance(models.rewriter, LlmRewriter)
    assert isinstance(models.captioner, VlmCaptioner)
    assert models.frame_encoder is None
    assert models.captioner is models.captioner, "loaded once"


def test_miniatures_are_those_of_the_package_unless_a_folder_of_models_has_their_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert models_folder("miniatures") == MODELS
    # A folder without models, such as that of the tests, or a file.
    own = tmp_path / "miniatures"
    own.write_text("a note")
    assert models_folder(Path("miniatures")) == MODELS
    own.unlink()
    (own / "drawings").mkdir(parents=True)
    assert models_folder("miniatures") == MODELS
    shutil.copytree(folder / "eyes", own / "eyes")
    assert models_folder("miniatures") == Path("miniatures")


def test_a_retriever_gets_what_its_configuration_uses(folder: Path, minilm: Path) -> None:
    models = ModelFolder(folder)
    tuned, recognition = models.retriever(), models.retriever("recognition")
    assert tuned.rewriter is models.rewriter and tuned.captioner is models.captioner
    assert isinstance(recognition.rewriter, RuleRewriter)
    assert recognition.recogniser is models.captioner


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_frame_encoder_alone_indexes_and_searches(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other model is loaded, not even the sentence encoder that every installation has."""

    def missing(*_: Any) -> Path:
        raise AssertionError("a search by frames needs no sentence encoder")

    monkeypatch.setattr("granalign_fast.pipeline.resolve_model", missing)
    source = write_clip_source(tmp_path / "source", family)
    export_clip(source, tmp_path / "models" / family, check=False)
    models = ModelFolder(tmp_path / "models")
    videos = [render(tmp_path / f"{name}.mp4", constant(5, 9)) for name in ("one", "two")]
    folders = models.index(videos, tmp_path / "library", rows=4)
    for retriever in (models.retriever("visual"), open_retriever("visual", models=models)):
        for index in map(VideoIndex.load, folders):
            result = retriever.search(index, "a b")
            assert models.frame_encoder is not None and index.frames is not None
            texts = models.frame_encoder.encode_texts([result.query])
            cosines = np.asarray(index.frames.embeddings, np.float32) @ texts[0]
            assert result.saliency.shape == (index.video.clips,) == (5,)
            assert result.curves[0].argmax() == cosines.argmax()
            assert result.exists is None and result.moments
    with pytest.raises(GranAlignError, match="scorer 'frames': got no frame encoder"):
        models.retriever("visual", captions_only=True)


@pytest.mark.parametrize("cache", [True, False])
def test_the_command_caches_what_its_encoder_makes(folder: Path, minilm: Path, cache: bool) -> None:
    models = ModelFolder(folder)
    found: Any = open_retriever(models=models, cache=cache).encoder
    assert isinstance(found, CachedEncoder) is cache
    assert (found.encoder if cache else found) is models.encoder


def test_without_models_of_its_own(tmp_path: Path, folder: Path, minilm: Path) -> None:
    (tmp_path / "eyes").symlink_to(folder / "rewriter")
    models = ModelFolder(tmp_path)
    with pytest.raises(GranAlignError, match="got no captioner that recognises"):
        models.retriever("recognition")
    with pytest.raises(GranAlignError, match="models of which one is of kind 'clip'"):
        models.retriever("visual")
    with pytest.raises(GranAlignError, match="got no model of kind 'vlm' or 'clip'"):
        models.index([tmp_path / "video.mp4"], tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "got no exported model"),
        (["a", "b"], "two models of kind 'llm', a and b"),
        (None, "no such folder"),
    ],
)
def test_bad_folders(tmp_path: Path, folder: Path, names: list[str] | None, message: str) -> None:
    root = tmp_path / "models"
    if names is not None:
        root.mkdir()
        (root / "notes.txt").write_text("x")
        (root / "index").mkdir()
        write_json(root / "index" / "manifest.json", {"kind": "video-index"})
        for name in names:
            (root / name).symlink_to(folder / "rewriter")
    with pytest.raises(GranAlignError, match=message):
        ModelFolder(root)


@pytest.mark.parametrize("record", [[], {}, {"kind": "banana"}, {"kind": ["llm"]}])
def test_a_manifest_of_no_kind_is_not_left_out(
    tmp_path: Path, folder: Path, record: object
) -> None:
    """Without its language model, a folder would rewrite queries by rules, and not say so."""
    (tmp_path / "vlm").symlink_to(folder / "eyes")
    (tmp_path / "llm").mkdir()
    write_json(tmp_path / "llm" / "manifest.json", record)
    with pytest.raises(GranAlignError, match=r"llm/manifest\.json: got kind .*, expected one of: "):
        exported_models(tmp_path)


def test_the_folder_of_one_model_and_a_file(folder: Path) -> None:
    with pytest.raises(GranAlignError, match=rf"the folder that holds the models; name {folder}$"):
        exported_models(folder / "eyes")
    with pytest.raises(GranAlignError, match=r"manifest\.json: got a file; expected a folder of"):
        exported_models(folder / "eyes" / "manifest.json")


def test_manifests_of_every_kind(folder: Path, tmp_path: Path) -> None:
    assert read_manifest(folder / "rewriter").kind == "llm"
    assert read_manifest(folder / "eyes").kind == "vlm"
    for record in ({"kind": "other"}, [], {}):
        write_json(tmp_path / "manifest.json", record)
        with pytest.raises(GranAlignError, match="got kind"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "3"}, "got layers '3', expected int"),
        ({"layers": 3.0}, "got layers 3.0, expected int"),
        ({"layers": True}, "got layers True, expected int"),
        ({"format_version": True}, "got format_version True, expected int"),
        ({"source_sha256": 5}, "got source_sha256 5, expected str"),
        ({"precision": None}, "got precision None, expected str"),
        ({"eos_ids": 2}, r"got eos_ids 2, expected list\[int\]"),
        ({"eos_ids": [2, "3"]}, r"got eos_ids \[2, '3'\], expected list\[int\]"),
        ({"validation": {"error": "0"}}, r"expected dict\[str, float\]"),
        ({"files": []}, r"got files \[\], expected dict\[str, str\]"),
        ({"files": {"model.onnx": 3}}, r"expected dict\[str, str\]"),
        ({"files": {"x" * 999: None}}, r"got files .{80}, expected dict\[str, str\]"),
        ({"files": {}}, "got no files"),
    ],
)
def test_a_manifest_of_other_types(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = shutil.copytree(folder / "rewriter", tmp_path / "model")
    edit_json(model / "manifest.json", **change)
    with pytest.raises(GranAlignError, match=message):
        LlmManifest.read(model)


def test_a_manifest_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(GranAlignError, match="not JSON"):
        LlmManifest.read(tmp_path)


WEIGHTS = "model.onnx_data"


class TestOpeningAgain:
    """Large files, here all, are read when they are new, changed or doubted."""

    @pytest.fixture
    def reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the files that are hashed; five seconds have passed since they came."""
        names: list[str] = []
        now = time.time_ns

        def counted(path: Path) -> str:
            names.append(path.name)
            return sha256_of(path)

        monkeypatch.setattr("granalign_fast.files.sha256_of", counted)
        monkeypatch.setattr("granalign_fast.files._LARGE", 0)
        monkeypatch.setattr(time, "time_ns", lambda: now() + 5 * 10**9)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return names

    @pytest.fixture
    def model(self, folder: Path, tmp_path: Path) -> Path:
        return shutil.copytree(folder / "rewriter", tmp_path / "model")

    def test_nothing_is_read_twice(self, model: Path, reads: list[str]) -> None:
        files = sorted(LlmManifest.read(model).files)
        assert sorted(reads) == files and WEIGHTS in files
        LlmManifest.read(model.rename(model.with_name("moved")))
        assert sorted(reads) == files

    def test_a_copy_is_read(self, model: Path, reads: list[str], tmp_path: Path) -> None:
        LlmManifest.read(model)
        reads.clear()
        LlmManifest.read(shutil.copytree(model, tmp_path / "copy"))
        assert WEIGHTS in reads

    @pytest.mark.parametrize("replaced", [False, True])
    def test_a_change_of_the_same_size(self, model: Path, reads: list[str], replaced: bool) -> None:
        """Written over, or replaced by a file of the same age."""
        LlmManifest.read(model)
        path, stat = model / WEIGHTS, (model / WEIGHTS).stat()
        other = path.with_name("other") if replaced else path
        other.write_bytes(bytes(stat.st_size))
        os.utime(other, ns=(0, stat.st_mtime_ns + (0 if replaced else 1000)))
        other.replace(path)
        with pytest.raises(GranAlignError, match=f"{WEIGHTS}: altered"):
            LlmManifest.read(model)

    def test_what_the_file_system_does_not_know(
        self, model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A disk that loses bits by itself leaves all times as they were."""
        mark = "granalign_fast.files._mark"
        monkeypatch.setattr(mark, lambda path, digest: tmp_path / path.name)
        LlmManifest.read(model)
        (model / WEIGHTS).write_bytes(bytes((model / WEIGHTS).stat().st_size))
        LlmManifest.read(model)
        for read in (read_manifest, LlmManifest.read):
            with pytest.raises(GranAlignError, match=f"{WEIGHTS}: altered"):
                read(model)

    def test_the_doctor_reads_all(self, model: Path, reads: list[str]) -> None:
        files = read_manifest(model).files
        read_manifest(model)
        assert sorted(reads) == sorted([*files, *files])

    @pytest.mark.parametrize(("name", "value"), [("_LARGE", 1 << 26), ("_SETTLED", 10**10)])
    def test_small_and_new_files_are_always_read(
        self, model: Path, reads: list[str], monkeypatch: Any, name: str, value: int
    ) -> None:
        monkeypatch.setattr(f"granalign_fast.files.{name}", value)
        files = [*LlmManifest.read(model).files, *LlmManifest.read(model).files]
        assert sorted(reads) == sorted(files)

    def test_without_a_cache(
        self, model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        LlmManifest.read(model)
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
        LlmManifest.read(model)
        assert reads.count(WEIGHTS) == 2


def test_the_doctor_knows_what_a_preset_needs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def missing(preset: str, models: Path | None) -> list[str]:
        findings = examine(preset=preset, models=models)
        named = [f for f in findings if f.what.startswith("model")]
        return [f.what for f in named if f.needed and not f.ok]

    assert missing("tuned", None) == []
    assert missing("recognition", None) == ["model vlm"]
    assert missing("visual", None) == missing("visual", folder) == ["model clip"]
    assert missing("recognition", folder) == missing("tuned", folder) == []
    assert missing("tuned", tmp_path / "none") == ["models"]
    (tmp_path / "torn").mkdir()
    write_unchecked_vlm(tmp_path / "torn").rename(tmp_path / "torn" / "vlm")
    edit_json(tmp_path / "torn" / "vlm" / "config.json", hidden_size=1)
    assert missing("tuned", tmp_path / "torn") == ["model vlm"]
    with pytest.raises(GranAlignError, match="preset: got 'nope'"):
        examine(preset="nope")
