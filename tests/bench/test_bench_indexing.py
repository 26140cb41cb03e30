"""The command that times the indexing of generated videos."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.ffmpeg import ffprobe

from granalign_fast.bench.commands import indexing


def test_two_checkouts_take_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ffprobe("-version")  # skips where ffmpeg's commands are not installed
    encoder = ("-c:v", "libx264", "-preset", "ultrafast")
    monkeypatch.setattr(indexing, "FILES", {"small": ("64x48", encoder, 0.5)})
    video = indexing.generate(tmp_path, "small", 60)
    shown = ffprobe("-show_entries", "format=duration", "-of", "csv=p=0", video)
    assert float(shown) == pytest.approx(30, abs=0.1)
    here = Path(indexing.__file__).resolve().parents[2]
    assert indexing.main(["--against", str(here), "--seconds", "60", "--rounds", "1"]) == 0
    _, now, before = capsys.readouterr().out.splitlines()
    assert now.startswith("small, 30 s, now: ") and before.startswith("small, 30 s, before: ")
