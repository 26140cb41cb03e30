"""Rewrite queries with a small model: ``python -m granalign_fast.bench.commands.rewrites``.

``make demo-llm`` installs what it needs. SmolLM2-135M is exported once, to ``--folder``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from granalign_fast.bench.harness import smollm2
from granalign_fast.errors import GranAlignError
from granalign_fast.export.llm import export_llm
from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models.language_model import CausalLM
from granalign_fast.types import Rewrites

QUERIES = (
    "A woman in a red jacket is cutting vegetables in a kitchen",
    "Two men are talking in front of a white car",
    "A dog runs along the beach with a stick in its mouth",
    "The chef pours olive oil into a hot pan",
    "A girl unwraps a birthday present and smiles",
    "People are waiting at a bus stop in the rain",
    "A man wearing glasses plays the guitar on a sofa",
    "An elderly couple walks through a crowded market in Marrakech",
    "A reporter interviews a firefighter after the blaze",
    "Close-up of hands kneading bread dough",
)


def main() -> None:
    """Parse the command line, export the model if necessary, rewrite, print."""
    parser = argparse.ArgumentParser(description="Rewrite queries with SmolLM2-135M.")
    parser.add_argument("queries", nargs="*", help="default: ten queries of the demo")
    parser.add_argument("--precision", choices=sorted(LLM_PRECISIONS), default="int4")
    parser.add_argument("--folder", type=Path, default=Path("out/demo-llm"))
    options = parser.parse_args()
    try:
        show(options.queries or QUERIES, options.folder, options.precision)
    except GranAlignError as error:
        sys.exit(str(error))


def show(queries: Iterable[str], folder: Path, precision: str) -> None:
    """Print the rewrites of each query, and the seconds that they took."""
    out = folder / f"smollm2-{precision}"
    if not (out / "manifest.json").is_file():
        print(f"unpacking SmolLM2-135M-Instruct and exporting it to {out}")
        export_llm(smollm2.write_source(folder / "smollm2"), out, precision=precision)
    start = time.perf_counter()
    rewriter = LlmRewriter(CausalLM(out))
    rewriter.rewrite(["a dog"])  # computes what all prompts share
    print(f"model loaded in {time.perf_counter() - start:.1f} s\n")
    total, count, fallbacks = 0.0, 0, 0
    for query in queries:
        start = time.perf_counter()
        (rewrites,) = rewriter.rewrite([query])
        seconds = time.perf_counter() - start
        total += seconds
        count += len(rewrites.simplified) + len(rewrites.detailed)
        fallbacks += rewrites.fallbacks
        print("\n".join(lines(rewrites)))
        print(f"  {seconds:.2f} s, {rewrites.fallbacks} fallbacks\n")
    print(f"{count} rewrites in {total:.1f} s; {fallbacks} of them fell back to the query")


def lines(rewrites: Rewrites) -> list[str]:
    """Return a query's rewrites as lines of text."""
    rows = [("simplified", text) for text in rewrites.simplified]
    rows += [("detailed", text) for text in rewrites.detailed]
    rows += [("entities", ", ".join(rewrites.entities)), ("actions", ", ".join(rewrites.actions))]
    shown = [rewrites.query]
    for label, text in rows:
        shown.append(f"  {label:<11}{'(the query)' if text == rewrites.query else text}")
    return shown


if __name__ == "__main__":
    main()
