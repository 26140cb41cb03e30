"""The arithmetic of image processors: from the bytes of a frame to what a vision tower takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import IMAGE_PROCESSORS

from .language_model import number


class PatchTower(Protocol):
    """A vision tower that takes patches, some of which are merged to one token."""

    @property
    def patch(self) -> int:
        """Edge of a patch in pixels."""

    @property
    def merge(self) -> int:
        """Edge of a token in patches."""

    @property
    def temporal(self) -> int:
        """Frames that a patch spans."""


@dataclass(frozen=True)
class Pixels:
    """The arithmetic from a frame's bytes to pixels: ``(byte * rescale - mean) / std``, by channel.

    `resample` is Pillow's number of the filter that resizes frames before.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    @classmethod
    def read(cls, settings: dict[str, Any], vision: PatchTower, path: Path) -> Pixels:
        """Read the settings of Qwen's image processor; errors name `path`.

        Raises:
            GranAlignError: another processor, or one that does not fit the vision tower.
        """
        # The processor must cut patches of the tower's size.
        edges = {
            "patch_size": (14, vision.patch),
            "merge_size": (2, vision.merge),
            "temporal_patch_size": (2, vision.temporal),
        }
        pixels = cls.of(settings, path, IMAGE_PROCESSORS, (_CLIP_MEAN, _CLIP_STD), resample=3)
        for key, (default, expected) in edges.items():
            if settings.get(key, default) != expected:
                raise GranAlignError(
                    f"{path}: got {key} {settings.get(key, default)!r}, expected {expected}, as "
                    f"config.json says; copy or download the model again"
                )
        return pixels

    @classmethod
    def of(
        cls,
        settings: dict[str, Any],
        path: Path,
        kinds: Sequence[str],
        usual: tuple[list[float], list[float]],
        *,
        resample: int,
    ) -> Pixels:
        """Read the arithmetic of an image processor.

        Args:
            settings: of the processor.
            path: the file that they come from, for messages.
            kinds: names of the processors that have this arithmetic.
            usual: means and standard deviations where the settings leave them out.
            resample: the filter where the settings leave it out.

        Raises:
            GranAlignError: another processor, or a senseless value.
        """
        kind = settings.get("image_processor_type")
        if kind not in kinds:
            raise GranAlignError(
                f"{path}: got the image processor {kind!r}, expected one of {tuple(kinds)}; "
                f"choose a model that uses it"
            )
        # A step that the processor leaves out changes nothing.
        mean: tuple[float, ...] = (0.0,) * 3
        std: tuple[float, ...] = (1.0,) * 3
        rescale = 1.0
        if settings.get("do_normalize", True):
            mean, std = (
                _channels(settings, key, path, default)
                for key, default in zip(("image_mean", "image_std"), usual, strict=True)
            )
        if settings.get("do_rescale", True):
            rescale = number(settings, "rescale_factor", path, default=1 / 255)
        filter = settings.get("resample", resample)
        if filter not in range(6):
            raise GranAlignError(
                f"{path}: got resample {filter!r}, expected a filter of Pillow, 0 to 5"
            )
        if not all(std):
            raise GranAlignError(f"{path}: got image_std {list(std)}, expected no 0 in it")
        return cls(rescale=rescale, mean=mean, std=std, resample=int(filter))


_CLIP_MEAN, _CLIP_STD = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)
"""The processor's means and standard deviations where its settings leave them out."""


def _channels(
    settings: dict[str, Any], key: str, path: Path, default: list[float]
) -> tuple[float, ...]:
    """Return a setting that must be one number for each of three channels."""
    value = settings.get(key, default)
    numbers = value if isinstance(value, list) and len(value) == 3 else ["none"]
    if all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        return tuple(map(float, numbers))
    raise GranAlignError(f"{path}: got {key} {value!r}, expected three numbers")
