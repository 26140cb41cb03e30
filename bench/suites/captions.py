"""Suite ``captions``: each family of vision-language models captions clips and recognises a query.

The models have random weights, about 100 million of them at `Settings.size` 0.5 and above. All
runtimes get the same pixels and the same token ids in fp32, and write equally many tokens. Their
tokens must be identical, and their probabilities equal. The time of ours includes the preparation
of frames; transformers gets prepared pixels. onnxruntime-genai writes only the text part of a
Qwen-VL, so it takes part in answers to texts that are as long as a prompt about a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.bench.harness import random_models
from granalign_fast.bench.harness.judges import judge_clip_answers, judge_tokens
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, require
from granalign_fast.bench.peers import generators
from granalign_fast.bench.peers.clip_answers import TransformersClips
from granalign_fast.bench.peers.runtimes import (
    GENAI_ENGINE,
    ON_THE_CPU,
    TRANSFORMERS,
    dropping_out,
    leave_out,
)
from granalign_fast.export.sources.folder import quiet
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.manifest import VLM
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet

_MODELS = ("qwen3-vl-109m", "smolvlm2-108m", "qwen2.5-vl-112m")
_MINI = ("qwen3-vl-mini", "smolvlm2-mini", "qwen2.5-vl-mini")
_FRAMES = (1, 4)
"""Frames of a clip."""
_CLIPS = (1, 6)
"""Clips of a batch."""
_APART = 0.5
"""Seconds from a frame of a clip to the next: those of two are whole, as transformers wants."""
_TOKENS = 24
"""New tokens of a caption."""
_FOCUS = ("a man in a red coat", "a dog", "runs over the road")
_QUERY = "a dog runs over the road"
_SEEN = f"{OURS}, frames seen before"
_EQUAL = 2e-3
"""Largest difference of two computations of the same probability in fp32."""
_NO_IMAGES = "onnxruntime-genai: no captions, because "
_GENAI_LACKS = {
    random_models.QWEN_VL: "it writes only the text part of a Qwen2.5-VL",
    random_models.QWEN3_VL: "it writes only the text part of a Qwen3-VL, which has no input for "
    "the features of deepstack",
    random_models.SMOL: "it knows no SmolVLM",
}


def run(bench: Bench) -> None:
    """Race every family, one after another."""
    if bench.settings.models is not None:
        bench.note("--models is not read: the race is one of random weights")
    chosen = [n for n in bench.settings.random if random_models.shape_of(n).kind == VLM]
    for name in chosen or (_MODELS if bench.settings.size >= 0.5 else _MINI):
        _Family.open(bench, name).race(bench)


class _Inputs(NamedTuple):
    """Clips of a round.

    Attributes:
        images: (clips, frames, height, width, 3) uint8.
        clips: the same for our captioner.
        seen: a cache that has the prefixes of these clips.
        theirs: what transformers gets for each task; empty without it.
    """

    images: Any
    clips: FrameSet
    seen: PrefixCache
    theirs: Mapping[str, Any]


class _Family(NamedTuple):
    """A model in our runtime and in transformers.

    Attributes:
        name: in `random_models.SHAPES`.
        source: its folder of transformers.
        captioner: ours.
        peer: in transformers; None if it is not installed or failed.
    """

    name: str
    source: Path
    captioner: VlmCaptioner
    peer: TransformersClips | None

    @classmethod
    def open(cls, bench: Bench, name: str) -> _Family:
        """Write a model, export it in fp32, and load it in both runtimes."""
        folder = bench.folder / "captions" / name
        out = random_models.write_export(name, folder, precision="fp32")
        source = folder / "sources" / name
        model = VisionLanguageModel(out, device=bench.settings.device)
        peer = None
        if TRANSFORMERS.installed:
            with dropping_out(TRANSFORMERS, bench.note), quiet():
                device = "cuda" if bench.on_gpu else "cpu"
                height, width = model.manifest.image_size
                peer = TransformersClips(source, (height, width), device)
        return cls(name, source, VlmCaptioner(model, max_new_tokens=_TOKENS), peer)

    def race(self, bench: Bench) -> None:
        """Race captions and recognition for all numbers of frames and clips, then texts."""
        for frames in _FRAMES:
            for clips in _CLIPS:
                sizes = {"model": self.name, "clips": clips, "frames": frames}
                self._captions(bench, sizes)
                self._recognition(bench, sizes)
        self._texts(bench)

    def _captions(self, bench: Bench, sizes: Mapping[str, Any]) -> None:
        """Race query-aware captions, of new clips and of clips whose prefixes are kept."""
        task = prompts.aware_caption(_FOCUS, sizes["frames"])
        captioner = self.captioner

        def ours(cache: PrefixCache, inputs: _Inputs) -> list[list[int]]:
            captioner.cache = cache
            return captioner.answers(inputs.clips, task, stop_ids=())

        runners = [
            Runner(run=lambda inputs: ours(PrefixCache(), inputs)),
            Runner(name=_SEEN, run=lambda inputs: ours(inputs.seen, inputs)),
        ]
        if (peer := self.peer) is not None:
            name = f"{TRANSFORMERS.name} generate"
            runners.append(
                Runner(
                    name=name, run=lambda i: peer.captions(i.theirs["caption"], _TOKENS), peer=True
                )
            )

        def judge(inputs: _Inputs, outputs: Mapping[str, Any]) -> None:
            def likeliest(who: str, answers: list[list[int]]) -> None:
                judge_clip_answers(who, captioner, inputs.clips, task, answers)

            self._judge(bench, outputs, likeliest)

        bench.race(
            "caption clips",
            runners,
            partial(self._draw, sizes, {"caption": task}),
            judge,
            unit="clip",
            items=sizes["clips"],
            clock=HostClock(),
            parameters={**sizes, "tokens": _TOKENS},
            rounds=5,
        )

    def _recognition(self, bench: Bench, sizes: Mapping[str, Any]) -> None:
        """Race the probabilities that the clips show a query."""
        captioner = self.captioner

        def ours(cache: PrefixCache, inputs: _Inputs) -> Any:
            captioner.cache = cache
            return captioner.recognise(inputs.clips, [_QUERY])[0]

        runners = [
            Runner(run=lambda inputs: ours(PrefixCache(), inputs)),
            Runner(name=_SEEN, run=lambda inputs: ours(inputs.seen, inputs)),
        ]
        if (peer := self.peer) is not None:
            yes, no = captioner.answer_tokens
            runners.append(
                Runner(
                    name=TRANSFORMERS.name,
                    run=lambda inputs: peer.shares(inputs.theirs["query"], yes, no),
                    peer=True,
                )
            )

        def judge(inputs: _Inputs, outputs: Mapping[str, Any]) -> None:
            for runner, shares in outputs.items():
                off = float(np.abs(shares - outputs[OURS]).max())
                require(off < _EQUAL, f"{self.name}, {runner}: probabilities {off:.0e} from ours")

        bench.race(
            "recognise a query in clips",
            runners,
            partial(self._draw, sizes, {"query": prompts.recognition(_QUERY, sizes["frames"])}),
            judge,
            unit="clip",
            items=sizes["clips"],
            clock=HostClock(),
            parameters=sizes,
            rounds=5,
        )

    def _judge(
        self,
        bench: Bench,
        outputs: Mapping[str, list[list[int]]],
        likeliest: Callable[[str, list[list[int]]], None],
    ) -> None:
        """Require that all runtimes wrote the tokens of ours.

        Two tokens may be equally likely but for rounding. So where answers differ, and where there
        is nobody to compare with, every token must be the likeliest: `likeliest` checks it.
        """
        ours = outputs[OURS]
        others = {name: answers for name, answers in outputs.items() if answers != ours}
        for name, answers in others.items():
            same = np.mean([a == b for a, b in zip(answers, ours, strict=True)])
            who = f"{self.name}, {name}"
            likeliest(who, answers)
            bench.note(
                f"{who}: in one round {same:.0%} of the answers had the tokens of ours; the others "
                f"took another token that is as likely but for rounding"
            )
        if others or len(outputs) == 1 + (_SEEN in outputs):
            likeliest(self.name, ours)

    def _draw(
        self, sizes: Mapping[str, Any], tasks: Mapping[str, str], rng: np.random.Generator
    ) -> _Inputs:
        """Draw clips of coloured blocks, keep their prefixes, and prepare them for transformers."""
        captioner, frames = self.captioner, sizes["frames"]
        height, width = captioner.model.manifest.image_size
        shape = sizes["clips"], frames, -(-height // 16), -(-width // 16), 3
        blocks = rng.integers(0, 256, shape, np.uint8)
        images = blocks.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
        images = np.ascontiguousarray(images)
        apart = _APART if frames > 1 else 0.0
        clips = FrameSet.of(images if frames > 1 else images[:, 0], frame_seconds=apart)
        captioner.cache = seen = PrefixCache()
        captioner.prefill(clips)
        theirs: dict[str, Any] = {}
        if self.peer is not None:
            start = captioner.start_of(clips.form)
            layout = captioner.model.layout(frames, apart)
            for name, task in tasks.items():
                ids = layout.expand(start.prompt(task)).ids
                theirs[name] = self.peer.prepare(images, ids, apart)
        return _Inputs(images, clips, seen, theirs)

    def _texts(self, bench: Bench) -> None:
        """Race answers to texts as long as prompts about a frame, against onnxruntime-genai."""
        if not GENAI_ENGINE.installed:
            return
        architecture = random_models.shape_of(self.name).architecture
        bench.note(_NO_IMAGES + _GENAI_LACKS[architecture])
        if architecture == random_models.SMOL:
            return
        if bench.on_gpu:
            leave_out((GENAI_ENGINE,), bench.note, ON_THE_CPU)
            return
        theirs: dict[str, generators.Generate] = {}
        with dropping_out(GENAI_ENGINE, bench.note), quiet():
            theirs["onnxruntime-genai"] = generators.genai(
                self.source, self.source.parent / "genai"
            )
        model, rows = self.captioner.model, _CLIPS[-1]
        start = self.captioner.start_of((1, 0.0))
        length = start.tokens + len(start.suffix(prompts.aware_caption(_FOCUS)))

        def draw(rng: np.random.Generator) -> list[list[int]]:
            # Words alone: among the first ids are those of images.
            ids: list[list[int]] = rng.integers(
                300, model.manifest.vocabulary, (rows, length)
            ).tolist()
            return ids

        def judge(inputs: list[list[int]], outputs: Mapping[str, Any]) -> None:
            def likeliest(who: str, answers: list[list[int]]) -> None:
                judge_tokens(who, model, inputs, answers)

            self._judge(bench, outputs, likeliest)

        bench.race(
            "answer texts as long as prompts about a frame",
            [
                Runner(
                    run=lambda ids: model.generate(ids, max_new_tokens=_TOKENS, stop_ids=()),
                ),
                *(
                    Runner(name=name, run=lambda ids, run=run: run(ids, _TOKENS), peer=True)  # type: ignore[misc]
                    for name, run in theirs.items()
                ),
            ],
            draw,
            judge,
            unit="text",
            items=rows,
            clock=HostClock(),
            parameters={
                "model": self.name,
                "texts": rows,
                "prompt tokens": length,
                "tokens": _TOKENS,
            },
            rounds=5,
        )
