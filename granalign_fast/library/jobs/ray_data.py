"""An indexing job as one pipeline of Ray Data: decoding in tasks, each model in a pool of actors.

Ray moves chunks of frames from stage to stage, holds decoding back where a model is slower, and
runs again what a dead worker was doing. Every stage is a function of `stages`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.parsing.json_values import parse_json

from .chunks import Chunk
from .local import hash_file
from .records import STAGES, Job, Outcome, SourceVideo, StageModels, Workers
from .stages import Stage, collected_warnings, decode, join, model_stages, store

_log = logging.getLogger(__name__)

_BLOCKS = 1000
"""Most blocks of sources. A block is decoded by one task, so there are many for each worker."""
_BLOCK_BYTES = 64 << 20
"""Bytes at which Ray closes a block of frames: about one chunk."""
_JOINS = 64
"""Joins that run at a time. Each waits for the store most of its time."""


@contextmanager
def open_ray(address: str, workers: Mapping[str, Workers]) -> Iterator[RayExecutor]:
    """Connect to a Ray cluster for the block, or start one on this machine with ``local``.

    A connection that the process has already is used, and stays.

    Raises:
        GranAlignError: Ray is not installed, the cluster cannot be reached, it lacks what the
            workers need, or it fails.
    """
    # Ray's core writes hints for its developers to stderr.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise MissingExtraError("indexing with Ray", "ray") from None
    chosen = {stage: workers.get(stage, Workers()) for stage in STAGES}
    ours = not ray.is_initialized()
    try:
        if ours:
            _connect(ray, address, chosen)
        yield RayExecutor(ray, chosen)
    except RayError as error:
        raise _explained(error) from None
    finally:
        if ours and ray.is_initialized():
            ray.shutdown()


def _connect(ray: Any, address: str, workers: Mapping[str, Workers]) -> None:
    # A cluster on this machine is of this process alone. Its workers share the cores.
    cores = sum(one.most for one in workers.values())
    own = {"num_cpus": max(os.cpu_count() or 1, cores), "include_dashboard": False}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise GranAlignError(
            f"--ray {address}: cannot be reached ({one_line(error)}); name the address of a Ray "
            f"cluster such as 10.0.0.1:6379, auto on one of its machines, or local"
        ) from None


def _explained(error: BaseException) -> GranAlignError:
    """Return the error of a worker in one line."""
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    if isinstance(cause, MissingExtraError):
        return GranAlignError(f"a worker of the Ray cluster: {cause}")
    # Ray puts the trace before the reason.
    lines = [line for line in str(cause).splitlines() if line.strip()]
    reason = one_line(Exception(lines[-1] if lines else type(cause).__name__))
    return GranAlignError(
        f"a worker of the Ray cluster has failed ({reason}); run the same command again to resume"
    )


class RayExecutor:
    """Runs the stages of a job by Ray.

    Args:
        ray: the connected package.
        workers: of each stage.
    """

    def __init__(self, ray: Any, workers: Mapping[str, Workers]) -> None:
        self._ray = ray
        self._workers = workers
        self._waiting: list[tuple[Job, Outcome]] = []
        self._running: list[Any] = []

    def hasher(self, names: Sequence[str], /) -> Iterable[str | GranAlignError]:
        """Return the hash of each file; each is read by a worker."""
        if not names:
            return []
        task = self._ray.remote(num_cpus=1)(_hash_text)
        pairs = self._ray.get([task.remote(name) for name in names])
        return [text if good else GranAlignError(text) for good, text in pairs]

    def fingerprints(self, open_models: Callable[[], StageModels]) -> dict[str, str]:
        """Return the fingerprints of the models, which a worker loads for it."""
        self._check_resources()
        gpus = max(self._workers[stage].gpus for stage in ("frames", "captions", "texts"))
        task = self._ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(_fingerprints)
        good, found = self._ray.get(task.remote(open_models))
        if not good:
            raise GranAlignError(f"a worker of the Ray cluster: {found}")
        return dict(found)

    def run(self, job: Job, videos: Sequence[SourceVideo]) -> Iterator[Outcome]:
        """Yield an outcome for each chunk of the videos, in any order."""
        from ray import data
        from ray.data import ActorPoolStrategy

        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = _BLOCK_BYTES
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [
            {"vid": one.vid, "name": one.name, "bytes": one.bytes, "modified": one.modified_ns}
            for one in videos
        ]
        decoders = self._workers["decode"]
        frames = data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS)).flat_map(
            _Decode(job),
            num_cpus=1,
            concurrency=decoders.most,
        )
        stages = model_stages(job)
        for name, make in stages.items():
            pool = self._workers[name]
            frames = frames.map_batches(
                _StageActor,
                fn_constructor_args=(
                    make,
                    job if pool.gpus else replace(job, threads=1),
                    name == max(stages, key=_looks_at_frames),
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=pool.least, max_size=pool.most),
                num_cpus=0 if pool.gpus else 1,
                num_gpus=pool.gpus,
            )
        # Storing waits for the store, so it takes no core of its own.
        stored = frames.map_batches(
            _Store(job), batch_size=1, batch_format="pyarrow", num_cpus=0.25
        )
        for row in stored.iter_rows():
            yield Outcome.from_record(_loaded(row["outcome"]))
        _log.debug("%s", stored.stats())

    def join(self, job: Job, outcome: Outcome) -> None:
        """Let a worker write the index of a video from its stored rows."""
        self._waiting.append((job, outcome))
        self._start()

    def joined(self, *, wait: bool) -> Iterator[Outcome]:
        """Yield the outcomes of joins that have ended; with `wait`, of all."""
        while self._running:
            ready, self._running = self._ray.wait(
                self._running, num_returns=1, timeout=None if wait else 0
            )
            self._start()
            for one in ready:
                yield Outcome.from_record(self._ray.get(one))
            if not ready and not wait:
                return

    def _start(self) -> None:
        task = self._ray.remote(num_cpus=0, max_retries=-1)(_join)
        while self._waiting and len(self._running) < _JOINS:
            job, outcome = self._waiting.pop()
            self._running.append(task.remote(job, outcome.to_record()))

    def _check_resources(self) -> None:
        """Raise unless the cluster can start the workers; Ray would wait for ever."""
        there = self._ray.cluster_resources()
        models = [self._workers[stage] for stage in ("frames", "captions", "texts")]
        cpus = 1 + sum(one.least for one in models if not one.gpus)
        gpus = sum(one.least * one.gpus for one in models)
        for what, needed, got in (
            ("CPUs", float(cpus), there.get("CPU", 0.0)),
            ("GPUs", gpus, there.get("GPU", 0.0)),
        ):
            if needed > got:
                raise GranAlignError(
                    f"the Ray cluster: has {got:g} {what}, expected {needed:g} for the workers; "
                    f"take fewer workers, or add machines"
                )


def _looks_at_frames(stage: str) -> int:
    """Return a rank by which the last stage that needs pixels is the greatest."""
    return {"frames": 1, "captions": 2}.get(stage, 0)


def _loaded(content: bytes) -> Any:
    return parse_json(content)


class _Decode:
    """Decodes the video of a row into the rows of its chunks."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        video = SourceVideo(
            str(row["vid"]), str(row["name"]), int(row["bytes"]), int(row["modified"])
        )
        with warnings.catch_warnings(), collected_warnings():
            warnings.simplefilter("always")  # also what this process has said of the video before
            for chunk in decode(self._job, video):
                yield dict(chunk.to_row())


