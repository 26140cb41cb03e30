"""Approximate indexes that somebody else made: Faiss would trust them, so it does not see them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fakes import BagOfWords
from helpers.libraries import write_index

from granalign_fast.config import PRESETS
from granalign_fast.files import sha256_of
from granalign_fast.library import Library, approximation, first_stage
from granalign_fast.library.approximation import Approximated, approximate_library
from granalign_fast.library.pointer import FOLDER
from granalign_fast.search.retriever import Retriever

faiss = pytest.importorskip("faiss", reason="the extra [approximate]")


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library whose approximate index another user made, with a mark of their own key."""
    for module in (first_stage, approximation):
        monkeypatch.setattr(module, "ALL_COMPARED", 0)
    write_index(tmp_path / "library" / "v", 50, seed=0)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
        approximate_library(tmp_path / "library")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "ours"))
    return tmp_path / "library"


def search(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search with all lists; Faiss must not read a file."""
    retriever = Retriever(BagOfWords(), replace(PRESETS["tuned"], approximate=1.0))
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "read_index", lambda *_: pytest.fail("Faiss has read the file"))
        assert Library.open(library, retriever).search("a red car").moments


def test_the_index_of_another_user(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search(theirs, monkeypatch)  # there is no key of ours yet
    (index,) = (theirs / FOLDER).glob("*/captions.ivf")
    stamp_path = index.with_name("captions.ivf.json")
    index.write_bytes(b"IwSq" + b"\xff" * 96)
    stamp = json.loads(stamp_path.read_text())
    stamp |= {"bytes": 100, "sha256": sha256_of(index)}
    for mark in (stamp["mark"], "", "0" * 64, None, "\ud800"):
        stamp_path.write_text(json.dumps(stamp | {"mark": mark}))
        caplog.clear()
        search(theirs, monkeypatch)
        assert "got an approximate index of somebody else" in caplog.text
    # Ours replaces it, and is read.
    assert approximate_library(theirs) == Approximated(1, 0, 0)
    caplog.clear()
    retriever = Retriever(BagOfWords(), replace(PRESETS["tuned"], approximate=1.0))
    assert Library.open(theirs, retriever).search("a red car").moments
    assert not caplog.records


def test_a_link_to_another_file(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    approximate_library(theirs)
    (index,) = (theirs / FOLDER).glob("*/captions.ivf")
    index.rename(tmp_path / "elsewhere")
    index.symlink_to(tmp_path / "elsewhere")
    search(theirs, monkeypatch)
    assert "got a link to" in caplog.text
