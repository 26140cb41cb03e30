"""Train the miniatures: ``python -m granalign_fast.miniatures.train all --out DIR --seed 0``.

Steps are counted, not minutes, and every step's data follow from the seed and its number: two runs
with the same torch, seed and threads (`training.THREADS`) are equal, and one that was interrupted
goes on from its last checkpoint when it is started again.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError

MODELS = ("vlm", "llm", "clip")


def train(name: str, out: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Train one model; returns its folder ``out / name``, which appears when it is done.

    Args:
        name: ``"vlm"``, ``"llm"`` or ``"clip"``.
        out: where folders and checkpoints go.
        seed: of everything random.
        scale: of the numbers of steps; 0.01 for a try.

    Raises:
        GranAlignError: there is no such model, the folder is there already, or torch is not.
    """
    if name not in MODELS:
        raise GranAlignError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    folder = out / name
    if folder.exists():
        raise GranAlignError(f"{folder}: already exists; name another folder, or delete it")
    # Threads that wait for each other must not keep a core busy that other work could use.
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
    """The command line; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description="Train the miniature models on rendered scenes.")
    parser.add_argument("model", nargs="?", default="all", choices=[*MODELS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="where the models' folders appear")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps")
    given = parser.parse_args(arguments)
    try:
        for name in MODELS if given.model == "all" else (given.model,):
            print(f"wrote {train(name, given.out, given.seed, given.scale)}", flush=True)
    except GranAlignError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
