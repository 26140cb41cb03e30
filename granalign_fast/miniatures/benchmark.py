"""Held-out videos as files, for the commands to be measured on.

``python -m granalign_fast.miniatures.benchmark OUT`` writes ``videos/*.mp4``, ``queries.jsonl``,
``truth.jsonl`` and ``absent.jsonl``; then

```
granalign index OUT/videos/*.mp4 --models miniatures --out OUT/index
granalign evaluate qvhighlights --indexes OUT/index --models miniatures --rewriter models \\
    --queries OUT/queries.jsonl --ground-truth OUT/truth.jsonl --absent OUT/absent.jsonl
```
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from granalign_fast.jsonl import Record, write_jsonl

from .videos import ground_truth, render_video

FIRST_SEED = 40_000
"""No training and no choice of a constant has used a video of this seed or a later one."""


def write_benchmark(
    out: str | os.PathLike[str], videos: int = 40, *, first_seed: int = FIRST_SEED
) -> None:
    """Render videos of held-out scenes, with what is asked of them and where they show it.

    Args:
        out: a folder, made if it is not there.
        videos: how many; each comes with twelve queries that it shows and six that it does not.
        first_seed: of the videos, which have successive seeds.

    Raises:
        GranAlignError: the folder cannot be written.
    """
    folder = Path(out)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    truth: list[Record] = []
    absent: list[Record] = []
    for seed in range(first_seed, first_seed + videos):
        vid = f"scenes-{seed}"
        script = render_video(folder / "videos" / f"{vid}.mp4", seed, frame_rate=5)
        truth += ground_truth(script, vid, first_qid=len(truth))
        absent += [{"query": a.query.text, "vid": vid} for a in script.asked if not a.windows]
    queries = [{key: record[key] for key in ("qid", "query", "vid")} for record in truth]
    for name, records in (("queries", queries), ("truth", truth), ("absent", absent)):
        write_jsonl(folder / f"{name}.jsonl", records)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description="Write held-out videos and their queries.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=40)
    options = parser.parse_args()
    write_benchmark(options.out, options.videos)


if __name__ == "__main__":
    main()