class _StageActor:
    """A worker with a model, which is loaded once.

    Args:
        make: makes the stage.
        job: the job.
        drops: whether no later stage looks at pixels.
    """

    def __init__(self, make: Callable[[Job], Stage], job: Job, drops: bool) -> None:
        self._stage = make(job)
        self._drops = drops

    def __call__(self, table: Any) -> Any:
        chunk = self._stage(_chunk(table))
        return _table(chunk.without_pictures() if self._drops else chunk)


class _Store:
    """Writes the rows of a chunk."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, table: Any) -> Any:
        import json

        import pyarrow

        outcome = store(self._job, _chunk(table))
        return pyarrow.table({"outcome": [json.dumps(outcome.to_record()).encode()]})


def _chunk(table: Any) -> Chunk:
    """Read the chunk of a table with one row; the frames share the table's memory."""
    head, arrays, pixels = (table.column(name)[0] for name in ("head", "arrays", "pixels"))
    return Chunk.from_row(head.as_py(), arrays.as_py(), pixels.as_buffer())


def _table(chunk: Chunk) -> Any:
    import pyarrow

    return pyarrow.table({name: [value] for name, value in chunk.to_row().items()})


def _join(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    return join(job, Outcome.from_record(record)).to_record()


def _hash_text(name: str) -> tuple[bool, str]:
    found = hash_file(name)
    return not isinstance(found, GranAlignError), str(found)


def _fingerprints(open_models: Callable[[], StageModels]) -> tuple[bool, Any]:
    # Ray would wrap an error into a trace.
    try:
        return True, open_models().fingerprints
    except GranAlignError as error:
        return False, str(error)
