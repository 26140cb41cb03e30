"""Models of the hub: looked up, fetched, resumed and verified, against a server on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub import Hub, serving, use_hub
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_llm import write_tiny_llm

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.folder import source_name
from granalign_fast.models import hub
from granalign_fast.models.sources import resolve_model

NAME, COMMIT = "org/tiny", "0123456789abcdef0123456789abcdef01234567"
CLOSED = "http://127.0.0.1:9"
"""The port of a service that no machine runs any more."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one language model, which also has files that are not to be fetched."""
    folder = write_tiny_llm(tmp_path / "published")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving() as found:
        found.models[NAME] = folder, COMMIT
        use_hub(monkeypatch, found.url, tmp_path / "hub")
        # huggingface_hub waits a second before it tries again.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield found


def blobs(tmp_path: Path) -> list[Path]:
    """All files of the cache that hold content."""
    return list((tmp_path / "hub").glob("models--*/blobs/*"))


def test_a_model_is_fetched_at_its_commit(server: Hub, tmp_path: Path) -> None:
    folder = resolve_model(f"{NAME}@{COMMIT}")
    assert folder.name == COMMIT
    published = tmp_path / "published"
    for name in ("model.safetensors", "tokenizer.json", "config.json", "original/params.json"):
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    assert not (folder / "pytorch_model.bin").exists(), "what could hold code is not fetched"
    assert not server.sent("pytorch_model.bin")


@pytest.mark.parametrize("revision", ["", "@main", "@"])
def test_a_name_without_a_commit_is_looked_up(server: Hub, revision: str) -> None:
    source = f"{NAME}{revision}"
    folder = resolve_model(source)
    assert folder.name == COMMIT
    assert source_name(source, folder) == f"{NAME}@{COMMIT}"


def test_files_and_sizes_before_the_download(server: Hub, tmp_path: Path) -> None:
    model = hub.look_up(NAME)
    assert model.commit == COMMIT
    published = tmp_path / "published"
    assert {file.path: file.size for file in model.files} == {
        path.relative_to(published).as_posix(): path.stat().st_size
        for path in published.rglob("*")
        if path.is_file() and path.suffix != ".bin"
    }
    assert model.missing_bytes() == sum(file.size for file in model.files)
    hub.fetch(NAME, COMMIT)
    assert model.missing_bytes() == 0


def test_a_cut_connection_continues_where_it_stopped(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    size = (tmp_path / "published" / "model.safetensors").stat().st_size
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 10)  # smaller than the file
    server.cut["model.safetensors"] = step = (size // 3 >> 10) << 10
    folder = hub.fetch(NAME, COMMIT)
    ranges = server.sent("model.safetensors")
    assert ranges[:3] == [None, f"bytes={step}-", f"bytes={2 * step}-"]
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (tmp_path / "published" / weights).read_bytes()


def test_an_interrupted_download_keeps_whole_files(server: Hub, tmp_path: Path) -> None:
    server.cut["model.safetensors"] = 0
    with pytest.raises(GranAlignError, match=rf"{NAME}@{COMMIT}: cannot be fetched") as error:
        hub.fetch(NAME, COMMIT)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, hub.HubError) and error.value.missing
    # Files are fetched two at a time: which others are there already is a matter of chance.
    whole = [path.name for path in (tmp_path / "hub").glob("models--*/snapshots/*/*.json")]
    assert "config.json" in whole
    server.cut.clear()
    server.requests.clear()
    hub.fetch(NAME, COMMIT)
    assert server.sent("model.safetensors") and not any(map(server.sent, whole))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_found_and_fetched_again(server: Hub, tmp_path: Path, name: str) -> None:
    server.altered.add(name)
    with pytest.raises(GranAlignError, match=f"{name} arrived damaged, got hash") as error:
        hub.fetch(NAME, COMMIT)
    assert "\n" not in str(error.value)
    server.altered.clear()
    folder = hub.fetch(NAME, COMMIT)
    assert (folder / name).read_bytes() == (tmp_path / "published" / name).read_bytes()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated; accept its licence at http.*/org/tiny, then run hf auth"),
        (401, "GatedRepo", "is gated; accept its licence"),
        (401, "RepoNotFound", "no such model, or it is private"),
        (404, "RepoNotFound", "no such model, or it is private"),
        (404, "RevisionNotFound", "no such revision; see http.*/org/tiny/commits"),
        (403, "", r"refuses access \(HTTP 403\); run hf auth login"),
        (429, "", r"refuses further requests for now \(HTTP 429\); wait"),
        (500, "", "cannot be fetched"),
        (503, "", "cannot be fetched"),
    ],
)
def test_a_refusal_is_one_line_with_its_remedy(
    server: Hub, tmp_path: Path, status: int, code: str, message: str
) -> None:
    server.status[NAME] = status, code
    for call in (hub.look_up, hub.fetch):
        with pytest.raises(hub.HubError, match=message) as error:
            call(NAME, COMMIT)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(f"{NAME}@{COMMIT}: ")
        assert error.value.missing is (status >= 500)
    assert not blobs(tmp_path)


def test_a_file_that_is_refused_alone(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing of a gated model is public, its files are not."""
    real = hub.look_up

    def then_gated(name: str, revision: str | None = None) -> hub.HubModel:
        found = real(name, revision)
        server.status[NAME] = 403, "GatedRepo"
        return found

    monkeypatch.setattr(hub, "look_up", then_gated)
    with pytest.raises(hub.HubError, match="is gated"):
        hub.fetch(NAME, COMMIT)


def test_without_a_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, CLOSED, tmp_path / "hub")
    with pytest.raises(hub.HubError, match=r"put its \*\.safetensors") as error:
        hub.fetch(NAME, COMMIT)
    assert error.value.missing and "\n" not in str(error.value)
    with pytest.raises(GranAlignError, match="org/tiny: no such folder; as a model of the hub, "):
        resolve_model(NAME)


def test_a_model_in_the_cache_needs_no_hub(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.fetch(NAME, COMMIT)
    use_hub(monkeypatch, CLOSED, tmp_path / "hub")
    assert resolve_model(f"{NAME}@{COMMIT}") == folder
    assert hub.cached_folder(NAME, None) is None, "a branch may have moved"
    (folder / "model.safetensors").unlink()
    with pytest.raises(hub.HubError, match="cannot be fetched"):
        hub.fetch(NAME, COMMIT)


def test_a_commit_that_is_none(server: Hub) -> None:
    server.models[NAME] = server.models[NAME][0], "main"
    with pytest.raises(hub.HubError, match="gave the commit 'main', expected 40 hex digits"):
        hub.look_up(NAME)


def test_an_encoder_with_folders(server: Hub, tmp_path: Path) -> None:
    published = write_tiny_bert(tmp_path / "bert")
    server.models["org/bert"] = published, COMMIT
    folder = hub.fetch("org/bert")
    assert (folder / "1_Pooling" / "config.json").is_file()
