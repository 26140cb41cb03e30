"""Folders of exported models: found by kind, loaded when first used, checked by the doctor."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_llm import write_unchecked
from helpers.tiny_vlm import write_unchecked_vlm

from granalign_fast import GranAlignError, RuleRewriter, cli
from granalign_fast.cli.diagnosis import examine
from granalign_fast.errors import MissingExtraError
from granalign_fast.export import model_set
from granalign_fast.files import sha256_of
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models import published
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.models.manifest import LlmManifest, exported_models, read_manifest
from granalign_fast.pipeline import ModelFolder, open_retriever


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


def test_a_retriever_gets_what_its_configuration_uses(folder: Path, minilm: Path) -> None:
    models = ModelFolder(folder)
    tuned, recognition = models.retriever(), models.retriever("recognition")
    assert tuned.rewriter is models.rewriter and tuned.captioner is models.captioner
    assert isinstance(recognition.rewriter, RuleRewriter)
    assert recognition.recogniser is models.captioner


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
    assert missing("recognition", folder) == missing("tuned", folder) == []
    assert missing("tuned", tmp_path / "none") == ["models"]
    (tmp_path / "torn").mkdir()
    write_unchecked_vlm(tmp_path / "torn").rename(tmp_path / "torn" / "vlm")
    edit_json(tmp_path / "torn" / "vlm" / "config.json", hidden_size=1)
    assert missing("tuned", tmp_path / "torn") == ["model vlm"]
    with pytest.raises(GranAlignError, match="preset: got 'nope'"):
        examine(preset="nope")


def test_published_sets_are_pinned() -> None:
    for models in published.MODEL_SETS.values():
        assert [model.kind for model in models] == ["clip", "llm", "vlm"]
        assert all(len(model.revision) == 40 and model.licence for model in models)
    assert not any(model.gated for model in published.model_set("open"))
    with pytest.raises(GranAlignError, match="expected one of: paper, open"):
        published.model_set("large")


def lie(folder: Path, **manifest: str) -> None:
    """A manifest, of a kind like the folder's name."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "manifest.json", {"kind": folder.name} | manifest)


class TestExportingASet:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        made: list[tuple[str, str]] = []

        def export(source: str, out: Path, *, precision: str, progress: Any) -> Path:
            if "llama" in source.lower() and precision == "fp32":
                raise GranAlignError("cannot be fetched")
            out.mkdir(parents=True)
            made.append((out.name, precision))
            return out

        kinds = ("clip", "llm", "vlm")
        monkeypatch.setattr(model_set, "_EXPORTS", dict.fromkeys(kinds, export))
        return made

    def test_every_kind_in_its_folder(self, tmp_path: Path, calls: Any) -> None:
        model_set.export_model_set("open", tmp_path / "a", precision="int4")
        assert calls == [("clip", "fp32"), ("llm", "int4"), ("vlm", "int4")]

    @pytest.mark.parametrize(("precision", "of_clip"), [("fp16", "fp16"), ("int4", "fp32")])
    def test_what_is_there_is_kept(
        self, tmp_path: Path, calls: Any, precision: str, of_clip: str
    ) -> None:
        clip, llm, vlm = published.model_set("paper")
        lie(tmp_path / "llm", source=llm.source, precision=precision)
        model_set.export_model_set("paper", tmp_path, precision=precision)
        assert calls == [("clip", of_clip), ("vlm", precision)]
        lie(tmp_path / "clip", source=clip.source, precision=of_clip)
        lie(tmp_path / "vlm", source=vlm.source, precision=precision)
        model_set.export_model_set("paper", tmp_path, precision=precision)
        assert len(calls) == 2

    @pytest.mark.parametrize(
        ("kind", "change", "message"),
        [
            ("llm", {"source": "Qwen/Qwen2.5-7B-Instruct@1"}, "llm: got a model of source 'Qwen"),
            ("vlm", {"precision": "int4"}, "of precision 'int4', expected 'fp16'; name another"),
            ("vlm", {"kind": "llm"}, "vlm: got a model of kind 'llm', expected 'vlm'"),
            ("clip", None, "clip/manifest.json: cannot be read"),
        ],
    )
    def test_another_model_is_not_taken_for_the_one(
        self, tmp_path: Path, calls: Any, kind: str, change: Any, message: str
    ) -> None:
        (model,) = (m for m in published.model_set("paper") if m.kind == kind)
        if change is None:
            (tmp_path / kind).mkdir()
        else:
            lie(tmp_path / kind, **{"source": model.source, "precision": "fp16"} | change)
        with pytest.raises(GranAlignError, match=message):
            model_set.export_model_set("paper", tmp_path)
        assert calls == [], "found before anything is exported"

    def test_the_command_says_what_it_did(
        self,
        tmp_path: Path,
        calls: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        lie(tmp_path / "llm", source=published.model_set("open")[1].source, precision="fp16")
        monkeypatch.setattr(sys, "argv", ["granalign", "export", "models", "open", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code and [kind for kind, _ in calls] == ["clip", "vlm"]
        written = "written and checked against the source"
        assert capsys.readouterr().out.splitlines() == [
            f"{written}: {tmp_path / 'clip'}",
            f"kept: {tmp_path / 'llm'}",
            f"{written}: {tmp_path / 'vlm'}",
        ]

    def test_a_gated_model_says_so(self, tmp_path: Path, calls: Any) -> None:
        with pytest.raises(GranAlignError, match="is gated: accept its Llama 3"):
            model_set.export_model_set("paper", tmp_path, precision="fp32")

    def test_an_unknown_precision(self, tmp_path: Path) -> None:
        with pytest.raises(GranAlignError, match="precision 'int8'"):
            model_set.export_model_set("open", tmp_path, precision="int8")


def test_a_missing_extra_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: Any, **__: Any) -> Path:
        raise MissingExtraError("exporting", "optimum")

    monkeypatch.setattr(model_set, "_EXPORTS", {"clip": export, "llm": export, "vlm": export})
    with pytest.raises(MissingExtraError, match=r"\[optimum\]"):
        model_set.export_model_set("paper", tmp_path)
