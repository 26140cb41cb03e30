"""Write held-out videos and their queries as files, to measure the commands on.

``python -m granalign_fast.miniatures.benchmark OUT`` writes ``videos/*.mp4``, ``queries.jsonl``,
``truth.jsonl`` and ``absent.jsonl``, and prints the commands that index and evaluate them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record, write_jsonl

from .videos import ground_truth, render_video

FIRST_SEED = 40_000
"""First seed of the videos: training and the choice of constants used only smaller seeds."""


def write_benchmark(
    out: str | os.PathLike[str], videos: int = 40, *, first_seed: int = FIRST_SEED
) -> None:
    """Render videos of held-out scenes, with queries and the windows in which they are shown.

    Args:
        out: a folder, created if it is missing.
        videos: number of videos; each has twelve queries that it shows and six that it does not.
        first_seed: seed of the first video; the others have the next seeds.

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
        absent += [{"query": a.query.text, "vid": vid} for a in script.queries if not a.windows]
    queries = [{key: record[key] for key in ("qid", "query", "vid")} for record in truth]
    for name, records in (("queries", queries), ("truth", truth), ("absent", absent)):
        write_jsonl(folder / f"{name}.jsonl", records)


def commands(out: str | os.PathLike[str]) -> str:
    """Return shell commands that index the videos of `out`, and evaluate two presets.

    The presets are ``tuned`` and ``recognition``. Recognition uses the queries as they are, so it
    is evaluated without rewrites.
    """
    folder = shlex.quote(os.fspath(out))
    index = f"granalign index {folder}/videos/*.mp4 --models miniatures --out {folder}/index"
    evaluate = (
        f"granalign evaluate qvhighlights {folder}/queries.jsonl {folder}/truth.jsonl "
        f"--indexes {folder}/index --models miniatures "
        f"--absent {folder}/absent.jsonl --preset"
    )
    return "\n".join((index, f"{evaluate} tuned --rewriter models", f"{evaluate} recognition"))


def main() -> None:
    """Parse the command line, write the files, and print the commands."""
    parser = argparse.ArgumentParser(description="Write held-out videos and their queries.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=40)
    options = parser.parse_args()
    try:
        write_benchmark(options.out, options.videos)
    except (GranAlignError, OSError) as error:
        sys.exit(f"benchmark: {error}")
    print(commands(options.out))


if __name__ == "__main__":
    main()
