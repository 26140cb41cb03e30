from __future__ import annotations

import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import GranAlignError, MomentRetriever
from granalign_fast.bench.commands import ablation, encoders, kernels, tuning
from granalign_fast.bench.commands.tuning import Constants
from granalign_fast.config import preset
from granalign_fast.evaluation import evaluate_qvhighlights
from granalign_fast.jsonl import write_jsonl

VIDEOS, CLIPS = 6, 20
WORDS = ("dog", "cat", "car", "road", "man", "soup", "pot", "tree", "hat", "boat")


@pytest.fixture
def files(tmp_path):
    """Videos of a few scenes, with one or two queries each, in an order that mixes the videos."""
    draw = random.Random(1)
    captions, queries, truth = [], [], []
    for v in range(VIDEOS):
        cuts = sorted(draw.sample(range(3, CLIPS - 2), 2))
        words = [" ".join(draw.sample(WORDS, 4)) for _ in range(3)]
        scenes = [sum(clip >= cut for cut in cuts) for clip in range(CLIPS)]
        texts = [f"{words[scene]} {draw.choice(WORDS)}" for scene in scenes]
        captions.append({"vid": f"v{v}", "captions": texts})
        for q in range(1 + v % 2):
            scene = draw.randrange(3)
            clips = [clip for clip in range(CLIPS) if scenes[clip] == scene]
            qid, rewrites = 10 * q + v, [words[scene][:8], f"a {words[scene]}"]
            query = f"{words[scene]} {draw.choice(WORDS)}"
            queries.append({"qid": qid, "vid": f"v{v}", "query": query, "rewrites": rewrites})
            ratings = [[draw.randrange(5) for _ in range(3)] for _ in clips]
            truth.append(
                {
                    "qid": qid,
                    "duration": 2 * CLIPS - v % 2,
                    "relevant_windows": [[2 * clips[0], 2 * clips[-1] + 1]],
                    "relevant_clip_ids": clips[:-1],
                    "saliency_scores": ratings[:-1],
                }
            )
    queries.sort(key=lambda record: record["qid"])
    records = {"queries": queries, "captions": captions, "ground_truth": truth}
    paths = {name: tmp_path / f"{name}.jsonl" for name in records}
    for name, path in paths.items():
        write_jsonl(path, records[name])
    return paths


@pytest.fixture
def benchmark(files):
    return tuning.load(BagOfWords(), **files)


@pytest.mark.parametrize("name", ["paper", "tuned"])
def test_predicts_and_scores_as_the_evaluation(files, benchmark, name):
    expected = evaluate_qvhighlights(MomentRetriever(BagOfWords(), name), **files)
    predictions = benchmark.predictions(preset(name))
    assert predictions == expected.predictions
    score = benchmark.score(predictions)
    assert score == {key: expected.metrics["brief"][key] for key in tuning.COLUMNS}
    means = benchmark.figures(preset(name)).mean(axis=0)
    assert means == pytest.approx(list(score.values())[:3], abs=0.0051)
    assert tuning.ablation(benchmark)[name] == score


def test_the_ablation_changes_something_in_every_line(benchmark):
    lines = tuning.ablation(benchmark)
    assert next(iter(lines)) == "tuned"
    assert len(lines) == 16
    assert lines["query only"] != lines["tuned"] != lines["no first context"]
    assert lines["tuned"] != lines["no feedback"] != lines["no second context"]


def test_query_only_is_a_search_without_rewrites(files, benchmark):
    texts = [json.loads(line) for line in files["queries"].read_text().splitlines()]
    write_jsonl(files["queries"], [{**record, "rewrites": []} for record in texts])
    expected = evaluate_qvhighlights(MomentRetriever(BagOfWords(), "tuned"), **files)
    alone = replace(benchmark, texts=benchmark.texts[:, :1])
    assert alone.predictions(preset("tuned")) == expected.predictions
    assert tuning.ablation(benchmark)["query only"] == alone.score(expected.predictions)


def test_folds_never_split_a_video():
    videos = np.random.default_rng(2).integers(0, 23, 200)
    folds = tuning.folds_of(videos, 5)
    assert folds.shape == videos.shape
    assert set(folds.tolist()) == set(range(5))
    assert all(len(set(folds[videos == video].tolist())) == 1 for video in range(23))
    assert np.array_equal(folds, tuning.folds_of(videos, 5))


