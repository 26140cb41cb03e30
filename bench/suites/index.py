"""Suite ``index``: index a video file, and measure each stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.bench.harness.judges import PlainFrames, PlainSentences, judge_answers
from granalign_fast.bench.harness.models import models_of
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import Draw, HostClock, require
from granalign_fast.bench.harness.workloads import video
from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.index import VideoIndex
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.prompts import AGNOSTIC_CAPTION
from granalign_fast.models.manifest import CLIP, SENTENCE_ENCODER
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.models.sources import resolve_model
from granalign_fast.pipeline import ModelFolder
from granalign_fast.types import FrameSet, Image, frame_hash
from granalign_fast.video.frames import Frame, probe, read_frames

_ROWS = 16
"""Frames in a batch."""


def run(bench: Bench) -> None:
    """Measure a whole index run, and each of its stages alone."""
    models = models_of(bench)
    captioner = captioner_of(models)
    path = video(bench.folder, side=224, frame_rate=10)
    info = probe(path)
    judge = IndexJudge(models, captioner, [frame.image for frame in read_frames(path)])
    sizes = {"clips": info.clips, "seconds": round(info.duration)}
    numbers = itertools.count()

    def draw(rng: np.random.Generator) -> Path:
        # Start as a first run does, with no prefix of any frame.
        captioner.cache = PrefixCache()
        return bench.folder / "indexes" / str(next(numbers))

    samples = bench.race(
        "index a video",
        [Runner(run=lambda out: models.index([path], out, rows=_ROWS)[0])],
        draw,
        lambda out, outputs: judge.index(VideoIndex.load(outputs[OURS])),
        unit="clip",
        items=info.clips,
        clock=HostClock(),
        parameters=sizes,
        rounds=6,
    )
    seconds = samples[OURS].median
    bench.note(f"{info.duration / seconds:.0f} times as fast as the video plays")
    bench.constant("index_seconds_per_clip", seconds / info.clips)
    folder = models.index([path], bench.folder / "kept", rows=_ROWS)[0]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    bench.constant("index_bytes_per_clip", size / info.clips)
    stages = _stages(bench, models, captioner, path, judge)
    # Stages overlap in an index run, so the sum of their times alone may exceed the run's.
    other = seconds / info.clips - sum(stages.values())
    bench.breakdown("index, a clip", stages | ({"other": other} if other > 0 else {}))


def captioner_of(models: ModelFolder) -> VlmCaptioner:
    """Return the captioner of a folder of models.

    Raises:
        GranAlignError: the folder has no vision-language model.
    """
    if not isinstance(models.captioner, VlmCaptioner):
        raise GranAlignError(
            f"{models.folder}: got no model of kind 'vlm', expected one to caption frames"
        )
    return models.captioner


class IndexJudge:
    """Judges an index and its stages by independent computations.

    Args:
        models: the run's models.
        captioner: the captioner of these models.
        images: the video's frames, one for each clip.
    """

    def __init__(self, models: ModelFolder, captioner: VlmCaptioner, images: list[Image]) -> None:
        self.captioner, self.images = captioner, images
        self.hashes = FrameSet.of(images).hashes
        # A sentence encoder of the models' folder exists only as an export, without its source.
        self.alone = models.encoder if SENTENCE_ENCODER in models else None
        self.sentences = None if self.alone else PlainSentences(SentenceModel.read(resolve_model()))
        self.frames = (
            PlainFrames(models.frame_encoder, models.paths[CLIP]) if models.frame_encoder else None
        )

    def index(self, index: VideoIndex) -> None:
        """Judge a whole index.

        Raises:
            WrongAnswerError: frames, captions or embeddings differ.
        """
        frames = index.frames
        require(frames is not None and frames.hashes == self.hashes, "index: other frames")
        captions = index.video.captions
        require(captions is not None, "index: no captions")
        self.captions(captions or ())
        self.texts(captions or (), index.caption_embeddings)
        if self.frames is not None and frames is not None:
            require(frames.embeddings is not None, "index: no embeddings of frames")
            self.frames.judge(self.images, np.asarray(frames.embeddings))

    def captions(self, texts: Sequence[str]) -> None:
        """Judge the captions of all frames: in the run's batches they must be exactly the same.

        Raises:
            WrongAnswerError: a caption differs from the model's answer.
        """
        require(len(texts) == len(self.images), f"captions: {len(texts)} of {len(self.images)}")
        cache, self.captioner.cache = self.captioner.cache, PrefixCache()
        try:
            for start in range(0, len(texts), _ROWS):
                images = self.images[start : start + _ROWS]
                answers = self.captioner.answers(FrameSet.of(images), AGNOSTIC_CAPTION)
                judge_answers("captions", self.captioner, images, AGNOSTIC_CAPTION, answers)
                for text, answer in zip(texts[start:], answers, strict=False):
                    expected = " ".join(self.captioner.model.decode(answer).split())
                    require(text == expected, f"captions: got {text!r}, expected {expected!r}")
        finally:
            self.captioner.cache = cache

    def texts(self, texts: Sequence[str], rows: npt.NDArray[Any]) -> None:
        """Judge the embeddings of captions.

        Raises:
            WrongAnswerError: an embedding differs.
        """
        if self.sentences is not None:
            self.sentences.judge(texts, rows)
        elif self.alone is not None:
            require(len(rows) == len(texts), f"sentences: {len(rows)} embeddings of {len(texts)}")
            for text, row in zip(texts[:4], rows, strict=False):
                off = float(np.abs(self.alone.encode([text])[0] - row).max())
                require(off < 1e-3, f"sentences: an embedding is {off:.0e} off")

    def prefixes(self) -> None:
        """Judge the kept prefixes: their total size, and the contents of the first frame's.

        Raises:
            WrongAnswerError: the size or the contents differ from a frame prefilled alone.
        """
        captioner = self.captioner
        cache = sum(captioner.cache.nbytes.values())
        prefix = captioner.model.prefill_frames(self.images[:1], captioner.start)
        (alone,) = prefix.unstack(captioner.model.device)
        require(cache == alone.nbytes * len(set(self.hashes)), f"prefixes: {cache} bytes are kept")
        (seen,) = captioner._prefixes(FrameSet.of(self.images[:1]), [0])
        off = float(abs(seen - alone).max() / abs(alone).max())
        require(off < 1e-2, f"prefixes: {off:.0e} from a frame's prefilled alone")


def _stages(
    bench: Bench, models: ModelFolder, captioner: VlmCaptioner, path: Path, judge: IndexJudge
) -> dict[str, float]:
    """Return the seconds a clip of each stage alone; an index run overlaps decoding with models."""
    images, clips = judge.images, len(judge.images)
    texts = captioner.agnostic(FrameSet.of(images))

    def decoded(inputs: Path, frames: list[Frame]) -> None:
        require([frame_hash(f.image) for f in frames] == list(judge.hashes), "decode: other frames")

    stages: dict[str, tuple[Draw, Any, Any]] = {
        "decode": (lambda rng: path, lambda p: list(read_frames(p)), decoded),
        "look at frames": (
            lambda rng: _forgetting(captioner, images),
            captioner.prefill,
            lambda inputs, output: judge.prefixes(),
        ),
        "caption": (
            lambda rng: FrameSet.of(images),
            captioner.agnostic,
            lambda inputs, output: judge.captions(output),
        ),
        "embed captions": (lambda rng: texts, models.encoder.encode, judge.texts),
    }
    if (encoder := models.frame_encoder) is not None and (plain := judge.frames) is not None:
        stages["embed frames"] = (lambda rng: images, encoder.encode_frames, plain.judge)
    medians = {}
    for name, (draw, stage, judged) in stages.items():
        samples = bench.race(
            f"stage: {name}",
            [Runner(run=stage)],
            draw,
            lambda inputs, outputs, judged=judged: judged(inputs, outputs[OURS]),  # type: ignore[misc]
            unit="clip",
            items=clips,
            clock=HostClock(),
            parameters={"clips": clips},
            rounds=5,
            seconds=bench.settings.seconds / 2,
        )
        medians[name] = samples[OURS].median / clips
    bench.constant("prefix_bytes_per_clip", sum(captioner.cache.nbytes.values()) / clips)
    return medians


def _forgetting(captioner: VlmCaptioner, images: list[Any]) -> FrameSet:
    captioner.cache = PrefixCache()
    return FrameSet.of(images)
