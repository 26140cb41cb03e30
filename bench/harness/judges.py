"""Judge results by an independent computation.

A search is compared with the plain loop over queries, a model's answers with passes over whole
prompts, without a key/value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.bench.peers import plain_method as plain
from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import GranAlignError
from granalign_fast.export.encoder_families import encoder_family
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.index import VideoIndex
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix import Prefix
from granalign_fast.protocols import ImageTextEncoder, TextEncoder
from granalign_fast.search.batches import query_variants
from granalign_fast.types import FrameSet, Image, Rewrites, SearchResult

from .timing import require

Images = Sequence[Image] | npt.NDArray[np.uint8]
LOGITS_TOLERANCE = {"fp32": 2e-3, "fp16": 1e-1, "int4": 5e-1}
"""Largest difference of two computations of the same logits, by precision. The unit is the greater
of 1 and the logits' root mean square."""

_TOLERANCE = 2e-3
"""Largest difference of curves, in [0, 1]. Min-max normalisation amplifies rounding most where a
video's captions are nearly the same."""
_FRAME_TOLERANCE = 2e-3
"""Largest difference of embeddings of unit length, in float16 too. Embeddings of different frames
of a video differ by more."""
_FEW_TEXTS = 4
"""Texts of a batch that NumPy embeds: it is slow, and takes no batch."""


def judge_result(
    result: SearchResult,
    index: VideoIndex,
    encoder: TextEncoder,
    config: RetrieverConfig,
    frame_encoder: ImageTextEncoder | None = None,
) -> None:
    """Recompute the curves and moments of a search from its rewrites and query-aware captions.

    Args:
        result: what `MomentRetriever.search` returned with the scorer ``captions``.
        index: the index that was searched.
        encoder: the search's sentence encoder.
        config: the search's configuration.
        frame_encoder: of the search, if it has one.

    Raises:
        WrongAnswerError: curves, saliency or moments differ.
    """
    query = result.rewrites or Rewrites(result.query)
    simplified, detailed = query_variants(query, config)
    rows = plain.mixed(np.asarray(index.caption_embeddings, np.float32), config)
    matrices = 1 if rows[1] is None else 2
    guided = rows[0].copy(), None if rows[1] is None else rows[1].copy()
    for clip, caption in result.aware.items():
        for mixed in guided:
            if mixed is not None:
                mixed[clip] = encoder.encode([caption])[0]
    halves = [
        np.split(plain.refined(encoder.encode(list(texts)), against, config, aware), matrices)
        for texts, against, aware in ((simplified, rows, ()), (detailed, guided, result.aware))
        if texts
    ]
    # First all curves by the first rows, then all by the second.
    parts = [part for half in zip(*halves, strict=True) for part in half]
    if config.frames_weight and frame_encoder is not None and index.frames is not None:
        texts = [query.query, *query.simplified, *query.detailed]
        frames = np.asarray(index.frames.embeddings, np.float32)
        curves = plain.curves(frame_encoder.encode_texts(texts), frames, config.power)
        parts.append(curves.mean(axis=0, keepdims=True))
    error = float(np.abs(np.concatenate(parts) - result.curves).max())
    require(error < _TOLERANCE, f"search: curves {error:.0e} from the plain loop's")
    candidates = plain.candidates(result.curves, result.saliency, config.proposals)
    best = plain.suppress(candidates, config.nms_threshold, config.top)
    expected = [(index.seconds(start), index.seconds(end), score) for start, end, score in best]
    got = [(moment.start, moment.end, moment.score) for moment in result.moments]
    require(got == expected, "search: moments are not the plain loop's")


def judge_tokens(
    who: str,
    model: CausalLM,
    prompt_ids: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    prefix: Prefix | None = None,
) -> None:
    """Check that every token of every answer is the likeliest after the tokens before it.

    Decoding steps reuse a key/value cache. Here every token is judged by a new pass over its whole
    beginning, so an error in the cache shows.

    Args:
        who: name of what gave the answers, for the message.
        model: the model that gave them.
        asked: token ids of each prompt, after the prefix.
        answers: token ids of each answer.
        prefix: what all prompts begin with.

    Raises:
        WrongAnswerError: a token is not the likeliest, by more than rounding.
    """
    require(
        len(answers) == len(prompt_ids), f"{who}: {len(answers)} answers, not {len(prompt_ids)}"
    )
    for step in range(max(map(len, answers))):
        rows = [
            [*prompt, *answer[:step]] for prompt, answer in zip(prompt_ids, answers, strict=True)
        ]
        for row, (logits, answer) in enumerate(
            zip(model.logits(rows, prefix=prefix), answers, strict=True)
        ):
            if step < len(answer):
                off = float(logits.max() - logits[answer[step]]) / _scale(logits)
                require(
                    off <= LOGITS_TOLERANCE[model.manifest.precision],
                    f"{who}: token {step} of answer {row} is not the likeliest by {off:.1e}",
                )


def beginnings(model: CausalLM, prompt_ids: Sequence[Sequence[int]]) -> Prefix:
    """Return the prefix of all but the last token of equally long prompts, each prefilled alone."""
    rows = [model.prefill(prompt[:-1]).unstack(model.device)[0] for prompt in prompt_ids]
    return Prefix.stack(rows, model.fingerprint, len(prompt_ids[0]) - 1, model.device)


def _scale(logits: npt.NDArray[np.float32]) -> float:
    return max(1.0, float(np.sqrt(np.mean(logits**2))))


