"""Time sentence encoders side by side on a file of captions.

``python -m granalign_fast.bench.commands.encoders --captions captions.jsonl.gz --count 4000``

Like the suite ``encoders``, but with the first `count` captions of a file, repetitions included,
instead of synthetic ones. The file holds one JSON object a line, with a list of strings under
``captions``. sentence-transformers takes part if it is installed, with its defaults and each of its
backends. On a CPU only the ratios carry over to another machine; if other programs run meanwhile,
only the ratios of the best rounds.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.timing import Rounds, WrongAnswerError, race
from granalign_fast.bench.peers.runtimes import Embed, sentence_encoders
from granalign_fast.bench.suites.encoders import sentence_judge
from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.jsonl import iter_jsonl
from granalign_fast.models.sources import resolve_model
from granalign_fast.pipeline import SentenceEncoder


def read_captions(path: Path, count: int) -> list[str]:
    """Read the first `count` captions of a captions file, repetitions included."""
    captions: list[str] = []
    for location, record in iter_jsonl(path, required=["captions"]):
        if not isinstance(record["captions"], list):
            raise GranAlignError(f"{location}: captions: expected a list of strings")
        captions.extend(record["captions"])
        if len(captions) >= count:
            return captions[:count]
    raise GranAlignError(f"{path}: got {len(captions)} captions, expected at least {count}")


def encoders(scratch: Path) -> dict[str, Embed]:
    """Return the encoders by name; ratios are taken to the first."""
    results = sentence_encoders(resolve_model(), scratch, lambda note: print(f"bench: {note}"))
    results[OURS] = SentenceEncoder(precision="fp32").encode
    results[f"{OURS}, int8"] = SentenceEncoder(precision="int8").encode
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if outputs disagree, 2 if the input is unusable."""
    parser = argparse.ArgumentParser(description="Time sentence encoders side by side.")
    parser.add_argument("--captions", type=Path, required=True, help="JSON Lines, plain or .gz")
    parser.add_argument("--count", type=int, default=4000, help="captions to embed (4000)")
    parser.add_argument("--rounds", type=int, default=3, help="of each of the two passes (3)")
    options = parser.parse_args(arguments)
    for name in ("count", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: got {getattr(options, name)}, expected at least 1")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            compare(read_captions(options.captions, options.count), options.rounds, Path(scratch))
    except WrongAnswerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except GranAlignError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def compare(texts: list[str], rounds: int, scratch: Path) -> None:
    """Time all encoders on the same texts, and print the times.

    Raises:
        WrongAnswerError: the embeddings disagree.
    """
    judge = sentence_judge(SentenceModel.read(resolve_model()))
    print(f"{len(texts)} captions, {len(set(texts))} distinct; {_versions()}")
    results = race(
        encoders(scratch),
        lambda rng: texts,
        judge,
        rounds=Rounds(most=rounds, seconds=float("inf")),
    )
    first = next(iter(results.values()))
    print(f"{'encoder':34}{'median s':>10}{'ratio':>8}{'best s':>9}{'ratio':>8}")
    for name, samples in results.items():
        median, best = samples.median, samples.quantile(0)
        print(
            f"{name:34}{median:>10.2f}{first.median / median:>7.1f}x"
            f"{best:>9.2f}{first.quantile(0) / best:>7.1f}x"
        )


def _versions() -> str:
    results = [platform.machine(), f"Python {platform.python_version()}"]
    for package in ("onnxruntime", "numpy", "tokenizers", "sentence-transformers", "torch"):
        try:
            results.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(results)


if __name__ == "__main__":
    sys.exit(main())
