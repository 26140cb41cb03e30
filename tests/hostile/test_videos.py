"""Files that make FFmpeg open other files: each is refused, and FFmpeg alone would open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.videos import constant, draw, render
from PIL import Image

from granalign_fast.errors import GranAlignError
from granalign_fast.video.frames import probe, read_frames


def _concat(folder: Path) -> Path:
    path = folder / "a.mp4"
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    return path


def _hls(folder: Path) -> Path:
    path = folder / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n")
    return path


def _numbered_images(folder: Path) -> Path:
    Image.fromarray(draw(7)).save(folder / "i001.jpg")
    # The name is a pattern: FFmpeg opens i001.jpg for it.
    path = folder / "i%03d.jpg"
    path.write_bytes(b"\xff\xd8 not a picture")
    return path


def _text(folder: Path) -> Path:
    path = folder / "a.txt"
    path.write_text("hello " * 1000)
    return path


FILES: dict[str, Callable[[Path], Path]] = {
    "a playlist of concat": _concat,
    "a playlist of HLS": _hls,
    "a pattern of numbered images": _numbered_images,
    "text that FFmpeg renders": _text,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("call", [probe, read_frames])
def test_no_other_file_is_opened(tmp_path: Path, name: str, call: Callable[[Path], Any]) -> None:
    import av

    render(tmp_path / "secret.mp4", constant(25, 1))
    render(tmp_path / "secret.ts", constant(25, 1))
    path = FILES[name](tmp_path)
    # The case is real: FFmpeg itself finds a picture.
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        assert container.streams.video
    with pytest.raises(GranAlignError, match="no format of videos") as caught:
        call(path)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_tag_before_a_playlist_changes_nothing(tmp_path: Path) -> None:
    # FFmpeg skips an ID3 tag before it looks at the format.
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16)
    render(tmp_path / "secret.mp4", constant(25, 1))
    path = tmp_path / "a.mp4"
    path.write_bytes(tag + b"ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(GranAlignError, match="no format of videos"):
        probe(path)