def judge_answers(
    who: str,
    captioner: VlmCaptioner,
    images: Images,
    task: str,
    answers: Sequence[Sequence[int]],
) -> None:
    """Check answers about frames as `judge_tokens` does, by prompts computed without kept prefixes.

    Raises:
        WrongAnswerError: as `judge_tokens`.
    """
    ids = _prompt_ids(captioner, task)
    prefix = captioner.model.prefill_frames(images, ids[:-1])
    judge_tokens(who, captioner.model, [ids[-1:]] * len(images), answers, prefix=prefix)


def judge_clip_answers(
    who: str,
    captioner: VlmCaptioner,
    clips: FrameSet,
    task: str,
    answers: Sequence[Sequence[int]],
) -> None:
    """Check answers about clips as `judge_answers` does those about frames.

    Raises:
        WrongAnswerError: as `judge_tokens`.
    """
    ids, model = captioner.start_of(clips.form).prompt(task), captioner.model
    images = clips.load(range(len(clips)))
    if clips.frames_per_clip == 1:
        prefix = model.prefill_frames(images, ids[:-1])
    else:
        seconds = clips.frame_seconds
        prefix = model.prefill_clips([list(c) for c in images], ids[:-1], seconds=seconds)
    judge_tokens(who, model, [ids[-1:]] * len(clips), answers, prefix=prefix)


def judge_recognition(
    captioner: VlmCaptioner,
    images: Images,
    query: str,
    shares: npt.NDArray[np.float32],
) -> None:
    """Check shares of yes, `(1, frames)`, by prompts computed without kept prefixes.

    Raises:
        WrongAnswerError: a share differs.
    """
    model, encode = captioner.model, captioner.model.tokenizer.encode
    ids = _prompt_ids(captioner, prompts.recognition(query))
    prefix = model.prefill_frames(images, ids[:-1])
    logits = model.logits([ids[-1:]] * len(images), prefix=prefix).astype(np.float64)
    weights = []
    for word in ("yes", "no"):
        encoded = [encode(space + text) for space in ("", " ") for text in (word, word.title())]
        tokens = sorted({ids[0] for ids in encoded if len(ids) == 1})
        weights.append(np.exp(logits[:, tokens] - logits.max(axis=1, keepdims=True)).sum(axis=1))
    expected = weights[0] / (weights[0] + weights[1])
    require(shares.shape == (1, len(images)), f"recognition: got shares {shares.shape}")
    off = float(np.abs(shares[0] - expected).max())
    require(off < LOGITS_TOLERANCE[model.manifest.precision], f"recognition: shares {off:.0e} off")


def _prompt_ids(captioner: VlmCaptioner, task: str) -> list[int]:
    """Return the token ids of a prompt about a frame; one token stands for the image."""
    content = [{"type": "image"}, {"type": "text", "text": task}]
    system = {"role": "system", "content": prompts.VISION_SYSTEM}
    return captioner.model.chat([system, {"role": "user", "content": content}])


class PlainSentences:
    """Judges embeddings of sentences by running the model in NumPy.

    Args:
        model: the model as it was before its export.

    Raises:
        GranAlignError: it is of a family that we do not write node by node.
    """

    def __init__(self, model: SentenceModel) -> None:
        self._model = model
        family = encoder_family(model.config)
        if family is None:
            raise GranAlignError(
                f"{model.folder}: got a model that only optimum exports, expected one that NumPy "
                f"can judge; choose another model"
            )
        self._encoder = family.load(model.weights, model.config)

    def judge(self, texts: Sequence[str], rows: npt.NDArray[np.float32]) -> None:
        """Compare the float32 embeddings of a few texts, spread from the first to the last.

        Raises:
            WrongAnswerError: an embedding differs.
        """
        require(len(rows) == len(texts), f"sentences: {len(rows)} embeddings of {len(texts)}")
        few = np.linspace(0, len(texts) - 1, _FEW_TEXTS).astype(int).tolist()
        ids = self._model.tokenise(tuple(texts[i] for i in few))
        expected = self._encoder.embed(ids, pooling=self._model.pooling, normalise=True)
        off = float(np.abs(rows[few] - expected).max())
        require(off < 1e-4, f"sentences: embeddings {off:.0e} from the model's in NumPy")


class PlainFrames:
    """Judges embeddings of frames by running ONNX Runtime on one frame at a time, on the CPU.

    Args:
        encoder: the frame encoder whose preparation of frames is used.
        folder: the folder of its files.
    """

    def __init__(self, encoder: FrameEncoder, folder: Path) -> None:
        from onnxruntime import InferenceSession

        self._prepare = encoder.preprocessing
        path = folder / "image.onnx"
        self._session: Any = InferenceSession(path, providers=["CPUExecutionProvider"])

    def judge(self, images: Images, rows: npt.NDArray[np.float32]) -> None:
        """Compare the embedding of every frame.

        Raises:
            WrongAnswerError: an embedding differs.
        """
        require(len(rows) == len(images), f"frames: {len(rows)} embeddings of {len(images)}")
        for number, (image, row) in enumerate(zip(images, rows, strict=True)):
            prepared = self._prepare(image)[None]
            expected = self._session.run(["embeddings"], {"frames": prepared})[0][0]
            off = float(np.abs(row - expected).max())
            require(off < _FRAME_TOLERANCE, f"frames: embedding {number} is {off:.0e} off")
