"""Libraries of captioned videos without video files, and what their catalogue must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.index import CaptionedVideo, FrameTable, UncaptionedVideo, VideoIndex
from granalign_fast.library.catalogue import Catalogue

from .fakes import BagOfWords, SeenWords

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "car",
    "dog",
    "man",
    "woman",
    "runs",
    "sits",
    "jumps",
    "table",
    "kitchen",
    "street",
]


def write_index(
    folder: Path,
    clips: int,
    seed: int,
    *,
    dim: int | None = None,
    frame_dim: int = 0,
    frames_per_clip: int = 1,
    value: float | None = None,
    captions: tuple[str, ...] | None = None,
) -> VideoIndex:
    """Write the index of a video of random captions, embedded by `BagOfWords` or at random."""
    rng = np.random.default_rng(seed)
    texts = captions or tuple(" ".join(rng.choice(WORDS, 6)) for _ in range(clips))
    rows = BagOfWords().encode(texts)
    if dim is not None:
        rows = rng.standard_normal((clips, dim)).astype(np.float32)
    if value is not None:
        rows[-1, -1] = value
    frames = None
    if frame_dim or frames_per_clip > 1:
        shape = (clips, frame_dim)
        embeddings = rng.standard_normal(shape).astype(np.float32) if frame_dim else None
        hashes = tuple(f"{clip:032x}" for clip in range(clips))
        times = np.arange(clips)[:, None] * 2 + np.arange(frames_per_clip) * 2 / frames_per_clip
        later = times[:, 1:].copy() if frames_per_clip > 1 else None
        frames = FrameTable(times[:, 0].copy(), hashes, embeddings, later=later)
    models = {} if dim is not None else {"sentence-encoder": BagOfWords.fingerprint}
    index = VideoIndex(CaptionedVideo(folder.name, texts), rows, frames, models)
    index.save(folder)
    return index


def write_framed_index(folder: Path, texts: tuple[str, ...], *, captioned: bool) -> VideoIndex:
    """Write the index of a video whose frames show what texts say, for `SeenWords`.

    With `captioned` the captions say it too, embedded by `BagOfWords`.
    """
    rows, count = SeenWords().encode_texts(texts), len(texts)
    frames = FrameTable(
        np.arange(count) * 2.0, tuple(f"{clip:032x}" for clip in range(count)), rows
    )
    models = {"clip": SeenWords.fingerprint}
    index = VideoIndex(UncaptionedVideo(folder.name, count), None, frames, models)
    if captioned:
        models = models | {"sentence-encoder": BagOfWords.fingerprint}
        captions = CaptionedVideo(folder.name, texts)
        index = VideoIndex(captions, BagOfWords().encode(texts), frames, models)
    index.save(folder)
    return index


Contents = dict[str, tuple[Any, ...]]
"""Captions, embeddings as bytes, those of frames, and words of the stretches of each video."""


def contents(catalogue: Catalogue) -> Contents:
    """Read all rows of a catalogue through its files."""
    found = {}
    for segment, numbers in zip(catalogue.segments, catalogue.live, strict=True):
        postings = segment.postings
        for rows, number in zip(segment.rows(numbers), numbers, strict=True):
            stretches = np.flatnonzero(segment.stretches.videos == number)
            words = [
                {
                    word: int(
                        postings.counts[begin:end][postings.documents[begin:end] == stretch][0]
                    )
                    for word, begin, end in zip(
                        postings.words, postings.offsets, postings.offsets[1:], strict=False
                    )
                    if stretch in postings.documents[begin:end]
                }
                for stretch in stretches
            ]
            frames = None if rows.frames is None else rows.frames.tobytes()
            found[rows.video.vid] = rows.captions, rows.embeddings.tobytes(), frames, words
    return found


def expected_contents(library: Path) -> Contents:
    """Compute the same from the index folders, by plain loops."""
    expected = {}
    for folder in sorted(path for path in library.iterdir() if path.name[0] != "."):
        index = VideoIndex.load(folder)
        captions, count = index.video.captions, len(index.video.captions)
        parts = max(-(-count * 2 // 150), 1)
        words = []
        for part in range(parts):
            counts: dict[str, int] = {}
            for caption in captions[count * part // parts : count * (part + 1) // parts]:
                for word in caption.split():
                    counts[word] = counts.get(word, 0) + 1
            words.append(counts)
        frames = None
        if index.frames is not None and index.frames.embeddings is not None:
            frames = index.frames.embeddings.astype(np.float16).tobytes()
        halves = index.embeddings.astype(np.float16).tobytes()
        expected[folder.name] = captions, halves, frames, words
    return expected
