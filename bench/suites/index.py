"""Suite ``index``: a video file to an index on disk, and where the time goes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.bench.models_used import models_of
from granalign_fast.bench.records import OURS
from granalign_fast.bench.running import Bench, Runner
from granalign_fast.bench.timing import Draw, HostClock, require
from granalign_fast.bench.workloads import video
from granalign_fast.captions import FrameSet, VlmCaptioner
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.model_folder import ModelFolder
from granalign_fast.prefixes import PrefixCache
from granalign_fast.video.frames import probe, read_clips, read_frames

_JUDGED = 4
_ROWS = 16


def run(bench: Bench) -> None:
    """The whole trip, and each of its stages alone."""
    models = models_of(bench)
    captioner = captioner_of(models)
    path = video(bench.folder, side=224, frame_rate=10)
    info = probe(path)
    sizes = {"clips": info.clips, "seconds": round(info.duration)}
    places = itertools.count()

    def draw(rng: np.random.Generator) -> Path:
        # Nothing is known of a frame yet: what a first run finds.
        captioner.cache = PrefixCache()
        return bench.folder / "indexes" / str(next(places))

    def judge(out: Path, outputs: Mapping[str, Any]) -> None:
        judge_index(VideoIndex.load(outputs[OURS]), models, captioner, path)

    found = bench.race(
        "index a video",
        [Runner(run=lambda out: models.index([path], out, rows=_ROWS)[0])],
        draw,
        judge,
        unit="clip",
        items=info.clips,
        clock=HostClock(),
        parameters=sizes,
        rounds=6,
    )
    taken = found[OURS].median
    bench.note(f"{info.duration / taken:.0f} times as fast as the video plays")
    bench.constant("index_seconds_per_clip", taken / info.clips)
    folder = models.index([path], bench.folder / "kept")[0]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    bench.constant("index_bytes_per_clip", size / info.clips)
    _stages(bench, models, captioner, path, VideoIndex.load(folder))


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


def judge_index(
    index: VideoIndex, models: ModelFolder, captioner: VlmCaptioner, path: Path
) -> None:
    """Compare an index with what its models say of a few frames that are read alone.

    In other company a frame's numbers differ in their last bits, and a caption may turn at a word
    that was nearly as likely: most, not all, must be equal.

    Raises:
        WrongAnswerError: hashes, embeddings or most captions are others.
    """
    clips = np.linspace(0, len(index.video.captions) - 1, _JUDGED).astype(int).tolist()
    frames = FrameSet.of(read_clips(path, clips))
    hashes = index.frames.hashes if index.frames else ()
    require(frames.hashes == tuple(hashes[clip] for clip in clips), "index: other frames")
    said = captioner.agnostic(frames)
    same = [said[i] == index.video.captions[clip] for i, clip in enumerate(clips)]
    require(sum(same) * 2 >= len(same), "index: captions are not the model's")
    texts = list(index.video.captions)
    error = float(np.abs(models.encoder.encode(texts) - index.embeddings).max())
    require(error < 1e-3, f"index: embeddings {error:.0e} from those of the captions")
    require(sum(captioner.cache.nbytes.values()) > 0, "index: nothing was kept of the frames")


def _stages(
    bench: Bench, models: ModelFolder, captioner: VlmCaptioner, path: Path, index: VideoIndex
) -> None:
    """Each stage alone, one after another; in an index run decoding goes on beside the models."""
    images = [frame.image for frame in read_frames(path)]
    clips = len(images)
    texts = list(index.video.captions)
    stages: dict[str, tuple[Draw, Any]] = {
        "decode": (lambda rng: path, lambda p: list(read_frames(p))),
        "look at frames": (lambda rng: _forgetting(captioner, images), captioner.prefill),
        "caption": (lambda rng: FrameSet.of(images), captioner.agnostic),
        "embed captions": (lambda rng: texts, models.encoder.encode),
    }
    if (clip := models.clip) is not None:
        stages["embed frames"] = (lambda rng: images, clip.encode_frames)

    def judge(given: Any, outputs: Mapping[str, Any]) -> None:
        output = outputs[OURS]
        require(output is None or len(output) == clips, "a stage has not one result for each clip")

    medians = {}
    captioner.prefill(FrameSet.of(images))
    for name, (draw, stage) in stages.items():
        found = bench.race(
            f"stage: {name}",
            [Runner(run=stage)],
            draw,
            judge,
            unit="clip",
            items=clips,
            clock=HostClock(),
            parameters={"clips": clips},
            rounds=5,
            seconds=bench.settings.seconds / 2,
        )
        medians[name] = found[OURS].median / clips
    bench.breakdown("index, a clip", medians)
    bench.constant("prefix_bytes_per_clip", sum(captioner.cache.nbytes.values()) / clips)


def _forgetting(captioner: VlmCaptioner, images: list[Any]) -> FrameSet:
    captioner.cache = PrefixCache()
    return FrameSet.of(images)
