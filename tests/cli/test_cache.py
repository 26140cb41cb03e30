"""``granalign cache``, and commands without a cache that can be written."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import pytest
from helpers.command import Granalign
from helpers.videos import constant, render

from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime import cache_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with embeddings, a prefix and an export."""
    folder = tmp_path / "granalign-fast"
    for name, size in (
        ("embeddings-ab.safetensors", 1 << 20),
        ("prefixes/k.safetensors", 1 << 19),
        ("0f-fp32-1/manifest.json", 1 << 18),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache_folder, "_warned", set())
    return folder


def test_info(cache: Path, granalign: Granalign) -> None:
    code, out, err = granalign("cache", "info")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == str(cache)
    rows = {line.split()[0]: line.split()[1:4] for line in out.splitlines()[2:-1]}
    assert rows["embeddings"] == ["1", "1.0", "MiB"]
    assert rows["prefixes"] == ["1", "0.5", "MiB"]
    assert rows["all"] == ["3", "1.8", "MiB"]
    assert "above 2 GiB (GRANALIGN_CACHE_GIB)" in out


def test_info_as_json(cache: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", "0.5")
    record = json.loads(granalign("cache", "info", "--json")[1])
    assert record["folder"] == str(cache) and record["limit_bytes"] == 1 << 29
    assert list(record["kinds"]) == list(cli_kinds())
    assert record["kinds"]["exports"] == {"files": 1, "bytes": 1 << 18}
    assert record["kinds"]["engines"] == {"files": 0, "bytes": 0}


def cli_kinds() -> list[str]:
    from granalign_fast.cli.cache import _KINDS

    assert _KINDS.keys() == set(cache_folder.KINDS)
    return list(_KINDS)


def test_info_of_no_folder(
    granalign: Granalign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    code, out, _ = granalign("cache", "info")
    assert code == 0 and "none/granalign-fast" in out
    assert not (tmp_path / "none").exists(), "looking makes nothing"


def test_clear_one_kind(cache: Path, granalign: Granalign) -> None:
    code, out, _ = granalign("cache", "clear", "embeddings", "--yes")
    assert (code, out) == (0, f"deleted 1 files, 1.0 MiB, in {cache}\n")
    assert not list(cache.glob("embeddings-*")) and (cache / "prefixes/k.safetensors").exists()


def test_clear_all(cache: Path, granalign: Granalign) -> None:
    assert granalign("cache", "clear", "-y")[:2] == (0, f"deleted 3 files, 1.8 MiB, in {cache}\n")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert granalign("cache", "clear")[:2] == (0, f"nothing to delete in {cache}\n")


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_clear_asks(
    cache: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    got, _, err = granalign("cache", "clear")
    assert got == code and f"Delete 3 files, 1.8 MiB, in {cache}?" in err
    assert bool([path for path in cache.rglob("*") if path.is_file()]) is bool(code)


def test_an_unknown_kind(cache: Path, granalign: Granalign) -> None:
    code, out, err = granalign("cache", "clear", "films", "--yes")
    assert (code, out) == (2, "") and err.startswith("granalign: kind: got 'films', expected one")


def test_a_bad_bound_is_one_line(
    cache: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", "lots")
    code, _, err = granalign("cache", "info")
    assert code == 2
    assert err == "granalign: GRANALIGN_CACHE_GIB: got 'lots', expected GiB, 0 or more\n"


@pytest.fixture
def no_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that cannot be made, and an empty current folder; returns that of tempfile."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_video_is_searched_without_a_cache(
    granalign: Granalign, no_cache: Path, minilm: Path
) -> None:
    """Index, embeddings, prefixes and the export of the encoder: one warning for all of them."""
    render(Path("a.mp4"), constant(5, 8))
    code, out, err = granalign("search", "a.mp4", "a red car", "--models=miniatures", "--json")
    assert code == 0 and json.loads(out)["vid"] == "a"
    lines = [line for line in err.splitlines() if "cache" in line]
    assert len(lines) == 1 and lines[0].endswith("; working without a cache")
    gc.collect()  # the traceback of SystemExit holds the encoder in a cycle
    assert not list(no_cache.iterdir()), "nothing stays behind"


def test_an_export_without_a_cache_is_temporary(no_cache: Path, minilm: Path) -> None:
    encoder = SentenceEncoder(minilm)
    (folder,) = no_cache.iterdir()
    vectors = encoder.encode(["a dog"])
    assert vectors.shape == (1, 384) and folder.exists()
    del encoder
    assert not folder.exists()


def test_the_doctor_names_the_cache(granalign: Granalign, no_cache: Path) -> None:
    findings = json.loads(granalign("doctor", "--json")[1])["findings"]
    (finding,) = (one for one in findings if one["what"] == "cache folder")
    assert not finding["ok"] and finding["remedy"] == "export XDG_CACHE_HOME=FOLDER"
