"""Sets of models: planned, fetched and exported by ``granalign models``; see also test_hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.command import Granalign
from helpers.hub import Hub, serving, use_hub
from helpers.tiny_bert import write_json, write_tiny_bert
from helpers.tiny_clip import write_tiny_clip
from helpers.tiny_llm import write_tiny_llm
from helpers.tiny_vlm import write_tiny_vlm

from granalign_fast import GranAlignError
from granalign_fast.errors import MissingExtraError
from granalign_fast.export import model_set
from granalign_fast.models import hub, published
from granalign_fast.models.manifest import KINDS, LLM, SENTENCE_ENCODER, exported_models
from granalign_fast.models.published_records import ModelSet, PublishedModel

CLOSED = "http://127.0.0.1:9"


def lie(folder: Path, **manifest: str) -> None:
    """A manifest, of a kind like the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "manifest.json", {"kind": folder.name} | manifest)


class TestExportingASet:
    """The order of work, with exports and a hub that do nothing."""

    @pytest.fixture(autouse=True)
    def calls(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
        made: list[tuple[str, str]] = []

        def export(source: str, out: Path, *, precision: str, check: bool | None) -> Path:
            if "llama" in source.lower() and precision == "fp32":
                raise GranAlignError("cannot be exported")
            out.mkdir(parents=True)
            (out / "manifest.json").write_text('{"comparison": "compared with transformers 5"}')
            made.append((out.name, precision))
            return out

        def look_up(name: str, revision: str) -> hub.HubModel:
            return hub.HubModel(name, revision, ())

        monkeypatch.setattr(model_set, "_EXPORTS", dict.fromkeys(KINDS, export))
        monkeypatch.setattr(hub, "look_up", look_up)
        monkeypatch.setattr(hub, "fetch", lambda name, revision: tmp_path)
        monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1e12))
        return made

    def test_every_kind_in_its_folder(self, tmp_path: Path, calls: Any) -> None:
        lines: list[str] = []
        model_set.export_model_set("laptop", tmp_path / "a", progress=lines.append)
        assert calls == [
            ("sentence-encoder", "fp32"),
            ("clip", "int8"),
            ("llm", "int4"),
            ("vlm", "int4"),
        ]
        assert lines[4:6] == [
            "llm: fetching Qwen/Qwen3-0.6B, 0.0 GB",
            "llm: exporting Qwen/Qwen3-0.6B in int4",
        ]

    @pytest.mark.parametrize(
        ("precision", "of_text", "of_clip"), [("fp16", "fp16", "fp16"), ("int4", "fp32", "int8")]
    )
    def test_what_is_there_is_kept(
        self, tmp_path: Path, calls: Any, precision: str, of_text: str, of_clip: str
    ) -> None:
        text, clip, llm, vlm = published.model_set("paper").models
        lie(tmp_path / "llm", source=llm.source, precision=precision)
        model_set.export_model_set("paper", tmp_path, precision=precision)
        assert calls == [("sentence-encoder", of_text), ("clip", of_clip), ("vlm", precision)]
        lie(tmp_path / "sentence-encoder", source=text.source, precision=of_text)
        lie(tmp_path / "clip", source=clip.source, precision=of_clip)
        lie(tmp_path / "vlm", source=vlm.source, precision=precision)
        model_set.export_model_set("paper", tmp_path, precision=precision)
        assert len(calls) == 3

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
        (model,) = (m for m in published.model_set("paper").models if m.kind == kind)
        if change is None:
            (tmp_path / kind).mkdir()
        else:
            lie(tmp_path / kind, **{"source": model.source, "precision": "fp16"} | change)
        with pytest.raises(GranAlignError, match=message):
            model_set.export_model_set("paper", tmp_path)
        assert calls == [], "found before anything is exported"

    def test_one_that_fails_costs_no_other(self, tmp_path: Path, calls: Any) -> None:
        with pytest.raises(GranAlignError, match=r"^cannot be exported; sets without gated") as e:
            model_set.export_model_set("paper", tmp_path, precision="fp32")
        assert str(e.value).endswith(": laptop, workstation, server")
        assert [kind for kind, _ in calls] == ["sentence-encoder", "clip", "vlm"]

    def test_unknown_names(self, tmp_path: Path) -> None:
        with pytest.raises(GranAlignError, match=r"\.py: got a file, expected a folder for the"):
            model_set.export_model_set("laptop", __file__)
        with pytest.raises(GranAlignError, match="precision 'int8'"):
            model_set.export_model_set("laptop", tmp_path, precision="int8")
        with pytest.raises(GranAlignError, match="expected one of: laptop, workstation, server"):
            model_set.export_model_set("open", tmp_path)
        with pytest.raises(GranAlignError, match="no such folder; expected one with ORG/NAME"):
            model_set.export_model_set("laptop", tmp_path, sources=tmp_path / "none")

    def test_another_model_of_a_kind(self, tmp_path: Path, calls: Any) -> None:
        """`--with` puts a model in the place of the set's of its kind, and of no other."""
        fine, large = (
            f"google/siglip2-{name}" for name in ("base-patch16-256", "so400m-patch14-384")
        )
        plan = model_set.plan_model_set("laptop", tmp_path, instead=[large])
        usual = published.model_set("laptop").models
        assert [part.model.name for part in plan.parts] == [
            usual[0].name,
            large,
            *(model.name for model in usual[2:]),
        ]
        with pytest.raises(GranAlignError, match="in place of a model of laptop, expected one of"):
            model_set.plan_model_set("laptop", tmp_path, instead=["org/none"])
        with pytest.raises(GranAlignError, match="both of kind clip, expected one of them"):
            model_set.plan_model_set("laptop", tmp_path, instead=[fine, large])

    def test_the_remedy_names_the_other_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(name: str, revision: str) -> hub.HubModel:
            raise hub.HubError("put it here", missing=True)

        monkeypatch.setattr(hub, "look_up", unreachable)
        other = "google/siglip2-so400m-patch14-384"
        plan = model_set.plan_model_set("laptop", tmp_path, instead=[other])
        assert f"models get laptop {tmp_path} --with {other} --sources" in str(
            plan.parts[1].problem
        )

    def test_a_disk_that_is_too_small(
        self, tmp_path: Path, calls: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = shutil._ntuple_diskusage(0, 0, 20e9)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
        with pytest.raises(GranAlignError, match=r"20\.0 GB of free disk, expected 20\.9 GB for"):
            model_set.export_model_set("workstation", tmp_path)
        assert calls == []
        lie(
            tmp_path / "llm",
            source=published.model_set("workstation").models[2].source,
            precision="fp16",
        )
        model_set.export_model_set("workstation", tmp_path)
        assert len(calls) == 3, "what is there needs no room"

    def test_a_missing_extra_stays_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def export(*_: Any, **__: Any) -> Path:
            raise MissingExtraError("exporting", "optimum")

        monkeypatch.setattr(model_set, "_EXPORTS", dict.fromkeys(KINDS, export))
        with pytest.raises(MissingExtraError, match=r"\[optimum\]"):
            model_set.export_model_set("paper", tmp_path)


def tiny(kind: str, name: str, **more: Any) -> PublishedModel:
    """A model of the test's hub, whose commit is its name's first letter."""
    commit = f"{ord(name[4]):x}" * 20
    return PublishedModel(kind, name, commit, "MIT", "English", 1000, 4000, "here", **more)


BERT, GATED = tiny(SENTENCE_ENCODER, "org/bert"), tiny(SENTENCE_ENCODER, "org/gated", gated=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one encoder, which is a set, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(published.MODEL_SETS, "tiny", ModelSet("tiny", "any", "fp32", (BERT,)))
    with serving() as found:
        found.models[BERT.name] = write_tiny_bert(tmp_path / "published"), BERT.revision
        use_hub(monkeypatch, found.url, tmp_path / "hub")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield found


def test_get_fetches_verifies_and_exports(
    server: Hub, tmp_path: Path, granalign: Granalign
) -> None:
    out = tmp_path / "models"
    code, written, said = granalign("models", "get", "tiny", out, "--yes", "--no-check")
    assert code == 0, said
    assert written == f"written and checked against NumPy: {out / SENTENCE_ENCODER}\n"
    assert "not compared with transformers: to compare, run " in said
    assert f"sentence-encoder: {BERT.source}: fetch 0.0 GB, MIT\n" in said
    manifest = json.loads((out / SENTENCE_ENCODER / "manifest.json").read_text())
    assert manifest["source"] == BERT.source
    assert exported_models(out) == {SENTENCE_ENCODER: out / SENTENCE_ENCODER}
    server.requests.clear()
    code, written, said = granalign("models", "get", "tiny", out)
    assert (code, written) == (0, f"kept: {out / SENTENCE_ENCODER}\n")
    assert not server.requests, "what is there needs neither the hub nor an answer"


def test_get_asks(
    server: Hub, tmp_path: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "models"
    code, written, said = granalign("models", "get", "tiny", out)
    assert (code, written) == (2, "")
    assert said.splitlines()[-1] == (
        "granalign: models get tiny: got no terminal to ask on, expected --yes"
    )
    assert not out.exists() and not server.sent("model.safetensors")

    class Terminal:
        def __init__(self, answer: str) -> None:
            self.answer = answer

        def isatty(self) -> bool:
            return True

        def readline(self, *_: int) -> str:
            return self.answer

    for answer, expected in (("n\n", 1), ("", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert granalign("models", "get", "tiny", out)[0] == expected
        assert out.exists() is (expected == 0)


def test_get_in_parts(server: Hub, tmp_path: Path, granalign: Granalign, monkeypatch: Any) -> None:
    """A gated model is named with its remedy, and costs no other; so does a damaged one."""
    monkeypatch.setitem(
        published.MODEL_SETS, "tiny", ModelSet("tiny", "any", "fp32", (GATED, BERT))
    )
    server.status[GATED.name] = 403, "GatedRepo"
    monkeypatch.setattr(model_set, "_is_exported", lambda *_: False)
    code, written, said = granalign("models", "get", "tiny", tmp_path / "models", "--yes")
    assert code == 1
    assert written.startswith("written and checked")
    (line,) = (line for line in said.splitlines() if line.startswith("granalign: "))
    assert line.startswith(f"granalign: {GATED.source}: is gated; accept its licence at http")
    assert "hf auth login" in line
    assert line.endswith("sets without gated models: laptop, workstation, server")


def test_a_damaged_download_is_no_model(server: Hub, tmp_path: Path, granalign: Granalign) -> None:
    server.altered.add("model.safetensors")
    out = tmp_path / "models"
    code, written, said = granalign("models", "get", "tiny", out, "--yes")
    assert (code, written) == (1, "") and not out.exists()
    assert "model.safetensors arrived damaged" in said.splitlines()[-1]
    server.altered.clear()
    assert granalign("models", "get", "tiny", out, "--yes")[0] == 0


def test_without_a_hub_by_hand(
    server: Hub, tmp_path: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message's own folder and command, followed to the letter."""
    use_hub(monkeypatch, CLOSED, tmp_path / "hub")
    out = tmp_path / "models"
    options = ("--yes", "--precision", "fp16")
    code, written, said = granalign("models", "get", "tiny", out, *options)
    assert (code, written) == (1, "")
    line = said.splitlines()[-1]
    assert line.startswith(f"granalign: {BERT.source}: cannot be fetched (")
    copy = out / "sources" / "org" / "bert"
    files = ", ".join(hub.PATTERNS)
    assert f"put its {files} into a folder and name that: {copy} (" in line
    assert "0.0 GB, by the table" in said
    shutil.copytree(tmp_path / "published", copy)
    command = line.partition("; then run granalign ")[2].split()
    code, written, said = granalign(*command, "--yes")
    assert code == 0, said
    assert f"copy in {copy}" in said
    kept = granalign("models", "get", "tiny", out, "--precision", "fp16")
    assert kept[:2] == (0, f"kept: {out / SENTENCE_ENCODER}\n")


def test_a_model_of_the_cache(
    server: Hub, tmp_path: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fetch(BERT.name, BERT.revision)
    use_hub(monkeypatch, CLOSED, tmp_path / "hub")
    code, _, said = granalign("models", "get", "tiny", tmp_path / "models", "--yes")
    assert code == 0 and "is in the cache of the hub" in said


def test_quiet(server: Hub, tmp_path: Path, granalign: Granalign) -> None:
    assert granalign("models", "get", "tiny", tmp_path / "m", "--yes", "-q")[2] == ""


def test_export_pins_what_it_looked_up(server: Hub, tmp_path: Path, granalign: Granalign) -> None:
    out = tmp_path / "out"
    code, _, said = granalign("export", "sentence-encoder", BERT.name, out)
    assert code == 0, said
    assert json.loads((out / "manifest.json").read_text())["source"] == BERT.source


def test_as_a_process(server: Hub, tmp_path: Path) -> None:
    """With the hub's own environment variables, and what a pipe shows."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    out = tmp_path / "out"
    command = ["-m", "granalign_fast", "export", "sentence-encoder", BERT.name, str(out)]
    command.append("--no-check")
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    # An export that is slow, as on a busy machine, writes lines of progress.
    told = [line for line in done.stderr.splitlines() if not line.startswith("exporting ")]
    (line,) = told
    assert line.startswith("not compared with transformers: ")
    assert done.stdout == f"written and checked against NumPy: {out}\n"
    assert json.loads((out / "manifest.json").read_text())["source"] == BERT.source
    assert list((tmp_path / "home" / "hub").glob("models--org--bert/blobs/*"))
    closed = environment | {"HF_ENDPOINT": CLOSED}
    command[4:] = ["org/none", str(tmp_path / "none")]
    done = subprocess.run(
        [sys.executable, *command], env=closed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("granalign: org/none: no such folder; as a model of the hub, ")
    assert done.stderr.count("\n") == 1


def test_list(granalign: Granalign) -> None:
    code, out, err = granalign("models", "list")
    assert (code, err) == (0, "")
    for name, models in published.MODEL_SETS.items():
        assert f"{name}: " in out
        for model in models.models:
            assert f"  {model.name} " in out  # whole, in a terminal of 80 columns
    written = json.loads(granalign("models", "list", "--json")[1])
    sets, others = written["sets"], written["alternatives"]
    assert [record["name"] for record in others] == list(published.ALTERNATIVES)
    assert all(f"  {name} " in out for name in published.ALTERNATIVES)
    assert [record["name"] for record in sets] == list(published.MODEL_SETS)
    for record in sets:
        assert tuple(model["kind"] for model in record["models"]) == KINDS
        # A set of int4 rewrites, and then captions: its memory is no sum.
        sums = ["download_bytes", "disk_bytes", "memory_bytes"]
        for name in sums[:2] if record["precision"] == "int4" else sums:
            assert record[name] == sum(model[name] for model in record["models"])


@pytest.mark.needs_torch
def test_a_whole_set(server: Hub, tmp_path: Path, granalign: Granalign, monkeypatch: Any) -> None:
    """Every kind, through the hub, in int4; the folder is then one of models."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    models = [BERT, tiny("clip", "org/frames"), tiny(LLM, "org/llm"), tiny("vlm", "org/vlm")]
    folders = [
        tmp_path / "published",
        write_tiny_clip(tmp_path / "frames", "siglip-pad-pads"),
        write_tiny_llm(tmp_path / "llm"),
        write_tiny_vlm(tmp_path / "vlm"),
    ]
    for model, folder in zip(models, folders, strict=True):
        server.models[model.name] = folder, model.revision
    whole = ModelSet("tiny", "any", "int4", tuple(models))
    monkeypatch.setitem(published.MODEL_SETS, "tiny", whole)
    out = tmp_path / "models"
    monkeypatch.setattr(model_set, "disk_bytes", lambda *_: 1000)
    code, written, said = granalign("models", "get", "tiny", out, "--yes")
    assert code == 0, said
    assert written.count("written and checked") == 4
    assert exported_models(out).keys() == {*KINDS}
    for model in models:
        manifest = json.loads((out / model.kind / "manifest.json").read_text())
        assert manifest["source"] == model.source
        assert manifest["precision"] == published.precision_of(model.kind, "int4")
