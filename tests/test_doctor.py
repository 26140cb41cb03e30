from __future__ import annotations

import pytest

from granalign_fast import doctor
from granalign_fast.doctor import examine
from granalign_fast.errors import GranAlignError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "granalign-fast"


def by_name(device="cpu"):
    return {finding.what: finding for finding in examine(device)}


def test_the_cpu_is_ready_here(minilm):
    findings = by_name()
    assert all(finding.ok for finding in findings.values() if finding.needed)
    assert findings["extra [cpu]"].needed
    assert not findings["extra [cuda]"].needed
    assert findings["exported models"].found.startswith("none yet")


def test_a_gpu_that_is_not_there_is_missing(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda tool: None)
    findings = by_name("cuda")
    assert findings["GPU"].needed
    assert not findings["GPU"].ok
    assert findings["extra [cuda]"].needed


def test_a_gpu_is_named_with_its_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1, 143771 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tool))
    assert by_name("cuda")["GPU"].found == "NVIDIA H200, 580.1, 143771 MiB"


def test_two_runtimes_are_one_too_many(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda package: "1.31.1")
    finding = by_name()["one ONNX Runtime"]
    assert not finding.ok
    assert finding.needed
    assert "pip uninstall" in finding.remedy


def test_exports_are_listed_and_damaged_ones_named(minilm, empty_cache):
    from granalign_fast.encoders import SentenceEncoder

    SentenceEncoder(minilm, cache_dir=empty_cache)
    (finding,) = (f for f in examine() if f.what.startswith("export "))
    assert finding.ok
    assert "fp32" in finding.found
    folder = next(empty_cache.glob("*-fp32-*"))
    (folder / "tokenizer.json").write_text("{}")
    (finding,) = (f for f in examine() if f.what.startswith("export "))
    assert not finding.ok
    assert "altered file" in finding.found


def test_an_unknown_device_is_refused():
    with pytest.raises(GranAlignError, match="device 'tpu'"):
        examine("tpu")
