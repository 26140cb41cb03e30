"""The whole pipeline with the miniatures: its moments are right, and injected faults show."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import GranAlignError, MomentRetriever, cli
from granalign_fast.bench.commands.ablation import ablation
from granalign_fast.evaluation import evaluate_qvhighlights
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.miniatures import MODELS, benchmark
from granalign_fast.models.chat import ChatTokenizer
from granalign_fast.models.image_layout import Expanded
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.pipeline import ModelFolder

VIDEOS = 3
"""Videos of the benchmark; each has twelve queries that it shows and six that it does not."""

Figures = dict[str, float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    benchmark.write_benchmark(root, VIDEOS)
    return root


def measured(folder: Path, index: Path, preset: str = "tuned") -> Figures:
    """Index and evaluate as the commands do."""
    models = ModelFolder(MODELS)
    models.index(sorted((folder / "videos").glob("*.mp4")), index)
    evaluation = evaluate_qvhighlights(
        models.retriever(preset),
        queries=folder / "queries.jsonl",
        ground_truth=folder / "truth.jsonl",
        indexes=index,
        absent=folder / "absent.jsonl",
        rewriter=models.rewriter if preset == "tuned" else None,
    )
    brief: Figures = evaluation.metrics["brief"]
    return brief


@pytest.fixture(scope="module")
def figures(folder: Path, minilm: Path) -> Callable[[str], Figures]:
    return functools.cache(lambda preset: measured(folder, folder / "index", preset))


@pytest.mark.parametrize(
    ("preset", "recall", "auroc"),
    # Least percentages. On 40 videos: 92.9 and 98.7, 98.5 and 98.7.
    [("tuned", 90, 95), ("recognition", 90, 95)],
)
def test_moments_are_found(
    figures: Callable[[str], Figures], preset: str, recall: float, auroc: float
) -> None:
    assert figures(preset)["MR-full-R1@0.5"] >= recall, figures(preset)
    assert figures(preset)["exists-AUROC"] >= auroc, figures(preset)


def test_moments_are_found_by_frames_alone(folder: Path, tmp_path: Path) -> None:
    """Neither captions nor a sentence encoder; on 40 videos R1@0.5 is 97.3, R1@0.7 97.1."""
    (tmp_path / "clip").symlink_to(MODELS / "clip")
    models = ModelFolder(tmp_path)
    models.index(sorted((folder / "videos").glob("*.mp4")), tmp_path / "index")
    question: dict[str, Any] = {
        "queries": folder / "queries.jsonl",
        "ground_truth": folder / "truth.jsonl",
        "indexes": tmp_path / "index",
    }
    brief = evaluate_qvhighlights(models.retriever("visual"), **question).metrics["brief"]
    assert brief["MR-full-R1@0.5"] >= 95 and brief["MR-full-R1@0.7"] >= 92, brief
    assert "exists-AUROC" not in brief
    with pytest.raises(GranAlignError, match="got an index without captions"):
        evaluate_qvhighlights(MomentRetriever(BagOfWords()), **question)
    with pytest.raises(GranAlignError, match="which does not say whether a video shows a query"):
        evaluate_qvhighlights(
            models.retriever("visual"), **question, absent=folder / "absent.jsonl"
        )


def test_the_printed_commands_give_the_same_figures(
    folder: Path,
    figures: Callable[[str], Figures],
    warm_cache: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures("tuned")  # indexes
    monkeypatch.setattr(benchmark, "write_benchmark", lambda out, videos: None)
    monkeypatch.setattr(sys, "argv", ["benchmark", str(folder)])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm_cache(tmp_path)))
    index, *evaluate = ([*shlex.split(line)] for line in lines)
    assert index[1:3] == ["index", f"{folder}/videos/*.mp4"]
    assert index[-2:] == ["--out", f"{folder}/index"]
    for preset, arguments in zip(("tuned", "recognition"), evaluate, strict=True):
        monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
        with pytest.raises(SystemExit):
            cli.main()
        metrics = json.loads(capsys.readouterr().out)
        assert {key: metrics[key] for key in figures(preset)} == figures(preset)


def test_every_part_of_the_method_adds_accuracy(
    folder: Path, figures: Callable[[str], Figures]
) -> None:
    figures("tuned")  # indexes
    table = ablation(ModelFolder(MODELS), folder)
    *others, whole = [row["MR-full-mAP"] for row in table.values()]
    assert whole > max(others), table
    crossed = table["both, crossed: simplified with aware"]["MR-full-mAP"]
    assert whole - crossed > 5


def other_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop the end of the prompt, which announces the assistant's turn."""
    chat = ChatTokenizer.chat

    def broken(self: ChatTokenizer, messages: Sequence[Any]) -> list[int]:
        ids, begin = chat(self, messages), self._tokenizer.token_to_id("<|im_start|>")
        if begin is None:  # the language model's template has other tokens
            return ids
        return ids[: len(ids) - 1 - ids[::-1].index(begin)]

    monkeypatch.setattr(ChatTokenizer, "chat", broken)


def other_pixels(mean: float, std: float) -> Callable[[pytest.MonkeyPatch], None]:
    """Normalise pixels by another mean and standard deviation than the graph's."""
    right_mean = np.array([0.48145466, 0.4578275, 0.40821073])
    right_std = np.array([0.26862954, 0.26130258, 0.27577711])

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        see = VisionLanguageModel._embed_frames

        def broken(self: VisionLanguageModel, frames: Sequence[Any]) -> Any:
            moved = [(frame / 255 - mean) / std * right_std + right_mean for frame in frames]
            return see(self, [np.clip(255 * m, 0, 255).astype(np.uint8) for m in moved])

        monkeypatch.setattr(VisionLanguageModel, "_embed_frames", broken)

    return apply


def swapped_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    see = VisionLanguageModel._embed_frames
    monkeypatch.setattr(
        VisionLanguageModel,
        "_embed_frames",
        lambda self, frames: see(self, [f[..., ::-1] for f in frames]),
    )


def shifted_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use indices in the cache as positions; an image takes fewer positions than tokens."""
    monkeypatch.setattr(Expanded, "next_position", property(lambda self: len(self.ids)))


@pytest.mark.parametrize(
    "breaking",
    [other_template, other_pixels(0.0, 1.0), swapped_channels, shifted_positions],
    ids=["chat template", "mean and std", "channel order", "positions after the image"],
)
def test_a_fault_costs_accuracy(
    folder: Path,
    figures: Callable[[str], Figures],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaking: Callable[[pytest.MonkeyPatch], None],
) -> None:
    whole = figures("tuned")["MR-full-mAP"]
    breaking(monkeypatch)
    assert measured(folder, tmp_path)["MR-full-mAP"] < whole - 5


def test_the_package_has_one_model_of_each_kind() -> None:
    models = ModelFolder(MODELS)
    assert set(models.paths) == {"clip", "llm", "vlm"}
    assert isinstance(models.captioner, VlmCaptioner)
    assert isinstance(models.rewriter.model, CausalLM)  # type: ignore[attr-defined]
    size = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert size < 12e6
