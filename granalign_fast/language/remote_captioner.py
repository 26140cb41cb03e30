"""Frames to captions and to probabilities by a vision-language model on a chat server.

Every prompt begins with the same system message and the frame, and what is asked about it comes
last: a server that keeps prefixes computes those of a frame once. A clip of several frames is sent
as so many pictures.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, counted
from granalign_fast.models.remote.chat import ChatServer, TokenOdds
from granalign_fast.models.remote.server import REFUSALS, RemoteError
from granalign_fast.models.thoughts import visible_text
from granalign_fast.types import FrameSet, Image

from . import prompts
from .batching import Place, Question, by_form, recognised

_log = logging.getLogger(__name__)

ROWS = 16
"""Frames that are decoded at a time, and whose requests are made together at least."""
SIDE = 768
"""Pixels of the longer side of a frame that is sent. Larger frames are made smaller: a model of the
Qwen2.5-VL family makes some 430 tokens of 768 x 432 pixels."""
_QUALITY = 90
"""JPEG's quality of a frame that is sent."""
_SPACES = " \u2581\u0120\u010a\n\t"
"""The spaces that tokenizers write before a word, in all of their spellings."""


class RemoteCaptioner:
    """A `Captioner` with the prompts of `VlmCaptioner`, by a model on a server.

    Args:
        chat: an instruction-tuned vision-language model.
        max_new_tokens: where a caption is cut off.
        lossless: send frames as PNG in their own size. By default they are JPEG, with no side over
            `SIDE`.
    """

    def __init__(
        self, chat: ChatServer, *, max_new_tokens: int = 64, lossless: bool = False
    ) -> None:
        self.chat = chat
        self.max_new_tokens = max_new_tokens
        self.lossless = lossless

    @property
    def fingerprint(self) -> str:
        """The name of the agnostic captions: equal for equal server, model, prompt and pictures."""
        picture = "png" if self.lossless else f"jpeg {_QUALITY} {SIDE}"
        prompt = prompts.about_frame(prompts.AGNOSTIC_CAPTION)
        key = json.dumps([prompt, self.max_new_tokens, picture])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return f"{self.chat.identity[:16]}-remote-{digest} {self.chat.name}"

    @property
    def content_key(self) -> str:
        """The fingerprint: a server does not say what its files are."""
        return self.fingerprint

    def check_clips(self, frames: int) -> None:
        """Accept clips of any number of frames: a server says so itself if it takes too few."""

    def agnostic(self, frames: FrameSet) -> list[str]:
        """Caption each frame without knowing a query.

        Raises:
            GranAlignError: a frame cannot be read, or the server fails.
        """
        task = prompts.agnostic_caption(frames.frames_per_clip)
        return self._captions(frames, [task] * len(frames))

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        """Caption each frame, guided by the entities and actions of a query.

        Raises:
            GranAlignError: as in `agnostic`, or there is no focus.
        """
        return self.aware_many([(frames, focus)])[0]

    def aware_many(self, targets: Sequence[tuple[FrameSet, Sequence[str]]]) -> list[list[str]]:
        """Caption several sets of frames, each with its own focus.

        Returns:
            For each target what `aware` returns.

        Raises:
            GranAlignError: as in `aware`.
        """
        # Targets of one form share their requests; clips of other forms are other prompts.
        captions: list[list[str]] = [[] for _ in targets]
        for form, some in by_form([frames for frames, _ in targets]).items():
            tasks = [
                task
                for frames, focus in (targets[n] for n in some)
                for task in [prompts.aware_caption(focus, form[0])] * len(frames)
            ]
            joined = FrameSet.joined([targets[n][0] for n in some])
            texts = iter(self._captions(joined, tasks))
            for n in some:
                captions[n] = list(itertools.islice(texts, len(targets[n][0])))
        return captions

    def _captions(self, frames: FrameSet, tasks: Sequence[str]) -> list[str]:
        """Return the answer to a task about each frame, in one line."""
        captions = []
        for numbers, pictures in self._pictures(frames):
            chats = [
                about_pictures(seen, tasks[number])
                for number, seen in zip(numbers, pictures, strict=True)
            ]
            answers = self.chat.answers(chats, self.max_new_tokens)
            captions += [" ".join(visible_text(answer.text).split()) for answer in answers]
        return captions

    def _pictures(self, frames: FrameSet) -> Iterator[tuple[range, list[list[str]]]]:
        """Yield the numbers of some clips, and the pictures of each as data URLs.

        They are as many as there are requests at a time. Decoded frames are much larger than
        pictures, so that fewer of them are in memory.
        """
        decoded = max(1, ROWS // frames.frames_per_clip)
        rows = max(decoded, self.chat.server.requests)
        for start in range(0, len(frames), rows):
            numbers = range(start, min(start + rows, len(frames)))
            parts = (numbers[first : first + decoded] for first in range(0, len(numbers), decoded))
            yield numbers, [urls for part in parts for urls in self._urls(frames, part)]

    def _urls(self, frames: FrameSet, numbers: range) -> list[list[str]]:
        """Return the pictures of some clips as data URLs."""
        clips = [image if image.ndim == 4 else image[None] for image in frames.load(numbers)]
        return [[data_url(image, lossless=self.lossless) for image in clip] for clip in clips]


class RemoteRecogniser(RemoteCaptioner):
    """A `RemoteCaptioner` whose server gives log probabilities, so that it can recognise."""

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return how likely each frame shows each query, `(queries, frames)` float32, 0 to 1.

        It is the probability of the words for yes over that of the words for yes and no (Li, Gou
        and Cai, arXiv 2608.04480), from the likeliest first tokens; see `share_of_yes`. Where
        neither is among them, nothing is known, and the result is 0.5.

        Raises:
            GranAlignError: a frame cannot be read, a query is empty or not valid text, the server
                fails, or it gives no log probabilities.
        """
        return self.recognise_many([(frames, queries)])[0]

    def recognise_many(
        self, targets: Sequence[tuple[FrameSet, Sequence[str]]]
    ) -> list[npt.NDArray[np.float32]]:
        """Recognise queries in several sets of frames, with requests for all of them together.

        Returns:
            For each target what `recognise` returns.

        Raises:
            GranAlignError: as in `recognise`.
        """
        found = recognised(targets, self._ask)
        if unknown := sum(int(np.isnan(shares).sum()) for shares in found):
            _log.warning(
                "%s: %s of %d have neither yes nor no among the likeliest first tokens and count "
                "as 0.5; choose an instruction-tuned model without thinking",
                self.chat.name,
                counted(unknown, "answer"),
                sum(shares.size for shares in found),
            )
        return [np.nan_to_num(shares, nan=0.5) for shares in found]

    def _ask(
        self, clips: FrameSet, asked: Sequence[Sequence[Question]]
    ) -> Iterator[tuple[Place, float]]:
        """Yield the place of each answer, and the probability of a yes; NaN if it is unknown."""
        for numbers, pictures in self._pictures(clips):
            # All questions about a frame in a row, so that the server still has its prefix.
            some = [question for number in numbers for question in asked[number]]
            chats = [
                about_pictures(
                    pictures[question.clip - numbers.start],
                    prompts.recognition(question.query, clips.frames_per_clip),
                )
                for question in some
            ]
            for question, odds in zip(some, self.chat.first_tokens(chats), strict=True):
                if not odds:
                    raise GranAlignError(no_odds(self.chat))
                share = share_of_yes(odds)
                share = math.nan if share is None else share
                yield from ((place, share) for place in question.places)


def open_captioner(chat: ChatServer) -> RemoteCaptioner:
    """Ask a server about a small picture, and return what it can do.

    Returns:
        A `RemoteRecogniser`, or a `RemoteCaptioner` if the server gives no log probabilities.

    Raises:
        GranAlignError: the server fails, or takes no pictures.
    """
    grey = np.full((64, 64, 3), 128, np.uint8)
    question = about_pictures([data_url(grey, lossless=True)], prompts.recognition("a grey square"))
    try:
        (odds,) = chat.first_tokens([question])
    except RemoteError as error:
        if error.status not in REFUSALS:
            raise
        chat.answers([question], 1)  # it may refuse the log probabilities, and not the picture
        odds = []
    return RemoteRecogniser(chat) if odds else RemoteCaptioner(chat)


def no_odds(chat: ChatServer) -> str:
    """Return the error of a server without log probabilities."""
    return (
        f"{chat.server.address.url}: got an answer without log probabilities, expected those of "
        f"the first token, which recognition reads; serve the model with vLLM, SGLang or "
        f"llama.cpp, or take another preset"
    )


def about_pictures(pictures: Sequence[str], task: str) -> list[dict[str, Any]]:
    """Return the messages of a task about a frame or a clip, in OpenAI's form.

    Args:
        pictures: the URLs of the frames, in order.
        task: what is asked; it comes last.
    """
    system, user = prompts.about_clip(task, len(pictures), "images")
    seen = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [system, user | {"content": [*seen, user["content"][-1]]}]


def data_url(image: Image, *, lossless: bool) -> str:
    """Return a frame as a data URL.

    Args:
        image: uint8 RGB (height, width, 3).
        lossless: PNG in the frame's own size; otherwise JPEG with no side over `SIDE`.
    """
    from PIL import Image as pillow

    picture, file = pillow.fromarray(image), io.BytesIO()
    if lossless:
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.thumbnail((SIDE, SIDE), pillow.Resampling.BICUBIC)
        picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{content}"


def share_of_yes(odds: Sequence[TokenOdds]) -> float | None:
    """Return the probability of yes over that of yes and no; None if neither is listed.

    The variants of a word are summed. A word that is not listed is not impossible: it is at most
    as likely as the last token of the list, and as all that are not listed together. It counts as
    that much.

    Args:
        odds: the likeliest first tokens.

    >>> share_of_yes([TokenOdds("Yes", 0.6), TokenOdds(" yes", 0.1), TokenOdds("No", 0.3)])
    0.7
    >>> share_of_yes([TokenOdds("Yes", 0.75), TokenOdds("It", 0.25)])
    1.0
    """
    yes, no = (
        sum(one.probability for one in odds if one.token.strip(_SPACES) in words)
        for words in (prompts.YES, prompts.NO)
    )
    if not yes and not no:
        return None
    least = min(one.probability for one in odds)
    bound = min(least, max(0.0, 1 - sum(one.probability for one in odds)))
    share = (yes or bound) / ((yes or bound) + (no or bound))
    return round(share, 9)
