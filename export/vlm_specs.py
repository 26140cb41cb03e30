"""Facts about exports of vision-language models as data: names, sizes and tolerances.

What the decoder has in common with a language model's is in `llm_specs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .llm_specs import LLM_PRECISIONS, LlmTolerance

ARCHITECTURES = {"Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl"}
"""What can be exported, and the `model_type` that goes with it."""

IMAGE_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast")
"""Image processors whose arithmetic `vision.onnx` has inside. The fast one resizes differently; a
frame comes here resized already."""


CHAT_TEMPLATE = "chat_template.json"
"""Where older folders keep the template of their processor, beside the tokenizer's files."""
PREPROCESSOR = "preprocessor_config.json"
"""The settings of the image processor."""

IMAGE_SIZE = (336, 560)
"""Height and width of frames unless others are asked for: 12 x 20 tokens, near 16:9, and whole
windows of 112 pixels, so that windowed attention is one batch."""

VISION_EPSILON = 1e-6
"""Of every norm in the vision tower; the source has it in its code, not in its settings."""
VISION_THETA = 10000.0
"""The base of the vision tower's rotary positions, likewise."""


@dataclass(frozen=True)
class VlmTolerance:
    """How far an export may be from its source: embeddings of frames, and logits after them.

    Both in units of the values' root mean square where that is over 1, as `LlmTolerance` says.
    """

    image: LlmTolerance
    logits: LlmTolerance


VLM_PRECISIONS = {
    # Sums in another order: 5e-6 and 1e-6 measured of frames, 5e-5 and 6e-6 of logits.
    "fp32": VlmTolerance(LlmTolerance(1e-4, 1e-4), LLM_PRECISIONS["fp32"]),
    # 11 bits of mantissa: 0.003 and 0.001 measured of frames, 0.042 and 0.005 of logits.
    "fp16": VlmTolerance(LlmTolerance(0.05, 0.02), LLM_PRECISIONS["fp16"]),
    # Frames as in fp32; 0.47 and 0.04 measured of logits, for 0.3 to 0.6 that rounding costs.
    "int4": VlmTolerance(LlmTolerance(1e-4, 1e-4), LLM_PRECISIONS["int4"]),
}
"""As `LLM_PRECISIONS`; the vision tower is float16 in fp16 alone, float32 otherwise."""

VISION_ENGINES = {
    "fp32": VLM_PRECISIONS["fp32"].image,
    "fp16": VLM_PRECISIONS["fp16"].image,
    "bf16": LlmTolerance(0.4, 0.16),  # three bits fewer than fp16: eight times as far
}
"""How far the vision tower's TensorRT engine may be from the ONNX that it was built from."""
