"""Videos and caches: valid files, and how they are read."""

from __future__ import annotations

import itertools
from pathlib import Path

# Videos.


def write_videos(folder: Path) -> None:
    from helpers.fuzz_videos import sources

    sources(folder)


def read_videos(folder: Path) -> object:
    """Read the one file that was changed: all others are as they were."""
    from granalign_fast.video.cutting import cut
    from granalign_fast.video.frames import probe, read_frames

    (path,) = folder.iterdir()
    info = probe(path)
    frames = list(itertools.islice(read_frames(path), 40))
    cut(path, 1.0, 3.0, folder / ("cut.mov" if path.suffix == ".gif" else "cut.mkv"))
    return info.clips, len(frames)


# Caches of the user, which another program may have damaged.


def write_caches(folder: Path) -> None:
    _use_caches(folder)


def read_caches(folder: Path) -> object:
    return _use_caches(folder)


def _use_caches(folder: Path) -> object:
    import numpy as np

    from granalign_fast.models.embedding_cache import CachedEncoder
    from granalign_fast.models.prefix_cache import DiskTier, PrefixCache
    from helpers.fakes import BagOfWords

    embedded = CachedEncoder(BagOfWords(), folder).encode(["a red car", "a dog"])
    if embedded.shape != (2, BagOfWords.dim) or not np.isfinite(embedded).all():
        raise AssertionError("a damaged cache gave no embeddings")
    cache, key = PrefixCache([DiskTier(folder / "prefixes", 1 << 20)]), "0" * 64
    found = cache.get(key)
    cache.put(key, np.ones((2, 3), np.float32))
    return found
