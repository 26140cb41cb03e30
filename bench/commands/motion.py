"""Measure what several frames of a clip find that one does not.

``python -m granalign_fast.bench.commands.motion OUT``

Videos in which shapes move are rendered into OUT, and indexed once with each number of frames per
clip, by the miniature of motion. Every query names a shape, its colour and what it does, and each
video shows that shape in four shots in which it does something else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from granalign_fast.datasets import read_annotations
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.metrics import score_qvhighlights
from granalign_fast.miniatures import MOTION_MODELS
from granalign_fast.miniatures.motion_benchmark import write_benchmark
from granalign_fast.pipeline import ModelFolder
from granalign_fast.search.request import Request

FRAMES = (1, 2, 4, 6)
COLUMNS = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")
GROUPS = {
    "moves": ("left", "right", "up", "down"),
    "appears": ("appears", "disappears"),
    "grows": ("grows", "shrinks"),
    "turns": ("turns", "still"),
}
"""Motions whose queries are also scored alone, by R1@0.5."""


def measure(
    models: ModelFolder,
    folder: Path,
    motions: Mapping[int, str],
    *,
    frames: int,
    config: str = "recognition",
    clip_seconds: float = 2.0,
) -> dict[str, float]:
    """Index the videos with so many frames per clip, and score the queries.

    Args:
        models: must include a vision-language model that takes such clips.
        folder: written by `motion_benchmark.write_benchmark`.
        motions: what that returned.
        frames: of a clip.
        config: name of a preset.
        clip_seconds: seconds of a clip.

    Returns:
        `COLUMNS` of all queries, and R1@0.5 of each of `GROUPS`, in percent.

    Raises:
        GranAlignError: a file is missing, or the models take no such clips.
    """
    index = folder / f"index-{clip_seconds:g}s-{frames}"
    videos = sorted((folder / "videos").glob("*.mp4"))
    models.index(videos, index, clip_seconds=clip_seconds, frames_per_clip=frames)
    annotations = read_annotations([folder / "truth.jsonl"], "qvhighlights")
    truth, queries = annotations.ground_truth(), annotations.queries
    loaded = {q.vid: VideoIndex.load(index / q.vid) for q in queries}
    retriever = models.retriever(config)
    results = retriever.search_many([Request(loaded[q.vid], q.rewrites.query) for q in queries])
    # Moments alone are scored; saliency is of clips of 2 s.
    lines = [
        {"qid": q.qid, "pred_relevant_windows": r.to_record()["pred_relevant_windows"]}
        for q, r in zip(queries, results, strict=True)
    ]

    def scores(names: tuple[str, ...] | None) -> dict[str, float]:
        qids = {qid for qid, name in motions.items() if names is None or name in names}
        brief: dict[str, float] = score_qvhighlights(
            [line for line in lines if line["qid"] in qids],
            [record for record in truth if record["qid"] in qids],
        )["brief"]
        return brief

    whole = scores(None)
    row = {key: whole[key] for key in COLUMNS}
    return row | {name: scores(group)["MR-full-R1@0.5"] for name, group in GROUPS.items()}


def main() -> None:
    """Parse the command line, render, measure, print."""
    parser = argparse.ArgumentParser(
        description="Measure what several frames of a clip find that one does not."
    )
    parser.add_argument("out", type=Path, help="folder for videos and indexes")
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--models", type=Path, default=MOTION_MODELS)
    parser.add_argument("--preset", default="recognition")
    parser.add_argument("--clip-seconds", type=float, default=2.0)
    options = parser.parse_args()
    try:
        motions = write_benchmark(options.out, options.videos)
        models = ModelFolder(options.models)
        names = (*COLUMNS, *GROUPS)
        print("frames per clip  " + "  ".join(names))
        for frames in FRAMES:
            row = measure(
                models,
                options.out,
                motions,
                frames=frames,
                config=options.preset,
                clip_seconds=options.clip_seconds,
            )
            values = "  ".join(f"{row[name]:{len(name)}.1f}" for name in names)
            print(f"{frames:15}  {values}", flush=True)
    except (GranAlignError, OSError) as error:
        sys.exit(f"motion: {error}")


if __name__ == "__main__":
    main()
