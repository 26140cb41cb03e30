from __future__ import annotations

import json
import sys

import pytest
from helpers.devices import emulated_hopper, forget_kernels

from granalign_fast import cli
from granalign_fast.cli import diagnosis as doctor
from granalign_fast.cli.diagnosis import examine
from granalign_fast.errors import GranAlignError
from granalign_fast.runtime import probe as gpu_probe
from granalign_fast.runtime.probe import probe_session


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


def test_extras_are_those_of_the_package_within_their_bounds(monkeypatch):
    """Every extra that users may want, with versions that pip would accept."""
    versions = {"transformers": "5.0.0", "torch": "2.13.0+cpu", "optimum": "2.1.0"}
    versions |= {"optimum-onnx": "0.1.0", "sentencepiece": "0.2", "matplotlib": "3.10.1rc1"}
    versions |= {"faiss-cpu": "1.12.0", "ray": "2.9", "fastapi": "0.165"}
    versions |= {"tensorrt-cu13": "11.0", "cupy-cuda13x": "14.0", "onnxruntime-gpu": "1.31.0"}
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    found = by_name()
    extras = {name: finding for name, finding in found.items() if name.startswith("extra")}
    assert {name: finding.ok for name, finding in extras.items()} == {
        "extra [cpu]": False,
        "extra [cuda]": True,
        "extra [tensorrt]": False,
        "extra [plot]": True,
        "extra [editors]": False,
        "extra [approximate]": True,
        "extra [ray]": False,
        "extra [serve]": False,
        "extra [remote]": False,
        "extra [hub]": False,
        "extra [export]": True,
        "extra [optimum]": False,
    }
    assert "transformers 5.0.0 (expected " in extras["extra [optimum]"].found
    assert "torch 2.13.0+cpu, " in extras["extra [optimum]"].found
    assert "ray 2.9 (expected " in extras["extra [ray]"].found
    assert "fastapi 0.165, uvicorn missing" in extras["extra [serve]"].found
    assert extras["extra [editors]"].found == "opentimelineio missing"
    versions["transformers"] = "4.57.6"
    assert by_name()["extra [optimum]"].ok


@pytest.mark.parametrize(
    ("number", "bounds", "fits"),
    [
        ("4.57", "<5,>=4.57", True),
        ("4.57.0", "<5,>=4.57", True),
        ("4.9", "<5,>=4.57", False),
        ("5.0.0", "<5,>=4.57", False),
        ("10.16.1.11", "<11,>=10.16", True),
        ("2.1", "==2.1.0", True),
        ("2.1.1", "==2.1.0", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(number, bounds, fits):
    assert doctor._fits(number, bounds) is fits


def test_without_metadata_the_doctor_says_so(monkeypatch):
    def unknown(name):
        raise doctor.PackageNotFoundError

    monkeypatch.setattr(doctor, "requires", unknown)
    found = by_name()
    assert not found["extras"].ok
    assert not any(name.startswith("extra [") for name in found)


def test_an_installation_older_than_an_extra(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ['matplotlib>=3.9; extra == "plot"'])
    monkeypatch.setattr(doctor, "installed_version", {"matplotlib": "3.9"}.get)
    found = by_name()
    assert found["extra [plot]"].ok
    assert not found["extra [editors]"].ok


def test_the_command_knows_the_miniatures(monkeypatch, capsys):
    arguments = ["doctor", "--models=miniatures", "--preset=recognition", "--json"]
    monkeypatch.setattr(sys, "argv", ["granalign", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert all(findings[f"model {kind}"]["ok"] for kind in ("clip", "llm", "vlm"))


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


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    with emulated_hopper(monkeypatch, tmp_path / "kernels") as found:
        yield found


def test_a_gpu_is_tried_out(cupy):
    finding = by_name("cuda")["kernels"]
    assert finding.ok and finding.found == "compiled for sm_90, results right"
    assert {"run one", "run many_sm90"} <= set(cupy.LOG)


def test_kernels_that_are_wrong_or_do_not_compile(cupy, monkeypatch):
    get_function = cupy.RawModule.get_function

    def broken(self, name):
        if name != "one":
            return get_function(self, name)
        raise RuntimeError("Failed to find CUDA headers.")

    monkeypatch.setattr(cupy.RawModule, "get_function", broken)
    finding = by_name("cuda")["kernels"]
    assert not finding.ok and finding.needed and "[cuda]" in finding.remedy
    assert finding.found == "GPU 0: Failed to find CUDA headers."
    monkeypatch.setattr(cupy.RawModule, "get_function", get_function)
    monkeypatch.setattr(cupy, "asnumpy", lambda array: array.get() + 1)
    forget_kernels()
    assert by_name("cuda")["kernels"].found == "GPU 0: 100% of the results of 1 queries are wrong"


def test_a_model_is_tried_out(monkeypatch):
    assert probe_session("cpu") == "CPUExecutionProvider"
    monkeypatch.setattr(gpu_probe, "probe_session", lambda device: f"{device} did it")
    assert by_name("cuda:1")["a model on cuda:1"].found == "cuda:1 did it"

    def broken(device):
        raise GranAlignError("ONNX Runtime fell back")

    monkeypatch.setattr(gpu_probe, "probe_session", broken)
    finding = by_name("cuda")["a model on cuda"]
    assert not finding.ok and finding.needed and finding.found == "ONNX Runtime fell back"


def test_what_is_not_installed_is_not_tried_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert not {"kernels", "a model on cuda"} & by_name("cuda").keys()
    assert not by_name("cuda")["extra [cuda]"].ok


def test_two_runtimes_are_one_too_many(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda package: "1.31.1")
    finding = by_name()["one ONNX Runtime"]
    assert not finding.ok
    assert finding.needed
    uninstall, install = finding.remedy.split(" && ")
    assert uninstall == "pip uninstall -y onnxruntime onnxruntime-gpu"
    assert install.startswith("pip install ") and "[cpu]" in install


def test_remedies_add_no_second_runtime(monkeypatch):
    """The CPU's is installed: what brings the GPU's removes it first."""
    monkeypatch.setattr("granalign_fast.errors._is_installed", "onnxruntime".__eq__)
    findings = by_name("cuda")
    for name in ("extra [cuda]", "extra [tensorrt]", "provider CUDAExecutionProvider"):
        assert findings[name].remedy.startswith("pip uninstall -y onnxruntime && pip install ")
    assert findings["extra [editors]"].remedy.startswith("pip install ")


def test_exports_are_listed_and_damaged_ones_named(minilm, empty_cache):
    from granalign_fast.pipeline import SentenceEncoder

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
