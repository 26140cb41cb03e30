"""What the families with positions on three axes (M-RoPE) share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.language_model import positive


def rotary_sections(text: dict[str, Any], path: Path) -> tuple[int, ...]:
    """Return the three rotary sections of ``rope_scaling``; errors name `path`."""
    scaling = text.get("rope_scaling")
    if isinstance(scaling, dict):
        kinds = {scaling.get(key, "default") for key in ("type", "rope_type")}
        sections: Any = scaling.get("mrope_section")
        known = kinds <= {"mrope", "default"} and isinstance(sections, list)
        if known and [type(pairs) for pairs in sections] == [int] * 3 and min(sections) >= 0:
            return tuple(sections)
    raise GranAlignError(
        f"{path}: got rope_scaling {scaling!r}, expected type 'mrope' or 'default' with an "
        f"mrope_section of three numbers; choose a model with it"
    )


def tower_size(config: dict[str, Any], path: Path) -> tuple[int, int, int]:
    """Return layers, values of a patch and heads of a ``vision_config``; errors name `path`."""
    layers = positive(config, "depth", path)
    hidden = positive(config, "hidden_size", path)
    heads = positive(config, "num_heads", path)
    # Rotary positions need quarters of a head.
    if hidden % heads or hidden // heads % 4:
        raise GranAlignError(
            f"{path}: got {heads} heads of {hidden} values in vision_config, expected heads of "
            f"equal size, a multiple of 4"
        )
    return layers, hidden, heads
