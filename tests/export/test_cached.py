"""The export at the first use, where it ends early."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.export import cached
from granalign_fast.models.sources import resolve_model


@pytest.mark.parametrize("error", [GranAlignError("no room"), KeyboardInterrupt()])
def test_an_export_that_ends_early_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(source: object, out: Path, **options: object) -> None:
        out.mkdir()
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cached, "usable_cache", lambda: None)
    monkeypatch.setattr(cached, "readable_cache", lambda: None)
    monkeypatch.setattr(cached, "export_sentence_encoder", fail)
    with pytest.raises(type(error)):
        cached.cached_export(resolve_model(None), None, "fp32", None)
    assert not list(tmp_path.iterdir())
