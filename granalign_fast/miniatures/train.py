"""Train the miniatures: ``python -m granalign_fast.miniatures.train all --out DIR --seed 0``.

Training lasts a number of steps, not minutes, and a step's data depend only on the seed and the
step's number. So two runs with the same torch, seed and threads are equal; the threads are
`training.THREADS`, and one for the model of motion. Run the same command again to resume from the
last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError

MODELS = ("vlm", "llm", "clip", "motion")


def train(name: str, out: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Train one model; return its folder ``out / name``, which appears when training is complete.

    Args:
        name: one of `MODELS`.
        out: folder for the models' folders and checkpoints.
        seed: seed of everything random.
        scale: factor of the numbers of steps; 0.01 for a trial run.

    Raises:
        GranAlignError: there is no such model, or the folder already exists.
        MissingExtraError: torch or transformers is not installed.
    """
    if name not in MODELS:
        raise GranAlignError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    folder = out / name
    if folder.exists():
        raise GranAlignError(f"{folder}: already exists; name another folder, or delete it")
    # OpenMP's waiting threads must sleep: by default they keep cores busy that other work needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtraError("training the miniatures", "optimum") from None
    out.mkdir(parents=True, exist_ok=True)
    import_module(f"{__package__}.train_{name}").run(folder, seed, scale)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; return 2 for a user's error."""
    parser = argparse.ArgumentParser(description="Train the miniature models on rendered scenes.")
    parser.add_argument("model", nargs="?", default="all", choices=[*MODELS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the models' folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of steps")
    options = parser.parse_args(arguments)
    try:
        for name in MODELS if options.model == "all" else (options.model,):
            print(f"wrote {train(name, options.out, options.seed, options.scale)}", flush=True)
    except GranAlignError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
