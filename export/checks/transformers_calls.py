"""Calls of transformers that differ between versions 4.57 and 5.

Version 5 returns objects where version 4.57 returned tensors, and a Qwen2.5-VL takes an image for
text unless it is told which tokens belong to one.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any


def pooled(output: Any) -> Any:
    """Return the embeddings that a tower computed: a tensor, or version 5's object around it."""
    return getattr(output, "pooler_output", output)


def load_image_processor(folder: Path, **options: Any) -> Any:
    """Load a folder's image processor in the variant that resizes with Pillow, as ours does."""
    import transformers

    newer = hasattr(transformers, "CLIPImageProcessorPil")
    pillow: dict[str, Any] = {"backend": "pil"} if newer else {"use_fast": False}
    return transformers.AutoImageProcessor.from_pretrained(folder, **pillow, **options)


def processor_name(processor: Any) -> str:
    """Return the name of an image processor's class without the library that it resizes with."""
    return type(processor).__name__.removesuffix("Pil")


def grid_times(model: Any, seconds: list[float]) -> dict[str, Any]:
    """Return the further input with the seconds of each video's grids, for models that take it."""
    if "second_per_grid_ts" not in inspect.signature(model.forward).parameters:
        return {}
    import torch

    return {"second_per_grid_ts": torch.tensor(seconds)}


def image_tokens(model: Any, ids: Any) -> dict[str, Any]:
    """Return the further input that says which of the tokens `ids` belong to an image or a video.

    Version 5 needs it: without it, it places images as if they were text, and says nothing.
    """
    if "mm_token_type_ids" not in inspect.signature(model.forward).parameters:
        return {}
    images = ids == model.config.image_token_id
    videos = ids == getattr(model.config, "video_token_id", -1)  # not every family has one
    return {"mm_token_type_ids": images.int() + 2 * videos.int()}
