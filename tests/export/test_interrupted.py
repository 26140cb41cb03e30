"""Exports that are interrupted, drafts that nobody may load, and disks that are too small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.killed_exports import kill_at_random
from helpers.tiny_bert import edit_json, write_tiny_bert
from helpers.tiny_clip import write_clip_source
from helpers.tiny_llm import CONFIGS, write_tiny_llm, write_unchecked
from helpers.tiny_vlm import IMAGE_SIZE, write_tiny_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.export import space
from granalign_fast.export.families import read_vlm
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.clip import ClipSource
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.export.vlm import export_vlm
from granalign_fast.files import appearing
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import LlmManifest, exported_models, read_manifest

Usage = namedtuple("Usage", "total used free")


@pytest.mark.once
def test_killed_at_random_moments(tmp_path: Path) -> None:
    left = kill_at_random(tmp_path, 4)
    assert left["nothing"] + left["draft"] == 4


DYING = """
import os, signal, sys
from pathlib import Path
from granalign_fast.files import appearing
with appearing(Path(sys.argv[1])) as draft:
    (draft / "half").write_text("written")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_call_deletes_what_a_killed_one_left(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "out")], check=False)
    (abandoned,) = tmp_path.iterdir()
    assert [path.name for path in abandoned.iterdir()] == ["half"]
    (tmp_path / ".hidden").mkdir()
    with appearing(tmp_path / "first") as first:
        assert not abandoned.exists()
        # A draft whose process lives stays, whoever asks.
        with appearing(tmp_path / "second"):
            assert first.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "first", "second"]


def test_names_of_any_length(tmp_path: Path) -> None:
    with appearing(tmp_path / ("é" * 120)) as draft:
        (draft / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 120]


def test_hidden_folders_are_no_models(tmp_path: Path) -> None:
    """Versions before this one left a draft with a manifest where an export was killed."""
    write_unchecked(tmp_path).rename(tmp_path / ".llm.abcdefgh")
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(GranAlignError, match="got no exported model"):
        exported_models(tmp_path)
    write_unchecked(tmp_path).rename(tmp_path / "llm")
    assert exported_models(tmp_path) == {"llm": tmp_path / "llm"}


def test_an_export_without_any_check_is_refused(tmp_path: Path) -> None:
    out = write_unchecked(tmp_path)
    manifest = LlmManifest.read(out)
    replace(manifest, validation={}).write(out)
    for opened in (CausalLM, read_manifest):
        with pytest.raises(GranAlignError, match="not checked to its end"):
            opened(out)


def test_manifests_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = write_unchecked(tmp_path) / "manifest.json"
    record = json.loads(path.read_text())
    del record["comparison"], record["self_check"]
    path.write_text(json.dumps(record))
    assert LlmManifest.read(path.parent).comparison == ""
    edit_json(path, self_check=3)
    with pytest.raises(GranAlignError, match="got self_check 3"):
        LlmManifest.read(path.parent)


@pytest.mark.parametrize(
    "export",
    [
        lambda root, out: export_llm(write_tiny_llm(root / "llm"), out, check=False),
        lambda root, out: export_vlm(
            write_tiny_vlm(root / "vlm"), out, check=False, image_size=IMAGE_SIZE
        ),
        lambda root, out: export_clip(write_clip_source(root / "c", "clip"), out, check=False),
        lambda root, out: export_sentence_encoder(write_tiny_bert(root / "s"), out, check=False),
    ],
    ids=["llm", "vlm", "clip", "sentence-encoder"],
)
def test_a_disk_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(GranAlignError, match=r"got 0.0 GB of free disk, expected 0\.0 GB"):
        export(tmp_path, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_room_that_a_killed_export_takes_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "models" / "out")], check=False)

    def usage(path: Path) -> Usage:
        return Usage(10**9, 0, 0 if list(path.iterdir()) else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    export_llm(write_tiny_llm(tmp_path / "source"), tmp_path / "models" / "out", check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_the_needed_space_is_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Not less, which would fail half way, nor much more, which would refuse for no reason."""
    monkeypatch.setattr(space, "_MARGIN", 0)

    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.glob("*data"))

    page = 4096
    for name, config in CONFIGS.items():
        wide = config | {"hidden_size": 256, "intermediate_size": 640, "head_dim": 32}
        source = write_tiny_llm(tmp_path / name, wide)
        out = export_llm(source, tmp_path / f"{name}-out", precision=precision, check=False)
        model = LlmSource.read(source)
        slack = page * len(model.checkpoint.names) * 3  # tensors begin on pages
        assert abs(space.decoder_bytes(model, precision) - size(out)) < slack + 0.02 * size(out)
    source = write_tiny_vlm(tmp_path / "vlm")
    out = export_vlm(
        source, tmp_path / "vlm-out", precision=precision, check=False, image_size=IMAGE_SIZE
    )
    read = read_vlm(source, IMAGE_SIZE)
    slack = page * len(read.checkpoint.names) * 3 + 200_000  # the kernel of patches, twice
    assert abs(space.decoder_bytes(read, precision) - size(out)) < slack
    if precision != "int4":
        source = write_clip_source(tmp_path / "clip", "clip")
        out = export_clip(source, tmp_path / "clip-out", precision=precision, check=False)
        written = sum(path.stat().st_size for path in out.glob("*.onnx"))
        needed = space.encoder_bytes(
            ClipSource.read(source).checkpoint, 2 if precision == "fp16" else 4
        )
        assert abs(needed - written) < 0.1 * written


def test_a_locked_draft_outlives_a_second_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from granalign_fast.files import appearing\n"
    code += "with appearing(Path(sys.argv[1])): pass"
    with appearing(tmp_path / "mine") as draft:
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True)
        assert draft.is_dir() and (tmp_path / "other").is_dir()
    assert not list((tmp_path / "mine").iterdir())
