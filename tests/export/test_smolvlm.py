"""SmolVLM2 against transformers: greedy tokens, logits, prompts, folders of both versions."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import save_as_version_5
from helpers.python_torchvision import require_torchvision
from helpers.smolvlm_peer import AFTER, STEPS, conversation, load, tasks
from helpers.tiny_llm import PREFIX_ERROR, one_thread
from helpers.tiny_smolvlm import (
    CONFIGS,
    IMAGE,
    frames_of,
    side_of,
    transpose_tokens,
    write_tiny_smolvlm,
)

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks import vision_language_model as checks
from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.export.sources.families import smolvlm
from granalign_fast.export.specs import VLM_PRECISIONS
from granalign_fast.export.vlm import export_vlm
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet
from granalign_fast.video.images import resize

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def peer_of(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a function from the name of a configuration to its folder and transformers' model."""
    root = tmp_path_factory.mktemp("sources")

    @functools.cache
    def get(name: str) -> tuple[Path, Any]:
        folder = write_tiny_smolvlm(root / name, CONFIGS[name])
        return folder, load(folder)

    return get


@pytest.fixture(scope="module")
def exported(
    peer_of: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def get(name: str, precision: str) -> Path:
        source, _ = peer_of(name)
        return export_vlm(source, root / f"{name}-{precision}", precision=precision)

    return lambda name, precision="fp32": get(name, precision)


def pixels_of(source: Path, clip: Any) -> dict[str, Any]:
    """Return the processor's output for the frames of one prompt, which have the tower's size."""
    switches = {"do_resize": False, "do_image_splitting": False}
    return load_image_processor(source)([list(clip)], return_tensors="pt", **switches)


def placeholders(frames: int) -> list[int]:
    """Return the beginning of a prompt: text, and an image token for each frame."""
    return [70, 71, 72, *[IMAGE] * frames, 10]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_forty_greedy_tokens_are_those_of_transformers(
    torch: Any,
    peer_of: Callable[[str], Any],
    exported: Callable[..., Path],
    name: str,
    frames: int,
    static: bool,
) -> None:
    source, peer = peer_of(name)
    ours = VisionLanguageModel(exported(name), static_cache=static)
    side = side_of(CONFIGS[name])
    clips = frames_of(6 * frames, side).reshape(6, frames, side, side, 3)
    start = placeholders(frames)
    prefix = ours.prefill_clips(clips, start)
    got = ours.generate(list(AFTER), prefix=prefix, max_new_tokens=STEPS, stop_ids=())
    whole = ours.layout(frames).expand(start)
    for clip, after, answer in zip(clips, AFTER, got, strict=True):
        ids = torch.tensor([[*whole.ids, *after]])
        with torch.inference_mode():
            expected = peer.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **pixels_of(source, clip),
                max_new_tokens=STEPS,
                do_sample=False,
            )
        assert answer == expected[0, ids.shape[1] :].tolist()
    # One clip alone.
    alone = ours.generate(
        [AFTER[0]], prefix=ours.prefill_clips(clips[:1], start), max_new_tokens=STEPS, stop_ids=()
    )
    assert alone == got[:1]
    assert len({tuple(row) for row in got}) > 3, "answers must differ to mean anything"


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_export_says_how_exact_it_is(
    exported: Callable[..., Path], name: str, precision: str
) -> None:
    manifest = VlmManifest.read(exported(name, precision))
    tolerance, measured = VLM_PRECISIONS[precision], manifest.validation
    assert manifest.comparison.startswith("compared with transformers ")
    assert 0 < measured["image_max_abs_error"] <= tolerance.image.max_error
    assert measured["image_relative_error"] <= tolerance.image.relative
    assert measured["max_abs_error"] <= tolerance.logits.max_error * max(1, measured["logits_rms"])
    assert measured["relative_error"] <= tolerance.logits.relative
    assert measured["prefix_error"] <= PREFIX_ERROR[precision]
    assert measured["rounding_error"] <= tolerance.logits.rounding
    assert manifest.self_check["image_relative_error"] <= tolerance.image.relative
    side = side_of(CONFIGS[name])
    assert manifest.image_size == [side, side] and manifest.resample == 1
    assert manifest.position_axes == 1 and sorted(manifest.layouts) == ["1", "2", "4", "6"]


def transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower is wrong, and the self-check does not look."""
    transpose_tokens(monkeypatch)
    monkeypatch.setattr("granalign_fast.export.vlm.check_vlm", lambda *args, **more: {})


def one_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text behind an image begins one position later."""
    text = checks._text
    monkeypatch.setattr(checks, "_text", lambda start, count: text(start + 1, count))


