"""Indexes, libraries and unfinished work: valid files, and how they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .case import repair_manifest, sha256

# Indexes and libraries.


def write_index(folder: Path) -> None:
    from helpers.libraries import write_index

    write_index(folder / "a", 9, 1, frame_dim=8)


def read_index(folder: Path) -> object:
    from granalign_fast import MomentRetriever, VideoIndex
    from granalign_fast.search.key_frames import frame_set
    from helpers.fakes import BagOfWords

    index = VideoIndex.load(folder / "a")
    found = MomentRetriever(BagOfWords()).search(index, "a red car").moments
    if index.frames is not None and index.frames.source is not None:
        frame_set(index).load([0])
    return found


def write_sourced_index(folder: Path) -> None:
    from dataclasses import replace

    from granalign_fast import VideoIndex
    from granalign_fast.files import sha256_of
    from granalign_fast.index.records import VideoSource
    from helpers.libraries import write_index as write
    from helpers.videos import constant, render

    video = render(folder / "a.mp4", constant(5, 8))
    index = write(folder / "b", 4, 1, frame_dim=8)
    source = VideoSource(video, video.stat().st_size, sha256_of(video))
    assert index.frames is not None
    shutil.rmtree(folder / "b")
    VideoIndex(
        index.video, index.embeddings, replace(index.frames, source=source), index.models
    ).save(folder / "a")


def write_library(folder: Path) -> None:
    from granalign_fast.library.catalogue import open_catalogue
    from granalign_fast.library.tags import write_tags
    from helpers.libraries import write_index as write

    for seed, name in enumerate(("street", "yard", "kitchen")):
        write(folder / name, 5 + seed, seed, frame_dim=8)
    open_catalogue(folder)
    write_tags(folder, {"street": ("red",)})


def repair_library(folder: Path) -> None:
    for path in folder.glob("*/manifest.json"):
        repair_manifest(path.parent)
    path = folder / ".catalogue" / "catalogue.json"
    try:
        pointer = json.loads(path.read_bytes())
        for segment in pointer["segments"]:
            for name in segment["files"]:
                file = path.parent / segment["name"] / name
                if file.is_file():
                    segment["files"][name] = [file.stat().st_size, sha256(file)]
        path.write_text(json.dumps(pointer))
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        pass


def read_library(folder: Path) -> object:
    from granalign_fast import Filters, Library, MomentRetriever
    from granalign_fast.library.tags import read_tags
    from granalign_fast.library.upkeep import verify_library
    from helpers.fakes import BagOfWords

    library = Library.open(folder, MomentRetriever(BagOfWords()))
    library.search("a red car", filters=Filters(tags=("red",)))
    found = library.search("a red car").moments
    read_tags(folder)
    verify_library(folder)
    return found


def write_unfinished(folder: Path) -> None:
    """Write a folder of indexes whose run was killed."""
    from helpers.index_worker import Killed, dying, index, write_videos

    write_videos(folder)
    try:
        with dying(14):
            index(folder, folder / "out")
    except Killed:
        pass
    assert (folder / "out" / ".indexing" / "job.json").exists()


def read_unfinished(folder: Path) -> object:
    from helpers.index_worker import index

    return index(folder, folder / "out")
