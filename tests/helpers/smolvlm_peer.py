"""How transformers runs a tiny SmolVLM2, and the conversations that it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from granalign_fast.export.checks.prompts import _QUERIES
from granalign_fast.export.checks.vlm_peers import correct_positions
from granalign_fast.language import prompts
from granalign_fast.models.vision_language_model import VisionLanguageModel

STEPS = 40
AFTER = ((3, 9), (12,), (7, 7, 100, 5), (40, 41, 42), (11, 12), (70, 71, 72, 73, 74, 75, 76))
"""Texts behind an image: ragged rows of a batch."""


def load(folder: Path) -> Any:
    """Return transformers' model of a folder, with the positions that it should have."""
    import transformers

    model = transformers.SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
    if transformers.__version__ < "5":
        correct_positions(model.model.vision_model)
    model.generation_config.eos_token_id = None  # every answer has all steps
    model.generation_config.pad_token_id = 0
    return model


def tasks() -> list[str]:
    """Return the tasks that the product asks about a frame."""
    asked = [prompts.AGNOSTIC_CAPTION]
    for query in _QUERIES:
        asked += [prompts.aware_caption([query, "a dog"]), prompts.recognition(query)]
    return asked


def conversation(ours: VisionLanguageModel, task: str, images: Sequence[Any]) -> list[Any]:
    """Return the messages of a task, shaped for the template, with the frames themselves."""
    system, user = prompts.about_frame(task)
    parts = [{"type": "image", "image": image} for image in images]
    shaped, _ = ours.tokenizer.template.arguments([system, user | {"content": [*user["content"]]}])
    return [shaped[0], user | {"content": [*parts, user["content"][-1]]}]
