"""The vision-language model and the captioner without torch: prefixes, tiers, refused calls."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_vlm import CONFIGS, EOS, IMAGE, PUBLISHED, frames_of, write_unchecked_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models import language_model as generation
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix_cache import DiskTier, MemoryTier, PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.protocols import Captioner, Recogniser
from granalign_fast.types import FrameSet, frame_hash
from granalign_fast.video.images import resize

TEXT = [int(value) for value in np.random.default_rng(3).integers(0, 250, 30)]
PROMPT = [*TEXT[:5], IMAGE, *TEXT[5:]]


@pytest.fixture(params=[False, True], ids=["growing", "static"], autouse=True, scope="module")
def caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run all tests with both kinds of cache, if the export has both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_prefers_static_cache", lambda device: request.param)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unchecked_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def model(folder: Path, caches: None) -> VisionLanguageModel:
    return VisionLanguageModel(folder)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("size", [(28, 28), (84, 140), (224, 112)])
def test_a_suffix_may_begin_at_any_token_behind_the_image(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    model = VisionLanguageModel(write_unchecked_vlm(tmp_path, CONFIGS[name], image_size=size))
    frames = frames_of(3, size)
    expected, tokens = None, None
    for end in (len(PROMPT) - 1, 20, 6):  # 6: right behind the image
        prefix = model.prefill_frames(frames, PROMPT[:end])
        assert prefix.rows == 3
        assert prefix.length == end - 1 + model.manifest.image_tokens
        suffixes = [PROMPT[end:]] * 3
        logits = model.logits(suffixes, prefix=prefix)
        answers = model.generate(suffixes, prefix=prefix, max_new_tokens=20, stop_ids=())
        if expected is None:
            expected, tokens = logits, answers
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        assert answers == tokens
    assert expected is not None and np.ptp(expected, axis=0).max() > 0.1, (
        "frames make no difference"
    )


def test_a_wrong_position_behind_the_image_shows(model: VisionLanguageModel) -> None:
    """The likely mistakes change results: the suffix's cache index, or a position off by one."""
    prefix = model.prefill_frames(frames_of(2), PROMPT[:6])
    suffixes = [PROMPT[6:]] * 2
    right = model.logits(suffixes, prefix=prefix)
    for wrong in (prefix.length, prefix.next_position - 1, prefix.next_position + 1):
        object.__setattr__(prefix, "next_position", wrong)
        assert np.abs(model.logits(suffixes, prefix=prefix) - right).max() > 1e-2


def test_a_frame_does_not_depend_on_the_batch_or_its_size(model: VisionLanguageModel) -> None:
    height, width = model.manifest.image_size
    large = [frame.repeat(2, axis=0).repeat(3, axis=1) for frame in frames_of(4)]
    small = [resize(frame, height, width, model.manifest.resample) for frame in large]
    together = model.logits([TEXT[:3]] * 4, prefix=model.prefill_frames(large, PROMPT[:8]))
    for row, frame in zip(together, small, strict=True):
        alone = model.logits([TEXT[:3]], prefix=model.prefill_frames([frame], PROMPT[:8]))
        np.testing.assert_allclose(row, alone[0], atol=1e-5)


