"""Exports of vision-language models against transformers: tolerances hold, mistakes are found."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bert import edit_json
from helpers.tiny_llm import PREFIX_ERROR, one_thread, write_tiny_llm
from helpers.tiny_vlm import CONFIGS, EOS, IMAGE_SIZE, PAD, PUBLISHED, frames_of, write_tiny_vlm
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks import vision_language_model as checks
from granalign_fast.export.checks import vlm_reference
from granalign_fast.export.checks.transformers_calls import load_image_processor, pooled
from granalign_fast.export.graphs.decoder import DecoderGraph
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sources.pixels import Pixels
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import VLM_PRECISIONS
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.manifest import VlmManifest

pytestmark = pytest.mark.needs_torch

Exported = Callable[..., Path]

SIZES = [(224, 224), (168, 280), (84, 140), (112, 112), (28, 56)]
"""Image sizes: whole windows, three sizes of window, two, one, and less than one window."""


def wrong(model: VlmSource, **values: Any) -> None:
    for part, value in values.items():
        object.__setattr__(model, part, value)


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def exported(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that exports a model once for all tests, to a folder beside its source."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def get(name: str, precision: str, size: tuple[int, int] = IMAGE_SIZE) -> Path:
        if not (root / name).exists():
            write_tiny_vlm(root / name, CONFIGS[name])
        out = root / f"{name}-{precision}-{size[0]}"
        return export_vlm(root / name, out, precision=precision, image_size=size)

    return get


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_frames_are_those_of_transformers(
    torch: Any, exported: Exported, name: str, size: tuple[int, int]
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    out = exported(name, "fp32", size)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out.parent / name).eval()
    processor = load_image_processor(out)
    count = 6
    frames = frames_of(count, size)
    images = processor(images=list(frames), do_resize=False, return_tensors="pt")
    with torch.inference_mode():
        expected = pooled(model.model.visual(images["pixel_values"], images["image_grid_thw"]))
    expected = expected.numpy().reshape(count, -1, expected.shape[-1])
    patches = images["pixel_values"].numpy().reshape(count, -1, 1176)
    by_frames, by_patches = open_session(out / "vision.onnx"), open_session(out / "patches.onnx")
    for batch in (slice(0, 6), slice(4, 5)):
        for got in (by_frames(frames=frames[batch]), by_patches(pixel_values=patches[batch])):
            np.testing.assert_allclose(got["image_embeds"], expected[batch], atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_export_says_how_exact_it_is(exported: Exported, name: str, precision: str) -> None:
    manifest = VlmManifest.read(exported(name, precision, (84, 140)))
    tolerance, measured = VLM_PRECISIONS[precision], manifest.validation
    logits, image = tolerance.logits, tolerance.image
    assert 0 < measured["image_max_abs_error"] <= image.max_error
    assert measured["image_relative_error"] <= image.relative
    assert measured["max_abs_error"] <= logits.max_error * max(1, measured["logits_rms"])
    assert measured["relative_error"] <= logits.relative
    assert measured["prefix_error"] <= PREFIX_ERROR[precision]
    assert measured["rounding_error"] <= logits.rounding
    assert "torch" in manifest.tools
    assert manifest.comparison == f"compared with transformers {manifest.tools['transformers']}"
    assert manifest.self_check["image_relative_error"] <= image.relative


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "Qwen2VLImageProcessorFast", "rescale_factor": 1 / 127.5},
        {"do_normalize": False, "image_mean": None, "resample": 2},
        {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]},
    ],
)
def test_other_arithmetic_of_pixels(torch: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    source = write_tiny_vlm(tmp_path / "source")
    edit_json(source / "preprocessor_config.json", **changes)
    out = export_vlm(source, tmp_path / "out", image_size=(56, 84))
    assert VlmManifest.read(out).resample == changes.get("resample", 3)


LOGITS = "padded: .*after a prefix: .*static: .*a static step: "
MISTAKES: list[tuple[str, Callable[[VlmSource], None], str]] = [
    ("decoder", lambda m: wrong(m.shape, epsilon=1e-1), LOGITS),
    ("sections", lambda m: wrong(m, sections=(0, 4, 4)), LOGITS),
    ("windows", lambda m: wrong(m.vision, full_layers=frozenset()), "vision.onnx: .*patches.onnx:"),
    (
        "mean",
        lambda m: wrong(m, pixels=Pixels(1 / 255, (0.49, 0.46, 0.41), m.pixels.std, 3)),
        "vision.onnx: ",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in MISTAKES])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_a_wrong_graph_is_found_and_leaves_nothing(
    torch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[VlmSource], None],
    message: str,
    precision: str,
) -> None:
    """The reference reads the source itself; the graphs are written from misread settings."""
    source = write_tiny_vlm(tmp_path / "source")
    run = vlm_reference.run_vlm_source

    def then_misread(model: VlmSource, precision: str) -> Any:
        expected = run(model, precision)
        spoil(model)
        return expected

    monkeypatch.setattr(vlm_reference, "run_vlm_source", then_misread)
    with pytest.raises(GranAlignError, match=message) as error:
        export_vlm(source, tmp_path / "out", precision=precision, image_size=IMAGE_SIZE)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
def test_text_after_a_frame_goes_on_at_its_longer_side(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The comparison after a prefix fails if text positions are off by one."""
    text = checks._text
    monkeypatch.setattr(checks, "_text", lambda start, count: text(start + 1, count))
    with pytest.raises(GranAlignError, match=r"\): after a prefix: [^;]*; choose"):
        export_vlm(write_tiny_vlm(tmp_path / "source"), tmp_path / "out", precision=precision)


