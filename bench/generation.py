"""A language model's steps side by side: ``python -m granalign_fast.bench.generation``.

A Llama of 108 million random weights is made on the spot, so no download is needed and every
runtime does the same arithmetic: ours in fp32 and int4, the stock export of optimum through
`ORTModelForCausalLM`, and transformers. Rounds take turns, and tokens are compared: a fast wrong
answer stops the run. Needs the extra [optimum]. On a CPU only ratios say something about another
machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from granalign_fast.errors import MissingExtraError
from granalign_fast.export.folder import quiet
from granalign_fast.export.llm import export_llm
from granalign_fast.generation import CausalLM

from .generators import Generate, greedy, stock_export, transformers_model
from .random_models import shape_of, write_source

MODEL = "llama-108m"
VOCABULARY = shape_of(MODEL).text["vocab_size"]


def ours(model: CausalLM) -> Generate:
    """Our loop, greedy, never stopping early."""
    return lambda prompts, count: model.generate(prompts, max_new_tokens=count, stop_ids=())


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of several runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare_steps(runtimes: dict[str, Generate], prompts: list[list[int]], rounds: int) -> None:
    """Milliseconds a decode step: a long answer less a short one, so that the prompt drops out."""
    short, long = 2, 26
    answers = {name: generate(prompts, long) for name, generate in runtimes.items()}
    wrong = [n for n, a in answers.items() if "int4" not in n and a != answers["ours, fp32"]]
    if wrong:
        sys.exit(f"{', '.join(wrong)}: other tokens than ours, the times mean nothing")
    steps: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(rounds):
        for name, generate in runtimes.items():
            few = median_seconds(partial(generate, prompts, short), 1)
            many = median_seconds(partial(generate, prompts, long), 1)
            steps[name].append((many - few) / (long - short))
    mine = statistics.median(steps["ours, fp32"])
    for name, values in steps.items():
        step = statistics.median(values)
        print(f"{name:<34}{1e3 * step:>9.1f} ms a step{step / mine:>8.2f}x ours")


def compare_prefix(model: CausalLM, rounds: int) -> None:
    """Prompts that share their beginning, with and without what is known of it."""
    random = np.random.default_rng(1)
    shared = random.integers(VOCABULARY, size=300).tolist()
    ends = random.integers(VOCABULARY, size=(22, 16)).tolist()
    prefix = model.prefill(shared)
    whole = [shared + end for end in ends]
    difference = np.abs(model.logits(whole) - model.logits(ends, prefix=prefix)).max()
    without = median_seconds(lambda: model.logits(whole), rounds)
    reused = median_seconds(lambda: model.logits(ends, prefix=prefix), rounds)
    print(
        f"22 prompts of 300 shared and 16 own tokens: {without:.2f} s whole, {reused:.2f} s behind "
        f"the prefix, {without / reused:.1f}x; logits differ by {difference:.1e}; the prefix takes "
        f"{prefix.nbytes / 2**20:.1f} MiB"
    )


def main() -> None:
    """Make the model, export it, compare."""
    parser = argparse.ArgumentParser(description="Time a language model's steps side by side.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=7, help="prompts in a batch (7: one query)")
    options = parser.parse_args()
    try:
        import optimum.onnxruntime  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        sys.exit(str(MissingExtraError("comparing with transformers and optimum", "optimum")))
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        source = write_source(MODEL, folder / "source")
        weights = shape_of(MODEL).weights / 1e6
        print(f"Llama, {weights:.0f} M random weights, {options.rows} rows of 64 tokens")
        for precision in ("fp32", "int4"):
            export_llm(source, folder / precision, precision=precision)
        fp32 = CausalLM(folder / "fp32")
        runtimes = {
            "ours, fp32": ours(fp32),
            "ours, int4": ours(CausalLM(folder / "int4")),
            "stock optimum export, fp32": greedy(stock_export(source, folder / "stock")),
            "transformers, fp32": greedy(transformers_model(source)),
        }
        prompts = np.random.default_rng(0).integers(VOCABULARY, size=(options.rows, 64)).tolist()
        compare_steps(runtimes, prompts, options.rounds)
        compare_prefix(fp32, options.rounds)


if __name__ == "__main__":
    main()