@pytest.mark.parametrize("folds", [1, 7])
def test_impossible_folds(benchmark, folds):
    with pytest.raises(GranAlignError, match=f"folds: got {folds}, expected 2 to {VIDEOS}"):
        tuning.crossvalidation(benchmark, folds)


def test_the_ascent_takes_the_better_of_two():
    tried = []

    def objective(constants):
        tried.append(constants)
        return -abs(constants.power - 1.5) - abs(constants.sigma - constants.power)

    grids = {"sigma": (1.0, 1.5), "power": (1.0, 1.5)}
    best = tuning.ascend(objective, Constants(), grids)
    assert best == Constants()  # neither a tie nor a single move that does not help changes it
    assert len(tried) == 5
    better = tuning.ascend(lambda c: -abs(c.power - 1.5), Constants(), grids)
    assert better == Constants(power=1.5)


def test_the_grids_reach_the_preset():
    chosen = Constants(
        context=(5, 3),
        power=1.5,
        feedback_clips=12,
        second_context=(20, 6),
        high_factor=0.5,
        low_factor=0.9,
        fine_sigma=0.0,
        fine_factor=0.8,
        own_share=0.5,
    )
    assert chosen.config() == preset("tuned")
    assert all(getattr(chosen, name) in values for name, values in tuning.GRIDS.items())
    assert all(getattr(Constants(), name) in values for name, values in tuning.GRIDS.items())


def test_held_out_queries_are_scored_by_the_constants_of_their_fold(benchmark, monkeypatch, capsys):
    grids = {"sigma": (0.0, 1.0), "nms_threshold": (0.7, 0.75)}
    monkeypatch.setattr(tuning, "GRIDS", grids)
    result = tuning.crossvalidation(benchmark, 3)
    folds = tuning.folds_of(benchmark.videos, 3)
    chosen = [Constants(**constants).config() for constants in result["chosen"]]
    figures = np.stack([benchmark.figures(config) for config in chosen])
    expected = figures[folds, np.arange(len(folds))].mean(axis=0)
    assert list(result["held_out"].values())[:3] == pytest.approx(expected, abs=0.0051)
    for key, (low, high) in result["tuned_95%"].items():
        assert low <= result["tuned"][key] <= high
    tuning.print_crossvalidation(result)
    assert "held out, pooled" in capsys.readouterr().out


def test_constants_are_chosen_without_the_held_out_queries(benchmark, monkeypatch):
    seen = []

    def ascend(objective, start, grids):
        seen.append(objective(start))
        return start

    monkeypatch.setattr(tuning, "ascend", ascend)
    tuning.crossvalidation(benchmark, 3)
    folds = tuning.folds_of(benchmark.videos, 3)
    precision = benchmark.figures(Constants().config())[:, 0]
    assert seen == pytest.approx([precision[folds != fold].mean() for fold in range(3)])
    assert len(set(seen)) == 3


def test_unequal_rewrites_are_refused(files):
    texts = [json.loads(line) for line in files["queries"].read_text().splitlines()]
    texts[3]["rewrites"].append("one more")
    write_jsonl(files["queries"], texts)
    with pytest.raises(GranAlignError, match=r"qid 3 has 3 rewrites, expected 2 as the first"):
        tuning.load(BagOfWords(), **files)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (ablation, ["nodir"], "ablation: nodir/truth.jsonl: cannot be read"),
        (ablation, ["nodir", "--models=none"], "ablation: none: no such folder"),
        (kernels, ["--queries=0"], "--queries: got 0, expected at least 1"),
        (kernels, ["--rounds=-1"], "--rounds: got -1, expected at least 1"),
        (kernels, ["--device=cuda", "--queries=2"], "kernels: the device cuda needs the extra"),
        (encoders, ["--captions=none", "--count=0"], "--count: got 0, expected at least 1"),
        (encoders, ["--captions=none", "--rounds=0"], "--rounds: got 0, expected at least 1"),
    ],
)
def test_commands_refuse_without_a_traceback(monkeypatch, capsys, module, arguments, message):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code
    assert message in f"{capsys.readouterr().err}{end.value.code}"


def test_the_command_prints_and_writes(files, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tuning, "SentenceEncoder", lambda source, precision: BagOfWords())
    monkeypatch.setattr(tuning, "default_cache", lambda: tmp_path / "cache")
    arguments = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["tuning", *arguments, "--only=ablation", f"--json={out}"])
    tuning.main()
    assert "no first context" in capsys.readouterr().out
    assert list(json.loads(out.read_text())) == ["precision", "folds", "seed", "ablation"]