def test_text_alone_is_a_language_model(model: VisionLanguageModel) -> None:
    prefix = model.prefill(TEXT[:9])
    assert prefix.next_position == 9
    whole = model.logits([TEXT])
    np.testing.assert_allclose(model.logits([TEXT[9:]], prefix=prefix), whole, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_other_precisions_stay_near(
    tmp_path: Path, model: VisionLanguageModel, precision: str
) -> None:
    other = VisionLanguageModel(write_unchecked_vlm(tmp_path, precision=precision))
    assert other.fingerprint != model.fingerprint
    assert other.manifest.cache_dtype == (np.float16 if precision == "fp16" else np.float32)
    frames, suffixes = frames_of(2), [PROMPT[6:]] * 2
    near, exact = (
        one.logits(suffixes, prefix=one.prefill_frames(frames, PROMPT[:6]))
        for one in (other, model)
    )
    error = np.sqrt(np.mean((near - exact) ** 2) / np.mean(exact**2))
    assert error < {"fp16": 0.02, "int4": 0.8}[precision]
    # The tower is rounded too: cosines of tokens.
    rows = [one._embed_frames(frames)["image_embeds"] for one in (other, model)]
    rows = [row.astype(np.float32) for row in rows]
    rows = [row / np.linalg.norm(row, axis=-1, keepdims=True) for row in rows]
    cosine = (rows[0] * rows[1]).sum(axis=-1).min()
    assert 0.998 < cosine < {"fp16": 1.001, "int4": 0.99999}[precision]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.prefill_frames([], PROMPT), "frames: got none"),
        (lambda m: m.prefill_frames(frames_of(1)[0], PROMPT), r"pass one frame as frame\[None\]"),
        (lambda m: m.prefill_frames(frames_of(1) / 255, PROMPT), "got float64"),
        (lambda m: m.prefill_frames([frames_of(1)[0, :, :, 0]], PROMPT), r"frames\[0\]: got uint8"),
        (lambda m: m.prefill_frames([np.empty((0, 4, 3), np.uint8)], PROMPT), r"\(0, 4, 3\)"),
        (lambda m: m.prefill_frames(["a.png"], PROMPT), "got str"),
        (lambda m: m.prefill_frames(frames_of(1), TEXT), f"got 0 times the image token {IMAGE}"),
        (lambda m: m.prefill_frames(frames_of(1), PROMPT * 2), "got 2 times the image token"),
        (lambda m: m.prefill_frames(frames_of(1), [IMAGE, 999]), "token id 999"),
        (lambda m: m.prefill_frames(frames_of(1), [IMAGE] + [1] * 500), "at most the context"),
        (
            lambda m: m.logits([[1]] * 3, prefix=m.prefill_frames(frames_of(2), PROMPT)),
            "got 2 rows for 3 prompts",
        ),
    ],
)
def test_bad_calls(
    model: VisionLanguageModel, call: Callable[[VisionLanguageModel], Any], message: str
) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_kind(folder: Path) -> None:
    with pytest.raises(GranAlignError, match="got kind 'vlm', expected 'llm'"):
        CausalLM(folder)


# The captioner


def captioner_of(
    model: VisionLanguageModel, *tiers: Any, rows: int = 16, batch: int = 64
) -> VlmCaptioner:
    """Return a captioner whose answers are single bytes.

    The tiny tokenizer has one token for each byte and none for "yes" or "no".
    """
    cache = PrefixCache(tiers) if tiers else None
    captioner = VlmCaptioner(model, cache=cache, rows=rows, batch=batch, max_new_tokens=12)
    captioner.__dict__["answer_tokens"] = ([7, 9], [11])
    return captioner


def test_captions_equal_those_of_the_whole_prompt(model: VisionLanguageModel) -> None:
    frames = frames_of(5)
    captioner = captioner_of(model)
    assert isinstance(captioner, Captioner) and isinstance(captioner, Recogniser)
    focus = ("a dog", "runs")
    captions_by_prompt = {
        prompts.AGNOSTIC_CAPTION: captioner.agnostic(FrameSet.of(frames)),
        prompts.aware_caption(focus): captioner.aware(FrameSet.of(frames), focus),
    }
    for text, captions in captions_by_prompt.items():
        content = [{"type": "image"}, {"type": "text", "text": text}]
        ids = model.chat(
            [
                {"role": "system", "content": prompts.VISION_SYSTEM},
                {"role": "user", "content": content},
            ]
        )
        prefix = model.prefill_frames(frames, ids[:-1])
        answers = model.generate([ids[-1:]] * 5, prefix=prefix, max_new_tokens=12)
        assert captions == [" ".join(model.decode(answer).split()) for answer in answers]
        assert len(set(captions)) == 5


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (2, 3), (3, 2), (16, 4)])
def test_batches_change_nothing(model: VisionLanguageModel, rows: int, batch: int) -> None:
    frames = FrameSet.of(frames_of(5))
    default, other = captioner_of(model), captioner_of(model, rows=rows, batch=batch)
    assert other.agnostic(frames) == default.agnostic(frames)
    np.testing.assert_allclose(
        other.recognise(frames, ["a", "b"]), default.recognise(frames, ["a", "b"]), atol=1e-6
    )


