"""Options of `granalign index` that go with object stores and Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import runner

from granalign_fast.cli.index_job import is_job, parse_workers
from granalign_fast.errors import GranAlignError
from granalign_fast.library.jobs import Workers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("video.mp4", "--workers", "texts=2"), "it goes with --ray"),
        (("s3://bucket/x.mp4", "--strict"), "--strict"),
        (("video.mp4", "--ray", "local", "--verify"), "--verify"),
        (("video.mp4", "--ray", "local", "--workers", "sound=1"), "STAGE is one of decode"),
        (("s3://key:secret@bucket/x.mp4",), "put keys into the environment"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    granalign = runner(capsys, monkeypatch)
    code, out, err = granalign("index", *words, "--out", tmp_path / "out", "--models", "miniatures")
    assert (code, out) == (2, "") and message in err and "secret" not in err
    assert not (tmp_path / "out").exists()


def test_which_runs_are_jobs() -> None:
    assert not is_job(["a.mp4", "videos"], Path("out"), None)
    assert is_job(["a.mp4"], Path("out"), "local")
    assert is_job(["a.mp4", "s3://bucket/b.mp4"], Path("out"), None)
    assert is_job(["a.mp4"], Path("gs://bucket/out"), None)


def test_default_workers_fit_on_one_gpu() -> None:
    workers = parse_workers([], "cuda")
    assert sum(one.gpus * one.least for one in workers.values()) <= 1
    assert workers["decode"].gpus == 0
    assert parse_workers(["captions=8:1"], "cuda")["captions"] == Workers(8, 8, 1.0)
    assert parse_workers(["captions=8"], "cpu")["captions"] == Workers(8, 8, 0.0)
    with pytest.raises(GranAlignError, match="got texts twice"):
        parse_workers(["texts=1", "texts=2"], "cpu")
