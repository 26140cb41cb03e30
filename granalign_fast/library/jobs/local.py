"""An indexing job in this process: a thread decodes the next chunk while the models run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from granalign_fast.errors import GranAlignError
from granalign_fast.index.prefetch import prefetch
from granalign_fast.storage import Store

from .chunks import Chunk
from .records import Job, Outcome, SourceVideo, StageModels
from .stages import collected_warnings, decode, join, model_stages, store

_READERS = 8
"""Files that are read for their hash at a time: an object store serves many at once."""


def hash_file(name: str) -> str | GranAlignError:
    """Return the SHA-256 of a file or an object, in hex, or the reason why it cannot be read."""
    try:
        return Store.at(name).sha256()
    except GranAlignError as error:
        return error


class LocalExecutor:
    """Runs the stages of a job one after another in this process."""

    def __init__(self) -> None:
        self._models: StageModels | None = None
        self._joined: list[Outcome] = []

    def hasher(self, names: Sequence[str], /) -> Iterable[str | GranAlignError]:
        """Return the hash of each file."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(hash_file, names))

    def fingerprints(self, open_models: Callable[[], StageModels]) -> dict[str, str]:
        """Return the fingerprints of the models, which are loaded for it."""
        self._models = open_models()
        return self._models.fingerprints

    def run(self, job: Job, videos: Sequence[SourceVideo]) -> Iterator[Outcome]:
        """Yield an outcome for each chunk of the videos."""
        shared = replace(job, open_models=self._shared)
        stages = [make(shared) for make in model_stages(job).values()]
        with collected_warnings(), prefetch(_decode_all(job, videos)) as chunks:
            for chunk in chunks:
                for stage in stages:
                    chunk = stage(chunk)
                yield store(job, chunk)

    def join(self, job: Job, outcome: Outcome) -> None:
        """Write the index of a video from its stored rows."""
        self._joined.append(join(job, outcome))

    def joined(self, *, wait: bool) -> Iterator[Outcome]:
        """Yield the outcomes of joins."""
        while self._joined:
            yield self._joined.pop()

    def _shared(self) -> StageModels:
        assert self._models is not None  # `fingerprints` comes first
        return self._models


def _decode_all(job: Job, videos: Sequence[SourceVideo]) -> Generator[Chunk, None, None]:
    for video in videos:
        yield from decode(job, video)
