"""Results computed another way: a search by the plain loop, answers of models without kept keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.bench.peers import plain_method as plain
from granalign_fast.config import RetrieverConfig
from granalign_fast.export.sources.bert import Bert
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.index import VideoIndex
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix import Prefix
from granalign_fast.protocols import TextEncoder
from granalign_fast.search.batches import query_variants
from granalign_fast.types import Image, Rewrites, SearchResult

from .timing import require

Images = Sequence[Image] | npt.NDArray[np.uint8]
LOGITS_TOLERANCE = {"fp32": 2e-3, "fp16": 1e-1, "int4": 5e-1}
"""How far logits of two ways through a model may be apart, in units of their root mean square where
that is over 1."""

_TOLERANCE = 2e-3
"""Of curves in [0, 1]: those of captions that are all alike stretch rounding most."""
_FRAME_TOLERANCE = 2e-3
"""Of embeddings of unit length, by float16 too: frames of a video are further apart."""
_FEW_TEXTS = 4


def judge_result(
    result: SearchResult, index: VideoIndex, encoder: TextEncoder, config: RetrieverConfig
) -> None:
    """Compute the curves and moments of a search anew, from its rewrites and aware captions.

    Args:
        result: of `MomentRetriever.search` with the scorer ``captions``.
        index: that was searched.
        encoder: of the search.
        config: of the search.

    Raises:
        WrongAnswerError: curves, saliency or moments are others.
    """
    query = result.rewrites or Rewrites(result.query)
    simplified, detailed = query_variants(query, config)
    clips = np.asarray(index.embeddings, np.float32)
    if config.context is not None:
        clips = plain.context(clips, config.context)
    aware = clips.copy()
    for clip, caption in result.aware.items():
        aware[clip] = encoder.encode([caption])[0]
    parts = [
        plain.curves(encoder.encode(list(texts)), against, config.power)
        for texts, against in ((simplified, clips), (detailed, aware))
        if texts
    ]
    error = float(np.abs(np.concatenate(parts) - result.curves).max())
    require(error < _TOLERANCE, f"search: curves {error:.0e} from the plain loop's")
    found = plain.candidates(result.curves, result.saliency, config.proposals)
    best = plain.suppress(found, config.nms_threshold, config.top)
    expected = [(index.seconds(start), index.seconds(end), score) for start, end, score in best]
    got = [(moment.start, moment.end, moment.score) for moment in result.moments]
    require(got == expected, "search: moments are not the plain loop's")


def judge_tokens(
    who: str,
    model: CausalLM,
    asked: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    prefix: Prefix | None = None,
) -> None:
    """Every token of every answer is the likeliest, by a pass over all that comes before it.

    The steps of an answer keep what they have computed; here nothing is kept from one to the next.

    Args:
        who: gave the answers.
        model: that they are of.
        asked: prompts.
        answers: token ids of each.
        prefix: what the prompts begin with.

    Raises:
        WrongAnswerError: a token is not the likeliest, by more than rounding.
    """
    require(len(answers) == len(asked), f"{who}: {len(answers)} answers, not {len(asked)}")
    for step in range(max(map(len, answers))):
        rows = [[*prompt, *answer[:step]] for prompt, answer in zip(asked, answers, strict=True)]
        for row, (logits, answer) in enumerate(
            zip(model.logits(rows, prefix=prefix), answers, strict=True)
        ):
            if step < len(answer):
                off = float(logits.max() - logits[answer[step]]) / _scale(logits)
                require(
                    off <= LOGITS_TOLERANCE[model.manifest.precision],
                    f"{who}: token {step} of answer {row} is not the likeliest by {off:.1e}",
                )


def beginnings(model: CausalLM, asked: Sequence[Sequence[int]]) -> Prefix:
    """All but the last token of prompts of one length, each computed by itself."""
    rows = [model.prefill(prompt[:-1]).unstack(model.device)[0] for prompt in asked]
    return Prefix.stack(rows, model.fingerprint, len(asked[0]) - 1, model.device)


def _scale(logits: npt.NDArray[np.float32]) -> float:
    return max(1.0, float(np.sqrt(np.mean(logits**2))))


def judge_answers(
    who: str,
    captioner: VlmCaptioner,
    images: Images,
    task: str,
    answers: Sequence[Sequence[int]],
) -> None:
    """The same of answers about frames, by prompts that are whole but for their last token.

    Raises:
        WrongAnswerError: as `judge_tokens`.
    """
    ids = _asked(captioner, task)
    prefix = captioner.model.prefill_frames(images, ids[:-1])
    judge_tokens(who, captioner.model, [ids[-1:]] * len(images), answers, prefix=prefix)


def judge_recognition(
    captioner: VlmCaptioner,
    images: Images,
    query: str,
    found: npt.NDArray[np.float32],
) -> None:
    """Shares of yes, (1, frames), are those of whole prompts, nothing of which was kept.

    Raises:
        WrongAnswerError: they are others.
    """
    model, encode = captioner.model, captioner.model.tokenizer.encode
    ids = _asked(captioner, prompts.recognition(query))
    prefix = model.prefill_frames(images, ids[:-1])
    logits = model.logits([ids[-1:]] * len(images), prefix=prefix).astype(np.float64)
    weights = []
    for word in ("yes", "no"):
        encoded = [encode(space + text) for space in ("", " ") for text in (word, word.title())]
        tokens = sorted({ids[0] for ids in encoded if len(ids) == 1})
        weights.append(np.exp(logits[:, tokens] - logits.max(axis=1, keepdims=True)).sum(axis=1))
    expected = weights[0] / (weights[0] + weights[1])
    require(found.shape == (1, len(images)), f"recognition: got shares {found.shape}")
    off = float(np.abs(found[0] - expected).max())
    require(off < LOGITS_TOLERANCE[model.manifest.precision], f"recognition: shares {off:.0e} off")


def _asked(captioner: VlmCaptioner, task: str) -> list[int]:
    """A prompt about a frame, for which a token stands."""
    content = [{"type": "image"}, {"type": "text", "text": task}]
    system = {"role": "system", "content": prompts.VISION_SYSTEM}
    return captioner.model.chat([system, {"role": "user", "content": content}])


class PlainSentences:
    """Embeds sentences with the model in NumPy.

    Args:
        model: in its source's form.
    """

    def __init__(self, model: SentenceModel) -> None:
        self._model = model
        self._bert = Bert.load(model.weights, model.config)

    def judge(self, texts: Sequence[str], rows: npt.NDArray[np.float32]) -> None:
        """Compare the embeddings, in float32, of a few texts from first to last.

        Raises:
            WrongAnswerError: one is another.
        """
        require(len(rows) == len(texts), f"sentences: {len(rows)} embeddings of {len(texts)}")
        few = np.linspace(0, len(texts) - 1, _FEW_TEXTS).astype(int).tolist()
        ids = self._model.tokenise(tuple(texts[i] for i in few))
        expected = self._bert.embed(ids, pooling=self._model.pooling, normalise=True)
        off = float(np.abs(rows[few] - expected).max())
        require(off < 1e-4, f"sentences: embeddings {off:.0e} from the model's in NumPy")


class PlainFrames:
    """Embeds one frame after another by a bare session of ONNX Runtime, on the CPU.

    Args:
        clip: whose preparation of frames is used.
        folder: of its files.
    """

    def __init__(self, clip: FrameEncoder, folder: Path) -> None:
        from onnxruntime import InferenceSession

        self._prepare = clip._prepare
        path = folder / "image.onnx"
        self._session: Any = InferenceSession(path, providers=["CPUExecutionProvider"])

    def judge(self, images: Images, rows: npt.NDArray[np.float32]) -> None:
        """Compare the embedding of every frame.

        Raises:
            WrongAnswerError: one is another.
        """
        require(len(rows) == len(images), f"frames: {len(rows)} embeddings of {len(images)}")
        for number, (image, row) in enumerate(zip(images, rows, strict=True)):
            prepared = self._prepare(image)[None]
            expected = self._session.run(["embeddings"], {"frames": prepared})[0][0]
            off = float(np.abs(row - expected).max())
            require(off < _FRAME_TOLERANCE, f"frames: embedding {number} is {off:.0e} off")
