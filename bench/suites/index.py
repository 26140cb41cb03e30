"""Suite ``index``: a video file to an index on disk, and where the time goes."""

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
    """The whole trip, and each of its stages alone."""
    models = models_of(bench)
    captioner = captioner_of(models)
    path = video(bench.folder, side=224, frame_rate=10)
    info = probe(path)
    judge = IndexJudge(models, captioner, [frame.image for frame in read_frames(path)])
    sizes = {"clips": info.clips, "seconds": round(info.duration)}
    places = itertools.count()

    def draw(rng: np.random.Generator) -> Path:
        # Nothing is known of a frame yet: what a first run finds.
        captioner.cache = PrefixCache()
        return bench.folder / "indexes" / str(next(places))

    found = bench.race(
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
    taken = found[OURS].median
    bench.note(f"{info.duration / taken:.0f} times as fast as the video plays")
    bench.constant("index_seconds_per_clip", taken / info.clips)
    folder = models.index([path], bench.folder / "kept", rows=_ROWS)[0]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    bench.constant("index_bytes_per_clip", size / info.clips)
    stages = _stages(bench, models, captioner, path, judge)
    # Stages that run beside each other may take longer alone than all of them together.
    other = taken / info.clips - sum(stages.values())
    bench.breakdown("index, a clip", stages | ({"other": other} if other > 0 else {}))


def captioner_of(models: ModelFolder) -> VlmCaptioner:
    """The captioner of a folder of models.

    Raises:
        GranAlignError: there is none.
    """
    if models.captioner is None:
        raise GranAlignError(
            f"{models.folder}: got no model of kind 'vlm', expected one to caption frames"
        )
    return models.captioner


class IndexJudge:
    """What is known of a video by other ways than an index run takes.

    Args:
        models: of the run.
        captioner: theirs.
        images: the video's frames, one for each clip.
    """

    def __init__(self, models: ModelFolder, captioner: VlmCaptioner, images: list[Image]) -> None:
        self.captioner, self.images = captioner, images
        self.hashes = FrameSet.of(images).hashes
        # A sentence encoder from elsewhere is there as an export alone.
        self.alone = models.encoder if SENTENCE_ENCODER in models else None
        self.sentences = None if self.alone else PlainSentences(SentenceModel.read(resolve_model()))
        self.clip = (
            PlainFrames(models.frame_encoder, models.found[CLIP]) if models.frame_encoder else None
        )

    def index(self, index: VideoIndex) -> None:
        """Judge a whole index.

        Raises:
            WrongAnswerError: frames, captions or embeddings are others.
        """
        frames = index.frames
        require(frames is not None and frames.hashes == self.hashes, "index: other frames")
        self.captions(index.video.captions)
        self.texts(index.video.captions, index.embeddings)
        if self.clip is not None and frames is not None:
            require(frames.embeddings is not None, "index: no embeddings of frames")
            self.clip.judge(self.images, np.asarray(frames.embeddings))

    def captions(self, texts: Sequence[str]) -> None:
        """Judge the captions of all frames: in the run's batches their every bit is the same.

        Raises:
            WrongAnswerError: a caption is not what the model says.
        """
        require(len(texts) == len(self.images), f"captions: {len(texts)} of {len(self.images)}")
        kept, self.captioner.cache = self.captioner.cache, PrefixCache()
        try:
            for start in range(0, len(texts), _ROWS):
                images = self.images[start : start + _ROWS]
                answers = self.captioner.answers(FrameSet.of(images), AGNOSTIC_CAPTION)
                judge_answers("captions", self.captioner, images, AGNOSTIC_CAPTION, answers)
                for text, answer in zip(texts[start:], answers, strict=False):
                    said = " ".join(self.captioner.model.decode(answer).split())
                    require(text == said, f"captions: {text!r}, and not {said!r}")
        finally:
            self.captioner.cache = kept

    def texts(self, texts: Sequence[str], rows: npt.NDArray[Any]) -> None:
        """Judge the embeddings of captions.

        Raises:
            WrongAnswerError: one is another.
        """
        if self.sentences is not None:
            self.sentences.judge(texts, rows)
        elif self.alone is not None:
            require(len(rows) == len(texts), f"sentences: {len(rows)} embeddings of {len(texts)}")
            for text, row in zip(texts[:4], rows, strict=False):
                off = float(np.abs(self.alone.encode([text])[0] - row).max())
                require(off < 1e-3, f"sentences: an embedding is {off:.0e} off")

    def looked(self) -> None:
        """Judge what is kept of the frames: as much as of a frame alone, and for one the same.

        Raises:
            WrongAnswerError: nothing is kept, or something else.
        """
        captioner = self.captioner
        kept = sum(captioner.cache.nbytes.values())
        prefix = captioner.model.prefill_frames(self.images[:1], captioner.start)
        (alone,) = prefix.unstack(captioner.model.device)
        require(kept == alone.nbytes * len(set(self.hashes)), f"prefixes: {kept} bytes are kept")
        (seen,) = captioner._prefixes(FrameSet.of(self.images[:1]), [0])
        off = float(abs(seen - alone).max() / abs(alone).max())
        require(off < 1e-2, f"prefixes: {off:.0e} from that of a frame alone")


def _stages(
    bench: Bench, models: ModelFolder, captioner: VlmCaptioner, path: Path, judge: IndexJudge
) -> dict[str, float]:
    """Seconds a clip of each stage alone; in an index run decoding goes on beside the models."""
    images, clips = judge.images, len(judge.images)
    texts = captioner.agnostic(FrameSet.of(images))

    def decoded(given: Path, frames: list[Frame]) -> None:
        require([frame_hash(f.image) for f in frames] == list(judge.hashes), "decode: other frames")

    stages: dict[str, tuple[Draw, Any, Any]] = {
        "decode": (lambda rng: path, lambda p: list(read_frames(p)), decoded),
        "look at frames": (
            lambda rng: _forgetting(captioner, images),
            captioner.prefill,
            lambda given, output: judge.looked(),
        ),
        "caption": (
            lambda rng: FrameSet.of(images),
            captioner.agnostic,
            lambda given, output: judge.captions(output),
        ),
        "embed captions": (lambda rng: texts, models.encoder.encode, judge.texts),
    }
    if (clip := models.frame_encoder) is not None and (plain := judge.clip) is not None:
        stages["embed frames"] = (lambda rng: images, clip.encode_frames, plain.judge)
    medians = {}
    for name, (draw, stage, judged) in stages.items():
        found = bench.race(
            f"stage: {name}",
            [Runner(run=stage)],
            draw,
            lambda given, outputs, judged=judged: judged(given, outputs[OURS]),  # type: ignore[misc]
            unit="clip",
            items=clips,
            clock=HostClock(),
            parameters={"clips": clips},
            rounds=5,
            seconds=bench.settings.seconds / 2,
        )
        medians[name] = found[OURS].median / clips
    bench.constant("prefix_bytes_per_clip", sum(captioner.cache.nbytes.values()) / clips)
    return medians


def _forgetting(captioner: VlmCaptioner, images: list[Any]) -> FrameSet:
    captioner.cache = PrefixCache()
    return FrameSet.of(images)