def no_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that stands for a whole image is left out."""
    around = smolvlm._around
    monkeypatch.setattr(smolvlm, "_around", lambda *args: [around(*args)[0][:1], around(*args)[1]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (transposed, r"vision.onnx: .*patches.onnx: "),
        (one_too_far, r"\): after a prefix: [^;]*; choose"),
        (no_global, "token ids of .* prompts differ from transformers'"),
    ],
)
def test_mistakes_are_found_and_leave_nothing(
    torch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    source = write_tiny_smolvlm(tmp_path / "source", CONFIGS["tied-gqa-2"])
    spoil(monkeypatch)
    with pytest.raises(GranAlignError, match=message) as error:
        export_vlm(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.needs_torchvision
@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_prompts_are_those_of_the_processor(
    peer_of: Callable[[str], Any], exported: Callable[..., Path], name: str, frames: int
) -> None:
    """All ids of the product's prompts, with those of every image."""
    require_torchvision()
    from PIL import Image
    from transformers import AutoProcessor

    source, _ = peer_of(name)
    processor = AutoProcessor.from_pretrained(source)
    ours, side = VisionLanguageModel(exported(name)), side_of(CONFIGS[name])
    images = [Image.fromarray(frame) for frame in frames_of(frames, side)]
    for task in tasks():
        messages = conversation(ours, task, images)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        switches = {"do_image_splitting": False, "do_resize": False}
        expected = processor(text=[text], images=[images], **switches)
        plain = [{"type": "image"}] * frames + [{"type": "text", "text": task}]
        ids = ours.chat([messages[0], {"role": "user", "content": plain}])
        assert ours.layout(frames).expand(ids).ids == list(expected["input_ids"][0])


def test_captions_and_recognition_are_those_of_transformers(
    torch: Any, peer_of: Callable[[str], Any], exported: Callable[..., Path]
) -> None:
    """Through the product: frames of any size in, captions and probabilities out."""
    source, peer = peer_of("untied-gqa-4")
    ours = VisionLanguageModel(exported("untied-gqa-4"))
    captioner = VlmCaptioner(ours, max_new_tokens=STEPS)
    random = np.random.default_rng(3)
    frames = [random.integers(0, 256, (20, 50, 3), np.uint8) for _ in range(3)]
    query = "a man opens a door"
    captions = captioner.agnostic(FrameSet.of(frames))
    probabilities = captioner.recognise(FrameSet.of(frames), [query])[0]
    yes, no = captioner.answer_tokens
    for frame, caption, probability in zip(frames, captions, probabilities, strict=True):
        inputs = pixels_of(source, [resize(frame, 32, 32, 1)])
        for task in (prompts.AGNOSTIC_CAPTION, prompts.recognition(query)):
            ids = ours.layout().expand(ours.chat(prompts.about_frame(task))).ids
            row = torch.tensor([ids])
            with torch.inference_mode():
                if task == prompts.AGNOSTIC_CAPTION:
                    peer.generation_config.eos_token_id = list(ours.manifest.eos_ids)
                    answer = peer.generate(
                        input_ids=row,
                        attention_mask=torch.ones_like(row),
                        **inputs,
                        max_new_tokens=STEPS,
                        do_sample=False,
                    )[0, len(ids) :].tolist()
                    peer.generation_config.eos_token_id = None
                    assert " ".join(ours.decode(answer).split()) == caption
                else:
                    logits = peer(input_ids=row, **inputs).logits[0, -1].double().exp()
                    share = logits[yes].sum() / logits[[*yes, *no]].sum()
                    assert probability == pytest.approx(float(share), abs=1e-5)


@pytest.mark.parametrize("version_5", [False, True])
@pytest.mark.parametrize("name", ["untied-gqa-4", "tied-gqa-2"])
def test_folders_that_transformers_saves(
    torch: Any, peer_of: Callable[[str], Any], tmp_path: Path, name: str, version_5: bool
) -> None:
    """The installed version saves one layout; the other one is made of it."""
    from transformers import AutoTokenizer

    source, peer = peer_of(name)
    saved = tmp_path / "saved"
    peer.save_pretrained(saved)
    AutoTokenizer.from_pretrained(source).save_pretrained(saved)
    load_image_processor(source).save_pretrained(saved)
    for file in ("processor_config.json", "chat_template.json", "generation_config.json"):
        shutil.copyfile(source / file, saved / file)
    if version_5:
        saved = tmp_path / "saved-5"
        shutil.copytree(source, saved)
        save_as_version_5(saved)
    ours = VisionLanguageModel(export_vlm(saved, tmp_path / "out"))
    (frame,) = frames_of(1, side_of(CONFIGS[name]))
    ids = ours.chat(prompts.about_frame("Is it a 犬?"))
    whole = torch.tensor([ours.layout().expand(ids).ids])
    with torch.inference_mode():
        expected = peer(input_ids=whole, **pixels_of(source, [frame])).logits[0, -1].numpy()
    got = ours.logits([ids[-1:]], prefix=ours.prefill_frames(frame[None], ids[:-1]))
    np.testing.assert_allclose(got[0], expected, atol=1e-4, rtol=0)
    # The export is a folder that either version opens.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE
    load_image_processor(tmp_path / "out")


@pytest.mark.parametrize("size", [(36, 64), (120, 96)])
def test_resizing_once_is_close_to_resizing_twice(
    torch: Any, peer_of: Callable[[str], Any], size: tuple[int, int]
) -> None:
    """The processor enlarges a frame before it makes it a square; we resize it once."""
    source, _ = peer_of("untied-gqa-4")
    (frame,) = frames_of(1, 128)
    frame = np.ascontiguousarray(frame[: size[0], : size[1]])
    processor = load_image_processor(source)
    theirs = processor([[frame]], do_image_splitting=False, return_tensors="np")["pixel_values"]
    bytes_of = (theirs[0, 0].transpose(1, 2, 0) * 0.5 + 0.5) * 255
    difference = np.abs(resize(frame, 32, 32, 1) - bytes_of)
    assert difference.mean() < 2.5, "levels of 255"
