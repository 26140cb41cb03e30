"""The suites: right answers give figures, wrong ones end a suite, however fast they are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import pkgutil
import sys
import types
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers import reference, videos
from helpers.fakes import BagOfWords

from granalign_fast import cli
from granalign_fast.bench import suites
from granalign_fast.bench.harness import random_models
from granalign_fast.bench.harness.judges import judge_result
from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.records import Report
from granalign_fast.bench.harness.runner import Settings, run_suites
from granalign_fast.bench.harness.timing import WrongAnswerError
from granalign_fast.bench.harness.workloads import captioned, embeddings, rewritten, sentences
from granalign_fast.bench.peers import generators
from granalign_fast.bench.peers import plain_method as plain
from granalign_fast.bench.peers import runtimes as peers
from granalign_fast.bench.suites import SUITES
from granalign_fast.bench.suites.decode import middles
from granalign_fast.config import PRESETS, preset
from granalign_fast.errors import GranAlignError
from granalign_fast.kernels import ProposalRules
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.pipeline import MomentRetriever
from granalign_fast.types import FrameSet, Rewrites
from granalign_fast.video.frames import probe, read_frames

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})
QUICK = Settings(size=0.05, rounds=3, seconds=0.0)
RULES = {
    **{name: config.proposals for name, config in PRESETS.items()},
    "gaps": ProposalRules(sigma=0.7, variants=True, gap=2, drop=0.3, stretch=False, own_share=0.4),
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_plain_loop_agrees_with_the_reference(name: str) -> None:
    rules, rng = RULES[name], np.random.default_rng(4)
    for clips in (1, 2, 9, 75):
        for curves in (
            rng.uniform(size=(3, clips)).astype(np.float32),
            rng.integers(0, 2, (3, clips)).astype(np.float32),
            np.zeros((3, clips), np.float32),
        ):
            fused = curves.mean(axis=0)
            expected = reference.proposals(curves, fused, rules)
            candidates = plain.candidates(curves, fused, rules)
            assert sorted(candidates) == sorted(expected)
            best = plain.suppress(candidates, 0.75, 10)
            assert best == reference.nms(candidates, 0.75, 10)


def test_the_plain_curves_agree_with_the_reference() -> None:
    batch = embeddings(np.random.default_rng(5), 2, clips=20, dim=16)
    clips, variants = batch.clips[:20], batch.variants[0]
    for config in (preset("tuned"), preset("paper")):
        rules, feedback = config.context, config.feedback
        mixed = reference.context(clips, rules) if rules else clips
        expected = reference.refined_curves(variants, [], mixed, {}, config.power, feedback)
        found = plain.refined(variants, plain.mixed(clips, config), config)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_workloads_are_new_and_of_unit_length() -> None:
    rng = np.random.default_rng(6)
    one, other = embeddings(rng, 3, clips=10), embeddings(rng, 3, clips=10)
    assert not np.array_equal(one.clips, other.clips)
    np.testing.assert_allclose(np.linalg.norm(one.variants, axis=-1), 1, atol=1e-5)
    assert len(set(sentences(rng, 100))) > 95
    assert len(rewritten(rng).simplified) == 5
    assert len(captioned(rng, "v", 75).captions) == 75


@pytest.mark.parametrize("slip", ["none", "moment", "lost", "aware", "curves", "rewrites"])
def test_every_part_of_a_search_is_judged(slip: str) -> None:
    retriever = MomentRetriever(BagOfWords())
    index = retriever.index(captioned(np.random.default_rng(8), "v", 40))
    query = Rewrites("a man runs", ("someone runs",), ("a man in a red coat runs fast",))
    result = retriever.search(index, query, aware={3: "a red coat runs fast", 7: "a dog"})
    first, *rest = result.moments
    later = dataclasses.replace(first, start=first.start + 2)
    changes: dict[str, Any] = {
        "none": {},
        "moment": {"moments": (later, *rest)},
        "lost": {"moments": tuple(rest)},
        "aware": {"aware": {7: "a dog"}},
        "curves": {"curves": result.curves[::-1].copy()},
        "rewrites": {"rewrites": dataclasses.replace(query, simplified=("the red car",))},
    }
    changed = dataclasses.replace(result, **changes[slip])
    if slip == "none":
        judge_result(changed, index, retriever.encoder, retriever.config)
        return
    with pytest.raises(WrongAnswerError):
        judge_result(changed, index, retriever.encoder, retriever.config)


def test_decoding_every_frame_gives_our_frames(tmp_path: Path) -> None:
    path = videos.render(tmp_path / "v.mp4", videos.constant(10, 7.3))
    info = probe(path)
    frames = peers.every_frame(path, middles(info, list(range(info.clips))))
    expected = [videos.read(frame.image) for frame in read_frames(path)]
    assert [videos.read(image) for image in frames] == expected
    assert len(set(expected)) == info.clips == 4


def test_decoding_every_frame_stops_after_the_last_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = videos.render(tmp_path / "v.mp4", videos.constant(10, 7.3))
    opened, decoded = av.open, []

    @contextlib.contextmanager
    def watched(name: str) -> Any:
        with opened(name) as container:
            frames = (decoded.append(frame) or frame for frame in container.decode(video=0))
            yield types.SimpleNamespace(streams=container.streams, decode=lambda stream: frames)

    monkeypatch.setattr(av, "open", watched)
    frames = peers.every_frame(path, [0.5, 1.0])
    assert [videos.read(image) for image in frames] == [
        videos.read(d.to_ndarray(format="rgb24")) for d in (decoded[5], decoded[10])
    ]
    assert len(decoded) == 12 < 73, "one further frame ends the last wanted one"


def measure(*names: str, settings: Settings = QUICK) -> Report:
    return run_suites(names, settings, limits=LIMITS)


@pytest.mark.parametrize("name", ["tuned", "paper"])
def test_the_kernels_and_the_loop_are_measured(name: str) -> None:
    report = measure("kernels", settings=Settings(preset=name, size=0.05, rounds=3, seconds=0.0))
    assert not report.failures
    runners = {(record.task, record.runner) for record in report.records}
    more = {"context", "feedback"} if name == "tuned" else set()
    stages = {"similarity", "proposals", "nms"} | more
    assert {(stage, "ours") for stage in stages} < runners
    assert ("search: similarity, proposals, nms", "loop") in runners
    assert all(record.limit for record in report.records if not record.peer)
    assert report.suites["kernels"].host_bytes > 1 << 20
    assert set(report.breakdowns[0].stages) - {"second similarity"} == stages
    caches = {record.parameters.get("caches") for record in report.records}
    assert caches == {"warm", "cold", None}


def off_by_a_little(stage: str, run: Any) -> Any:
    """Wrap a kernel so that one number of its result is wrong."""

    def wrong(*arguments: Any, **keywords: Any) -> Any:
        result = run(*arguments, **keywords)
        if stage == "context":
            result[0, 0] += 1e-3
        elif stage == "similarity":
            result.variants[0, 0] += 1e-3
        elif stage == "feedback":
            result.simplified[0, 0, 0] += 1e-3
        elif stage == "proposals":
            result.scores[0] *= 1 + 1e-9
        else:
            result.ends[-1, 0] += 1
        return result

    return wrong


@pytest.mark.parametrize("stage", ["context", "similarity", "feedback", "proposals", "nms"])
def test_a_wrong_kernel_fails_its_suite(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    suite = importlib.import_module("granalign_fast.bench.suites.kernels")
    monkeypatch.setattr(suite, stage, off_by_a_little(stage, getattr(suite, stage)))
    report = measure("kernels")
    assert list(report.failures) == ["kernels"]
    assert "the times mean nothing" in report.failures["kernels"]


def test_the_other_suites_run_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = importlib.import_module("granalign_fast.bench.suites.kernels")
    monkeypatch.setattr(suite, "nms", off_by_a_little("nms", suite.nms))
    settings = Settings(size=0.002, rounds=3, seconds=0.0)
    report = measure("kernels", "scaling", settings=settings)
    assert list(report.failures) == ["kernels"]
    scaled = [record for record in report.records if record.suite == "scaling"]
    assert {record.task.partition(":")[0] for record in scaled} == {"clips", "queries", "minutes"}


@pytest.mark.parametrize(
    ("settings", "suites", "message"),
    [
        ({}, ["kernel"], "got 'kernel', expected some of: kernels"),
        ({"preset": "best"}, ["kernels"], "preset: got 'best'"),
        ({"device": "gpu"}, ["kernels"], "device 'gpu'"),
        ({"size": 0}, ["kernels"], "rounds, seconds, size: got 12, 3.0, 0"),
        ({"rounds": 2}, ["kernels"], "rounds, seconds, size: got 2"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, suites: Any, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        run_suites(suites, Settings(**settings), limits=LIMITS)


def test_a_missing_model_fails_its_suite(tmp_path: Path) -> None:
    settings = Settings(models=tmp_path / "none", size=0.05, rounds=3, seconds=0.0)
    report = measure("index", settings=settings)
    assert "no such folder" in report.failures["index"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    random_models.write_export("llama-mini", folder)
    random_models.write_export("qwen2.5-vl-mini", folder)
    return folder


def test_random_models_answer(exported: Path) -> None:
    model = CausalLM(exported / "llm")
    one, other = model.generate([[1, 2, 3], [4, 5]], max_new_tokens=12, stop_ids=())
    assert len(one) == len(other) == 12 and one != other
    assert len(set(one)) > 2, "the steps must differ, or comparing them proves nothing"
    images = np.random.default_rng(7).integers(0, 256, (2, 60, 80, 3)).astype(np.uint8)
    captioner = VlmCaptioner(VisionLanguageModel(exported / "vlm"), max_new_tokens=4)
    assert len(captioner.agnostic(FrameSet.of(images))) == 2
    assert captioner.recognise(FrameSet.of(images), ["a dog"]).shape == (1, 2)


def test_published_shapes_have_as_many_weights_as_published() -> None:
    weights = {name: shape.weights / 1e9 for name, shape in random_models.SHAPES.items()}
    assert weights["llama3-8b"] == pytest.approx(8.03, abs=0.01)
    assert weights["qwen2.5-7b"] == pytest.approx(7.62, abs=0.01)
    assert weights["qwen3-0.6b"] == pytest.approx(0.596, abs=0.001)
    assert weights["qwen2.5-vl-3b"] == pytest.approx(3.755, abs=0.001)
    assert weights["qwen2.5-vl-7b"] == pytest.approx(8.29, abs=0.01)


def test_a_random_model_too_large_for_the_disk_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = types.SimpleNamespace(free=4 << 30)
    monkeypatch.setattr(random_models.shutil, "disk_usage", lambda folder: disk)
    with pytest.raises(GranAlignError, match=r"llama3-8b: got 4 GiB of free disk, expected 37"):
        random_models.write_source("llama3-8b", tmp_path / "source")
    with pytest.raises(GranAlignError, match="random model: got 'llama-9b'"):
        random_models.shape_of("llama-9b")


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", [name for name in random_models.SHAPES if "mini" in name])
def test_transformers_reads_random_models(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    import torch
    import transformers

    exported = random_models.write_export(name, tmp_path)
    source = tmp_path / "sources" / name
    kind = random_models.shape_of(name).architecture
    theirs = getattr(transformers, kind).from_pretrained(source, dtype=torch.float32).eval()
    ids = [300, 17, 290, 42, 5]
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    model = CausalLM if kind == "LlamaForCausalLM" else VisionLanguageModel
    got = model(exported).logits([ids])[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_absent_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = peers.Peer("nothing", "kernels", ("no_such_module", "os.path"), "no-such-package")
    broken = peers.Peer("broken", "kernels", ("no_such_parent.child",), "no-such-parent")
    monkeypatch.setattr(peers, "PEERS", (nothing, broken))
    assert peers.absent() == {
        "nothing (kernels)": "pip install no-such-package",
        "broken (kernels)": "pip install no-such-parent",
    }


def installed_peer(name: str) -> peers.Peer:
    """Return a peer whose module is always installed."""
    return peers.Peer(name, "kernels", ("json",), "json")


GONE = peers.Peer("gone", "kernels", ("no_such_module",), "no-such-package")


def test_a_peer_that_cannot_be_loaded_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.setattr(peers, "TORCHCODEC", installed_peer("torchcodec"))
    assert peers.torchcodec_frames(notes.append) is None
    assert len(notes) == 1 and notes[0].startswith("torchcodec is installed but failed: ")
    monkeypatch.setattr(peers, "TORCHCODEC", GONE)
    assert peers.torchcodec_frames(notes.append) is None and len(notes) == 1


@pytest.mark.parametrize("installed", [True, False])
def test_peers_that_are_left_out_are_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: bool
) -> None:
    left_out = (
        (peers, "ST_ONNX"),
        (peers, "ST_OPENVINO"),
        (generators, "STOCK"),
        (generators, "GENAI"),
    )
    for module, name in left_out:
        monkeypatch.setattr(module, name, installed_peer(name) if installed else GONE)
    monkeypatch.setattr(peers, "ST_TORCH", GONE)
    monkeypatch.setattr(generators, "TRANSFORMERS", GONE)
    notes: list[str] = []
    assert not peers.sentence_encoders(tmp_path, tmp_path, notes.append, "cuda")
    assert not generators.generators(tmp_path, tmp_path, notes.append, compiled=True, device="cuda")
    expected = [f"{name}: left out, it runs on the CPU here" for _, name in left_out]
    assert notes == (expected if installed else [])


def test_a_failed_builder_is_noted_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", sys)
    for name in ("TRANSFORMERS", "STOCK"):
        monkeypatch.setattr(generators, name, GONE)
    monkeypatch.setattr(generators, "GENAI", installed_peer("onnxruntime-genai"))
    notes: list[str] = []
    working = generators.generators(tmp_path / "none", tmp_path, notes.append, compiled=False)
    assert not working and len(notes) == 1
    assert notes[0].startswith("onnxruntime-genai is installed but failed: its model builder: ")


@pytest.fixture
def granalign(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """A function that runs the command and returns its exit code and output."""
    running = importlib.import_module("granalign_fast.bench.harness.runner")
    run_with_limits = functools.partial(running.run_suites, limits=LIMITS)
    monkeypatch.setattr(running, "run_suites", run_with_limits)

    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["granalign", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_command_writes_compares_and_fails(granalign: Any, tmp_path: Path) -> None:
    run, page = tmp_path / "run.json", tmp_path / "RESULTS.md"
    quick = ("--size", 0.05, "--rounds", 3, "--seconds", 0)
    code, shown = granalign("kernels", *quick, "--json", run)
    assert code == 0 and "loop *" in shown
    shown_again = ("--from", run, "--plots", tmp_path / "plots", "--markdown", page)
    code, shown = granalign(*shown_again, "--compare", run)
    assert code == 0 and "as in the base, within the noise" in shown
    assert "![limits](plots/limits.png)" in page.read_text(encoding="utf-8")
    base = json.loads(run.read_text())
    for record in base["records"]:
        if record["task"] == "nms":
            record["median"] /= 20
    (tmp_path / "base.json").write_text(json.dumps(base))
    code, shown = granalign("--from", run, "--compare", tmp_path / "base.json")
    assert code == 1 and "slower" in shown and "kernels / nms / ours" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel"], "suite: got 'kernel'"),
        (["--json", "none/run.json"], "none/run.json: its folder is not there"),
        (["--markdown", "."], "got a folder, expected the name of a file"),
        (["--from", "none.json"], "none.json: cannot be read"),
        (["--compare", "none.json"], "none.json: cannot be read"),
        (["index", "--random", "llama-9b", "--size", "0.05"], "random model: got 'llama-9b'"),
    ],
)
def test_the_command_refuses_in_one_line(granalign: Any, arguments: Any, message: str) -> None:
    code, shown = granalign(*arguments)
    assert code in (1, 2) and message in shown


def test_every_suite_has_its_module_and_a_word_in_the_help(granalign: Any) -> None:
    code, shown = granalign("--help")
    assert code == 0 and ", ".join(SUITES) in " ".join(shown.split())
    assert sorted(SUITES) == sorted(module.name for module in pkgutil.iter_modules(suites.__path__))
    for name in SUITES:
        assert callable(importlib.import_module(f"granalign_fast.bench.suites.{name}").run)
