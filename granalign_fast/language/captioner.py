"""Frames to captions and to probabilities by a vision-language model, with or without a query.

Every prompt begins with the same system message and the frame, or the frames of a clip. The keys
and values of this beginning, the prefix, are cached under the hash of the frames, so that a query
pays only for its own tokens. What is said of a frame here holds for a clip of several as well.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, PromptTooLongError, short_repr
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.models.thoughts import opens_thought, visible_text
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.runtime.array_device import Array
from granalign_fast.types import FrameSet, frame_hash

from . import prompts
from .batching import CPU_PADDED_TOKENS, Form, Place, Question, batches, by_form, recognised
from .prompt_start import PromptStart

CPU_TOKENS = 512
"""Tokens that are prefilled in one batch on a CPU. More make no product faster, and need more
memory for what the layers compute."""

_SUFFIX_TOKENS = 64
"""Tokens of a prompt behind its prefix; few are longer."""


class VlmCaptioner:
    """A `Captioner` and `Recogniser` by a vision-language model.

    Args:
        model: an instruction-tuned one.
        cache: keeps the prefixes of frames; by default 1 GiB of memory.
        rows: frames that are prefilled in one batch, at most. On a CPU it is fewer if their
            prompts would have more than `CPU_TOKENS` tokens.
        batch: prompts that are answered in one batch, at most. Each step of an answer reads the
            whole model once for all of them. On a CPU it is as many as `CausalLM.rows_within` says.
        max_new_tokens: where a caption is cut off.

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
        self._starts: dict[Form, PromptStart] = {}
        self._keys: dict[Form, str] = {}
        self.start = self.start_of().ids
        """The token ids that every prompt about a single frame begins with, the image's among
        them."""

    def start_of(self, form: Form = (1, 0.0)) -> PromptStart:
        """Return the beginning of prompts about clips of a form, by default about single frames.

        Args:
            form: of the clips, as `FrameSet.form` names it.

        Raises:
            GranAlignError: the model takes no clips of that many frames.
        """
        if form not in self._starts:
            self._starts[form] = PromptStart(self.model, *form)
        return self._starts[form]

    def check_clips(self, frames: int) -> None:
        """Raise unless the model takes clips of so many frames.

        Raises:
            GranAlignError: it does not.
        """
        self.model.layout(frames)

    @property
    def fingerprint(self) -> str:
        """The name of the agnostic captions: equal for equal model, prompt and length."""
        prompt = self.start_of().prompt(prompts.AGNOSTIC_CAPTION)
        key = json.dumps([prompt, self.max_new_tokens])
        return f"{self.model.fingerprint}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    @property
    def content_key(self) -> str:
        """The fingerprint, and a hash of the content of the model's files."""
        return f"{self.fingerprint}-{self.model.manifest.content_sha256}"

    def agnostic(self, frames: FrameSet) -> list[str]:
        """Caption each frame without knowing a query.

        Raises:
            GranAlignError: a frame is not one, the model takes no such clips, or its context is too
                short.
        """
        suffix = self.start_of(frames.form).suffix(prompts.agnostic_caption(frames.frames_per_clip))
        return self._captions(frames, [suffix] * len(frames))

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        """Caption each frame, guided by the entities and actions of a query.

        Raises:
            GranAlignError: as in `agnostic`, or there is no focus.
        """
        return self.aware_many([(frames, focus)])[0]

    def aware_many(self, targets: Sequence[tuple[FrameSet, Sequence[str]]]) -> list[list[str]]:
        """Caption several sets of frames, each with its own focus, in batches over all of them.

        Returns:
            For each target what `aware` returns.

        Raises:
            GranAlignError: as in `aware`.
        """
        captions: list[list[str]] = [[] for _ in targets]
        for form, some in by_form([frames for frames, _ in targets]).items():
            found = self._aware_of(form, [targets[number] for number in some])
            for number, texts in zip(some, found, strict=True):
                captions[number] = texts
        return captions

    def _aware_of(
        self, form: Form, targets: Sequence[tuple[FrameSet, Sequence[str]]]
    ) -> list[list[str]]:
        """Caption several sets of clips of one form."""
        # One suffix a frame, those of all targets in one list.
        start, suffixes = self.start_of(form), list[list[int]]()
        for frames, focus in targets:
            suffixes += [start.suffix(prompts.aware_caption(focus, form[0]))] * len(frames)

        all_frames = FrameSet.joined([frames for frames, _ in targets])
        try:
            captions = iter(self._captions(all_frames, suffixes))
        except PromptTooLongError as error:
            focuses = [focus for frames, focus in targets for _ in range(len(frames))]
            focus = focuses[error.prompt]
            raise GranAlignError(
                f"focus {short_repr(list(focus))}: {error.size}; shorten the query"
            ) from None

        # Back to one list a target.
        return [list(itertools.islice(captions, len(frames))) for frames, _ in targets]

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return how likely each frame shows each query, `(queries, frames)` float32, 0 to 1.

        Only the logits of the first token are computed, and no token is decoded. The result is the
        probability of the words for yes over that of the words for yes and no (Li, Gou and Cai,
        arXiv 2608.04480).

        Raises:
            GranAlignError: a frame is not one, a query is empty, not valid text or too long for the
                model's context, or the model has no token for yes or no.
        """
        return self.recognise_many([(frames, queries)])[0]

    def recognise_many(
        self, targets: Sequence[tuple[FrameSet, Sequence[str]]]
    ) -> list[npt.NDArray[np.float32]]:
        """Recognise queries in several sets of frames, in batches over all of them.

        Returns:
            For each target what `recognise` returns.

        Raises:
            GranAlignError: as in `recognise`.
        """
        return recognised(targets, self._ask)

    def _ask(
        self, clips: FrameSet, asked: Sequence[Sequence[Question]]
    ) -> Iterator[tuple[Place, float]]:
        """Yield the place of each answer about clips of one form, and the probability of a yes."""
        start = self.start_of(clips.form)
        suffixes = {
            query: start.suffix(prompts.recognition(query, start.frames))
            for query in dict.fromkeys(question.query for some in asked for question in some)
        }
        lengths = {query: len(suffix) for query, suffix in suffixes.items()}
        yes, no = self.answer_tokens
        _, rows = self._limits(start)
        tokens = CPU_PADDED_TOKENS if self.model.device.index is None else None
        for numbers, prefixes in self._prefix_batches(clips):
            prefix_of = dict(zip(numbers, prefixes, strict=True))
            some = [question for number in numbers for question in asked[number]]
            for batch in batches(some, lengths, rows, tokens):
                prefix = self._stacked([prefix_of[question.clip] for question in batch], start)
                try:
                    logits = self.model.logits(
                        [suffixes[question.query] for question in batch],
                        prefix=prefix,
                        tokens=[*yes, *no],
                    )
                except PromptTooLongError as error:
                    query = batch[error.prompt].query
                    raise GranAlignError(
                        f"query {short_repr(query)}: {error.size}; shorten the query"
                    ) from None
                # A softmax over the tokens for yes and no; the share of yes.
                answers = logits.astype(np.float64)
                shares = np.exp(answers - answers.max(axis=1, keepdims=True))
                shares = shares[:, : len(yes)].sum(axis=1) / shares.sum(axis=1)
                for question, share in zip(batch, shares, strict=True):
                    yield from ((place, share) for place in question.places)

    @property
    def frame_capacity(self) -> int:
        """How many frames' prompt prefixes fit in the cache."""
        size = self.start_of().tokens * self.model.manifest.token_bytes
        frames = [(tier.persistent, tier.limit // size) for tier in self.cache.tiers]
        # A persistent tier holds copies of what the other tiers hold, so the two do not add up.
        persistent = max((count for is_persistent, count in frames if is_persistent), default=0)
        return max(persistent, sum(count for is_persistent, count in frames if not is_persistent))

    def _limits(self, start: PromptStart) -> tuple[int, int]:
        """Return how many clips are prefilled in one batch, and how many prompts are answered."""
        whole = start.tokens + _SUFFIX_TOKENS + self.max_new_tokens
        # The prefixes stay in memory beside the caches of two steps.
        most = self.model.rows_within(whole + start.tokens // 2)
        # As many images as in a batch of single frames: the vision tower takes them all at once.
        rows = max(1, self.rows // start.images)
        if most is None:
            return rows, self.batch
        return min(rows, max(1, CPU_TOKENS // start.tokens)), min(self.batch, most)

    def prefill(self, frames: FrameSet) -> None:
        """Compute and cache the prefixes of frames.

        Raises:
            GranAlignError: as in `agnostic`.
        """
        # Batch by batch, so that prefixes which do not fit in the cache are freed on the way.
        rows, _ = self._limits(self.start_of(frames.form))
        for first in range(0, len(frames), rows):
            self._prefixes(frames, range(first, min(first + rows, len(frames))))

    def answers(
        self, frames: FrameSet, task: str, *, stop_ids: Collection[int] | None = None
    ) -> list[list[int]]:
        """Return the token ids of the answer to a task about each frame.

        Args:
            frames: what the task is about.
            task: the text of the prompt after the frame.
            stop_ids: tokens that end an answer, as in `CausalLM.generate`.

        Raises:
            GranAlignError: as in `agnostic`.
        """
        suffix = self.start_of(frames.form).suffix(task)
        return self._generate(frames, [suffix] * len(frames), stop_ids)

    def _generate(
        self,
        frames: FrameSet,
        suffixes: Sequence[list[int]],
        stop_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Return the token ids that follow each frame's prefix and its suffix.

        Raises:
            PromptTooLongError: a prompt does not fit the context; its number is the frame's.
        """
        answers: list[list[int]] = [[]] * len(frames)
        start = self.start_of(frames.form)
        for numbers, prefixes in self._prefix_batches(frames):
            try:
                batch = self.model.generate(
                    [suffixes[number] for number in numbers],
                    prefix=self._stacked(prefixes, start),
                    max_new_tokens=self.max_new_tokens,
                    stop_ids=stop_ids,
                )
            except PromptTooLongError as error:
                number = numbers[error.prompt]
                raise PromptTooLongError(f"prompt of frame {number}", number, error.size) from None
            for number, ids in zip(numbers, batch, strict=True):
                answers[number] = ids
        return answers

    def _captions(self, frames: FrameSet, suffixes: Sequence[list[int]]) -> list[str]:
        """Generate a caption of each frame, in one line."""
        answers = self._generate(frames, suffixes)
        texts = (visible_text(self.model.decode(ids), opened=self._opened) for ids in answers)
        return [" ".join(text.split()) for text in texts]

    @functools.cached_property
    def _opened(self) -> bool:
        """Whether the template opens a thought, so that an answer begins in the midst of it."""
        prompt = self.start_of().prompt(prompts.AGNOSTIC_CAPTION)
        return opens_thought(self.model.decode(prompt))

    def _prefix_batches(self, frames: FrameSet) -> Iterator[tuple[list[int], list[Array]]]:
        """Yield the numbers of the frames of each batch, and their prefixes."""
        _, size = self._limits(self.start_of(frames.form))
        for first in range(0, len(frames), size):
            numbers = list(range(first, min(first + size, len(frames))))
            yield numbers, self._prefixes(frames, numbers)

    def _stacked(self, prefixes: Sequence[Array], start: PromptStart) -> Prefix:
        """Return prefixes as the rows of one."""
        model = self.model
        return Prefix.stack(prefixes, model.fingerprint, start.next_position, model.device)

    def _prefixes(self, frames: FrameSet, numbers: Sequence[int]) -> list[Array]:
        """Return the prefixes of some frames, from the cache or computed and then cached."""
        start = self.start_of(frames.form)
        keys = [self._cache_key(frames.hashes[number], start) for number in numbers]
        fits = functools.partial(self._fits, start.tokens)
        arrays = {key: self.cache.get(key, fits) for key in dict.fromkeys(keys)}
        # Equal frames have equal keys: they are computed once.
        missing = [key for key, array in arrays.items() if array is None]
        rows, _ = self._limits(start)
        for first in range(0, len(missing), rows):
            batch = missing[first : first + rows]
            images = frames.load([numbers[keys.index(key)] for key in batch])
            if start.frames == 1:
                computed = self.model.prefill_frames(images, start.ids)
            else:
                computed = self.model.prefill_clips(
                    [list(clip) for clip in images], start.ids, seconds=start.seconds
                )
            prefixes = computed.unstack(self.model.device)
            for key, image, array in zip(batch, images, prefixes, strict=True):
                # Kept for the frame that was seen: an index can name a hash of another frame.
                self.cache.put(self._cache_key(frame_hash(image), start), array)
                arrays[key] = array
        return [arrays[key] for key in keys]

    def _fits(self, tokens: int, array: Array) -> bool:
        """Return whether an array has the shape and the type of a prefix of so many tokens."""
        manifest = self.model.manifest
        shape = 2 * manifest.layers, manifest.kv_heads, tokens, manifest.head_dim
        return bool(array.shape == shape and array.dtype == manifest.cache_dtype)

    def _cache_key(self, frame_hash: str, start: PromptStart) -> str:
        return f"{self._prompt_key(start)}-{frame_hash}"

    def _prompt_key(self, start: PromptStart) -> str:
        """Return a hash of everything but the frames that shapes a prefix: model and prompt.

        The hash of the model's files covers its precision and the size of its images.
        """
        if (form := (start.frames, start.seconds)) not in self._keys:
            text = json.dumps([self.model.content_key, start.key()])
            self._keys[form] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self._keys[form]

    @functools.cached_property
    def answer_tokens(self) -> tuple[list[int], list[int]]:
        """The token ids for yes, and those for no, which recognition reads.

        Raises:
            GranAlignError: the tokenizer has no single tokens for them.
        """
        encode = self.model.tokenizer.encode
        yes, no = (
            sorted(set(_single_tokens(map(encode, words)))) for words in (prompts.YES, prompts.NO)
        )
        if not yes or not no or set(yes) & set(no):
            raise GranAlignError(
                "tokenizer: got no tokens of their own for 'yes' and 'no', which recognition "
                "reads; choose another model"
            )
        return yes, no


def _single_tokens(encoded: Iterable[list[int]]) -> Iterator[int]:
    """Yield the token of each text that is a single token."""
    return (ids[0] for ids in encoded if len(ids) == 1)
