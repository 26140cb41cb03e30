"""Folders of exported models: found by kind, loaded when asked for, checked by the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_bert import edit_json, write_json
from tiny_llm import write_unchecked
from tiny_vlm import write_unchecked_vlm

from granalign_fast import GranAlignError, RuleRewriter, published
from granalign_fast.captions import VlmCaptioner
from granalign_fast.doctor import examine
from granalign_fast.errors import MissingExtraError
from granalign_fast.export import model_set
from granalign_fast.llm_rewriter import LlmRewriter
from granalign_fast.model_folder import ModelFolder, exported_models, read_manifest


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
    assert models.clip is None
    assert models.captioner is models.captioner, "loaded once"


def test_a_retriever_gets_what_its_configuration_uses(folder: Path, minilm: Path) -> None:
    models = ModelFolder(folder)
    tuned, recognition = models.retriever(), models.retriever("recognition")
    assert tuned.rewriter is models.rewriter and tuned.captioner is models.captioner
    assert isinstance(recognition.rewriter, RuleRewriter)
    assert recognition.recogniser is models.captioner


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

    def test_what_is_there_is_kept(self, tmp_path: Path, calls: Any) -> None:
        (tmp_path / "llm").mkdir()
        model_set.export_model_set("paper", tmp_path)
        assert calls == [("clip", "fp16"), ("vlm", "fp16")]

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
    (tmp_path / "clip").mkdir()
    with pytest.raises(MissingExtraError, match=r"\[optimum\]"):
        model_set.export_model_set("paper", tmp_path)