def test_shards_of_bfloat16_as_transformers_saves_them(
    torch: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    source = write_tiny_vlm(tmp_path / "source")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "shards" / name).write_bytes((source / name).read_bytes())
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    saved = json.loads((tmp_path / "shards" / "config.json").read_text())
    assert saved["text_config"]["hidden_size"] == 64, "both layouts at once"
    steps: list[str] = []
    capfd.readouterr()
    out = export_vlm(tmp_path / "shards", tmp_path / "out", progress=steps.append)
    assert len(steps) == 5
    assert capfd.readouterr() == ("", ""), "warnings and progress bars are not for the user"
    manifest = VlmManifest.read(out)
    assert manifest.image_size == [336, 560] and manifest.layout().runs[0].grid == (1, 12, 20)
    assert manifest.eos_ids == [EOS, PAD]


def test_weights_that_transformers_would_make_up(torch: Any, tmp_path: Path) -> None:
    source = write_tiny_vlm(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.bias"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(GranAlignError, match=r"no tensor 'model.layers.1.self_attn.q_proj.bias'"):
        export_vlm(source, tmp_path / "out", image_size=IMAGE_SIZE)
    edit_json(source / "config.json", intermediate_size=PUBLISHED["intermediate_size"] + 4)
    with pytest.raises(GranAlignError, match=r"got .*mlp.gate_proj.weight of shape "):
        export_vlm(source, tmp_path / "out", image_size=IMAGE_SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("operator", ["TensorScatter", "Attention"])
def test_a_static_graph_without_write_indices_or_lengths(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    """Only the static graph is wrong: it writes at the beginning, or reads the whole capacity."""
    add = DecoderGraph._add

    def without_last(
        self: Any, kind: str, inputs: list[str], outputs: list[str], **more: Any
    ) -> None:
        dropped = {"TensorScatter": "write_indices", "Attention": "cached_tokens"}[operator]
        if kind == operator and inputs[-1] == dropped:
            inputs = inputs[:-1]
        add(self, kind, inputs, outputs, **more)

    monkeypatch.setattr(DecoderGraph, "_add", without_last)
    llm, vlm = write_tiny_llm(tmp_path / "llm"), write_tiny_vlm(tmp_path / "vlm")
    # The self-check finds it. So does the comparison with transformers, without the self-check.
    with pytest.raises(GranAlignError, match="a static step: "):
        export_llm(llm, tmp_path / "out", check=False)
    with pytest.raises(GranAlignError, match="a static step: "):
        export_vlm(vlm, tmp_path / "out", image_size=IMAGE_SIZE, check=False)
    for check in ("llm.check_decoder", "vlm.check_vlm"):
        monkeypatch.setattr(f"granalign_fast.export.{check}", lambda *args, **more: {})
    with pytest.raises(GranAlignError, match=r"rounding=0.0\): static: .*a static step: "):
        export_llm(llm, tmp_path / "out")
    with pytest.raises(GranAlignError, match=r": static: .*a static step: "):
        export_vlm(vlm, tmp_path / "out", image_size=IMAGE_SIZE)
