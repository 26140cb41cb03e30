"""Suite ``encoders``: embed captions and frames, and compare with other runtimes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from granalign_fast.bench.harness.judges import PlainFrames, PlainSentences
from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.models import models_of
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, Judge, require
from granalign_fast.bench.harness.workloads import VARIANTS, sentences, video
from granalign_fast.bench.peers import runtimes as peers
from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.models.manifest import CLIP
from granalign_fast.models.sources import resolve_model
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.video.frames import read_frames

_CAPTIONS, _FRAMES = 256, 16
_LEAST_COSINE = {"int8": 0.99, "fp16": 0.9999}
"""Least mean cosine to our fp32 embeddings, by precision; 0.99999 for all others."""


def run(bench: Bench) -> None:
    """Embed sentences, and frames if the models include a CLIP."""
    _sentences(bench)
    _frames(bench)


def _sentences(bench: Bench) -> None:
    model = SentenceModel.read(resolve_model())
    device = bench.settings.device
    precisions = ("fp32", "fp16") if bench.on_gpu else ("fp32", "int8")
    ours = {name: SentenceEncoder(precision=name, device=device) for name in precisions}
    where = "cuda" if bench.on_gpu else "cpu"
    theirs = peers.sentence_encoders(model.folder, bench.folder, bench.note, where)
    count = bench.settings.scaled(_CAPTIONS, 16)

    def runners(texts: int) -> list[Runner]:
        # The work is counted for similar captions; a few tokens more or less hardly matter.
        lengths = [len(ids) for ids in model.tokenise(tuple(sentences(_rng(), texts)))]
        runners_of_ours = [
            Runner(
                name=OURS if name == "fp32" else f"{OURS}, {name}",
                run=encoder.encode,
                work=_bert_work(model, lengths, name),
            )
            for name, encoder in ours.items()
        ]
        work = _bert_work(model, lengths, "fp32")
        return runners_of_ours + [
            Runner(name=n, run=e, peer=True, work=work) for n, e in theirs.items()
        ]

    judge = sentence_judge(model)
    samples = bench.race(
        "embed captions",
        runners(count),
        partial(sentences, count=count),
        judge,
        unit="caption",
        items=count,
        clock=HostClock(),
        parameters={"captions": count},
        seconds=3 * bench.settings.seconds,
    )
    bench.constant("embed_seconds_per_caption", samples[OURS].median / count)
    one = bench.race(
        "embed a query and its rewrites",
        runners(VARIANTS),
        partial(sentences, count=VARIANTS),
        judge,
        unit="query",
        clock=HostClock(),
        parameters={"captions": VARIANTS},
    )
    bench.constant("embed_seconds_per_query", one[OURS].median)


def sentence_judge(model: SentenceModel) -> Judge:
    """Return a judge that compares ours in fp32 with the model in NumPy, and the others with ours.

    Args:
        model: the model of all runners; a runner's name contains its precision unless that is fp32.
    """
    plain = PlainSentences(model)

    def judge(texts: list[str], outputs: Mapping[str, Any]) -> None:
        fp32 = outputs[OURS]
        plain.judge(texts, fp32)
        for name, rows in outputs.items():
            require(rows.shape == fp32.shape, f"{name}: embeddings of shape {rows.shape}")
            cosine = float((rows * fp32).sum(axis=1).mean())
            least = _LEAST_COSINE.get(name.partition(", ")[2].split(" ")[0], 0.99999)
            require(cosine >= least, f"{name}: mean cosine {cosine:.5f}, expected {least}")

    return judge


def _rng() -> np.random.Generator:
    return np.random.default_rng(1)


def _bert_work(model: SentenceModel, lengths: list[int], kind: str) -> Work:
    """Count the work of a BERT: four projections and two wide products a token, and attention."""
    hidden, wide, layers = (
        model.config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    dense = layers * (4 * hidden * hidden + 2 * hidden * wide)
    operations = 2.0 * tokens * dense + 2.0 * 2 * layers * squares * hidden
    width = {"int8": 1, "fp16": 2}.get(kind, 4)
    return Work(width * dense + 4.0 * tokens * hidden, operations, kind)


def _frames(bench: Bench) -> None:
    """Embed frames with the CLIP of the models' folder."""
    models = models_of(bench)
    encoder = models.frame_encoder
    if encoder is None:
        bench.note("frames: not measured, these models include no CLIP")
        return
    path = video(bench.folder)
    count = bench.settings.scaled(_FRAMES, 4)
    images = [frame.image for frame in itertools.islice(read_frames(path), 30)]
    if not images:
        raise GranAlignError(f"{path}: got no frame, expected some to embed")

    def draw(rng: np.random.Generator) -> list[Any]:
        return [images[i] for i in rng.integers(0, len(images), count).tolist()]

    plain = PlainFrames(encoder, models.paths[CLIP])
    samples = bench.race(
        "embed frames",
        [Runner(run=encoder.encode_frames)],
        draw,
        lambda inputs, outputs: plain.judge(inputs, outputs[OURS]),
        unit="frame",
        items=count,
        clock=HostClock(),
        parameters={"frames": count},
    )
    bench.constant("clip_seconds_per_frame", samples[OURS].median / count)
