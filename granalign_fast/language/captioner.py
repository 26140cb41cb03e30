"""Frames to captions and to scores: what each shows, with or without a query in mind.

Every prompt begins with the same system message and the frame. The keys and values of that
beginning are kept by the frame's hash, so that a query pays only for its own words.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.models.chat import common_start
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.runtime.array_device import Array
from granalign_fast.types import FrameSet

from . import prompts

_YES, _NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")


class VlmCaptioner:
    """A `Captioner` and `Recogniser` by a vision-language model.

    Args:
        model: an instruction-tuned one.
        cache: keeps what the model has made of frames; by default 1 GiB of memory.
        rows: frames that are looked at in one batch.
        batch: prompts about them that are answered in one; each step of an answer reads the whole
            model once for all of them.
        max_new_tokens: at which a caption is cut off.

    Raises:
        GranAlignError: the model's chat template does not put the image once, before the text.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        cache: PrefixCache | None = None,
        rows: int = 16,
        batch: int = 64,
        max_new_tokens: int = 64,
    ) -> None:
        for name, number in (("rows", rows), ("batch", batch)):
            if number < 1:
                raise GranAlignError(f"{name}: got {number}, expected at least 1")
        self.model = model
        self.cache = PrefixCache() if cache is None else cache
        self.rows, self.batch = rows, batch
        self.max_new_tokens = max_new_tokens
        self.start = common_start(self._ask("Describe it."), self._ask("What is it?"))
        """The tokens that every prompt begins with, the image's among them."""
        if self.start.count(model.manifest.image_token) != 1:
            raise GranAlignError(
                "chat template: got no prompt that begins with the image, expected its token "
                "once, before the text; choose a model of the Qwen2.5-VL family"
            )

    @property
    def fingerprint(self) -> str:
        """Names the agnostic captions: equal for equal model, prompt and length."""
        asked = json.dumps([self._ask(prompts.AGNOSTIC_CAPTION), self.max_new_tokens])
        return f"{self.model.fingerprint}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def agnostic(self, frames: FrameSet) -> list[str]:
        """A caption of each frame, no query known.

        Raises:
            GranAlignError: a frame is not one, or the model's context is too short.
        """
        return self._captions(frames, [self._suffix(prompts.AGNOSTIC_CAPTION)] * len(frames))

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        """A caption of each frame, guided by the entities and actions of a query.

        Raises:
            GranAlignError: as `agnostic`, or there is no focus.
        """
        return self.aware_many([(frames, focus)])[0]

    def aware_many(self, asked: Sequence[tuple[FrameSet, Sequence[str]]]) -> list[list[str]]:
        """What `aware` gives for each of these, in batches over all of them.

        Raises:
            GranAlignError: as `aware`.
        """
        suffixes: list[list[int]] = []
        for frames, focus in asked:
            if not focus or not all(text.strip() for text in focus):
                raise GranAlignError(
                    f"focus: got {list(focus)!r}, expected what to look for; give the query itself "
                    f"where nothing is known of it"
                )
            suffixes += [self._suffix(prompts.aware_caption(focus))] * len(frames)
        captions = iter(self._captions(FrameSet.joined([f for f, _ in asked]), suffixes))
        return [list(itertools.islice(captions, len(frames))) for frames, _ in asked]

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """How likely each frame shows each query, (queries, frames), float32, 0 to 1.

        One token is looked at, none decoded: the probability of the words for yes over that of
        the words for yes and no (Zhang et al., arXiv 2608.04480).

        Raises:
            GranAlignError: a frame is not one, a query is empty, the model has no token for yes or
                no, or its context is too short.
        """
        for query in queries:
            if not isinstance(query, str) or not query.strip():
                raise GranAlignError(f"query: got {query!r}, expected a text that is not empty")
        asked = [self._suffix(prompts.recognition(query)) for query in queries]
        yes, no = self._answers
        found = np.empty((len(queries), len(frames)), np.float32)
        for numbers, prefix in self._seen(frames):
            for row, suffix in zip(found, asked, strict=True):
                logits = self.model.logits(
                    [suffix] * len(numbers), prefix=prefix, tokens=[*yes, *no]
                )
                answers = logits.astype(np.float64)
                shares = np.exp(answers - answers.max(axis=1, keepdims=True))
                row[numbers] = shares[:, : len(yes)].sum(axis=1) / shares.sum(axis=1)
        return found

    @property
    def room(self) -> int:
        """Frames of which the cache can hold what every prompt about them begins with."""
        manifest = self.model.manifest
        tokens = len(self.start) - 1 + manifest.image_tokens
        numbers = 2 * manifest.layers * manifest.kv_heads * manifest.head_dim * tokens
        size = numbers * np.dtype(manifest.cache_dtype).itemsize
        frames = [(tier.persistent, tier.limit // size) for tier in self.cache.tiers]
        # A lasting tier holds copies of what the others hold.
        copied = max((count for lasting, count in frames if lasting), default=0)
        return max(copied, sum(count for lasting, count in frames if not lasting))

    def prefill(self, frames: FrameSet) -> None:
        """Compute and keep what every prompt about these frames begins with.

        Raises:
            GranAlignError: as `agnostic`.
        """
        for start in range(0, len(frames), self.rows):  # what the cache does not keep may go
            self._look(frames, range(start, min(start + self.rows, len(frames))))

    def answers(
        self, frames: FrameSet, task: str, *, stop_ids: Collection[int] | None = None
    ) -> list[list[int]]:
        """Token ids of the answer to `task` about each frame; `stop_ids` as for `generate`."""
        return self._answers_to(frames, [self._suffix(task)] * len(frames), stop_ids)

    def _answers_to(
        self,
        frames: FrameSet,
        suffixes: Sequence[list[int]],
        stop_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(frames)
        for numbers, prefix in self._seen(frames):
            batch = self.model.generate(
                [suffixes[number] for number in numbers],
                prefix=prefix,
                max_new_tokens=self.max_new_tokens,
                stop_ids=stop_ids,
            )
            for number, ids in zip(numbers, batch, strict=True):
                found[number] = ids
        return found

    def _captions(self, frames: FrameSet, suffixes: Sequence[list[int]]) -> list[str]:
        answers = self._answers_to(frames, suffixes)
        return [" ".join(self.model.decode(ids).split()) for ids in answers]

    def _seen(self, frames: FrameSet) -> Iterator[tuple[list[int], Prefix]]:
        """The frames' prefixes, a batch at a time."""
        model, position = self.model.fingerprint, self._next_position
        for start in range(0, len(frames), self.batch):
            numbers = list(range(start, min(start + self.batch, len(frames))))
            arrays = self._look(frames, numbers)
            yield numbers, Prefix.stack(arrays, model, position, self.model.device)

    def _look(self, frames: FrameSet, numbers: Sequence[int]) -> list[Array]:
        """The prefixes of some frames; what is not kept is computed and then kept."""
        keys = [self._key(frames.hashes[number]) for number in numbers]
        kept = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, array in kept.items() if array is None]
        for start in range(0, len(missing), self.rows):  # equal frames are looked at once
            some = missing[start : start + self.rows]
            images = frames.load([numbers[keys.index(key)] for key in some])
            computed = self.model.prefill_frames(images, self.start)
            for key, array in zip(some, computed.unstack(self.model.device), strict=True):
                self.cache.put(key, array)
                kept[key] = array
        return [kept[key] for key in keys]

    def _key(self, frame: str) -> str:
        return f"{self._prompt_key}-{frame}"

    @functools.cached_property
    def _prompt_key(self) -> str:
        """Names all that shapes a prefix but the frame: model, precision, image size, prompt."""
        text = json.dumps([self.model.fingerprint, self.start])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def _next_position(self) -> int:
        return self.model.position_after(self.start)

    @functools.cached_property
    def _answers(self) -> tuple[list[int], list[int]]:
        """The tokens that begin a yes, and a no."""
        encode = self.model.tokenizer.encode
        yes, no = (sorted(set(_single(map(encode, words)))) for words in (_YES, _NO))
        if not yes or not no or set(yes) & set(no):
            raise GranAlignError(
                "tokenizer: got no tokens of their own for 'yes' and 'no', which recognition "
                "reads; choose another model"
            )
        return yes, no

    def _ask(self, text: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.model.chat(
            [
                {"role": "system", "content": prompts.VISION_SYSTEM},
                {"role": "user", "content": content},
            ]
        )

    def _suffix(self, text: str) -> list[int]:
        """The tokens of a prompt behind the prefix."""
        return self._ask(text)[len(self.start) :]


def _single(encoded: Iterable[list[int]]) -> Iterator[int]:
    return (ids[0] for ids in encoded if len(ids) == 1)
