"""Captions, rewrites, predictions, annotations and reports: valid files, and how they are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from .case import all_of

# Text files.


def _jsonl(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_captions(folder: Path) -> None:
    records: list[dict[str, object]] = [
        {"vid": name, "captions": ["a red car", "a dog runs"], "duration": 4.0}
        for name in ("a", "b")
    ]
    (folder / "a.jsonl").write_text(_jsonl(records))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(_jsonl(records).encode(), mtime=0))


def read_captions(folder: Path) -> object:
    from granalign_fast import MomentRetriever, read_captions
    from helpers.fakes import BagOfWords

    found = {**read_captions(folder / "b.jsonl.gz"), **read_captions(folder / "a.jsonl")}
    retriever = MomentRetriever(BagOfWords())
    for video in list(found.values())[:2]:
        retriever.search(retriever.index(video), "a red car")
    return found


def write_rewrites(folder: Path) -> None:
    records: list[dict[str, object]] = [
        {"query": "a red car", "simplified": ["car", "red car"], "detailed": ["a red car drives"]},
        {"query": "a dog", "rewrites": ["dog", "a dog runs"]},
    ]
    (folder / "a.jsonl").write_text(_jsonl(records))
    absent: list[dict[str, object]] = [{"query": "a cat", "vid": "a", "simplified": ["cat"]}]
    (folder / "absent.jsonl").write_text(_jsonl(absent))


def read_rewrites(folder: Path) -> object:
    from granalign_fast.evaluation.absent import read_absent
    from granalign_fast.language.rewriters import RuleRewriter, StoredRewriter

    read_absent(folder / "absent.jsonl")
    known = StoredRewriter(folder / "a.jsonl").known
    RuleRewriter().rewrite(list(known))
    return known


TRUTH = [
    {"qid": 11, "query": "A cook slices an onion", "vid": "v", "duration": 148},
    {"qid": 12, "query": "A pan is on the stove.", "vid": "w", "duration": 148},
]


def write_predictions(folder: Path) -> None:
    windows = [[0.0, 10.0, 0.9], [20.0, 30.0, 0.5]]
    records: list[dict[str, object]] = [
        {
            "qid": truth["qid"],
            "query": truth["query"],
            "vid": truth["vid"],
            "pred_relevant_windows": windows,
            "pred_saliency_scores": [0.1] * 74,
        }
        for truth in TRUTH
    ]
    (folder / "a.jsonl").write_text(_jsonl(records))
    by_video = {"results": {"v": [{"sentence": TRUTH[0]["query"], "timestamp": [1, 2]}]}}
    (folder / "b.json").write_text(json.dumps(by_video))


def read_predictions(folder: Path) -> object:
    from granalign_fast.datasets.predictions import read_predictions
    from granalign_fast.metrics import score_qvhighlights

    truth = [
        record
        | {"relevant_windows": [[2, 8]], "relevant_clip_ids": [1], "saliency_scores": [[4, 4, 4]]}
        for record in TRUTH
    ]
    read_predictions(folder / "b.json", truth)
    found = read_predictions(folder / "a.jsonl", truth)
    return score_qvhighlights([record for _, record in found], truth)


def write_annotations(folder: Path) -> None:
    from helpers import annotations

    for name, content in {
        "qv.jsonl": annotations.QVHIGHLIGHTS,
        "vtg.jsonl": annotations.VTG_GPT,
        "charades.txt": annotations.CHARADES,
        "lengths.csv": annotations.LENGTHS,
        "activitynet.json": annotations.ACTIVITYNET,
        "tfvtg.json": annotations.TFVTG,
    }.items():
        annotations.write(folder / name, content)
    data = (folder / "qv.jsonl").read_bytes()
    (folder / "gz.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))


def read_annotations(folder: Path) -> object:
    from granalign_fast import read_annotations

    groups = [
        ["qv.jsonl"],
        ["vtg.jsonl"],
        ["charades.txt", "lengths.csv"],
        ["activitynet.json"],
        ["tfvtg.json"],
        ["gz.jsonl.gz"],
    ]
    paths = [[folder / name for name in names] for names in groups]
    return all_of(*(lambda group=group: read_annotations(group).ground_truth() for group in paths))


def write_reports(folder: Path) -> None:
    from granalign_fast.bench.harness.records import Record, Report, SuiteRun
    from granalign_fast.runtime.engine_stamp import EngineStamp
    from granalign_fast.runtime.shapes import Bounds
    from granalign_fast.runtime.tensorrt_library import Machine

    results = {
        "kind": "evaluation-results",
        "format_version": 1,
        "dataset": "qvhighlights",
        "ground_truth_sha256": "0" * 64,
        "each": [{"qid": 1, "vid": "a", "query": "a car", "figures": {"mAP": 0.5}}],
    }
    (folder / "results.json").write_text(json.dumps(results))
    EngineStamp(
        engine_sha256="0" * 64,
        sources={"model.onnx": "1" * 64},
        machine=Machine("10.16.1.11", "9.0", "H200"),
        precision="fp16",
        flags=["FP16"],
        profiles=[{"input_ids": Bounds((1, 1), (8, 32), (16, 64))}],
        validation={"error": 0.1},
    ).write(folder / "a.engine")
    names = ("median", "p90", "p99", "low", "high", "noise")
    record = Record(suite="a", task="b", samples=3, **dict.fromkeys(names, 0.1))
    machine = dict.fromkeys(("cpu", "cores", "memory_bytes", "system", "python", "commit"), 1)
    Report(
        machine | {"packages": {"av": "18"}, "device": "cpu", "load": [0.1]},
        {"seconds": 1},
        {"bandwidth": 1.0, "rates": {"fp32": 2.0}},
        {"a": SuiteRun()},
        [record],
    ).write(folder / "bench.json")


def read_reports(folder: Path) -> object:
    from granalign_fast.bench.harness.records import Report
    from granalign_fast.bench.harness.report import markdown
    from granalign_fast.evaluation.results import read_results
    from granalign_fast.runtime.engine_stamp import EngineStamp

    return all_of(
        lambda: EngineStamp.read(folder / "a.engine"),
        lambda: read_results(folder / "results.json"),
        lambda: markdown(Report.read(folder / "bench.json")),
    )
