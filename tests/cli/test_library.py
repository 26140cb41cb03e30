"""`granalign library`, through the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer
from helpers.libraries import write_index
from test_schemas import check

from granalign_fast.cli.app import app
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.library import approximation
from granalign_fast.library.upkeep import remove_videos


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command; return its exit code, stdout and stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        typer.main.get_command(app)(["library", *map(str, words)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for number, name in enumerate(("street", "yard", "kitchen")):
        write_index(tmp_path / "my lib" / name, 10 * (number + 1), seed=number)
    return tmp_path / "my lib"


def test_videos_are_listed_shown_and_tagged(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "tag", library, "yard", "street", "--add", "trip", "--json")
    assert (code, json.loads(out)) == (0, {"tags": {"yard": ["trip"], "street": ["trip"]}})
    run(capsys, "tag", library, "street", "--remove", "trip", "--add", "work")

    code, out, _ = run(capsys, "list", library, "--json")
    listed = json.loads(out)
    check(listed, "library-list")
    assert [video["vid"] for video in listed["videos"]] == ["kitchen", "street", "yard"]
    assert [video["tags"] for video in listed["videos"]] == [[], ["work"], ["trip"]]
    assert [video["clips"] for video in listed["videos"]] == [30, 10, 20]
    _, out, _ = run(capsys, "list", library, "--tag", "work", "--json")
    assert [video["vid"] for video in json.loads(out)["videos"]] == ["street"]
    _, out, _ = run(capsys, "list", library)
    assert "3 videos, 2:00 in all" in out

    _, out, _ = run(capsys, "show", library, "yard", "--json")
    check(json.loads(out), "library-show")
    assert json.loads(out)["seconds"] == 40
    _, out, _ = run(capsys, "show", library, "yard")
    assert "tags: trip\n" in out and "frames_per_clip: 1\n" in out
    with pytest.raises(GranAlignError, match=r"has no video 'lake'; expected one of its 3"):
        typer.main.get_command(app)(["library", "show", str(library), "lake"])


def test_the_frames_of_a_clip_are_shown(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_index(library / "lake", 20, seed=1, frames_per_clip=4)
    _, out, _ = run(capsys, "list", library, "--json")
    listed = {video["vid"]: video["frames_per_clip"] for video in json.loads(out)["videos"]}
    assert listed == {"street": 1, "yard": 1, "kitchen": 1, "lake": 4}
    _, out, _ = run(capsys, "list", library)
    rows = [line.split()[:4] for line in out.splitlines()]
    assert rows[0] == ["video", "length", "clips", "frames/clip"]
    assert ["lake", "0:40", "20", "4"] in rows and ["street", "0:20", "10", "1"] in rows
    _, out, _ = run(capsys, "show", library, "lake", "--json")
    check(json.loads(out), "library-show")
    assert json.loads(out)["frames_per_clip"] == 4
    _, out, _ = run(capsys, "show", library, "lake")
    assert "frames_per_clip: 4\n" in out


def test_a_removed_video_never_comes_back(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "tag", library, "yard", "--add", "trip")
    # A run that was killed while it replaced the index left the old one here.
    old = library / ".indexing" / "old"
    old.mkdir(parents=True)
    (library / "yard").rename(old / "yard")
    code, out, _ = run(capsys, "remove", library, "yard", "--json")
    assert (code, json.loads(out)) == (0, {"removed": ["yard"]})
    check(json.loads(out), "library-remove")
    assert not list(library.rglob("yard"))
    _, out, _ = run(capsys, "rebuild", library, "--json")
    check(json.loads(out), "library-rebuild")
    assert json.loads(out) == {"videos": 2, "clips": 40, "damaged": {}}
    # Another video of that id has no tags of the removed one.
    write_index(library / "yard", 3, seed=9)
    _, out, _ = run(capsys, "show", library, "yard", "--json")
    assert json.loads(out)["tags"] == []


def test_nothing_is_removed_if_one_name_is_wrong(library: Path) -> None:
    with pytest.raises(GranAlignError, match="no video 'lake'"):
        remove_videos(library, ["yard", "lake"])
    VideoIndex.load(library / "yard")


def test_approximate_indexes_are_made(
    library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="the extra [approximate]")
    code, out, _ = run(capsys, "approximate", library)
    assert code == 0
    assert out.startswith("approximate indexes: 0 made, 0 kept; 1 parts are so small")
    monkeypatch.setattr(approximation, "ALL_COMPARED", 0)
    code, out, _ = run(capsys, "approximate", library, "--json")
    check(json.loads(out), "library-approximate")
    assert json.loads(out) == {"made": 1, "kept": 0, "compared": 0}
    stamp = next((library / ".catalogue").glob("*/captions.ivf.json"))
    stamp.write_text("{}")
    code, _, err = run(capsys, "verify", library)
    assert code == 1
    assert "captions.ivf.json: got no stamp; run `granalign library approximate`" in err


def test_damage_is_named(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", library, "--json")
    check(json.loads(out), "library-verify")
    assert (code, json.loads(out)["videos"]) == (0, 3)
    # The manifest is as it was, so the catalogue takes the video for unchanged: verify reads it.
    (library / "yard" / "clips.parquet").write_bytes(b"torn")
    rows = next((library / ".catalogue").glob("*/captions.f16"))
    rows.write_bytes(bytes(rows.stat().st_size))
    code, out, err = run(capsys, "verify", library)
    assert (code, out) == (1, "2 of 3 videos are whole\n")
    assert "yard/clips.parquet: altered" in err
    assert "captions.f16: got SHA-256" in err
    # The command that is named can be copied, whatever the name of the folder holds.
    program, group, *command = shlex.split(err.rpartition("granalign: run ")[2])
    assert (program, group, command) == ("granalign", "library", ["rebuild", str(library)])
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "1 index cannot be read" in err
    assert run(capsys, "verify", library, "--json")[0] == 1
    run(capsys, "remove", library, "yard")
    assert run(capsys, "verify", library)[:2] == (0, "2 of 2 videos are whole\n")


@pytest.mark.parametrize("command", ["list", "verify", "rebuild", "approximate"])
def test_the_index_of_one_video_is_no_library(
    command: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` would find all of its 0 videos whole."""
    index = library / "yard"
    before = sorted(index.iterdir())
    with pytest.raises(GranAlignError, match=r"yard: got the index of one video, expected a fold"):
        run(capsys, command, index)
    assert sorted(index.iterdir()) == before