@pytest.mark.parametrize("batch", [2, 64])
def test_queries_of_one_call_do_not_affect_each_other(
    model: VisionLanguageModel, batch: int
) -> None:
    frames, single = FrameSet.of(frames_of(5)), captioner_of(model)
    queries = [
        (frames.take([0, 3]), ("dog",)),
        (frames.take([]), ("cat",)),
        (frames.take([3, 1, 4]), ("a red car", "drives")),
    ]
    captions = captioner_of(model, batch=batch).aware_many(queries)
    assert captions == [single.aware(part, focus) for part, focus in queries]
    assert list(map(len, captions)) == [2, 0, 3]


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_cached_prefixes_of_every_tier_need_no_frames(
    model: VisionLanguageModel, tmp_path: Path, tier: str
) -> None:
    frames, queries = FrameSet.of(frames_of(4)), ["a dog", "the sea at night"]
    none = MemoryTier(0)
    tiers: list[Any] = {
        "device": [MemoryTier(1 << 20, name="device", move=np.copy), none],
        "host": [MemoryTier(0, name="device"), MemoryTier(1 << 20)],
        "disk": [none, DiskTier(tmp_path, 1 << 20)],
    }[tier]
    captioner = captioner_of(model, *tiers, rows=3)
    captioner.prefill(frames)
    counts = captioner.cache.counts
    assert counts.misses == 4

    def fail(numbers: Any) -> Any:
        raise AssertionError("a frame was decoded although its prefix is cached")

    known = FrameSet(frames.hashes, fail)
    fresh = captioner_of(model)
    assert captioner.aware(known, ["dog"]) == fresh.aware(frames, ["dog"])
    actual, expected = (c.recognise(f, queries) for c, f in ((captioner, known), (fresh, frames)))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert counts.hits[tier] == 8 and counts.misses == 4


def test_a_frame_takes_the_documented_number_of_bytes(model: VisionLanguageModel) -> None:
    captioner = captioner_of(model)
    captioner.prefill(FrameSet.of(frames_of(3)))
    text = PUBLISHED
    start = model.chat([{"role": "system", "content": prompts.VISION_SYSTEM}])
    assert text["num_hidden_layers"] == 3 and len(start) > 10
    tokens = len(captioner.start) - 1 + 15  # a grid of 3 x 5
    each = 2 * 3 * text["num_key_value_heads"] * 16 * tokens * 4  # heads of 16 float32
    assert captioner.cache.nbytes == {"host": 3 * each}
    capacities = [
        captioner_of(model, MemoryTier(host), MemoryTier(more, name="device")).frame_capacity
        for host, more in ((each, 0), (each, each), (each - 1, each), (each - 2, 1))
    ]
    assert capacities == [1, 2, 1, 0]


@pytest.mark.parametrize(("host", "more", "disk"), [(2, 0, 5), (3, 1, 2), (2, 2, 3), (0, 0, 3)])
def test_the_cache_holds_as_many_frames_as_it_promises(
    model: VisionLanguageModel, tmp_path: Path, host: int, more: int, disk: int
) -> None:
    """The disk tier has copies of what memory holds. Capacities are a little over whole frames."""
    captioner, frames = captioner_of(model), frames_of(9)
    captioner.prefill(FrameSet.of(frames[:1]))
    each = captioner.cache.nbytes["host"] + 100
    captioner = captioner_of(
        model,
        MemoryTier(more * each, name="device"),
        MemoryTier(host * each),
        DiskTier(tmp_path, disk * each),
    )
    capacity = captioner.frame_capacity
    assert capacity == max(host + more, disk)
    captioner.prefill(FrameSet.of(frames[:capacity]))
    counts = captioner.cache.counts
    assert counts.misses == capacity
    captioner.prefill(FrameSet.of(frames[:capacity]))
    assert counts.misses == capacity


def test_prefixes_that_the_cache_does_not_keep_are_freed(model: VisionLanguageModel) -> None:
    computed: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Watched(PrefixCache):
        def put(self, key: str, array: Any) -> None:
            computed.append(weakref.ref(array))
            alive.append(sum(one() is not None for one in computed))
            super().put(key, array)

    captioner = VlmCaptioner(model, cache=Watched([MemoryTier(0)]), rows=2)
    captioner.prefill(FrameSet.of(frames_of(8)))
    assert len(alive) == 8 and max(alive) <= 2


