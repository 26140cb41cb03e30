"""Annotation files in the forms of three published datasets, from ground truth of our own form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from granalign_fast.jsonl import Record, write_jsonl

DATASETS = ("qvhighlights", "charades", "activitynet")


def write_annotations(folder: Path, dataset: str, truth: Sequence[Record]) -> list[Path]:
    """Write ground truth as the dataset publishes it.

    Args:
        folder: is there.
        dataset: one of `DATASETS`.
        truth: records of `query`, `vid`, `duration` and `relevant_windows`. Charades-STA and
            ActivityNet-Captions have one window for a query, so there the first one is written.

    Returns:
        The files that `granalign evaluate` takes.
    """
    if dataset == "qvhighlights":
        path = folder / "highlight_val_release.jsonl"
        write_jsonl(path, truth)
        return [path]
    durations = {record["vid"]: record["duration"] for record in truth}
    if dataset == "charades":
        sentences, lengths = folder / "charades_sta_test.txt", folder / "Charades_v1_test.csv"
        sentences.write_text("".join(f"{_sentence(record)}\n" for record in truth))
        rows = [f'{vid},S1,Bedroom,5,6,Yes,"a, b",c,d,,{n}' for vid, n in durations.items()]
        columns = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions"
        lengths.write_text("\n".join([f"{columns},length", *rows]) + "\n")
        return [sentences, lengths]
    videos = {
        vid: {
            "duration": duration,
            "timestamps": [r["relevant_windows"][0] for r in truth if r["vid"] == vid],
            "sentences": [r["query"] for r in truth if r["vid"] == vid],
        }
        for vid, duration in durations.items()
    }
    path = folder / "val_2.json"
    path.write_text(json.dumps(videos))
    return [path]


def _sentence(record: Record) -> str:
    start, end = record["relevant_windows"][0]
    return f"{record['vid']} {start} {end}##{record['query']}"
