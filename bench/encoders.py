"""Sentence encoders side by side: the same captions, one process, rounds taken in turn.

    python -m granalign_fast.bench.encoders --captions captions.jsonl.gz --count 4000

The captions file holds one JSON object a line with a list of strings under ``captions``. Every
encoder gets the first `count` captions in the file's order, repetitions and all, and starts each
round from strings. sentence-transformers takes part when it is installed, with its own defaults and
each of its backends.
On a CPU only the ratios say something about another machine; where other programs run meanwhile,
those of the best rounds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy.typing as npt

from granalign_fast.encoders import SentenceEncoder
from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import iter_jsonl
from granalign_fast.models import resolve_model

from .peers import Embed, sentence_encoders

_MIN_COSINE = {"int8": 0.99}
"""Least mean cosine to our fp32 embeddings, 0.99999 for the others: below it, a time means nothing.
"""


def read_captions(path: Path, count: int) -> list[str]:
    """The first `count` captions of a captions file, repetitions included."""
    captions: list[str] = []
    for place, record in iter_jsonl(path, required=["captions"]):
        if not isinstance(record["captions"], list):
            raise GranAlignError(f"{place}: captions: expected a list of strings")
        captions.extend(record["captions"])
        if len(captions) >= count:
            return captions[:count]
    raise GranAlignError(f"{path}: got {len(captions)} captions, expected at least {count}")


def encoders(scratch: Path) -> dict[str, Embed]:
    """What is measured, by name; the first is the baseline of the ratios."""
    found = sentence_encoders(resolve_model(), scratch, lambda note: print(f"bench: {note}"))
    for precision in ("fp32", "int8"):
        found[precision] = SentenceEncoder(precision=precision).encode
    return found


def measure(
    embedders: dict[str, Embed], texts: list[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, npt.NDArray[Any]]]:
    """Seconds of every round, and the embeddings of the last, for each encoder."""
    seconds: dict[str, list[float]] = {name: [] for name in embedders}
    embeddings: dict[str, npt.NDArray[Any]] = {}
    for embed in embedders.values():
        embed(texts[:256])  # memory and thread pools are made at the first call
    for _ in range(rounds):
        for name, embed in embedders.items():
            start = time.perf_counter()
            embeddings[name] = embed(texts)
            seconds[name].append(time.perf_counter() - start)
    return seconds, embeddings


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when outputs disagree, 2 when the input is unusable."""
    parser = argparse.ArgumentParser(description="Time sentence encoders side by side.")
    parser.add_argument("--captions", type=Path, required=True, help="JSON Lines, plain or .gz")
    parser.add_argument("--count", type=int, default=4000, help="captions to embed (4000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each encoder (5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        return compare(options, Path(scratch))


def compare(options: argparse.Namespace, scratch: Path) -> int:
    """The exit code of `main`."""
    try:
        texts = read_captions(options.captions, options.count)
        embedders = encoders(scratch)
    except GranAlignError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(f"{len(texts)} captions, {len(set(texts))} distinct; {options.rounds} rounds in turn")
    print(f"{platform.machine()}, Python {platform.python_version()}, {_versions()}")
    seconds, embeddings = measure(embedders, texts, options.rounds)
    first = next(iter(seconds.values()))
    agreed = True
    print(
        f"{'encoder':24}{'median s':>10}{'ratio':>8}{'best s':>9}{'ratio':>8}"
        f"{'mean cosine':>14}{'least':>9}"
    )
    for name, times in seconds.items():
        median, best = statistics.median(times), min(times)
        cosine = (embeddings[name] * embeddings["fp32"]).sum(axis=1)
        agreed &= bool(cosine.mean() >= _MIN_COSINE.get(name, 0.99999))
        print(
            f"{name:24}{median:>10.2f}{statistics.median(first) / median:>7.1f}x"
            f"{best:>9.2f}{min(first) / best:>7.1f}x{cosine.mean():>14.5f}{cosine.min():>9.4f}"
        )
    if not agreed:
        print("bench: the embeddings disagree, the times mean nothing", file=sys.stderr)
    return 0 if agreed else 1


def _versions() -> str:
    found = []
    for package in ("onnxruntime", "numpy", "tokenizers", "sentence-transformers", "torch"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