def test_equal_frames_are_processed_once(model: VisionLanguageModel) -> None:
    one, other = frames_of(2)
    captioner = captioner_of(model)
    captions = captioner.agnostic(FrameSet.of([one, other, one]))
    assert captions[0] == captions[2] != captions[1]
    assert captioner.cache.counts.misses == 2


def test_recognition_is_the_probability_of_yes(model: VisionLanguageModel) -> None:
    captioner, frames = captioner_of(model), frames_of(3)
    scores = captioner.recognise(FrameSet.of(frames), ["a dog", "a cat"])
    assert scores.shape == (2, 3) and scores.dtype == np.float32
    suffix = captioner.start_of().suffix(prompts.recognition("a cat"))
    logits = model.logits([suffix] * 3, prefix=model.prefill_frames(frames, captioner.start))
    odds = np.exp(logits.astype(np.float64))
    expected = odds[:, [7, 9]].sum(axis=1) / odds[:, [7, 9, 11]].sum(axis=1)
    np.testing.assert_allclose(scores[1], expected, atol=1e-5)
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, f: c.aware(f, []), r"focus: got \[\]"),
        (lambda c, f: c.aware(f, ["dog", " "]), "focus: got"),
        (lambda c, f: c.recognise(f, ["a", ""]), "query: got ''"),
        (
            lambda c, f: c.aware(f, ["dog " * 200]),
            r"focus \['dog .* new ones, .*; shorten the query",
        ),
        (lambda c, f: VlmCaptioner(c.model, rows=0), "rows: got 0"),
        (
            lambda c, f: VlmCaptioner(c.model).recognise(f, ["a"]),
            "no tokens of their own for 'yes'",
        ),
    ],
)
def test_bad_questions(model: VisionLanguageModel, call: Callable[..., Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        call(captioner_of(model), FrameSet.of(frames_of(1)))


def test_a_template_without_images_is_refused(tmp_path: Path) -> None:
    folder = write_unchecked_vlm(tmp_path)
    model = VisionLanguageModel(folder)
    model.chat = lambda messages: [1, 2, 3, len(str(messages))]  # type: ignore[method-assign]
    with pytest.raises(GranAlignError, match="expected its token once"):
        VlmCaptioner(model)


def test_frames_of_a_set() -> None:
    frames = frames_of(4)
    some = FrameSet.of(frames).take([3, 1])
    assert len(some) == 2 and some.hashes == (frame_hash(frames[3]), frame_hash(frames[1]))
    np.testing.assert_array_equal(some.load([1])[0], frames[1])
    calls: list[Sequence[int]] = []

    def load(numbers: Sequence[int]) -> list[Any]:
        calls.append(numbers)
        return [frames[number] for number in numbers]

    joined = FrameSet.joined([some, FrameSet(FrameSet.of(frames).hashes, load)])
    assert joined.hashes[:2] == some.hashes and len(joined) == 6
    for frame, number in zip(joined.load([4, 0, 2]), (2, 3, 0), strict=True):
        np.testing.assert_array_equal(frame, frames[number])
    assert calls == [[2, 0]]
    assert frame_hash(frames[0]) == frame_hash(np.asfortranarray(frames[0]))
    assert frame_hash(frames[0]) != frame_hash(frames[0].reshape(140, 84, 3))


def test_the_end_of_the_turn_ends_a_caption(model: VisionLanguageModel) -> None:
    assert EOS in model.manifest.eos_ids


def test_captioning_needs_no_torch(folder: Path) -> None:
    program = (
        "import sys, numpy as np; from granalign_fast.types import FrameSet;"
        "from granalign_fast.language.captioner import VlmCaptioner;"
        "from granalign_fast.models.vision_language_model import VisionLanguageModel;"
        f"model = VisionLanguageModel({str(folder)!r});"
        "frames = FrameSet.of(np.zeros((1, 84, 140, 3), np.uint8));"
        "VlmCaptioner(model, max_new_tokens=2).aware(frames, ['dog']);"
        "assert not {'torch', 'transformers', 'optimum', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
