"""What the families with positions on three axes (M-RoPE) share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError


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
