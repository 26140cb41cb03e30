"""Time query-aware captions side by side: ``python -m granalign_fast.bench.commands.captions``.

The model is a Qwen2.5-VL of 112 million random weights, so no download is needed and every runtime
does the same arithmetic. The same frames are captioned for a query in three ways: after kept
prefixes, from the whole prompt, and by transformers. They take turns in each round. If their
captions differ, the run stops. Needs the extra [optimum]. On a CPU only the ratios carry over to
another machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from granalign_fast.bench.harness.random_models import shape_of, write_source
from granalign_fast.bench.peers.clip_answers import TransformersClips
from granalign_fast.errors import MissingExtraError
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.vlm import export_vlm
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.prefix_cache import MemoryTier, PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet

_MODEL = "qwen2.5-vl-112m"
_FOCUS = ("a man in a red coat", "a dog", "runs over the road")
_SIZE = shape_of(_MODEL).image_size


def main() -> None:
    """Parse the command line, create and export the model, compare."""
    parser = argparse.ArgumentParser(description="Time query-aware captions side by side.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=22)
    parser.add_argument("--steps", type=int, default=16, help="tokens of a caption")
    options = parser.parse_args()
    try:
        import transformers  # noqa: F401
    except ImportError:
        sys.exit(str(MissingExtraError("comparing with transformers", "export")))
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = Path(temporary)
        write_source(_MODEL, folder / "source")
        weights = shape_of(_MODEL).weights
        export_vlm(folder / "source", folder / "out", image_size=_SIZE)
        model = VisionLanguageModel(folder / "out")
        print(
            f"Qwen2.5-VL, {weights / 1e6:.0f} M random weights, fp32; {options.frames} frames of "
            f"{_SIZE[0]} x {_SIZE[1]}, {model.manifest.image_tokens} tokens each; "
            f"{options.steps} new tokens"
        )
        compare(model, folder / "source", options)


def compare(model: VisionLanguageModel, source: Path, options: argparse.Namespace) -> None:
    """Time the three variants in turn, and measure the memory of kept prefixes."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (options.frames, _SIZE[0] // 28, _SIZE[1] // 28, 3))
    frames = blocks.repeat(28, axis=1).repeat(28, axis=2).astype(np.uint8)
    captioner = VlmCaptioner(
        model,
        cache=PrefixCache([MemoryTier(8 << 30)]),
        rows=options.frames,
        max_new_tokens=options.steps,
    )
    ids = model.chat(prompts.about_frame(prompts.aware_caption(_FOCUS)))
    frame_set = FrameSet.of(frames)
    peer = TransformersClips(source, _SIZE)
    prepared = peer.prepare(frames[:, None], model.layout().expand(ids).ids)

    def with_prefixes() -> list[list[int]]:
        return captioner.answers(frame_set, prompts.aware_caption(_FOCUS), stop_ids=())

    def whole() -> list[list[int]]:
        prefix = model.prefill_frames(frames, ids[:-1])
        last = [ids[-1:]] * len(frames)
        return model.generate(last, prefix=prefix, max_new_tokens=options.steps, stop_ids=())

    variants: dict[str, Callable[[], list[list[int]]]] = {
        "ours, behind kept prefixes": with_prefixes,
        "ours, the whole prompt": whole,
        "transformers generate": lambda: peer.captions(prepared, options.steps),
    }
    start = time.perf_counter()
    captioner.prefill(frame_set)
    filling = time.perf_counter() - start
    answers = {name: run() for name, run in variants.items()}
    if wrong := [
        name for name, tokens in answers.items() if tokens != answers["transformers generate"]
    ]:
        sys.exit(f"{', '.join(wrong)}: other tokens than transformers, the times mean nothing")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    best = statistics.median(seconds["ours, behind kept prefixes"])
    for name, values in seconds.items():
        took = statistics.median(values)
        print(f"{name:<30}{took:>8.2f} s{took / best:>8.1f}x")
    computed = captioner.start_of().tokens * model.manifest.token_bytes
    each = captioner.cache.nbytes["host"] / len(frames)
    print(
        f"filling the prefixes, once a video: {filling:.2f} s; {each / 2**20:.2f} MiB a frame, "
        f"computed: {computed / 2**20:.2f} MiB"
    )


if __name__ == "__main__":
    main()
